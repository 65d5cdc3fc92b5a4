#include "tools/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <optional>
#include <thread>

#include "autograd/check.h"

namespace weft {
namespace {

void send_to(const std::string& path, int stream) {
  if (path.empty()) return;
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (file < 0 || dup2(file, stream) < 0) {
    std::fprintf(stderr, "weft: cannot write %s: %s\n", path.c_str(), std::strerror(errno));
    _exit(127);
  }
  close(file);
}

// Reads a child's stderr until the child has ended and what it left is read. Processes that outlive it may
// hold the pipe open, so its end is not waited for.
class ErrReader {
 public:
  explicit ErrReader(std::function<void(std::string_view)> take) : take_(std::move(take)) {
    if (pipe2(ends_, O_CLOEXEC) != 0) throw Error(Exit::internal, text("no pipe: ", std::strerror(errno)));
  }
  int writer() const { return ends_[1]; }
  void start() {
    close(ends_[1]);
    thread_ = std::thread([this] { read_all(); });
  }
  void finish() {
    ended_ = true;
    thread_.join();
    close(ends_[0]);
  }

 private:
  void read_all() {
    char bytes[4096];
    pollfd readable{ends_[0], POLLIN, 0};
    for (;;) {
      const bool last = ended_;
      if (poll(&readable, 1, 100) > 0) {
        const ssize_t n = read(ends_[0], bytes, sizeof bytes);
        if (n == 0 || (n < 0 && errno != EINTR)) break;
        if (n > 0) take_({bytes, static_cast<size_t>(n)});
      } else if (last) {
        break;
      }
    }
    take_({});
  }

  std::function<void(std::string_view)> take_;
  int ends_[2];
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

// In a process group of its own, so that Ctrl-C reaches the job once, through us; without the terminal, which
// only the foreground group may read; ended when we are.
[[noreturn]] void become(const ChildProcess& child, const sigset_t& signals, int err) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int nothing = open("/dev/null", O_RDONLY);
  if (nothing >= 0) dup2(nothing, STDIN_FILENO), close(nothing);
  send_to(child.out, STDOUT_FILENO);
  if (err >= 0)
    dup2(err, STDERR_FILENO);
  else
    send_to(child.err, STDERR_FILENO);
  sigprocmask(SIG_UNBLOCK, &signals, nullptr);
  for (const std::string& setting : child.environment) {
    const size_t equals = setting.find('=');
    setenv(setting.substr(0, equals).c_str(), setting.substr(equals + 1).c_str(), 1);
  }
  std::vector<char*> words;
  for (const std::string& word : child.words) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  execvp(words[0], words.data());
  std::fprintf(stderr, "weft: cannot start %s: %s\n", words[0], std::strerror(errno));
  _exit(127);
}

}  // namespace

ChildEnd run_child(const ChildProcess& child) {
  // Signals are waited for rather than handled: no code runs at a bad moment.
  sigset_t signals, before;
  sigemptyset(&signals);
  for (int s : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD}) sigaddset(&signals, s);
  sigprocmask(SIG_BLOCK, &signals, &before);
  // Where children are ignored, as by some who start us, nobody is told of their end.
  struct sigaction heard {
  }, children{};
  heard.sa_handler = SIG_DFL;
  sigaction(SIGCHLD, &heard, &children);
  const auto put_back = [&] {
    sigaction(SIGCHLD, &children, nullptr);
    sigprocmask(SIG_SETMASK, &before, nullptr);
  };
  if (child.cancelled && child.cancelled()) {
    put_back();
    return {.stop = true, .started = false};
  }
  std::fflush(nullptr);
  std::optional<ErrReader> reader;
  if (child.on_err) reader.emplace(child.on_err);
  const pid_t process = fork();
  if (process < 0) throw Error(Exit::internal, text("cannot start a process: ", std::strerror(errno)));
  if (process == 0) become(child, signals, reader ? reader->writer() : -1);
  if (reader) reader->start();

  const auto ask = [&] { child.ask ? child.ask(process) : void(kill(process, SIGUSR1)); };
  ChildEnd ended;
  int stops = 0;
  for (;;) {
    const timespec half_a_second{0, 500'000'000};
    const int signal = sigtimedwait(&signals, nullptr, &half_a_second);
    if (signal < 0) {
      if (child.tick) child.tick(process);
    } else if (signal == SIGCHLD) {
      if (waitpid(process, &ended.wait_status, WNOHANG) == process) break;
    } else if (signal == SIGUSR1) {
      ended.stop = true;
      ask();
    } else if (signal == SIGUSR2) {
      kill(process, signal);
    } else {
      ended.stop = true;
      ++stops;
      if (stops == 1) std::fputs(child.on_stop.c_str(), stderr);
      if (stops == 1)
        ask();
      else if (stops == 2)
        kill(process, SIGTERM);
      else
        kill(-process, SIGKILL);
    }
  }
  if (reader) reader->finish();
  put_back();
  return ended;
}

std::string shell_word(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_of(" \t\n\"'\\$&|;<>()*?[]{}`~#!") == std::string::npos;
  if (plain) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

}  // namespace weft
