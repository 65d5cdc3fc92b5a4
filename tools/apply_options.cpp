#include "tools/apply_options.h"

#include <charconv>
#include <limits>
#include <utility>

#include "tools/flags.h"

namespace weft {
namespace {

constexpr int64_t kMostRanks = 256;  // threads of this process
constexpr const char* kSegments = "RANKS[:contiguous|zigzag[:native|gather|ring|heads]]";

[[noreturn]] void refuse(const std::string& flag, const std::string& value, const std::string& advice) {
  throw Error(Exit::usage, text(flag, " is ", value.empty() ? "empty" : value), flag, advice);
}

int64_t whole_number(const std::string& flag, const std::string& value, int64_t least, int64_t most) {
  int64_t number = 0;
  const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc{} || stop != value.data() + value.size() || number < least || number > most)
    refuse(flag, value, text("give a whole number, ", least, " to ", most));
  return number;
}

template <class T>
T choice(const std::string& flag, const std::string& value,
         const std::vector<std::pair<std::string, T>>& choices) {
  std::string names;
  for (const auto& [name, meaning] : choices) {
    if (name == value) return meaning;
    names += (names.empty() ? "" : ", ") + name;
  }
  refuse(flag, value, "one of " + names);
}

std::vector<std::string> split(const std::string& value, char at) {
  std::vector<std::string> parts(1);
  for (const char c : value) c == at ? parts.emplace_back() : parts.back() += c;
  return parts;
}

void read_segments(ApplyOptions& o, const std::string& value) {
  const std::string flag = "--segments";
  const std::vector<std::string> parts = split(value, ':');
  if (parts.size() > 3) refuse(flag, value, text("give ", kSegments));
  o.ranks = static_cast<int>(whole_number(flag, parts[0], 1, kMostRanks));
  if (parts.size() > 1)
    o.plan = choice<SegmentPlan>(flag, parts[1],
                                 {{"contiguous", SegmentPlan::contiguous}, {"zigzag", SegmentPlan::zigzag}});
  if (parts.size() > 2)
    o.strategy = choice<CrossingStrategy>(flag, parts[2],
                                          {{"native", CrossingStrategy::native},
                                           {"gather", CrossingStrategy::gather},
                                           {"ring", CrossingStrategy::ring},
                                           {"heads", CrossingStrategy::heads}});
}

void read_mode(ApplyOptions& o, const std::string& value) {
  if (value == "full") return o.prefill.reset();
  if (!value.starts_with("decode:")) refuse("--mode", value, "give full or decode:PREFILL_TOKENS");
  o.prefill = whole_number("--mode", value.substr(7), 0, std::numeric_limits<int32_t>::max());
}

void check(const ApplyOptions& o) {
  if (o.describe) return;
  if (o.in.empty() || o.out.empty())
    throw Error(Exit::usage, text(o.in.empty() ? "--in" : "--out", " is missing"), "weft apply",
                "write weft apply ID --in A.safetensors --out B.safetensors");
  const auto exclude = [](bool both, const char* a, const char* b) {
    if (both) throw Error(Exit::recipe, text(a, " does not go with ", b), b, text("leave one of them away"));
  };
  exclude(o.reference && o.prefill, "--reference", "--mode decode");
  exclude(o.reference && o.ranks > 0, "--reference", "--segments");
  exclude(o.prefill && o.ranks > 0, "--mode decode", "--segments");
}

}  // namespace

std::optional<ApplyOptions> parse_apply(const std::vector<std::string>& words) {
  ApplyOptions o;
  std::string dtype = "f32", device = "cpu", mode = "full", chunk, segments, init;
  Flags flags("apply", "ID [attr=value...]",
              "Runs one mechanism on the tensors of A; outputs, last states and gradients go to B.");
  flags.add("--in", o.in, "A.safetensors", "what it takes");
  flags.add("--out", o.out, "B.safetensors", "what it gives");
  flags.add("--dtype", dtype, "f64|f32|bf16", "of the computation; f32 if not said");
  flags.add("--device", device, "cpu|cuda", "cpu if not said");
  flags.add("--reference", o.reference, "the naive definition");
  flags.add("--chunk", chunk, "N", "tokens handled at once; changes speed, not results");
  flags.add("--mode", mode, "full|decode:M", "decode: M tokens at once, then one by one; no gradients");
  flags.add("--segments", segments, kSegments, "over RANKS ranks, as threads");
  flags.add("--init", init, "SEED", "draws the parameters that A does not hold and writes them to B");
  flags.add("--describe", o.describe, "instead: attributes, inputs, parameters and states");
  flags.add("--json", o.json, "one line of JSON on stdout");
  if (!flags.parse(words)) return {};
  o.id = flags.argument(0);
  o.attributes.assign(flags.arguments().begin() + 1, flags.arguments().end());
  o.dtype =
      choice<Dtype>("--dtype", dtype, {{"f64", Dtype::f64}, {"f32", Dtype::f32}, {"bf16", Dtype::bf16}});
  o.device = choice<Device>("--device", device, {{"cpu", Device::cpu}, {"cuda", Device::cuda}});
  if (!chunk.empty()) o.chunk = whole_number("--chunk", chunk, 1, 1 << 20);
  read_mode(o, mode);
  if (!segments.empty()) read_segments(o, segments);
  if (!init.empty())
    o.init = static_cast<uint32_t>(whole_number("--init", init, 0, std::numeric_limits<uint32_t>::max()));
  check(o);
  return o;
}

}  // namespace weft
