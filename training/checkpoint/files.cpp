#include "training/checkpoint/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "autograd/check.h"

namespace weft {
namespace {

[[noreturn]] void fail(const char* action, const std::string& path, int error = errno) {
  const char* advice = error == ENOSPC || error == EDQUOT  ? "free space on that disk"
                       : error == EFBIG                    ? "raise the file size limit (ulimit -f)"
                       : error == EACCES || error == EROFS ? "choose a folder that can be written"
                                                           : "";
  throw Error(Exit::io, text("cannot ", action, ": ", std::strerror(error)), path, advice);
}

int open_retrying(const std::string& path, int flags) {
  for (;;) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
    if (fd >= 0 || errno != EINTR) return fd;
  }
}

std::string parent_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent;
}

}  // namespace

File File::open_read(const std::string& path) {
  const int fd = open_retrying(path, O_RDONLY | O_NONBLOCK);  // a pipe that nobody writes to would wait
  if (fd < 0)
    throw Error(Exit::data, text("cannot open: ", std::strerror(errno)), path,
                "name a file that exists and can be read");
  File file(fd, path);
  struct stat info {};
  if (::fstat(fd, &info) == 0 && S_ISDIR(info.st_mode))
    throw Error(Exit::data, "cannot open: it is a folder", path, "name a file");
  if (!S_ISREG(info.st_mode))  // a device may never end, and a pipe cannot be read twice
    throw Error(Exit::data, "cannot open: not a regular file", path, "save what it gives in a file");
  return file;
}

File File::create(const std::string& path) {
  const int fd = open_retrying(path, O_RDWR | O_CREAT | O_EXCL);
  if (fd < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO)) fail("create", path);
  if (fd < 0)
    throw Error(Exit::cannot_create, text("cannot create: ", std::strerror(errno)), path,
                "choose a folder that exists and can be written");
  return File(fd, path);
}

File::File(File&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

size_t File::read_some(void* out, size_t bytes, size_t offset) const {
  for (;;) {
    const ssize_t got = ::pread(fd_, out, bytes, static_cast<off_t>(offset));
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) fail("read", path_);
  }
}

void File::read(void* out, size_t bytes, size_t offset) const {
  for (size_t done = 0; done < bytes;) {
    const size_t got = read_some(static_cast<std::byte*>(out) + done, bytes - done, offset + done);
    if (got == 0)
      throw Error(Exit::data, text("ends at byte ", offset + done, ", inside the data"), path_, "");
    done += got;
  }
}

void File::write(const void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t put = ::write(fd_, static_cast<const std::byte*>(data) + done, bytes - done);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("write", path_);
    if (put == 0) fail("write", path_, ENOSPC);
    done += static_cast<size_t>(put);
  }
}

void File::sync() const {
  while (::fsync(fd_) != 0)
    if (errno != EINTR) fail("sync to disk", path_);
}

void File::drop_cache() const { ::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }

int64_t File::size() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) fail("examine", path_);
  return info.st_size;
}

void File::close() {
  // Network file systems report delayed write errors here. The descriptor is gone whatever close returns.
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail("close", path_);
}

namespace {

std::string replaceable(std::string path) {
  if (path.empty()) throw Error(Exit::cannot_create, "cannot create: the name is empty", "", "name a file");
  std::error_code absent;
  const auto there = std::filesystem::status(path, absent);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there))
    throw Error(Exit::cannot_create,
                std::filesystem::is_directory(there) ? "cannot create: a folder has this name"
                                                     : "cannot create: a device or pipe has this name",
                path, "choose another name");
  return path;
}

}  // namespace

AtomicFile::AtomicFile(std::string path)
    : path_(replaceable(std::move(path))),
      temporary_(text(path_, ".tmp-", ::getpid())),
      file_((::unlink(temporary_.c_str()), File::create(temporary_))) {}

AtomicFile::~AtomicFile() {
  if (!committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::commit() {
  file_.sync();
  file_.close();
  rename_path(temporary_, path_);
  committed_ = true;
  sync_folder(parent_of(path_));
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content.data(), content.size());
  file.commit();
}

std::string read_text_file(const std::string& path, size_t limit) {
  const File file = File::open_read(path);
  const auto size = static_cast<size_t>(file.size());
  if (size > limit)
    throw Error(Exit::data, text("has ", size, " bytes, at most ", limit, " make sense"), path, "");
  std::string content(size, '\0');
  file.read(content.data(), size, 0);
  return content;
}

MappedFile::MappedFile(const std::string& path) {
  const int fd = open_retrying(path, O_RDONLY);
  struct stat info {};
  if (fd < 0 || ::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    const std::string reason = fd < 0 ? std::strerror(errno) : "not a regular file";
    if (fd >= 0) ::close(fd);
    throw Error(Exit::data, "cannot open: " + reason, path, "name a file that exists and can be read");
  }
  size_ = static_cast<size_t>(info.st_size);
  void* address = size_ == 0 ? nullptr : ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  ::close(fd);
  if (address == MAP_FAILED) throw Error(Exit::data, text("cannot map: ", std::strerror(error)), path, "");
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

bool exists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

void make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw Error(Exit::cannot_create, "cannot create the folder: " + error.message(), path, "");
}

void sync_folder(const std::string& path) {
  const int fd = open_retrying(path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) fail("open the folder", path);
  const int failed = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  // Some network file systems cannot sync a folder and need not.
  if (failed && failed != EINVAL && failed != ENOTSUP) fail("sync the folder", path, failed);
}

void rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail("rename", from + " -> " + to);
}

bool exchange_paths(const std::string& a, const std::string& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == ENOTSUP) return false;
  fail("exchange", a + " <-> " + b);
}

void remove_tree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) fail("remove", path, error.value());
}

std::vector<std::string> list_folder(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  std::filesystem::directory_iterator it(path, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  if (error) fail("list", path, error.value());
  for (const auto end = std::filesystem::directory_iterator(); it != end; it.increment(error))
    names.push_back(it->path().filename());
  if (error) fail("list", path, error.value());
  std::sort(names.begin(), names.end());
  return names;
}

int64_t free_bytes(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) fail("ask for free space", path);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

}  // namespace weft
