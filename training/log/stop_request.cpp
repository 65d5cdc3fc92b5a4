#include "training/log/stop_request.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <ctime>

#include "autograd/check.h"

namespace weft {
namespace {

// timeout(1) and some batch systems send a request to the process and once more to its group.
constexpr int64_t same_request_ns = 250'000'000;

constexpr std::array stop_signals{SIGTERM, SIGINT, SIGUSR1, SIGHUP};

std::atomic<bool> announced{false};
std::atomic<int> depth{0};
std::atomic<int> first_signal{0};
std::atomic<int64_t> first_time{0};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free &&
              std::atomic<bool>::is_always_lock_free);

std::array<struct sigaction, stop_signals.size()> before;
struct sigaction before_size_limit, before_pipe;
sigset_t before_mask;

// All that the handler calls (clock_gettime, write, _exit, strlen) is async-signal-safe.
int64_t nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1'000'000'000) + now.tv_nsec;
}

void say(const char* words) {
  if (announced && ::write(STDERR_FILENO, words, std::strlen(words)) < 0) return;  // no one is there to read
}

void on_signal(int signal) {
  const int saved_errno = errno;
  const int64_t now = nanoseconds();
  int none = 0;
  if (first_signal.compare_exchange_strong(none, signal)) {
    first_time = now;
    say("\nweft: stopping: saving after this step; a second signal leaves at once\n");
  } else if (const int64_t then = first_time; then != 0 && now - then >= same_request_ns) {
    say("\nweft: second signal: leaving at once\n");
    ::_exit(static_cast<int>(Exit::stopped));
  }
  errno = saved_errno;
}

}  // namespace

StopRequest::StopRequest(bool announce) : announced_before_(announced.exchange(announce)) {
  if (depth++ > 0) return;
  first_signal = 0;
  first_time = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // reads and writes go on
  // No handler interrupts another.
  for (const int signal : stop_signals) sigaddset(&action.sa_mask, signal);
  for (size_t i = 0; i < stop_signals.size(); ++i) {
    ::sigaction(stop_signals[i], &action, &before[i]);
    if (stop_signals[i] == SIGHUP && before[i].sa_handler == SIG_IGN)
      ::sigaction(SIGHUP, &before[i], nullptr);
  }
  // Whoever starts us with signals blocked has forgotten them; a request would wait for ever.
  sigset_t heard;
  sigemptyset(&heard);
  for (const int signal : stop_signals) sigaddset(&heard, signal);
  ::pthread_sigmask(SIG_UNBLOCK, &heard, &before_mask);
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGXFSZ, &ignore, &before_size_limit);
  ::sigaction(SIGPIPE, &ignore, &before_pipe);
}

StopRequest::~StopRequest() {
  announced = announced_before_;
  if (--depth > 0) return;
  ::pthread_sigmask(SIG_SETMASK, &before_mask, nullptr);
  for (size_t i = 0; i < stop_signals.size(); ++i) ::sigaction(stop_signals[i], &before[i], nullptr);
  ::sigaction(SIGXFSZ, &before_size_limit, nullptr);
  ::sigaction(SIGPIPE, &before_pipe, nullptr);
}

int StopRequest::signal() const { return first_signal; }

const char* StopRequest::name() const {
  switch (signal()) {
    case SIGTERM: return "SIGTERM";
    case SIGINT: return "SIGINT";
    case SIGUSR1: return "SIGUSR1";
    case SIGHUP: return "SIGHUP";
    default: return "";
  }
}

}  // namespace weft
