#include "training/data/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "autograd/check.h"

namespace weft {

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw Error(Exit::data, text("cannot read: ", std::strerror(errno)), path_);
  struct stat info {};
  if (::fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd_);
    throw Error(Exit::data, "is not a regular file", path_,
                "name the files in a folder with a pattern such as dir/*.bin");
  }
  size_ = info.st_size;
  modified_ = info.st_mtim;
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::check_unchanged() const {
  struct stat now {};
  if (::fstat(fd_, &now) != 0) throw Error(Exit::io, std::strerror(errno), path_);
  if (now.st_size != size_)
    throw Error(Exit::data,
                text("changed while it was read: ", size_, " bytes at the start, now ", now.st_size), path_,
                "data files must stay as they are for the length of a run");
  if (now.st_mtim.tv_sec != modified_.tv_sec || now.st_mtim.tv_nsec != modified_.tv_nsec)
    throw Error(Exit::data, "was written to while it was read", path_,
                "data files must stay as they are for the length of a run");
}

void InputFile::read(int64_t offset, int64_t bytes, void* out) const {
  if (offset < 0 || bytes < 0 || bytes > size_ - offset)
    throw Error(Exit::data, text("is too short: ", bytes, " bytes wanted, the file ends at ", size_),
                byte_of(path_, offset), "the file is cut off; write it again");
  char* to = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, to, static_cast<size_t>(bytes), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(Exit::io, text("read failed: ", std::strerror(errno)), byte_of(path_, offset));
    if (got == 0) {
      check_unchanged();
      throw Error(Exit::data, "ended early", byte_of(path_, offset));
    }
    to += got;
    offset += got;
    bytes -= got;
  }
  check_unchanged();
}

std::string byte_of(const std::string& path, int64_t offset) { return text(path, ": byte ", offset); }

}  // namespace weft
