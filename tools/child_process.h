#pragma once
// A program started, waited for, and asked to stop when we are.

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct ChildProcess {
  std::vector<std::string> words;             // the program and its arguments
  std::vector<std::string> environment = {};  // NAME=value
  std::string out = {}, err = {};             // files that its streams are appended to; empty: ours
  std::string on_stop = {};                   // for stderr, when it is asked to stop
  std::function<void(pid_t)> tick = {};       // called twice a second
  // Takes what it writes to stderr, piece by piece on another thread, and at the end nothing; in place of
  // `err`.
  std::function<void(std::string_view)> on_err = {};
  // How it is asked to save and leave (SIGUSR1); by default it is sent the signal itself.
  std::function<void(pid_t)> ask = {};
  std::function<bool()> cancelled = {};  // asked last: whether a signal has made it superfluous
};

struct ChildEnd {
  int wait_status = 0;  // as of waitpid; 127 where the program could not be started
  bool stop = false;    // a signal to stop was passed on
  bool started = true;
};

// The first SIGINT, SIGTERM or SIGHUP reaches the child as SIGUSR1, which asks a weft command to save and
// leave, the second as SIGTERM, the third ends its process group; SIGUSR1 and SIGUSR2 are passed on.
ChildEnd run_child(const ChildProcess& child);

// Quoted where a shell would not take it as it is.
std::string shell_word(const std::string& word);

}  // namespace weft
