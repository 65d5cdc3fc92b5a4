#pragma once
// One token more of each of M documents: the step of decoding. A document's past stays where it lies and is
// updated in place, so that a step reads only what it must and M documents cost one launch. Kernels without a
// backward; the crossing calls them where no tape is in scope.

#include "attention/part.h"

namespace weft {

// Where M documents keep their past, on the device that reads it: (M, columns) pointers, each as two i32.
// Uploaded only when one of them has changed.
class AddressTable {
 public:
  // M rows of `columns` addresses, one after another.
  const Tensor& of(const std::vector<void*>& addresses, int columns, Device device);

 private:
  std::vector<void*> last_;
  Tensor table_;
};

// S <- diag(e^g) S, then S <- S + k u^T with u = v, or u = beta (v - S^T k), and o = scale S^T q.
//   q, k (M, H, Dk), v (M, H, Dv) of one dtype; g <= 0 (M, H), (M, H, Dk) or undefined for none; beta (M, H)
//   or undefined; both in the accumulator's type. states: M addresses of (H, Dk, Dv) in that type. o in v's
//   dtype. Schlag et al. 2021, Yang et al. 2024 with beta; Katharopoulos et al. 2020 without.
Tensor recurrent_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& beta,
                      const Tensor& states, double scale);
// Keys larger than this have no kernel.
constexpr int64_t kMostStepKeys = 2048;

// h <- decay h + in x, y = sum over n of out h (Ma et al. 2022).  x (M, C); in, out, decay (C, n) in the
// accumulator's type; states: M addresses of (C, n) in that type.
Tensor ema_step(const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
                const Tensor& states);

// Attention of one new token of each document over all of its tokens. caches: four addresses a document, of
// k (.., Hkv, Dk), v (.., Hkv, Dv), position and document (..); row t is the document's token t. The new
// token is written at row `position` and {o (M, H, Dv), lse (M, H)} are as Merge says. q, k and v may be
// column views.
//   rows: the capacity of the longest cache; a long past is read by many blocks, and how it is cut depends
//   only on the document's own length.
//   turn > 0: q and k get their rotary positions here, with this base.
std::vector<Tensor> attention_step(const AttentionOptions& options, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& position, const Tensor& document,
                                   const Tensor& caches, int64_t rows, double turn);
inline std::vector<Tensor> attention_step(const AttentionOptions& options, const Tensor& q, const Tensor& k,
                                          const Tensor& v, const Tensor& position, const Tensor& document,
                                          const Tensor& caches, int64_t rows) {
  return attention_step(options, q, k, v, position, document, caches, rows, 0);
}
// True for softmax weights without blocks; on a GPU, for head sizes that the lanes of a warp can divide.
bool has_attention_step(const AttentionOptions& options, const Tensor& q, const Tensor& v);

// The rows of each document move up by one, and its new row is appended. window (M width, ...), rows
// (M, ...)
void shift_window(const Tensor& window, const Tensor& rows);

namespace cpu {
struct StepTokens {
  Tensor q, k, v, position, document;
};
void recurrent_step(const Tensor& o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                    const Tensor& beta, const Tensor& states, double scale);
void ema_step(const Tensor& y, const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
              const Tensor& states);
void attention_step(const Tensor& o, const Tensor& lse, const StepTokens& tokens, const Tensor& caches,
                    int64_t rows, const AttentionOptions& options, double turn);
void shift_window(const Tensor& window, const Tensor& rows);
}  // namespace cpu
namespace cuda {
using cpu::StepTokens;
void recurrent_step(const Tensor& o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                    const Tensor& beta, const Tensor& states, double scale);
void ema_step(const Tensor& y, const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
              const Tensor& states);
void attention_step(const Tensor& o, const Tensor& lse, const StepTokens& tokens, const Tensor& caches,
                    int64_t rows, const AttentionOptions& options, double turn);
void shift_window(const Tensor& window, const Tensor& rows);
bool attention_step_serves(Dtype dtype, int64_t key, int64_t value);
}  // namespace cuda

}  // namespace weft
