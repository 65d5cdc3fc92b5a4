#include "tools/child_process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

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

// In a process group of its own, so that Ctrl-C reaches the job once, through us; without the terminal, which
// only the foreground group may read; ended when we are.
[[noreturn]] void become(const ChildProcess& child, const sigset_t& signals) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int nothing = open("/dev/null", O_RDONLY);
  if (nothing >= 0) dup2(nothing, STDIN_FILENO), close(nothing);
  send_to(child.out, STDOUT_FILENO);
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
  if (child.cancelled && child.cancelled()) {
    sigprocmask(SIG_SETMASK, &before, nullptr);
    return {.stop = true, .started = false};
  }
  std::fflush(nullptr);
  const pid_t process = fork();
  if (process < 0) throw Error(Exit::internal, text("cannot start a process: ", std::strerror(errno)));
  if (process == 0) become(child, signals);

  ChildEnd ended;
  int stops = 0;
  for (;;) {
    const timespec half_a_second{0, 500'000'000};
    const int signal = sigtimedwait(&signals, nullptr, &half_a_second);
    if (signal < 0) {
      if (child.tick) child.tick();
    } else if (signal == SIGCHLD) {
      if (waitpid(process, &ended.wait_status, WNOHANG) == process) break;
    } else if (signal == SIGUSR1 || signal == SIGUSR2) {
      ended.stop |= signal == SIGUSR1;
      kill(process, signal);
    } else {
      ended.stop = true;
      ++stops;
      if (stops == 1) std::fputs(child.on_stop.c_str(), stderr);
      if (stops <= 2)
        kill(process, stops == 1 ? SIGUSR1 : SIGTERM);
      else
        kill(-process, SIGKILL);
    }
  }
  sigprocmask(SIG_SETMASK, &before, nullptr);
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
