#pragma once
// Shared by the log tests: a step's record, lines of a file, a file size limit, and a pseudo-terminal.

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "tests/training/checkpoint/support.h"
#include "training/log/step_record.h"

namespace weft {

inline StepRecord record_of(int64_t step) {
  StepRecord r;
  r.step = step;
  r.tokens = step * 8192;
  r.loss = 3.12341;
  r.grad_norm = 1.234;
  r.lr = 3e-4;
  r.tokens_per_s = 12345;
  r.step_s = 0.5;
  r.data_s = 0.05;
  r.comm_s = 0.1;
  r.peak_bytes = 558345748;
  r.time = 1780000000.25;
  return r;
}

inline std::vector<std::string> lines_of(const std::string& content) {
  std::vector<std::string> lines;
  std::istringstream in(content);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

inline std::vector<nlohmann::json> json_lines(const std::string& path) {
  std::vector<nlohmann::json> out;
  for (const std::string& line : lines_of(read_bytes(path))) out.push_back(nlohmann::json::parse(line));
  return out;
}

// While it lives no file of this process grows beyond so many bytes: the nearest thing to a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

class PseudoTerminal {
 public:
  explicit PseudoTerminal(unsigned short columns) : master_(::posix_openpt(O_RDWR | O_NOCTTY)) {
    if (::grantpt(master_) != 0 || ::unlockpt(master_) != 0) std::abort();
    slave_ = ::open(::ptsname(master_), O_RDWR | O_NOCTTY);
    resize(columns);
  }
  ~PseudoTerminal() {
    ::close(slave_);
    ::close(master_);
  }
  int fd() const { return slave_; }
  void resize(unsigned short columns) {
    winsize size{};
    size.ws_row = 24;
    size.ws_col = columns;
    ::ioctl(slave_, TIOCSWINSZ, &size);
  }
  // What was written since the last call.
  std::string read() {
    std::string out;
    char buffer[4096];
    pollfd wait{master_, POLLIN, 0};
    while (::poll(&wait, 1, 50) == 1) {
      const ssize_t n = ::read(master_, buffer, sizeof buffer);
      if (n <= 0) break;
      out.append(buffer, static_cast<size_t>(n));
    }
    return out;
  }

 private:
  int master_, slave_;
};

// The lines that a terminal would show after these bytes: it knows newline, carriage return and "erase to
// the end of the line".
inline std::vector<std::string> screen_of(const std::string& bytes) {
  std::vector<std::string> lines(1);
  size_t column = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\n') {
      lines.emplace_back();
      column = 0;
    } else if (bytes[i] == '\r') {
      column = 0;
    } else if (bytes.compare(i, 3, "\x1b[K") == 0) {
      lines.back().resize(std::min(column, lines.back().size()));
      i += 2;
    } else {
      if (column >= lines.back().size()) lines.back().resize(column + 1, ' ');
      lines.back()[column++] = bytes[i];
    }
  }
  return lines;
}

}  // namespace weft
