#pragma once
// The command line of `weft apply`.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "autograd/dtype.h"
#include "tools/segments_flag.h"

namespace weft {

struct ApplyOptions {
  std::string id;
  std::vector<std::string> attributes;  // attr=value
  std::string in, out;
  Dtype dtype = Dtype::f32;
  std::string device;  // as --device has it
  bool reference = false;
  int64_t chunk = 0;               // 0: the mechanism's own
  std::optional<int64_t> prefill;  // decode:M, the M
  std::optional<uint32_t> init;    // seed of parameters that the file does not hold
  SegmentsFlag segments;
  bool describe = false, json = false;
};

// None: --help was asked for and answered. Errors: Exit::usage; Exit::recipe for flags that exclude each
// other.
std::optional<ApplyOptions> parse_apply(const std::vector<std::string>& words);

}  // namespace weft
