// A transform runs over the tokens of sixteen channels at once, so that its innermost loop is a vector.
// Spectra stay in the order in which decimation in frequency leaves them; the way back, decimation in time,
// starts from there, and nothing is ever put in order.

#include <bit>
#include <cmath>
#include <map>
#include <numbers>

#include "autograd/ops/causal_convolution.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

constexpr int64_t kLanes = 16;

// n complex numbers of each lane, n a power of two.
template <class W>
struct Signals {
  explicit Signals(int64_t n) : re(static_cast<size_t>(n * kLanes)), im(re.size()) {}
  Scratch<W> re, im;
};

template <class W>
class Transform {
 public:
  explicit Transform(int64_t n) : n_(n) {
    for (int64_t i = 0; i < n / 2; ++i) {
      const double angle = 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(n);
      cosine_.push_back(static_cast<W>(std::cos(angle)));
      sine_.push_back(static_cast<W>(std::sin(angle)));
    }
  }
  int64_t size() const { return n_; }

  void forward(Signals<W>& x) const {
    for (int64_t half = n_ / 2; half >= 1; half /= 2)
      for_pairs(x, half, [](W& ar, W& ai, W& br, W& bi, W c, W s) {
        const W r = ar - br, i = ai - bi;
        ar += br;
        ai += bi;
        br = r * c + i * s;
        bi = i * c - r * s;
      });
  }
  // n times the inverse.
  void backward(Signals<W>& x) const {
    for (int64_t half = 1; half < n_; half *= 2)
      for_pairs(x, half, [](W& ar, W& ai, W& br, W& bi, W c, W s) {
        const W r = br * c - bi * s, i = bi * c + br * s;
        br = ar - r;
        bi = ai - i;
        ar += r;
        ai += i;
      });
  }

 private:
  template <class F>
  void for_pairs(Signals<W>& x, int64_t half, F butterfly) const {
    const int64_t stride = n_ / (2 * half);
    for (int64_t begin = 0; begin < n_; begin += 2 * half)
      for (int64_t j = 0; j < half; ++j) {
        const W c = cosine_[j * stride], s = sine_[j * stride];
        W *ar = x.re.data() + (begin + j) * kLanes, *ai = x.im.data() + (begin + j) * kLanes;
        W *br = ar + half * kLanes, *bi = ai + half * kLanes;
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) butterfly(ar[l], ai[l], br[l], bi[l], c, s);
      }
  }

  int64_t n_;
  Scratch<W> cosine_, sine_;
};

// z = x y, or x times the conjugate of y; added to z if asked.
template <class W>
void multiply(Signals<W>& z, const Signals<W>& x, const Signals<W>& y, bool conjugate, bool add) {
  const W sign = conjugate ? W(-1) : W(1), keep = add ? W(1) : W(0);
#pragma omp simd
  for (size_t i = 0; i < z.re.size(); ++i) {
    const W yi = sign * y.im[i], re = x.re[i] * y.re[i] - x.im[i] * yi, im = x.re[i] * yi + x.im[i] * y.re[i];
    z.re[i] = keep * z.re[i] + re;
    z.im[i] = keep * z.im[i] + im;
  }
}

// Where element (i, l) of a block of lanes is: tokens of `x` are rows, those of a kernel columns.
template <class T>
struct Lanes {
  T* data;
  int64_t step, lane_step, lanes;
};
template <class T>
Lanes<T> token_lanes(const Tensor& x, int64_t row, int64_t channel) {
  return {x.data<T>() + row * x.dim(1) + channel, x.dim(1), 1, std::min(kLanes, x.dim(1) - channel)};
}
template <class T>
Lanes<T> kernel_lanes(const Tensor& k, int64_t channel) {
  return {k.data<T>() + channel * k.dim(1), 1, k.dim(1), std::min(kLanes, k.dim(0) - channel)};
}

template <class W, class T>
Signals<W> spectrum(const Transform<W>& f, const Lanes<T>& from, int64_t count) {
  Signals<W> x(f.size());
  for (int64_t i = 0; i < count; ++i)
    for (int64_t l = 0; l < from.lanes; ++l)
      x.re[i * kLanes + l] = static_cast<W>(from.data[i * from.step + l * from.lane_step]);
  f.forward(x);
  return x;
}

// The first `count` values behind a spectrum, which is used up.
template <class W, class F>
void signal(const Transform<W>& f, Signals<W>& x, int64_t count, int64_t lanes, F put) {
  f.backward(x);
  const W factor = W(1) / static_cast<W>(f.size());
  for (int64_t i = 0; i < count; ++i)
    for (int64_t l = 0; l < lanes; ++l) put(i, l, x.re[i * kLanes + l] * factor);
}
template <class W, class T>
void write_signal(const Transform<W>& f, Signals<W>& x, int64_t count, const Lanes<T>& to) {
  signal(f, x, count, to.lanes, [&](int64_t i, int64_t l, W value) {
    to.data[i * to.step + l * to.lane_step] = static_cast<T>(value);
  });
}

// Documents by the length of the transform that holds them and as many zeros.
struct Document {
  int64_t begin, size;
};
std::map<int64_t, std::vector<Document>> by_length(const Tensor& first) {
  std::map<int64_t, std::vector<Document>> all;
  const int32_t* start = first.data<int32_t>();
  for (int64_t g = 0; g + 1 < first.dim(0); ++g)
    if (const int64_t size = start[g + 1] - start[g]; size > 0)
      all[static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(2 * size)))].push_back({start[g], size});
  return all;
}

// f(channel) for the first channel of each block of lanes.
template <class F>
void for_lanes(int64_t channels, F f) {
  parallel_for((channels + kLanes - 1) / kLanes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) f(b * kLanes);
  });
}

template <class T, class W>
void forward(const Tensor& y, const Tensor& x, const Tensor& kernel, const Tensor& first) {
  for (const auto& [n, documents] : by_length(first)) {
    const Transform<W> f(n);
    const int64_t taps = std::min(n / 2, kernel.dim(1));
    for_lanes(x.dim(1), [&, &documents = documents](int64_t channel) {
      const Signals<W> filter = spectrum<W>(f, kernel_lanes<T>(kernel, channel), taps);
      for (const Document& d : documents) {
        Signals<W> s = spectrum<W>(f, token_lanes<T>(x, d.begin, channel), d.size);
        multiply(s, s, filter, false, false);
        write_signal(f, s, d.size, token_lanes<T>(y, d.begin, channel));
      }
    });
  }
}

template <class T, class W>
void backward(const Tensor& dx, const Tensor& dkernel, const Tensor& x, const Tensor& kernel,
              const Tensor& first, const Tensor& dy) {
  const int64_t length = kernel.dim(1);
  Scratch<W> sum(static_cast<size_t>(kernel.numel()));
  for (const auto& [n, documents] : by_length(first)) {
    const Transform<W> f(n);
    const int64_t taps = std::min(n / 2, length);
    for_lanes(x.dim(1), [&, &documents = documents](int64_t channel) {
      const Lanes<T> lanes = kernel_lanes<T>(kernel, channel);
      const Signals<W> filter = spectrum<W>(f, lanes, taps);
      Signals<W> dfilter(f.size()), turned(f.size());
      for (const Document& d : documents) {
        const Signals<W> g = spectrum<W>(f, token_lanes<T>(dy, d.begin, channel), d.size);
        const Signals<W> s = spectrum<W>(f, token_lanes<T>(x, d.begin, channel), d.size);
        multiply(dfilter, g, s, true, true);
        multiply(turned, g, filter, true, false);
        write_signal(f, turned, d.size, token_lanes<T>(dx, d.begin, channel));
      }
      signal(f, dfilter, taps, lanes.lanes,
             [&](int64_t i, int64_t l, W value) { sum[(channel + l) * length + i] += value; });
    });
  }
  T* to = dkernel.data<T>();
  for (size_t i = 0; i < sum.size(); ++i) to[i] = static_cast<T>(sum[i]);
}

}  // namespace

void causal_convolution_forward(const Tensor& y, const Tensor& x, const Tensor& kernel, const Tensor& first) {
  with_float(x.dtype(), [&]<class T>() { forward<T, Acc<T>>(y, x, kernel, first); });
}

void causal_convolution_backward(const Tensor& dx, const Tensor& dkernel, const Tensor& x,
                                 const Tensor& kernel, const Tensor& first, const Tensor& dy) {
  with_float(x.dtype(), [&]<class T>() { backward<T, Acc<T>>(dx, dkernel, x, kernel, first, dy); });
}

}  // namespace weft::cpu
