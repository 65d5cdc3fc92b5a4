// Taylor features on a CPU as one pass over what goes in and what comes out. Of basic ops it is three for
// each component of x, which all go through memory.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "attention/feature_map.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/parallel.h"
#include "autograd/planned_device.h"
#include "autograd/scratch.h"

namespace weft {
namespace {

// Factors of x_i, of x_i^2 and of x_i x_j.
template <class W>
struct TaylorFactors {
  explicit TaylorFactors(int64_t d)
      : linear(static_cast<W>(1 / std::sqrt(std::sqrt(static_cast<double>(d))))),
        square(static_cast<W>(1 / std::sqrt(2.0 * static_cast<double>(d)))),
        product(static_cast<W>(1 / std::sqrt(static_cast<double>(d)))) {}
  W linear, square, product;
};

// x (d) to y (1 + d + d (d + 1) / 2)
template <class W>
void taylor_row(W* y, const W* x, int64_t d, const TaylorFactors<W>& factor) {
  *y++ = 1;
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) y[i] = factor.linear * x[i];
  y += d;
  for (int64_t i = 0; i < d; y += d - i, ++i) {
    const W xi = x[i], *others = x + i;
    y[0] = factor.square * (xi * xi);
#pragma omp simd
    for (int64_t j = 1; j < d - i; ++j) y[j] = factor.product * (xi * others[j]);
  }
}

// Of dy to dx. A square stands for two products of one component with itself.
template <class W>
void taylor_row_back(W* dx, const W* dy, const W* x, int64_t d, const TaylorFactors<W>& factor) {
  ++dy;
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) dx[i] = factor.linear * dy[i];
  dy += d;
  for (int64_t i = 0; i < d; dy += d - i, ++i) {
    const W xi = x[i], *others = x + i;
    W *to = dx + i, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 1; j < d - i; ++j) {
      const W share = factor.product * dy[j];
      sum += share * others[j];
      to[j] += share * xi;
    }
    to[0] += sum + 2 * factor.square * xi * dy[0];
  }
}

// f(token, head) for all rows of x (N, H, d).
template <class F>
void for_each_taylor_row(const Tensor& x, F f) {
  const int64_t heads = x.dim(1), d = x.dim(2);
  parallel_for(x.dim(0), 1 + (1 << 15) / (heads * d * d + 1), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t h = 0; h < heads; ++h) f(n, h);
  });
}

template <class T>
T* taylor_row_of(const Tensor& x, int64_t token, int64_t head) {
  return x.data<T>() + token * x.pitch() + head * x.dim(2);
}

void taylor_forward(const Tensor& y, const Tensor& x) {
  const int64_t d = x.dim(2), features = y.dim(2);
  with_float(x.dtype(), [&]<class T>() {
    using W = Acc<T>;
    const TaylorFactors<W> factor(d);
    for_each_taylor_row(x, [&](int64_t n, int64_t h) {
      const T* from = taylor_row_of<T>(x, n, h);
      T* to = taylor_row_of<T>(y, n, h);
      if constexpr (std::is_same_v<T, W>) {
        taylor_row(to, from, d, factor);
      } else {
        Scratch<W> wide(from, from + d), row(static_cast<size_t>(features));
        taylor_row(row.data(), wide.data(), d, factor);
        std::copy(row.begin(), row.end(), to);
      }
    });
  });
}

void taylor_backward(const Tensor& dx, const Tensor& dy, const Tensor& x) {
  const int64_t d = x.dim(2), features = dy.dim(2);
  with_float(x.dtype(), [&]<class T>() {
    using W = Acc<T>;
    const TaylorFactors<W> factor(d);
    for_each_taylor_row(x, [&](int64_t n, int64_t h) {
      const T *at = taylor_row_of<T>(x, n, h), *from = taylor_row_of<T>(dy, n, h);
      T* to = taylor_row_of<T>(dx, n, h);
      if constexpr (std::is_same_v<T, W>) {
        taylor_row_back(to, from, at, d, factor);
      } else {
        Scratch<W> wide(at, at + d), gradient(from, from + features), sum(static_cast<size_t>(d));
        taylor_row_back(sum.data(), gradient.data(), wide.data(), d, factor);
        std::copy(sum.begin(), sum.end(), to);
      }
    });
  });
}

}  // namespace

Variable taylor_features_by_ops(const Variable& x) {
  const int64_t d = x.dim(2);
  const double root = std::sqrt(static_cast<double>(d));
  std::vector<Variable> parts{full({x.dim(0), x.dim(1), 1}, 1, x.dtype(), x.device()),
                              scale(x, 1 / std::sqrt(root))};
  for (int64_t i = 0; i < d; ++i) {  // products with the features behind i, stored once
    const Variable xi = slice(x, 2, i, i + 1);
    parts.push_back(scale(square(xi), 1 / (std::sqrt(2.0) * root)));
    if (i + 1 < d) parts.push_back(scale(multiply(xi, slice(x, 2, i + 1, d)), 1 / root));
  }
  return concatenate(parts, 2);
}

Variable taylor_features(const Variable& x) {
  CHECK(x.rank() == 3, "taylor_features: x ", x.shape());
  if (computed_on(x.device()) != Device::cpu) return taylor_features_by_ops(x);
  const int64_t d = x.dim(2);
  const Tensor y = empty({x.dim(0), x.dim(1), 1 + d + d * (d + 1) / 2}, x.dtype(), x.device());
  if (x.device() == Device::cpu) taylor_forward(y, x);
  return record("taylor_features", {x}, y, save(x), NoAttributes{}, [](Backward& b, const NoAttributes&) {
    const Tensor& x = b.saved(0);
    const Tensor dx = empty(x.shape(), x.dtype(), x.device());
    if (x.device() == Device::cpu) taylor_backward(dx, b.grad(), x);
    b.add(0, dx);
  });
}

}  // namespace weft
