#pragma once
// A memory that learns while it reads: weights of a small function of keys, moved token by token by the
// gradient of an inner loss (Titans: Learning to Memorize at Test Time, Behrouz et al. 2024; Miras: It's All
// Connected, Behrouz et al. 2025). A MemoryPolicy is four choices:
//
//   memory     M(W; x): a matrix, or a two-layer MLP
//   bias       the inner loss, given as its slope at the memory's answer
//   retention  how the accumulator A becomes the weights W
//   momentum   whether gradients pass through a decaying surprise S
//
//   S_t = eta_t S_{t-1} - theta_t grad_t      (without momentum S_t = -theta_t grad_t)
//   A_t = keep_t A_{t-1} + S_t                y_t = M(W_t; q_t)
//
// Text is cut into chunks of b tokens from each document's start, and b is part of the function: grad_t is
// taken at the weights W at the start of t's chunk, so a chunk's gradients are a few matrix products. Where
// W(A) is not linear it is applied in full at the last token of each chunk only. With b = 1 all of this is
// the exact online rule.
//
// The gradient of each weight is a sum of outer products in_j^T out_j. So neither it nor the weights of
// single tokens are ever formed: x W_t is a product with known weights plus a masked matrix of scores x
// in_j^T. The inner gradient is written as forward ops, which the tape differentiates like any others.
// README.md has the closed form.

#include "attention/memory_ops.h"
#include "attention/part.h"

namespace weft {

// The gradient of one weight (H, in, out) by token: in_j^T out_j.  in (H, n, in), out (H, n, out)
struct OuterProducts {
  Variable in, out;
};

// x (H, n, in) times weight i, which may differ from row to row: (H, n, out).
using Weigh = std::function<Variable(size_t weight, const Variable& x)>;
// The same, by a weight that is one for all rows; transposed, x (H, n, out) times its transpose.
using WeighAlike = std::function<Variable(size_t weight, const Variable& x, bool transposed)>;
// Of an error M(k) - v (H, n, v): the slope of the inner loss there.
using Slope = std::function<Variable(const Variable& error)>;

struct Memory {
  std::vector<std::string> names;  // of the weights
  std::vector<Shape> shapes;       // (H, in, out)
  // M(x): (H, n, k) -> (H, n, v)
  std::function<Variable(const Weigh&, const Variable& x)> answer;
  // Of the inner loss at these weights; `in` of the first weight is k.
  std::function<std::vector<OuterProducts>(const WeighAlike&, const Variable& k, const Variable& v,
                                           const Slope&)>
      gradient;
};

// A single matrix: M(x) = x M.
Memory matrix_memory(int64_t heads, int64_t key, int64_t value);
// M(x) = x + layer_norm(gelu(x W1) W2), without gain or bias. Where keys and values differ in size, x is cut
// or filled with zeros.
Memory mlp_memory(int64_t heads, int64_t key, int64_t inner, int64_t value);

// An inner loss by its slope; bound (H, n, 1) is undefined where the loss has none.
struct Bias {
  std::function<Variable(const Variable& error, const Variable& bound)> slope;
  bool squared = false;  // that of |e|^2
};
// |e|^2
Bias squared_bias();
// sum |e_i|^p, with |e| smoothed to sqrt(e^2 + epsilon)
Bias power_bias(double p, double epsilon);
// |e|^2 where the length of e is at most `bound`, and its linear continuation beyond, so that the length of
// the slope stays at 2 bound (Huber's loss of the length, continuous).
Bias huber_bias();

// How A becomes W: by at most one of scale and map; with neither, W = A.
struct Retention {
  // W = scale(A) A, the scale being of the shape (H, 1, 1). Inside a chunk W_t = scale(A_0) A_t, A_0 being
  // its start.
  std::function<Variable(const Variable& a)> scale;
  // W = map(A). Inside a chunk W_t = map(A_0).
  std::function<Variable(const Variable& a)> map;
  // Standard deviation of a randomly drawn A; 0: 1 / sqrt(in), as for weights.
  double deviation = 0;
  Variable weights(const Variable& a) const;
  // What is made of A once to take products with W: scale(A) or map(A), else nothing.
  Variable made_of(const Variable& a) const;
  // x W, given A and what is made of it; transposed, x W^T.
  Variable times(const Variable& x, const Variable& a, const Variable& made, bool transposed) const;
};
// A / |A|_q^(q-2), the norm over all of a head's weight, with |a| smoothed to sqrt(a^2 + epsilon)
Retention norm_retention(double q, double epsilon);
// softmax(A) over the outputs of each input of a weight. Since the logarithm of the weights is A up to a
// constant of each slice, which softmax ignores, keep log W - step is linear in A.
Retention softmax_retention();

struct MemoryPolicy {
  Memory memory;
  Bias bias;
  Retention retention;
  bool momentum = false;
  // Whether it is what learn_matrix (memory_ops.h) learns.
  bool matrix() const {
    return memory.names.size() == 1 && bias.squared && !retention.scale && !retention.map && momentum;
  }
};

// Tokens in the memory's own type. q, k (H, n, k), v (H, n, v); per token (H, n, 1): the step, the part of A
// that is kept, and where the policy has them the momentum and the bound of the bias. H are the heads of one
// document or of several; and of chunk after chunk where learn() is given several.
struct MemoryTokens {
  Variable q, k, v, step, keep, momentum, bound;
};

// A policy by chunks. Its state: for each weight A; with momentum, S; A at the start of the chunk; and last
// the number of tokens in the open chunk (1). With B documents side by side, which are at one place of a
// chunk, their states follow one another along the first dimension.
class ChunkedMemory {
 public:
  ChunkedMemory(MemoryPolicy policy, int64_t chunk) : policy_(std::move(policy)), chunk_(chunk) {}

  const MemoryPolicy& policy() const { return policy_; }
  std::vector<std::string> names() const;
  // A memory whose A is this.
  State start(const State& a) const;
  // The number of tokens in the open chunk. Reads the state, so the host waits for it.
  int64_t place(const State& state) const;
  // M(W; x) with the weights at the start of the open chunk.
  Variable recall(const State& state, int64_t place, const Variable& x) const;
  // Learns from this many chunks, their tokens one after another: whole chunks, or a part of the open one.
  // Answers each query after its own token: (H, n, v), in the same order.
  std::pair<Variable, State> learn(const MemoryTokens& tokens, int64_t chunks, int64_t place,
                                   const State& state) const;
  // The same, with the answers made in so many groups of chunks, or as suits the device.
  std::pair<Variable, State> learn_in_groups(const MemoryTokens& tokens, int64_t chunks, int64_t groups,
                                             int64_t place, const State& state) const;

  // Cuts the next `tokens`, which begin at this place in a chunk, into calls of learn().
  struct Cut {
    int64_t begin, size, chunks, place;  // chunks of `size` tokens
  };
  std::vector<Cut> cuts(int64_t place, int64_t tokens) const;

 private:
  struct Read;  // chunks that were learned from and are to be read
  State at_start(const State& state, int64_t place) const;  // A at the start of the open chunk
  State made_of(const State& a) const;
  State end_of(State a, const State& s, const State& start, int64_t reached) const;
  Variable answer(const Read& read, const Variable& q, const Variable& k,
                  const LearningCoefficients& c) const;

  MemoryPolicy policy_;
  int64_t chunk_;
};

}  // namespace weft
