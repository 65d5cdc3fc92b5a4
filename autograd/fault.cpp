#include "autograd/fault.h"

#ifdef WEFT_FAULTS

#include <unistd.h>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "autograd/check.h"

namespace weft::fault {
namespace {

constexpr std::array<std::string_view, 12> phase_names = {
    "load",     "forward",    "backward",      "collective",  "optimizer",   "save.data",
    "save.mid", "save.fsync", "save.manifest", "save.rename", "save.latest", "evaluate"};
constexpr std::array<std::string_view, 8> kind_names = {"kill",   "stop", "nan",  "slow",
                                                        "enospc", "eio",  "flip", "skip_exchange"};

struct Fault {
  Kind kind{};
  int64_t milliseconds = 0;  // of slow
  std::optional<int64_t> rank, step;
  std::optional<Phase> phase;
};

std::vector<Fault>& faults() {
  static std::vector<Fault> list;
  return list;
}

struct Position {
  int rank = -1;
  int64_t step = -1;
};
thread_local Position here;
std::atomic<int> last_rank{-1};
std::atomic<int64_t> last_step{-1};

[[noreturn]] void malformed(std::string_view part, const char* why) {
  throw Error(Exit::usage, text("WEFT_FAULT: '", part, "' ", why), "WEFT_FAULT",
              "write kind@rank=R,step=S,phase=P, for example kill@rank=1,step=3,phase=backward");
}

int64_t number(std::string_view digits, std::string_view part) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 0)
    malformed(part, "needs a whole number that is not negative");
  return value;
}

template <class Enum, size_t n>
Enum named(const std::array<std::string_view, n>& names, std::string_view name, std::string_view part) {
  for (size_t i = 0; i < n; ++i)
    if (names[i] == name) return static_cast<Enum>(i);
  malformed(part, "is not known");
}

// Cuts the part before `separator` off the front of `rest`.
std::string_view cut(std::string_view& rest, char separator) {
  const size_t at = rest.find(separator);
  const std::string_view part = rest.substr(0, at);
  rest = at == std::string_view::npos ? std::string_view() : rest.substr(at + 1);
  return part;
}

Fault parse(std::string_view spec) {
  Fault fault;
  const std::string_view whole = spec;
  std::string_view kind = cut(spec, '@');
  const bool timed = kind.find(':') != std::string_view::npos;
  const std::string_view name = cut(kind, ':');
  fault.kind = named<Kind>(kind_names, name, whole);
  if (timed != (fault.kind == Kind::slow))
    malformed(whole, "should name its milliseconds as slow:MS, others none");
  if (timed) fault.milliseconds = number(kind, whole);
  while (!spec.empty()) {
    const std::string_view pair = cut(spec, ',');
    std::string_view value = pair;
    const std::string_view key = cut(value, '=');
    if (key == "rank")
      fault.rank = number(value, pair);
    else if (key == "step")
      fault.step = number(value, pair);
    else if (key == "phase")
      fault.phase = named<Phase>(phase_names, value, pair);
    else
      malformed(pair, "is not rank=, step= or phase=");
  }
  return fault;
}

bool matches(const Fault& fault, Phase phase) {
  const int rank = here.rank >= 0 ? here.rank : last_rank.load();
  const int64_t step = here.step >= 0 ? here.step : last_step.load();
  return (!fault.phase || *fault.phase == phase) && (!fault.rank || *fault.rank == rank) &&
         (!fault.step || *fault.step == step);
}

[[noreturn]] void fail(const char* reason, Phase phase) {
  throw Error(Exit::io, text(reason, " (injected)"), std::string(phase_names[static_cast<size_t>(phase)]),
              "unset WEFT_FAULT");
}

void execute(const Fault& fault, Phase phase) {
  switch (fault.kind) {
    case Kind::kill: ::kill(::getpid(), SIGKILL); break;
    case Kind::stop: ::kill(::getpid(), SIGSTOP); break;
    case Kind::slow: std::this_thread::sleep_for(std::chrono::milliseconds(fault.milliseconds)); break;
    case Kind::enospc: fail("no space left on device", phase);
    case Kind::eio: fail("input/output error", phase);
    case Kind::nan:
    case Kind::flip:
    case Kind::skip_exchange: break;
  }
}

}  // namespace

void configure(const std::string& spec) {
  std::vector<Fault> list;
  for (std::string_view rest = spec; !rest.empty();)
    if (const std::string_view one = cut(rest, ';'); !one.empty()) list.push_back(parse(one));
  faults() = std::move(list);
}

void configure_from_environment() {
  const char* spec = std::getenv("WEFT_FAULT");
  configure(spec ? spec : "");
}

void set_position(int rank, int64_t step) {
  here = {rank, step};
  last_rank = rank;
  last_step = step;
}

void point(Phase phase) {
  for (const Fault& fault : faults())
    if (matches(fault, phase)) execute(fault, phase);
}

bool wants(Kind kind, Phase phase) {
  for (const Fault& fault : faults())
    if (fault.kind == kind && matches(fault, phase)) return true;
  return false;
}

}  // namespace weft::fault

#endif
