#pragma once
// The multi-dimensional damped moving average of Mega (Ma et al. 2022, section 3.1). Every channel c is
// expanded into N dimensions, averaged in each, and summed again:
//
//   h_t = p beta x_t + q h_{t-1}      y_t = sum over N of gamma h_t / sqrt(N)
//   p = sigmoid(alpha)                q = 1 - p sigmoid(delta)
//
// with alpha, delta, beta, gamma (C, N). The factor 1 / sqrt(N) is not in the paper but in the
// authors' exponential_moving_average.py, where alpha and delta have each other's names. Unrolled it is the
// convolution y_t = sum_{j <= t} kernel[t - j] x_j with kernel[l] = sum over N of gamma p beta q^l / sqrt(N);
// attention's README has the form by chunks. States and sums are f32 (f64 of f64). On a GPU that has a kernel
// for it (ema_run.h) the recurrence itself runs.

#include "attention/ema_coefficients.h"
#include "attention/mechanism.h"

namespace weft {

class DampedEma {
 public:
  // Declares alpha, delta, beta, gamma (channels, size).
  DampedEma(int64_t channels, int64_t size, const ParameterScope& scope);

  // x (T, C), the tokens of block -> y (T, C): of x's dtype from the kernel, else f32 (f64). chunk: tokens
  // handled as one product. Documents that lie here whole, none longer than fft_up_to, are convolved by fast
  // Fourier transforms. reverse: from the end of each document to its start.
  Variable operator()(const Variable& x, const Block& block, Crossing& cross, int64_t chunk,
                      int64_t fft_up_to, bool reverse = false) const;
  // One document from its start, token by token.
  Variable recurrence(const Variable& x) const;
  // kernel[l] for l < length, (C, length).
  Variable kernel(int64_t length) const;
  // Whether a kernel computes this, which is faster than transforms at any length.
  bool has_kernel(Device device, Dtype dtype) const;

 private:
  EmaCoefficients coefficients() const;
  Scan scan(Device device, Dtype dtype, int64_t chunk, bool fft) const;

  int64_t channels_, size_;
  RepeatedRows ones_;
  Parameter alpha_, delta_, beta_, gamma_;
};

}  // namespace weft
