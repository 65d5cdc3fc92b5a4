#include "training/checkpoint/lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
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

// Field 22 of /proc/PID/stat, 0 if there is no such process. The name in field 2 may hold spaces and
// brackets.
int64_t process_start(int64_t pid) {
  std::ifstream stat(text("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(stat, line)) return 0;
  std::istringstream rest(line.substr(line.rfind(')') + 1));
  std::string field;
  for (int i = 3; i <= 22; ++i) rest >> field;
  return std::atoll(field.c_str());
}

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

RunLock::RunLock(const std::string& run_folder) {
  const std::string path = run_folder + "/lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) throw Error(Exit::cannot_create, text("cannot create: ", std::strerror(errno)), path, "");
  try {
    int failed = 0;
    while ((failed = ::flock(fd_, LOCK_EX | LOCK_NB) == 0 ? 0 : errno) == EINTR) continue;
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
    : fd_(std::exchange(other.fd_, -1)), note_(std::move(other.note_)) {}

// An empty file is a lock that was released. It is not deleted: a job that has just opened it would lock a
// ghost.
RunLock::~RunLock() {
  if (fd_ < 0) return;
  if (::ftruncate(fd_, 0) != 0) note_.clear();  // the next job then calls it stale, no more
  ::close(fd_);
}

}  // namespace weft::ckpt
