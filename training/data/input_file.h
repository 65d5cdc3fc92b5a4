#pragma once
// A file opened for reading and watched: bytes are read with pread, and a file that is cut short or rewritten
// while the run reads it is an Error. A memory mapping would end the process with SIGBUS there, and no check
// made before the access can close that gap; the token readers copy and widen what they read anyway.

#include <sys/types.h>
#include <time.h>

#include <cstdint>
#include <string>

namespace weft {

class InputFile {
 public:
  // Errors: Exit::data when the path is missing, unreadable or no regular file.
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  // bytes, when it was opened

  // Copies bytes [offset, offset + bytes) to out; safe from several threads.
  // Errors: Exit::data when the file ends before that or has changed since it was opened, Exit::io when the
  // disk fails.
  void read(int64_t offset, int64_t bytes, void* out) const;
  template <class T>
  T get(int64_t offset) const {
    T value;
    read(offset, sizeof value, &value);
    return value;
  }
  // Throws Exit::data when size or modification time are not those of the opening.
  void check_unchanged() const;

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
  timespec modified_{};
};

// "shard.bin: byte 12", the place named in messages about a file.
std::string byte_of(const std::string& path, int64_t offset);

}  // namespace weft
