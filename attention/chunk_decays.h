#pragma once
// What decays make of a chunk of linear attention on the CPU (cpu.md, "Linear attention"). All
// decays are products of e^g between two tokens, so nothing overflows and g = -infinity simply forgets.

#include <cstdint>

#include "autograd/scratch.h"

namespace weft::cpu {

constexpr int64_t kLinearChunk = 32;  // tokens

// Of one head. Rows of matrices lie one behind another, those of scores kLinearChunk apart.
template <class W>
class ChunkDecays {
 public:
  // d: width of a key. gate_gradient: whether backward() is to find the gradient of g.
  ChunkDecays(bool of_channels, int64_t d, bool gate_gradient);

  // Takes n log decays, `pitch` apart: one a token, with a pitch of 0 one for all, or rows of d.
  void load(const W* g, int64_t pitch, int64_t n);

  // (n, d): from the start of the chunk up to each token, with its own. From behind each token to the end.
  const W* from_start() const { return from_start_.data(); }
  const W* to_end() const { return to_end_.data(); }
  const W* total() const { return total_.data(); }  // (d): of all

  // p (n, n), p_ij = sum over c of q_ic k_jc times the decays behind j up to i; 0 for j > i. q, k (n, d).
  void scores(W* p, const W* q, const W* k);
  // The same and, from dp, the gradients dq and dk, which are written, and that of g. Destroys dp.
  void backward(W* p, W* dp, const W* q, const W* k, W* dq, W* dk);
  // What states add to the gradient of g: dq and dk as they come from the states before and behind the chunk
  // alone, with decays, and kept (d), the product of the state before and the gradient of that behind,
  // decayed, summed over values.
  void add_states(const W* q, const W* dq, const W* k, const W* dk, const W* kept);
  // Rows like those of g.
  void take_gate_gradient(W* dg, int64_t pitch) const;

 private:
  void load_heads(const W* g, int64_t pitch);
  void load_channels(const W* g, int64_t pitch);
  void head_backward(W* p, W* dp, const W* q, const W* k, W* dq, W* dk);
  void channel_backward(W* p, const W* dp, const W* q, const W* k, W* dq, W* dk);
  void near_pairs(W* p, const W* q, const W* k, int64_t begin, int64_t end);
  void near_pairs_backward(W* p, const W* dp, const W* q, const W* k, W* dq, W* dk, int64_t begin,
                           int64_t end);
  void weigh_halves(const W* q, const W* k, int64_t begin, int64_t middle, int64_t end);
  void far_pairs(W* p, int64_t begin, int64_t middle, int64_t end) const;

  bool of_channels_, gate_gradient_;
  int64_t d_, n_ = -1;
  const W* g_ = nullptr;
  Scratch<W> from_start_, to_end_, total_;
  Scratch<W> between_;                   // of heads: (n, n), kLinearChunk apart, behind j up to i
  Scratch<W> step_, factor_, weighted_;  // of channels: (n, d) e^g; decays from or to a border; times q or k
  Scratch<W> transposed_, part_, gate_;  // gate_: (n, d), of which heads use the first column
};

}  // namespace weft::cpu
