#include "tools/command.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "autograd/check.h"
#include "training/log/printable.h"

namespace weft {
namespace {

std::atomic<bool> printed = false;  // a watching thread asks too
std::string* kept = nullptr;        // takes what is printed, in place of stdout
bool silent = false;

}  // namespace

const Command* find_command(const std::string& name) {
  for (const Command& command : commands())
    if (command.name == name) return &command;
  return nullptr;
}

bool wants_json(const Words& words) {
  for (const std::string& word : words) {
    if (word == "--") return false;
    if (word == "--json" || word == "--json-summary") return true;
  }
  return false;
}

void print_nothing() { silent = true; }

void print(const std::string& text) {
  if (silent) return;
  if (kept != nullptr) {
    *kept += text;
    return;
  }
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    const std::string why = std::strerror(errno);
    std::clearerr(stdout);
    throw Error(Exit::io, "cannot write the result: " + why, "stdout");
  }
  if (!text.empty()) printed = true;
}

std::string printed_by(const std::function<void()>& command) {
  std::string text;
  struct Keeping {
    explicit Keeping(std::string* to) { kept = to; }
    ~Keeping() { kept = nullptr; }
  };
  const Keeping keeping(&text);
  command();
  return text;
}

void print_failure(const std::string& line) {
  std::signal(SIGPIPE, SIG_IGN);
  try {
    print(line);
  } catch (const Error&) {  // stdout is gone
  }
}

std::string for_reader(const std::string& text) {
  return ::isatty(STDOUT_FILENO) == 1 ? printable(text, true) : text;
}

void print_warnings(const std::vector<std::string>& warnings) {
  for (const std::string& w : warnings) std::fprintf(stderr, "weft: warning: %s\n", w.c_str());
}

bool anything_printed() { return printed; }

}  // namespace weft
