#include <algorithm>
#include <cstring>

#include "autograd/ops/convert.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

// f(row of to, row of from, length) for each leading row, or once over everything when both are dense.
template <class To, class From, class F>
void each_row(const Tensor& to, const Tensor& from, F f) {
  To* y = to.data<To>();
  const From* x = from.data<From>();
  if (to.dense() && from.dense()) {
    parallel_for(to.numel(), 1 << 15,
                 [&](int64_t begin, int64_t end) { f(y + begin, x + begin, end - begin); });
  } else {
    const int64_t n = to.row_size();
    parallel_for(to.dim(0), 1 + (1 << 15) / (n + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(y + i * to.pitch(), x + i * from.pitch(), n);
    });
  }
}

}  // namespace

void fill(const Tensor& to, double value) {
  if (to.dtype() == Dtype::i32) {
    std::fill_n(to.data<int32_t>(), to.numel(), static_cast<int32_t>(value));
  } else {
    with_float(to.dtype(), [&]<class T>() {
      std::fill_n(to.data<T>(), to.numel(), static_cast<T>(static_cast<Acc<T>>(value)));
    });
  }
}

void convert(const Tensor& to, const Tensor& from) {
  if (to.numel() == 0) return;
  if (to.dtype() == Dtype::i32 || from.dtype() == Dtype::i32) {
    CHECK(to.dtype() == from.dtype(), "copy: i32 and a float type do not mix");
    return each_row<int32_t, int32_t>(to, from, [](int32_t* y, const int32_t* x, int64_t n) {
      std::memcpy(y, x, static_cast<size_t>(n) * sizeof(int32_t));
    });
  }
  with_float(to.dtype(), [&]<class To>() {
    with_float(from.dtype(), [&]<class From>() {
      each_row<To, From>(to, from, [](To* y, const From* x, int64_t n) {
        if constexpr (std::is_same_v<To, From>) {
          std::memcpy(static_cast<void*>(y), x, static_cast<size_t>(n) * sizeof(To));
        } else {
          for (int64_t i = 0; i < n; ++i) y[i] = static_cast<To>(static_cast<Acc<From>>(x[i]));
        }
      });
    });
  });
}

void accumulate(const Tensor& to, const Tensor& from) {
  CHECK(to.shape() == from.shape(), "accumulate: ", from.shape(), " into ", to.shape());
  if (to.numel() == 0) return;
  with_float(to.dtype(), [&]<class To>() {
    with_float(from.dtype(), [&]<class From>() {
      each_row<To, From>(to, from, [](To* y, const From* x, int64_t n) {
        for (int64_t i = 0; i < n; ++i)
          y[i] = static_cast<To>(static_cast<Acc<To>>(y[i]) +
                                 static_cast<Acc<To>>(static_cast<Acc<From>>(x[i])));
      });
    });
  });
}

}  // namespace weft::cpu
