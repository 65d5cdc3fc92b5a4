#pragma once
// The multi-dimensional damped moving average of Mega (Ma et al. 2022) over packed documents, on the GPU. Of
// each channel c and each of its n states
//
//   h_t = decay h_{t-1} + in x_t          y_t = sum over n of out h_t
//
// in one pass: states live in registers, and nothing of size (tokens, channels, states) is ever stored.
// moving_average.md derives the gradients. Results have the same bits from run to run.

#include "attention/kernels/ema_plan.h"
#include "attention/kernels/linear_attention.h"

namespace weft::cuda {

constexpr int kMostEmaStates = 32;

struct Ema {
  int channels = 0, size = 0;                 // size: states of a channel, up to kMostEmaStates
  Dtype dtype = Dtype::bf16;                  // of x, y and their gradients: bf16 or f32
  const float *in = nullptr, *out = nullptr;  // (channels, size)
  const float* decay = nullptr;               // (channels, size), of [0, 1]
  int documents = 0, spans = 0;               // of an EmaPlan
  bool cut = false, matrices = false;
  const int* plan = nullptr;  // its values, on the device
};

// x (tokens, channels) with a pitch; y (tokens, channels) dense. start, end (rows, channels, size) f32: the
// states before and after each document, by the plan's rows; rows of documents without tokens are neither
// read nor written. A null start is zero, a null end not wanted.
void ema_forward(const Ema& shape, Rows x, const float* start, void* y, float* end, float* workspace,
                 cudaStream_t stream);

struct EmaGradients {
  void* x = nullptr;
  float *in = nullptr, *out = nullptr, *decay = nullptr;  // (channels, size)
  float* start = nullptr;                                 // only with a start; null: not wanted
};

// d_end may be null.
void ema_backward(const Ema& shape, Rows x, Rows dy, const float* start, const float* d_end,
                  const EmaGradients& d, float* workspace, cudaStream_t stream);

// Floats of scratch: a few of the size of `in` for each span.
inline int64_t ema_forward_workspace(const Ema& e) {
  return e.cut ? int64_t{e.spans} * e.channels * e.size : 0;
}
inline int64_t ema_backward_workspace(const Ema& e) {
  return int64_t{e.spans} * e.channels * e.size * (e.cut ? 6 : 3);
}

}  // namespace weft::cuda
