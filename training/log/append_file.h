#pragma once
// A log file: what is appended is there whole or not at all, and a disk that is full never ends a run.

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

namespace weft {

using Warn = std::function<void(const std::string& message)>;

// Passes on the first call only, counting the calls of all copies. Thread-safe.
Warn warn_once(Warn warn);

class AppendFile {
 public:
  enum class Open { create, append };  // create refuses a file that exists

  // Error (cannot_create) where the file cannot be opened for another reason than a full or failing disk.
  // warn hears of each write that fails.
  AppendFile(std::string path, Open how, Warn warn);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // To the system at once (not synced to the disk). False if there was no room: the bytes are lost, the file
  // ends where it ended before, and the next call tries again. Thread-safe.
  bool append(std::string_view bytes);

 private:
  void open(int flags);
  void failed(const char* action);

  std::string path_;
  Warn warn_;
  std::mutex mutex_;
  int fd_ = -1;
};

}  // namespace weft
