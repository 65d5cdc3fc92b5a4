#pragma once
// One job a run folder. The lock is flock() on RUN/lock, which the kernel drops with the process; the file's
// JSON (host, pid, process start, time) says who holds it.

#include <string>

namespace weft::ckpt {

class RunLock {
 public:
  // Takes the lock of an existing folder; waits up to ten seconds for one whose holder is dying. Errors:
  // Exit::cannot_create, naming the job that holds it.
  explicit RunLock(const std::string& run_folder);
  RunLock(RunLock&& other) noexcept;
  RunLock& operator=(RunLock&&) = delete;
  ~RunLock();

  // Empty, or a line to print: the job before ended without releasing its lock.
  const std::string& note() const { return note_; }

  // Whether the folder's lock is still this one: the folder may have been moved, or the file deleted.
  bool holds() const;

 private:
  std::string path_;
  int fd_ = -1;
  std::string note_;
};

}  // namespace weft::ckpt
