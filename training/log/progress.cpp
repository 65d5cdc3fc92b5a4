#include "training/log/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "training/log/clock.h"
#include "training/log/console_text.h"
#include "training/log/printable.h"

namespace weft {
namespace {

constexpr double redraw_s = 0.1;
constexpr const char* clear_line = "\r\x1b[K";

bool is_terminal(int fd) {
  const char* kind = std::getenv("TERM");
  return ::isatty(fd) == 1 && kind && std::strcmp(kind, "dumb") != 0 && *kind;
}

// Asked anew each time, so that the bar follows a window that changes.
int columns(int fd) {
  winsize size{};
  return ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(int64_t steps, int64_t every, int fd)
    : steps_(steps),
      every_(std::max<int64_t>(every, 1)),
      fd_(fd),
      terminal_(is_terminal(fd)),
      drawn_(-redraw_s) {}

Progress::~Progress() { finish(); }

void Progress::step(const StepRecord& record, const Pace& pace) {
  const std::lock_guard lock(mutex_);
  const bool landmark = record.step == steps_ || record.val_loss || !any_step_;
  any_step_ = true;
  if (!terminal_) {
    if (landmark || record.step % every_ == 0) write(step_line(record, steps_, pace) + "\n");
    return;
  }
  if (record.val_loss) above_bar(step_line(record, steps_, pace));
  const double now = monotonic_seconds();
  if (!landmark && now - drawn_ < redraw_s) return;
  drawn_ = now;
  bar_ = bar_line(record, steps_, pace, columns(fd_));
  write(clear_line + bar_);
}

void Progress::message(std::string_view line) {
  const std::lock_guard lock(mutex_);
  above_bar(printable(line));
}

void Progress::above_bar(const std::string& line) {
  write(bar_.empty() ? line + "\n" : clear_line + line + "\n" + bar_);
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (!bar_.empty()) write("\n");
  bar_.clear();
}

void Progress::write(const std::string& bytes) const {
  // One call, so that what other processes print lands between lines. A closed console is no reason to stop.
  for (std::string_view rest = bytes; !rest.empty();) {
    const ssize_t n = ::write(fd_, rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    rest.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace weft
