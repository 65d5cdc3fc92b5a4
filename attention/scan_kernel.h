#pragma once
// For scans whose state is {transition, S} and whose kernel runs over whole segments.

#include "attention/part.h"
#include "autograd/ops/arrange.h"

namespace weft {

// Whether this build has a kernel of linear attention or of a delta rule over whole segments.
inline bool has_scan_kernel(Device device, [[maybe_unused]] Dtype dtype, [[maybe_unused]] int64_t key,
                            [[maybe_unused]] int64_t value) {
#ifdef WEFT_CUDA
  if (device == Device::cuda) return dtype != Dtype::f64 && key <= 256 && value <= 256;
#endif
  return device == Device::cpu;
}

// A kernel's result in the form that a scan passes on. end: S after each segment, undefined where not wanted;
// a row of the identity stands for the transitions, which a state from the very start does not need.
inline Scan::Ran run_result(const Variable& y, const Variable& end, const std::function<State()>& identity) {
  if (!end.defined()) return {y, {}};
  const std::vector<int32_t> same(static_cast<size_t>(end.dim(0)), 0);
  return {y, {gather_rows(identity()[0], from_ints(same, end.device())), end}};
}

// Gives a scan over q, k, v and perhaps beta and g (their places in the block; -1: none), with the state
// {transition, S}, its step.
void use_recurrent_step(Scan& scan, double scale, int64_t key, int beta, int g);

}  // namespace weft
