#include "tools/apply_options.h"

#include <limits>

#include "tools/device_flag.h"
#include "tools/flags.h"

namespace weft {
namespace {

void read_mode(ApplyOptions& o, const std::string& value) {
  if (value == "full") return o.prefill.reset();
  if (!value.starts_with("decode:")) refuse_flag("--mode", value, "give full or decode:PREFILL_TOKENS");
  o.prefill = flag_number("--mode", value.substr(7), 0, std::numeric_limits<int32_t>::max());
}

void check(const ApplyOptions& o) {
  if (o.describe) return;
  if (o.in.empty() || o.out.empty())
    throw Error(Exit::usage, text(o.in.empty() ? "--in" : "--out", " is missing"), "weft apply",
                "write weft apply ID --in A.safetensors --out B.safetensors");
  const auto exclude = [](bool both, const char* a, const char* b) {
    if (both)
      throw Error(Exit::recipe, text(a, " cannot be combined with ", b), b, text("leave one of them out"));
  };
  exclude(o.reference && o.prefill, "--reference", "--mode decode");
  exclude(o.reference && o.segments.ranks > 0, "--reference", "--segments");
  exclude(o.prefill && o.segments.ranks > 0, "--mode decode", "--segments");
}

}  // namespace

std::optional<ApplyOptions> parse_apply(const std::vector<std::string>& words) {
  ApplyOptions o;
  std::string dtype = "f32", mode = "full", chunk, segments, init;
  Flags flags("apply", "ID [attr=value...]",
              "Runs one mechanism on the tensors of file A, and writes outputs, last states and gradients to "
              "file B.");
  flags.add("--in", o.in, "A.safetensors", "inputs: tensors, parameters, states, adjoints");
  flags.add("--out", o.out, "B.safetensors", "outputs: results, last states, gradients");
  flags.add("--dtype", dtype, "f64|f32|bf16", "type to compute in; default f32");
  flags.add("--device", o.device, "cpu|cuda", kDeviceHelp);
  flags.add("--reference", o.reference, "compute by the naive definition");
  flags.add("--chunk", chunk, "N", "tokens handled at once; changes speed, not results");
  flags.add("--mode", mode, "full|decode:M",
            "full (default), or decode: M tokens at once, then one by one, without gradients");
  flags.add("--segments", segments, kSegmentsUnit, "split over RANKS ranks, as threads");
  flags.add("--init", init, "SEED", "draw the parameters that A does not hold, and write them to B");
  flags.add("--describe", o.describe, "compute nothing: print attributes, inputs, parameters and states");
  flags.add("--json", o.json, "one line of JSON, apply/1; of --describe describe/1");
  if (!flags.parse(words)) return {};
  o.id = flags.argument(0);
  o.attributes.assign(flags.arguments().begin() + 1, flags.arguments().end());
  o.dtype =
      flag_choice<Dtype>("--dtype", dtype, {{"f64", Dtype::f64}, {"f32", Dtype::f32}, {"bf16", Dtype::bf16}});
  if (!chunk.empty()) o.chunk = flag_number("--chunk", chunk, 1, 1 << 20);
  read_mode(o, mode);
  o.segments = parse_segments(segments);
  if (!init.empty())
    o.init = static_cast<uint32_t>(flag_number("--init", init, 0, std::numeric_limits<uint32_t>::max()));
  check(o);
  return o;
}

}  // namespace weft
