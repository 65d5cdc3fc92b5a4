#include "training/log/console_text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "autograd/check.h"

namespace weft {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char buffer[128];
  std::snprintf(buffer, sizeof buffer, pattern, values...);
  return buffer;
}

constexpr double longest = 1e9;  // seconds; beyond it a duration says nothing

// 01:20, 1:01:20
std::string clock_text(double seconds) {
  if (!(seconds >= 0 && seconds < longest)) return "?";
  const long long s = std::llround(seconds);
  return s < 3600 ? format("%02lld:%02lld", s / 60, s % 60)
                  : format("%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace

std::string duration_text(double seconds) {
  if (!(seconds >= 0 && seconds < longest)) return "-";
  const long long s = std::llround(seconds);
  if (s < 60) return format("%llds", s);
  if (s < 3600) return format("%lldm%02llds", s / 60, s % 60);
  if (s < 86400) return format("%lldh%02lldm", s / 3600, s / 60 % 60);
  return format("%lldd%02lldh", s / 86400, s / 3600 % 24);
}

std::string grouped(double number) {
  if (!std::isfinite(number)) return "-";
  const std::string digits = format("%.0f", std::abs(number));
  std::string out = number < 0 ? "-" : "";
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string step_line(const StepRecord& r, int64_t steps, const Pace& pace) {
  std::string line = text("step: ", r.step, "/", steps);
  line += format("  loss: %.4f  grad_norm: %.3g  lr: %.1e", r.loss, r.grad_norm, r.lr);
  line += "  tok/s: " + grouped(pace.tokens_per_s);
  line += r.mfu ? format("  mfu: %.1f%%", 100 * *r.mfu) : "  mfu: -";
  line += format("  mem: %.2fGiB", static_cast<double>(r.peak_bytes) / (1 << 30));
  line += "  eta: " + duration_text(pace.eta_s);
  if (r.val_loss) line += format("  val_loss: %.4f", *r.val_loss);
  if (r.val_bpb) line += format("  val_bpb: %.4f", *r.val_bpb);
  if (r.val_accuracy) line += format("  val_accuracy: %.4f", *r.val_accuracy);
  if (r.val_exact) line += format("  val_exact: %.4f", *r.val_exact);
  return line;
}

std::string bar_line(const StepRecord& r, int64_t steps, const Pace& pace, int width) {
  const int64_t total = std::max<int64_t>(steps, 1), step = std::clamp<int64_t>(r.step, 0, total);
  const size_t room = static_cast<size_t>(std::max(width - 1, 0));
  const std::string percent = format("%3d%%", static_cast<int>(step * 100 / total));
  const std::string facts =
      text(" ", r.step, "/", steps, " [", clock_text(pace.elapsed_s), "<", clock_text(pace.eta_s),
           format(", loss %.4f, ", r.loss), grouped(pace.tokens_per_s), " tok/s]");
  const size_t used = percent.size() + facts.size() + 2;
  constexpr size_t smallest_bar = 5;
  if (used + smallest_bar > room) return (percent + facts).substr(0, room);
  const size_t length = room - used;
  std::string bar(length * static_cast<size_t>(step) / static_cast<size_t>(total), '#');
  bar.resize(length, ' ');
  return percent + "|" + bar + "|" + facts;
}

}  // namespace weft
