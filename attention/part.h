#pragma once
// The four ways in which a mechanism may look across a chunk border. A mechanism states its mathematics on
// one block of tokens as one of these parts; who holds the other tokens (this rank a moment ago, another
// rank, a decode cache) is the business of the Crossing.
//
//   Scan    an associative state, combined along chunks       linear attention, EMA, state-space models
//   Merge   keys from anywhere, partial results merge by lse  softmax attention
//   Halo    the last `width` tokens before a segment          sliding window, short convolution
//   Carry   a state handed on in strict order                 test-time-trained memory

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "autograd/layout.h"
#include "autograd/tape.h"

namespace weft {

// n tokens: one tensor for each input, (n, ...), and their places. Inside a Scan n is (chunks, chunk length).
struct Block {
  std::vector<Variable> x;
  Tensor position, document;  // (n) i32; document -1 is no token
  // Whether x may be overwritten: nothing else holds it, and no op keeps it for its backward.
  bool own = false;
};

// The tensors of a state, in f32 (f64 for f64 inputs).
using State = std::vector<Variable>;

struct Scan {
  // Names of the state's tensors, as `weft apply` writes them; "" for one that restarts at identity, such as
  // a transition.
  std::vector<std::string> names;
  std::vector<double> pad;  // for each input: the value of a token that changes nothing
  int64_t chunk = 64;       // tokens a chunk; the function does not depend on it

  std::function<State()> identity;                                        // each (1, ...)
  std::function<State(const Block&)> summarize;                           // (M, chunk, ...) -> (M, ...)
  std::function<State(const State& before, const State& after)> combine;  // (M, ...), (M, ...) -> (M, ...)
  std::function<Variable(const Block&, const State& prefix)> apply;       // -> (M, chunk, ...)

  // The state is {a, S} and combines as {a_before a_after, a_after S_before + S_after}, a broadcasting over
  // S's last dimensions: the framework may use the fused scan op instead of `combine`.
  bool decay = false;
  // Optional: whole documents from their start at once, where no state is asked for.
  std::function<Variable(const Block&, const Layout&)> whole = {};
  // Optional, where a device has a kernel: segments from the states before them, one row for each segment;
  // `start` is empty where these are identities. Gives the outputs and, if wanted, the states after segments.
  struct Ran {
    Variable y;
    State end;
  };
  struct Kernel {
    // Whether this build has a kernel for this part's inputs on a device, which need not be there.
    std::function<bool(Device)> serves;
    std::function<Ran(const Block&, const Layout&, const State& start, bool want_end)> run;
    // Optional: of each segment, what it multiplies the state before it by: the first of the two tensors of a
    // state. Without it ranks compose the part of chunks.
    std::function<Variable(const Block&, const Layout&)> transition = {};
    bool on(Device device) const { return serves && serves(device); }
    // Of each segment, its summary.
    State summarize(const Block& block, const Layout& layout) const {
      return {transition(block, layout), run(block, layout, {}, true).end[1]};
    }
  };
  Kernel kernel = {};
  // Optional: one token more of each of M documents, (M, ...), without a tape. `states` are addresses of the
  // named tensors of each document's state (steps.h), which are updated in place.
  std::function<Variable(const Block&, const Tensor& states)> step = {};
  // Bidirectional: every chunk sees the state of its whole document.
  bool total = false;
  // From the end of a document to its start: a token sees the tokens after it. Blocks come in reverse order.
  bool reverse = false;
};

// How scores become weights. softmax: e^s over the sum of the row. The others do not depend on the rest of
// the row: laplace 1/2 (1 + erf((s - mu) / (sigma sqrt 2))) with mu = sqrt(1/2), sigma = sqrt(1/(4 pi)), and
// relu2 max(s, 0)^2. Their partial results are means over the keys seen, with the log of the number of keys
// as lse, so that they merge like any other; o e^lse is the sum.
enum class Weighting : uint8_t { softmax, laplace, relu2 };

// What the two functions of a Merge may depend on besides tensors; plain data.
struct AttentionOptions {
  double scale = 1;    // of q k^T
  bool causal = true;  // keys at positions <= the query's only
  int64_t window = 0;  // > 0: keys at distance < window only
  int64_t block = 0;   // > 0: keys of the query's own block of positions only; rank cuts fall on blocks
  bool alibi = false;  // score -= slope_h * distance
  Weighting weighting = Weighting::softmax;
  // > 0: queries and keys are the same tokens, this many whole documents one after another, the longest of
  // `longest` tokens. Positions and documents say so too; this is for a library that reads neither.
  int32_t documents = 0, longest = 0;
};

struct Merge {
  // Softmax-like partial results over the keys at hand: o (N, H, Dv) in q's dtype, lse (N, H) in f32 (f64),
  // -inf where a query saw no key. Query and key meet if they are of one document and the options allow their
  // positions. bias, if defined, (H, R) in lse's dtype: bias[h, min(distance, R - 1)] is added to a score;
  // where attention is not causal (H, 2 R - 1), from the distance -(R - 1), a key after the query, to R - 1.
  // active, if defined, (N, H), in any float type: 0 turns a head of a query off. It then costs nothing and
  // gives o = 0, lse = -inf and no gradient.
  using Forward = std::vector<Tensor> (*)(const AttentionOptions&, const Tensor& q, const Tensor& k,
                                          const Tensor& v, const Tensor& q_position, const Tensor& q_document,
                                          const Tensor& k_position, const Tensor& k_document,
                                          const Tensor& bias, const Tensor& active);
  // Given o and lse of the whole row, the share of these keys in {dq, dk, dv} and, with a bias, in dbias.
  // d_lse undefined: none.
  using Backward = std::vector<Tensor> (*)(const AttentionOptions&, const Tensor& q, const Tensor& k,
                                           const Tensor& v, const Tensor& q_position,
                                           const Tensor& q_document, const Tensor& k_position,
                                           const Tensor& k_document, const Tensor& bias, const Tensor& active,
                                           const Tensor& o, const Tensor& lse, const Tensor& d_o,
                                           const Tensor& d_lse);
  AttentionOptions options;
  Forward forward;
  Backward backward;
  Variable bias = {};  // learned, whole on every rank
  // Optional: one token more of each of M documents, all heads on, no bias, without a tape; as attention_step
  // (steps.h).
  struct Step {
    bool (*serves)(const AttentionOptions&, const Tensor& q, const Tensor& v) = nullptr;
    std::vector<Tensor> (*run)(const AttentionOptions&, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& position, const Tensor& document, const Tensor& caches,
                               int64_t rows) = nullptr;
  };
  Step step = {};
  double active_share = 1;  // share of all heads of all queries that are on; for counting the work
};

struct Halo {
  int64_t width;
  // `before` holds exactly `width` rows for each segment of the layout, the tokens right before it in order;
  // rows that do not exist (the document starts) are zero with document -1.
  // Here two segments of one document on one rank are separate: `document` of both blocks numbers segments,
  // so that no token meets a key in its own segment and again in another's halo.
  std::function<Variable(const Block&, const Block& before)> apply;
  bool fused = false;  // `apply` is one kernel, but for putting its rows together
};

struct Carry {
  std::vector<std::string> names;  // of the state's tensors
  std::function<State()> start;
  // Any number of tokens >= 1 of one document, cut anywhere: the state knows its place.
  std::function<std::pair<Variable, State>(const Block&, const State&)> step;
  // > 0: `step` takes several documents side by side, which costs as little as one where launches dominate.
  // Then the block has equally many tokens of each document, one document after another, and so has each
  // tensor of the state along dimension 0. All documents start together, and continue together from multiples
  // of `chunk` tokens.
  int64_t chunk = 0;
};

}  // namespace weft
