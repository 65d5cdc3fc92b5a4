#include "autograd/draw.h"
#include "autograd/parallel.h"

namespace weft {

void draw(const Tensor& to, Spread spread, double scale, const RandomKey& key) {
  CHECK(to.dense(), "draw: a tensor with gaps between its rows");
  ON_DEVICE(to.device(), draw(to, spread, scale, key));
}

namespace cpu {

void draw(const Tensor& to, Spread spread, double scale, const RandomKey& key) {
  with_float(to.dtype(), [&]<class T>() {
    T* const p = to.data<T>();
    parallel_for(to.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        p[i] = static_cast<T>(drawn(spread, scale, key, static_cast<uint64_t>(i)));
    });
  });
}

}  // namespace cpu
}  // namespace weft
