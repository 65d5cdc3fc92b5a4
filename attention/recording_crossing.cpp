#include "attention/recording_crossing.h"

#include <algorithm>

namespace weft {
namespace {

// Where tensors are computed with.
const std::vector<Device> kEverywhere{Device::cpu, Device::cuda};

int64_t state_bytes(const State& state) {
  int64_t bytes = 0;
  for (const Variable& v : state) bytes += v.value().bytes();
  return bytes;
}

// Of one token of these inputs.
int64_t row_bytes(const Block& block, size_t first) {
  int64_t bytes = 0;
  for (size_t i = first; i < block.x.size(); ++i) {
    const Tensor& x = block.x[i].value();
    bytes += x.row_size() * size_of(x.dtype());
  }
  return bytes;
}

}  // namespace

const char* form_on(Device device, const std::vector<PartCall>& calls) {
  const bool fused = std::all_of(calls.begin(), calls.end(), [&](const PartCall& call) {
    return std::find(call.fused.begin(), call.fused.end(), device) != call.fused.end();
  });
  return fused ? "fused" : "derived";
}

const char* name_of(PartKind kind) {
  switch (kind) {
    case PartKind::scan: return "scan";
    case PartKind::merge: return "merge";
    case PartKind::halo: return "halo";
    case PartKind::carry: return "carry";
  }
  return "";
}

Variable RecordingCrossing::operator()(const Scan& part, const Block& block) {
  std::vector<Device> fused;
  for (const Device device : kEverywhere)
    if (part.kernel.on(device)) fused.push_back(device);
  calls_.push_back({PartKind::scan, state_bytes(part.identity()), fused});
  return inner_(part, block);
}

std::vector<Variable> RecordingCrossing::operator()(const Merge& part, const Block& block) {
  const bool alike = !part.options.alibi && !part.bias.defined();
  calls_.push_back({PartKind::merge, part.options.block > 0 ? 0 : row_bytes(block, 1), kEverywhere,
                    alike ? block.x[1].dim(1) : 0});
  return inner_(part, block);
}

Variable RecordingCrossing::operator()(const Halo& part, const Block& block) {
  calls_.push_back(
      {PartKind::halo, part.width * row_bytes(block, 0), part.fused ? kEverywhere : std::vector<Device>{}});
  return inner_(part, block);
}

Variable RecordingCrossing::operator()(const Carry& part, const Block& block) {
  calls_.push_back({PartKind::carry, state_bytes(part.start()), {}});
  return inner_(part, block);
}

}  // namespace weft
