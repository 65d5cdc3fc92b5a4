#include "training/checkpoint/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "autograd/check.h"

namespace weft::ckpt {
namespace {

struct Holder {
  std::string host;
  int64_t pid = 0;
  int64_t process_start = 0;  // clock ticks since boot: tells a process from a later one with its number
  std::string time;

  std::string says() const { return text("pid ", pid, " on ", host, " since ", time); }
};

std::string host_name() {
  char name[256] = {};
  ::gethostname(name, sizeof name - 1);
  return name;
}

// Field 9 or later of /proc/PID/stat, 0 if there is no such process. The name in field 2 may hold spaces and
// brackets.
int64_t process_field(int64_t pid, int number) {
  std::ifstream stat(text("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(stat, line)) return 0;
  std::istringstream rest(line.substr(line.rfind(')') + 1));
  std::string field;
  for (int i = 3; i <= number; ++i) rest >> field;
  return std::atoll(field.c_str());
}

int64_t process_start(int64_t pid) { return process_field(pid, 22); }

Holder this_process() {
  const std::time_t now = std::time(nullptr);
  char time[32];
  std::tm utc{};
  std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", ::gmtime_r(&now, &utc));
  return {host_name(), ::getpid(), process_start(::getpid()), time};
}

std::optional<Holder> read_holder(int fd) {
  char buffer[1024];
  const ssize_t got = ::pread(fd, buffer, sizeof buffer, 0);
  if (got <= 0) return {};
  const auto json = nlohmann::json::parse(buffer, buffer + got, nullptr, false);
  try {
    return Holder{json.at("host"), json.at("pid"), json.at("process_start"), json.at("time")};
  } catch (const nlohmann::json::exception&) {
    return Holder{"an unknown host", 0, 0, "an unknown time"};
  }
}

bool write_holder(int fd, const Holder& holder) {
  const nlohmann::ordered_json json = {{"host", holder.host},
                                       {"pid", holder.pid},
                                       {"process_start", holder.process_start},
                                       {"time", holder.time}};
  const std::string content = json.dump() + "\n";
  return ::ftruncate(fd, 0) == 0 && ::pwrite(fd, content.data(), content.size(), 0) == std::ssize(content);
}

// A killed job holds its lock until the kernel has taken its memory back, seconds where that is large; and a
// file is empty while its holder comes or goes.
bool is_leaving(const std::optional<Holder>& holder) {
  if (!holder) return true;
  constexpr int64_t exiting = 0x4;  // PF_EXITING of the flags, field 9
  return holder->host == host_name() && (process_start(holder->pid) != holder->process_start ||
                                         (process_field(holder->pid, 9) & exiting) != 0);
}

// Where the file system has no flock, the file alone has to tell.
bool may_be_alive(const Holder& holder) {
  if (holder.host != host_name()) return true;
  return process_start(holder.pid) == holder.process_start && holder.process_start != 0;
}

[[noreturn]] void refuse(const std::string& path, const std::optional<Holder>& holder, const char* advice) {
  throw Error(Exit::cannot_create, text("the run is in use by ", holder ? holder->says() : "another job"),
              path, advice);
}

}  // namespace

RunLock::RunLock(const std::string& run_folder) : path_(run_folder + "/lock") {
  const std::string& path = path_;
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) throw Error(Exit::cannot_create, text("cannot create: ", std::strerror(errno)), path, "");
  try {
    const auto try_it = [&] { return ::flock(fd_, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; };
    int failed = try_it();
    for (int i = 0; failed == EINTR || (failed == EWOULDBLOCK && i < 200 && is_leaving(read_holder(fd_)));
         ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      failed = try_it();
    }
    const std::optional<Holder> before = read_holder(fd_);
    if (failed == EWOULDBLOCK) refuse(path, before, "wait for it, stop it, or choose another run folder");
    if (failed && before && may_be_alive(*before))
      refuse(path, before, "if that job is gone, delete this file");
    if (before) note_ = text("stale lock of ", before->says(), " taken over");
    if (!write_holder(fd_, this_process()))
      throw Error(Exit::io, text("cannot write: ", std::strerror(errno)), path, "");
  } catch (...) {
    ::close(fd_);
    throw;
  }
}

RunLock::RunLock(RunLock&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), note_(std::move(other.note_)) {}

bool RunLock::holds() const {
  struct stat own {
  }, there{};
  return ::fstat(fd_, &own) == 0 && ::stat(path_.c_str(), &there) == 0 && own.st_dev == there.st_dev &&
         own.st_ino == there.st_ino;
}

// An empty file is a lock that was released. It is not deleted: a job that has just opened it would lock a
// ghost.
RunLock::~RunLock() {
  if (fd_ < 0) return;
  if (::ftruncate(fd_, 0) != 0) note_.clear();  // the next job then calls it stale, no more
  ::close(fd_);
}

}  // namespace weft::ckpt
