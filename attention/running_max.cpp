#include "attention/running_max.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"

namespace weft {
namespace {

// The largest of x (M, C, H) up to each of C, in as many steps as C can be halved.
Variable running_max(const Variable& x) {
  Variable y = x;
  for (int64_t back = 1; back < x.dim(1); back *= 2) {
    const Variable first = slice(y, 1, 0, back), rest = slice(y, 1, back, x.dim(1));
    y = concatenate({first, maximum(rest, slice(y, 1, 0, x.dim(1) - back))}, 1);
  }
  return y;
}

// Before each token and up to it: (M, C, H) -> (M, C, 2 H).
Scan max_scan(double least, int64_t chunk, int64_t heads, Dtype dtype, Device device) {
  Scan scan;
  scan.names = {"m"};
  scan.pad = {least};
  scan.chunk = chunk;
  scan.identity = [=] { return State{full({1, heads}, least, dtype, device)}; };
  scan.summarize = [=](const Block& b) {
    const Variable most = max(b.x[0], 1);
    return State{maximum(most, full(most.shape(), least, dtype, device))};
  };
  scan.combine = [](const State& before, const State& after) { return State{maximum(before[0], after[0])}; };
  scan.apply = [](const Block& b, const State& prefix) {
    const Variable past = reshape(prefix[0], {prefix[0].dim(0), 1, prefix[0].dim(1)});
    const Variable now = maximum(running_max(b.x[0]), past);
    return concatenate({concatenate({past, slice(now, 1, 0, now.dim(1) - 1)}, 1), now}, 2);
  };
  return scan;
}

}  // namespace

SoFar largest_so_far(const Variable& x, double least, int64_t chunk, const Block& block, Crossing& cross) {
  const int64_t heads = x.dim(1);
  const Variable both =
      cross(max_scan(least, chunk, heads, x.dtype(), x.device()), {{x}, block.position, block.document});
  return {slice(both, 1, 0, heads), slice(both, 1, heads, 2 * heads)};
}

}  // namespace weft
