#include "attention/flash_attention.cuh"
#include "attention/flash_attention_cudnn.h"
#include "autograd/determinism.h"
#include "autograd/ops/convert.h"

namespace weft::cuda {
namespace {

// Everything that only options decide is asked there.
bool whole_rows(const AttentionTokens& tokens, const Tensor& bias) {
  return !bias.defined() && !tokens.active.defined();
}

// Short documents of one length, heads of 64, enough rows to fill the GPU (gpu.md, "Softmax attention",
// has what was measured): a fifth of cuDNN's way back are passes over o, do and dq alone, which ours has not.
bool own_backward_is_faster(const Tensor& q, const Tensor& k, const Tensor& v,
                            const AttentionOptions& options) {
  const int64_t n = q.dim(0), longest = options.longest;
  const bool few = longest <= 512 || (longest <= 1024 && n <= 16384);
  return options.causal && few && options.documents * longest == n && q.dim(2) == 64 && v.dim(2) == 64 &&
         n * q.dim(1) >= 1 << 17 && hopper_attention_serves(q, k, v, options);
}

// A warp a row: delta = o . do - dlse.
template <class T>
__global__ void __launch_bounds__(kThreads)
    delta_kernel(Acc<T>* delta, const T* o, const T* d_o, const Acc<T>* d_lse, int64_t rows, int64_t width) {
  const int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  if (row >= rows) return;
  Acc<T> sum = 0;
  for (int64_t j = threadIdx.x % kWarp; j < width; j += kWarp)
    sum += static_cast<Acc<T>>(o[row * width + j]) * static_cast<Acc<T>>(d_o[row * width + j]);
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) delta[row] = sum - d_lse[row];
}

}  // namespace

Tensor attention_delta(const Tensor& o, const Tensor& d_o, const Tensor& d_lse) {
  const Tensor delta = empty_like(d_lse);
  const int64_t rows = d_lse.numel(), blocks = (rows * kWarp + kThreads - 1) / kThreads;
  if (rows == 0) return delta;
  with_float(o.dtype(), [&]<class T>() {
    delta_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream()>>>(
        data<Acc<T>>(delta), data<const T>(o), data<const T>(d_o), data<const Acc<T>>(d_lse), rows, o.dim(2));
  });
  check_launch("attention delta");
  return delta;
}

void flash_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                   const AttentionTokens& tokens, const Tensor& bias, const AttentionOptions& options) {
  if (whole_rows(tokens, bias) && short_attention_serves(q, k, v, options))
    return short_attention_forward(o, lse, q, k, v, options);
  if (whole_rows(tokens, bias) && cudnn_attention_forward(o, lse, q, k, v, tokens.q_position, options))
    return;
  if (tokens.active.defined()) {
    o.zero();
    fill(lse, -INFINITY);
  }
  if (hopper_attention_serves(q, k, v, options))
    return hopper_attention_forward(o, lse, q, k, v, tokens, bias, options);
  plain_attention_forward(o, lse, q, k, v, tokens, bias, options);
}

void flash_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                    const Tensor& q, const Tensor& k, const Tensor& v, const AttentionTokens& tokens,
                    const Tensor& bias, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                    const Tensor& given_d_lse, const AttentionOptions& options) {
  if (!deterministic() && !given_d_lse.defined() && whole_rows(tokens, bias) &&
      !own_backward_is_faster(q, k, v, options) &&
      cudnn_attention_backward(dq, dk, dv, q, k, v, tokens.q_position, o, lse, d_o, options))
    return;
  const Tensor d_lse = given_d_lse.defined() ? given_d_lse : zeros_like(lse);
  if (tokens.active.defined()) dq.zero();
  if (aligned(d_o.raw()) && aligned(o.raw()) && hopper_attention_serves(q, k, v, options))
    return hopper_attention_backward(dq, dk, dv, dbias, q, k, v, tokens, bias, o, lse, d_o, d_lse, options);
  const Tensor delta = attention_delta(o, d_o, d_lse);
  plain_attention_backward(dq, dk, dv, dbias, q, k, v, tokens, bias, lse, delta, d_o, options);
}

}  // namespace weft::cuda
