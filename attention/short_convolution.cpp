#include "attention/short_convolution.h"

#include <algorithm>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/short_conv.h"

namespace weft {

Halo short_convolution(const Variable& weight, const Layout& layout) {
  const int64_t reach = weight.dim(1) - 1;
  return {reach, [=, segments = layout.segments](const Block& block, const Block& before) {
            const bool from_starts =
                std::all_of(segments.begin(), segments.end(), [](const Segment& s) { return s.begin == 0; });
            if (from_starts) return short_conv(block.x[0], weight, {}, block.position);
            std::vector<Variable> parts;
            int64_t at = 0, row = 0;
            for (const Segment& s : segments) {
              parts.push_back(short_conv(slice(block.x[0], 0, at, at + s.size()), weight, {},
                                         block.position.rows(at, at + s.size()),
                                         slice(before.x[0], 0, row, row + reach)));
              at += s.size();
              row += reach;
            }
            return parts.empty() ? block.x[0] : concatenate(parts, 0);
          }};
}

Variable naive_short_convolution(const Variable& x, const Variable& weight) {
  const int64_t n = x.dim(0), channels = x.dim(1), width = weight.dim(1);
  Variable y;
  for (int64_t j = 0; j < std::min(width, n); ++j) {
    const Variable tap = reshape(slice(weight, 1, width - 1 - j, width - j), {channels});
    const Variable term = multiply(slice(x, 0, 0, n - j), cast(tap, x.dtype()));
    const Variable moved =
        j == 0 ? term : concatenate({zeros({j, channels}, x.dtype(), x.device()), term}, 0);
    y = j == 0 ? moved : add(y, moved);
  }
  return y;
}

}  // namespace weft
