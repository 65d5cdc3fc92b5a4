#include "training/log/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "autograd/check.h"

namespace weft {
namespace {

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

}  // namespace

Warn warn_once(Warn warn) {
  auto said = std::make_shared<std::atomic<bool>>(false);
  return [said, warn = std::move(warn)](const std::string& message) {
    if (!said->exchange(true)) warn(message);
  };
}

AppendFile::AppendFile(std::string path, Open how, Warn warn)
    : path_(std::move(path)), warn_(std::move(warn)) {
  open(how == Open::create ? O_EXCL : 0);
  if (fd_ >= 0) return;
  if (errno != ENOSPC && errno != EDQUOT && errno != EIO)
    throw Error(
        Exit::cannot_create, text("cannot open for writing: ", std::strerror(errno)), path_,
        errno == EEXIST ? "resume the run, or choose another folder" : "choose a folder that can be written");
  failed("open");
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

void AppendFile::open(int flags) {
  do fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | flags, 0666);
  while (fd_ < 0 && errno == EINTR);
}

void AppendFile::failed(const char* action) {
  warn_(text("cannot ", action, " ", path_, ": ", std::strerror(errno),
             "; the run continues, but its log has a gap"));
}

bool AppendFile::append(std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  if (fd_ < 0) open(0);
  if (fd_ < 0) return failed("open"), false;
  const off_t end = ::lseek(fd_, 0, SEEK_END);
  if (write_all(fd_, bytes)) return true;
  const int error = errno;
  // Half a line would make the next one unreadable too.
  const bool cut = end >= 0 && ::ftruncate(fd_, end) == 0;
  errno = error;
  failed(cut ? "write" : "finish a write to");
  return false;
}

}  // namespace weft
