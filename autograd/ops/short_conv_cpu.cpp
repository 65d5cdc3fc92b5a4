#include "autograd/ops/short_conv.h"

#include <algorithm>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

// weight (C, W) as W rows, so that the loop over channels runs along memory.
template <int W, class A>
Scratch<A> by_tap(const Tensor& weight) {
  const int64_t channels = weight.dim(0);
  const A* const w = weight.data<A>();
  Scratch<A> rows(static_cast<size_t>(channels * W));
  A* const to = rows.data();
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c)
#pragma GCC unroll 8
    for (int k = 0; k < W; ++k) to[k * channels + c] = w[c * W + k];
  return rows;
}

// The rows a token reads, and those that read it.
template <class T>
struct Line {
  Line(const Tensor& x, const Tensor& before, const Tensor& position, int64_t width)
      : rows(x),
        zeros(static_cast<size_t>(x.dim(1))),
        front(before.defined() ? before.data<T>() : nullptr),
        place(position.data<int32_t>()),
        tokens(x.dim(0)),
        channels(x.dim(1)),
        width(width) {}

  // Row i - j, or zeros where token i may not look so far.
  const T* back(int64_t i, int64_t j) const {
    if (j > place[i]) return zeros.data();
    if (i >= j) return rows[i - j];
    return front == nullptr ? zeros.data() : front + (width - 1 + i - j) * channels;
  }
  // Row i + j, or zeros where that token does not look back to i. i may lie in front of the line.
  const T* ahead(int64_t i, int64_t j) const {
    const int64_t reader = i + j;
    return reader >= 0 && reader < tokens && j <= place[reader] ? rows[reader] : zeros.data();
  }

  Rows<T> rows;
  Scratch<T> zeros;
  const T* front;
  const int32_t* place;
  int64_t tokens, channels, width;
};

// y = bias + sum over k of weight row k times row k of x
template <int W, class T>
void weigh(T* y, const T* const* x, const Acc<T>* weight, const Acc<T>* bias, int64_t channels) {
  const T* row[W];
  for (int k = 0; k < W; ++k) row[k] = x[k];
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    Acc<T> sum = bias[c];
#pragma GCC unroll 8
    for (int k = 0; k < W; ++k) sum += weight[k * channels + c] * Acc<T>(row[k][c]);
    store(y[c], sum);
  }
}

// weight row k += dy times row k of x
template <int W, class T>
void correlate(Acc<T>* dweight, const T* const* x, const T* dy, int64_t channels) {
  for (int k = 0; k < W; ++k) {
    Acc<T>* sum = dweight + k * channels;
    const T* row = x[k];
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) sum[c] += Acc<T>(dy[c]) * Acc<T>(row[c]);
  }
}

template <int W, class T>
void forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
             const Tensor& position, const Tensor& before) {
  using A = Acc<T>;
  const int64_t channels = x.dim(1);
  const Line<T> line(x, before, position, W);
  const Rows<T> out(y);
  const Scratch<A> w = by_tap<W, A>(weight), none(static_cast<size_t>(channels), A(0));
  const A* b = bias.defined() ? bias.data<A>() : none.data();
  parallel_for(x.dim(0), row_grain(channels * W), [&](int64_t begin, int64_t end) {
    const T* tap[W];
    for (int64_t i = begin; i < end; ++i) {
      for (int k = 0; k < W; ++k) tap[k] = line.back(i, W - 1 - k);
      weigh<W>(out[i], tap, w.data(), b, channels);
    }
  });
}

template <int W, class T>
void backward(const Tensor& dx, const Tensor& dbefore, const Tensor& dweight, const Tensor& dbias,
              const Tensor& x, const Tensor& weight, const Tensor& position, const Tensor& before,
              const Tensor& dy) {
  using A = Acc<T>;
  const int64_t channels = x.dim(1), tokens = x.dim(0);
  const Line<T> line(x, before, position, W), gradients(dy, {}, position, W);
  const Rows<T> out(dx);
  const Scratch<A> w = by_tap<W, A>(weight), none(static_cast<size_t>(channels), A(0));
  if (dbefore.defined()) {
    const T* tap[W];
    const Rows<T> front(dbefore);
    for (int64_t r = 0; r < W - 1; ++r) {
      for (int k = 0; k < W; ++k) tap[k] = gradients.ahead(r - (W - 1), W - 1 - k);
      weigh<W>(front[r], tap, w.data(), none.data(), channels);
    }
  }
  const RowBlocks blocks = row_blocks(tokens);
  dbias.zero();
  parallel_for(blocks.count, row_grain(blocks.size * channels * W), [&](int64_t first, int64_t last) {
    const T* tap[W];
    Scratch<A> sums(static_cast<size_t>(W * channels));
    for (int64_t block = first; block < last; ++block) {
      std::fill(sums.begin(), sums.end(), A(0));
      A *bias_sum = dbias.data<A>() + block * channels,
        *weight_sum = dweight.data<A>() + block * channels * W;
      for (int64_t i = block * blocks.size; i < std::min(tokens, (block + 1) * blocks.size); ++i) {
        const T* g = gradients.rows[i];
        for (int k = 0; k < W; ++k) tap[k] = gradients.ahead(i, W - 1 - k);
        weigh<W>(out[i], tap, w.data(), none.data(), channels);
        for (int k = 0; k < W; ++k) tap[k] = line.back(i, W - 1 - k);
        correlate<W>(sums.data(), tap, g, channels);
#pragma omp simd
        for (int64_t c = 0; c < channels; ++c) bias_sum[c] += A(g[c]);
      }
      const A* const sum = sums.data();
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c)
#pragma GCC unroll 8
        for (int k = 0; k < W; ++k) weight_sum[c * W + k] = sum[k * channels + c];
    }
  });
}

// f.operator()<W, T>() with the filter's width and the element type known to the compiler.
template <class F>
void with_width(int64_t width, Dtype dtype, F f) {
  with_float(dtype, [&]<class T>() {
    switch (width) {
      case 1: return f.template operator()<1, T>();
      case 2: return f.template operator()<2, T>();
      case 3: return f.template operator()<3, T>();
      case 4: return f.template operator()<4, T>();
      case 5: return f.template operator()<5, T>();
      case 6: return f.template operator()<6, T>();
      case 7: return f.template operator()<7, T>();
      case 8: return f.template operator()<8, T>();
    }
  });
}

}  // namespace

void short_conv_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& position, const Tensor& before) {
  with_width(weight.dim(1), x.dtype(),
             [&]<int W, class T>() { forward<W, T>(y, x, weight, bias, position, before); });
}

void short_conv_backward(const Tensor& dx, const Tensor& dbefore, const Tensor& dweight, const Tensor& dbias,
                         const Tensor& x, const Tensor& weight, const Tensor& position, const Tensor& before,
                         const Tensor& dy) {
  with_width(weight.dim(1), x.dtype(), [&]<int W, class T>() {
    backward<W, T>(dx, dbefore, dweight, dbias, x, weight, position, before, dy);
  });
}

}  // namespace weft::cpu
