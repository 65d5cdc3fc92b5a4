#pragma once
// Fused ops of a memory that learns by chunks (memory.h); they would be many small ops otherwise. H is heads,
// or heads of several documents and chunks one after another.

#include <vector>

#include "autograd/tape.h"

namespace weft {

// Coefficients of the recurrences of README.md, "A memory that learns, by chunks", after each of n tokens:
//   A_t = from_a_t A_0 + from_s_t S_0 - sum_j taken_tj g_j
// and, after the last token, the rows of {A_n, S_n} over {A_0, S_0, g_1, ..., g_n}; those of g with a minus.
struct LearningCoefficients {
  Variable from_a, from_s, taken, last;  // (H, n, 1), (H, n, 1), (H, n, n), (H, 2, n + 2)
};
// step, keep, momentum (H, n, 1), f32 or f64; without momentum it is 0 everywhere.
LearningCoefficients learning_coefficients(const Variable& step, const Variable& keep,
                                           const Variable& momentum);

// {A_n, S_n} where the gradient of token j is in_j^T out_j; without s, S_0 is 0 and no S_n is given.
//   a, s (H, in, out), in (H, n, in), out (H, n, out), last (H, 2, n + 2), f32 or f64
std::vector<Variable> after_learning(const Variable& a, const Variable& s, const Variable& in,
                                     const Variable& out, const Variable& last);

// x (H, n, in) times the weight A_t of its own token, (H, n, out): x A_t by the closed form, whose
// coefficients are c; without s, S_0 is 0.
Variable read_while_learning(const Variable& x, const Variable& a, const Variable& s, const Variable& in,
                             const Variable& out, const LearningCoefficients& c);

// A matrix that learns by |x A - v|^2 from chunk after chunk, with the gradients of each taken at the weights
// where it begins: error = 2 (k A - v) there, and then after_learning(A, S, k, error, last).
//   a, s (H, in, out), k (chunks H, n, in), v (chunks H, n, out), last (chunks H, 2, n + 2), f32 or f64
struct MatrixLearning {
  Variable error;               // (chunks H, n, out)
  Variable before_a, before_s;  // of every chunk, (chunks H, in, out)
  Variable a, s;                // after the last
};
MatrixLearning learn_matrix(const Variable& a, const Variable& s, const Variable& k, const Variable& v,
                            const Variable& last, int64_t chunks);

// From projections to the inputs of a Titans memory. rows (B (skip + n), 2 H K + H V): queries, keys and
// values of the heads side by side, for each of B documents n tokens after `skip` rows that are not read;
// logits (B n, 3 H)
// -> {q, k (B H, n, K), v (B H, n, V), step, momentum, keep (B H, n, 1)} in f32 (f64 of f64): SiLU, q and k
// then of length 1, x / sqrt(|x|^2 + 1e-6); sigmoid of the logits, keep being 1 less that.
struct MemoryTokenSizes {
  int64_t documents, skip, heads, key, value;
};
std::vector<Variable> memory_tokens(const Variable& rows, const Variable& logits,
                                    const MemoryTokenSizes& sizes);

// Heads side by side again: (B H, n, V) -> (B n, H V), in this type, perhaps a narrower one.
Variable heads_together(const Variable& y, int64_t documents, Dtype dtype);

namespace cpu {
// rows (B n, H V), heads (B H, n, V); in either direction, converting.
void heads_together(const Tensor& rows, const Tensor& heads, int64_t documents);
void heads_apart(const Tensor& heads, const Tensor& rows, int64_t documents);
void learning_coefficients(const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                           const Tensor& last, const Tensor& step, const Tensor& keep,
                           const Tensor& momentum);
// dmomentum may be undefined; the other d are overwritten.
void learning_coefficients_backward(const Tensor& dstep, const Tensor& dkeep, const Tensor& dmomentum,
                                    const Tensor& step, const Tensor& keep, const Tensor& momentum,
                                    const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                                    const Tensor& dfrom_a, const Tensor& dfrom_s, const Tensor& dtaken,
                                    const Tensor& dlast);
// weighted (H, n, in or 2 in): rows of in times what `last` says of them.
void weigh_inputs(const Tensor& weighted, const Tensor& in, const Tensor& last);
// a_n, s_n of moved (H, in or 2 in, out), the sums of what is taken.
void after_learning(const Tensor& a_n, const Tensor& s_n, const Tensor& a, const Tensor& s,
                    const Tensor& moved, const Tensor& last);
// pack (H, in or 2 in, out): the two gradients; da, ds, and what dlast gets of A_0 and S_0.
void after_learning_backward(const Tensor& pack, const Tensor& da, const Tensor& ds, const Tensor& dlast,
                             const Tensor& a, const Tensor& s, const Tensor& last, const Tensor& da_n,
                             const Tensor& ds_n);
// din, and what dlast gets of the tokens, from the gradient of weighted.
void weigh_inputs_backward(const Tensor& din, const Tensor& dlast, const Tensor& dweighted, const Tensor& in,
                           const Tensor& last);
// asked (H, n, in + n or 2 in + n): x by from_a, by from_s, and scores by taken; known: {a, s, -out}, one
// under another.
void pack_reading(const Tensor& asked, const Tensor& known, const Tensor& x, const Tensor& scores,
                  const Tensor& a, const Tensor& s, const Tensor& out, const Tensor& from_a,
                  const Tensor& from_s, const Tensor& taken);
// The same back; dx without what comes by the scores.
void pack_reading_backward(const Tensor& dx, const Tensor& dscores, const Tensor& da, const Tensor& ds,
                           const Tensor& dout, const Tensor& dfrom_a, const Tensor& dfrom_s,
                           const Tensor& dtaken, const Tensor& dasked, const Tensor& dknown, const Tensor& x,
                           const Tensor& scores, const Tensor& from_a, const Tensor& from_s,
                           const Tensor& taken);
void memory_tokens(const std::vector<Tensor>& to, const Tensor& rows, const Tensor& logits,
                   const MemoryTokenSizes& sizes);
// drows, dlogits are overwritten.
void memory_tokens_backward(const Tensor& drows, const Tensor& dlogits, const std::vector<Tensor>& d,
                            const Tensor& rows, const Tensor& logits, const MemoryTokenSizes& sizes);
}  // namespace cpu
namespace cuda {
void heads_together(const Tensor& rows, const Tensor& heads, int64_t documents);
void heads_apart(const Tensor& heads, const Tensor& rows, int64_t documents);
void learning_coefficients(const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                           const Tensor& last, const Tensor& step, const Tensor& keep,
                           const Tensor& momentum);
void learning_coefficients_backward(const Tensor& dstep, const Tensor& dkeep, const Tensor& dmomentum,
                                    const Tensor& step, const Tensor& keep, const Tensor& momentum,
                                    const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                                    const Tensor& dfrom_a, const Tensor& dfrom_s, const Tensor& dtaken,
                                    const Tensor& dlast);
void weigh_inputs(const Tensor& weighted, const Tensor& in, const Tensor& last);
void after_learning(const Tensor& a_n, const Tensor& s_n, const Tensor& a, const Tensor& s,
                    const Tensor& moved, const Tensor& last);
void after_learning_backward(const Tensor& pack, const Tensor& da, const Tensor& ds, const Tensor& dlast,
                             const Tensor& a, const Tensor& s, const Tensor& last, const Tensor& da_n,
                             const Tensor& ds_n);
void weigh_inputs_backward(const Tensor& din, const Tensor& dlast, const Tensor& dweighted, const Tensor& in,
                           const Tensor& last);
void pack_reading(const Tensor& asked, const Tensor& known, const Tensor& x, const Tensor& scores,
                  const Tensor& a, const Tensor& s, const Tensor& out, const Tensor& from_a,
                  const Tensor& from_s, const Tensor& taken);
void pack_reading_backward(const Tensor& dx, const Tensor& dscores, const Tensor& da, const Tensor& ds,
                           const Tensor& dout, const Tensor& dfrom_a, const Tensor& dfrom_s,
                           const Tensor& dtaken, const Tensor& dasked, const Tensor& dknown, const Tensor& x,
                           const Tensor& scores, const Tensor& from_a, const Tensor& from_s,
                           const Tensor& taken);
void memory_tokens(const std::vector<Tensor>& to, const Tensor& rows, const Tensor& logits,
                   const MemoryTokenSizes& sizes);
void memory_tokens_backward(const Tensor& drows, const Tensor& dlogits, const std::vector<Tensor>& d,
                            const Tensor& rows, const Tensor& logits, const MemoryTokenSizes& sizes);
}  // namespace cuda

}  // namespace weft
