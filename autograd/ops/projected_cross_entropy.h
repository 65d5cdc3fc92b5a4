#pragma once
// Cross-entropy fused with the output projection, in chunks of tokens, so that the logits (N, V) never exist
// as a whole.

#include "autograd/tape.h"

namespace weft {

struct CrossEntropyOptions {
  int64_t chunk = 0;    // tokens at a time; 0: loss_chunk
  double softcap = 0;   // > 0: a logit z becomes softcap tanh(z / softcap)
  double z_loss = 0;    // adds z_loss * (log of the sum of e^logit)^2 for each token
  Tensor weights = {};  // (N) f32 or f64, of each token's loss; undefined: ones
  Tensor seed = {};     // (1) f64, on the loss's device: the gradient that the loss will get, if known
};

// For how many tokens logits, of row_bytes each, exist at one time. On a CPU 64 MiB of logits, enough to keep
// its cores busy. On a GPU 256 MiB; but if the weight's gradient is wanted, which each chunk reads and writes
// as a whole, a quarter of the tokens, up to 1 GiB of logits. Chunks on a GPU have one size, as nearly as the
// tiles of products allow.
int64_t loss_chunk(int64_t tokens, int64_t row_bytes, bool gpu, bool of_weight);

struct CrossEntropy {
  Variable loss;  // scalar, f32 (f64 of f64): the weighted sum over tokens
  Tensor nll;     // (N), f32 (f64): -log p(target), no weight, no z-loss, no gradient; 0 where ignored
};

// Logits hidden weight^T against targets.  hidden (N, C), weight (V, C), targets (N) i32, -1 is ignored.
// Where a tape is in scope, the gradients are computed here, while a chunk's logits exist, and the backward
// only scales them. Kept for it: d hidden (N, C), and d weight (V, C) in f32 (f64). Memory besides those: one
// chunk of logits (chunk, V), which their gradient overwrites, and for bf16 on the CPU a widened weight. With
// a seed the gradients are final at once: that of hidden is passed on as it is, and that of a weight which is
// a parameter is added to the parameter's gradient here, in the forward, and needs no memory of its own.
// Logits are f32 (f64), with one exception: on a GPU, bf16 logits whose gradient is wanted are rounded to
// bf16, since products take their gradient in bf16 anyway, as autocast in PyTorch does. All sums over them
// stay f32. A logit z is then off by up to |z| / 512, and its probability by that factor, where rounding the
// gradient alone costs 1 / 512. Errors of many logits average out, and the loss is too large by about (z /
// 512)^2 / 6: 2e-4 nats for logits around 16. Without a tape, as in an evaluation, nothing is rounded. A
// target outside [-1, V) is an Error with Exit::data. If all targets are ignored, the loss is 0.
CrossEntropy projected_cross_entropy(const Variable& hidden, const Variable& weight, const Tensor& targets,
                                     const CrossEntropyOptions& options = {});

namespace cpu {
// Of one chunk: loss and nll (n) of logits (n, V), which may be overwritten. gradient: d loss / d logits, in
// the logits' dtype (f32 or f64, on a GPU also bf16), times seed[0] (undefined: 1); may be the logits
// themselves, or undefined.
void cross_entropy(const Tensor& loss, const Tensor& nll, const Tensor& gradient, const Tensor& logits,
                   const Tensor& targets, const Tensor& weights, double softcap, double z_loss,
                   const Tensor& seed);
// to = beta to + scale[0] from, beta 0 or 1
void add_scaled(const Tensor& to, const Tensor& from, const Tensor& scale, double beta);
}  // namespace cpu
namespace cuda {
void cross_entropy(const Tensor& loss, const Tensor& nll, const Tensor& gradient, const Tensor& logits,
                   const Tensor& targets, const Tensor& weights, double softcap, double z_loss,
                   const Tensor& seed);
void add_scaled(const Tensor& to, const Tensor& from, const Tensor& scale, double beta);
}  // namespace cuda

}  // namespace weft
