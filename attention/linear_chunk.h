#pragma once
// One chunk of one head of linear attention on the CPU (cpu.md, "Linear attention"): what it adds to states,
// its outputs and its gradients. Only linear_run_cpu.cpp uses it.

#include <algorithm>
#include <vector>

#include "attention/chunk_decays.h"
#include "attention/linear_run.h"
#include "attention/scan_tiles.h"
#include "autograd/scratch.h"

namespace weft::cpu {

struct LinearPlace {
  int64_t token, n, state;  // state: the place of the one before it, among those of a head
};

// to += decay of the row, or of the column, times from
template <class W>
void add_decayed_rows(W* to, const W* decay, const W* from, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const W by = decay[r];
#pragma omp simd
    for (int64_t c = r * columns; c < (r + 1) * columns; ++c) to[c] += by * from[c];
  }
}
template <class W>
void add_decayed_columns(W* to, const W* decay, const W* from, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r, to += columns, from += columns)
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) to[c] += decay[c] * from[c];
}

// to (d, rows) = from (rows, d), or zero
template <class W>
void transpose_or_zero(W* to, const W* from, int64_t rows, int64_t d) {
  if (from == nullptr)
    std::fill_n(to, rows * d, W(0));
  else
    base::transpose(to, rows, MatrixView<W>{from, d, 1}, rows, d);
}

// One thread's chunk. On the way out states are (d, e), on the way back (e, d): so most products need no
// operand transposed.
template <class T, class W = Acc<T>>
class LinearChunk {
 public:
  // together: how many heads may take turns
  LinearChunk(const LinearInputs& p, const LinearGradients* d, int64_t together)
      : p_(p),
        heads_(p.q.dim(1)),
        d_(p.q.dim(2)),
        e_(p.v.dim(2)),
        gated_(p.g.defined()),
        all_decays_(fixed() ? static_cast<size_t>(together) : 1,
                    ChunkDecays<W>(gated_ && p.g.rank() == 3, d_, d != nullptr && d->g.defined())),
        decays_(all_decays_.data()) {
    const auto keys = static_cast<size_t>(kLinearChunk * d_), values = static_cast<size_t>(kLinearChunk * e_);
    for (Scratch<W>* x : {&q_, &k_, &weighted_}) x->resize(keys);
    for (Scratch<W>* x : {&v_, &o_}) x->resize(values);
    scores_.resize(kLinearChunk * kLinearChunk);
    if (d == nullptr) return;
    for (Scratch<W>* x : {&dq_, &dk_, &from_state_}) x->resize(keys);
    transposed_.resize(std::max(keys, values));
    transposed_values_.resize(values);
    d_scores_.resize(kLinearChunk * kLinearChunk);
    kept_.resize(static_cast<size_t>(d_));
  }

  // The keys, values and decays of a chunk, which all else is about.
  void at(int64_t head, const LinearPlace& place) {
    rows_ = {head, place.token, n_ = place.n};
    read_rows<T>(k_.data(), p_.k, rows_);
    read_rows<T>(v_.data(), p_.v, rows_);
    static constexpr W kNone = 0;
    if (!gated_) return decays_->load(&kNone, 0, n_);
    if (fixed()) decays_ = &all_decays_[static_cast<size_t>(head) % all_decays_.size()];
    const int64_t width = p_.g.rank() == 3 ? d_ : 1, pitch = fixed() ? 0 : heads_ * width;
    decays_->load(p_.g.data<W>() + rows_.first * pitch + head * width, pitch, n_);
  }
  void take_queries() { read_rows<T>(q_.data(), p_.q, rows_, static_cast<W>(p_.scale)); }
  void take_adjoint(const Tensor& d_o) { read_rows<T>(o_.data(), d_o, rows_); }
  const W* total() const { return decays_->total(); }

  // What its tokens add to the state behind it: (d, e), and transposed.
  void summarize(W* to) {
    put_product(to, keys(weighed(k_, decays_->to_end())).transposed(), values(v_), d_, e_, n_);
  }
  void summarize_transposed(W* to) {
    put_product(to, values(v_).transposed(), keys(weighed(k_, decays_->to_end())), e_, d_, n_);
  }
  // What it adds to the gradient of the state before it, transposed.
  void summarize_gradient(W* to) {
    put_product(to, values(o_).transposed(), keys(weighed(q_, decays_->from_start())), e_, d_, n_);
  }

  void outputs(const Tensor& o, const W* state) {
    decays_->scores(scores_.data(), q_.data(), k_.data());
    put_product(o_.data(), scores(scores_), values(v_), n_, e_, n_);
    put_product(o_.data(), keys(weighed(q_, decays_->from_start())), {state, e_, 1}, n_, e_, d_, W(1), W(1));
    write_rows<T>(o, o_.data(), rows_);
  }

  // state: before the chunk; after: the gradient of the one behind it. Both transposed.
  void gradients(const LinearGradients& d, const W* state, const W* after) {
    const MatrixView<W> transposed_values{transposed_values_.data(), n_, 1},
        transposed{transposed_.data(), n_, 1};
    transpose_or_zero(transposed_values_.data(), v_.data(), n_, e_);
    multiply(
        Product<W, W, W>{d_scores_.data(), kLinearChunk, values(o_), transposed_values, n_, n_, e_, 1, 0});
    decays_->backward(scores_.data(), d_scores_.data(), q_.data(), k_.data(), dq_.data(), dk_.data());

    // dv, transposed
    transpose_or_zero(transposed_.data(), weighed(k_, decays_->to_end()), n_, d_);
    put_product(transposed_values_.data(), values(o_).transposed(), scores(scores_), e_, n_, n_);
    put_product(transposed_values_.data(), {after, d_, 1}, transposed, e_, n_, d_, W(1), W(1));
    transpose_or_zero(transposed_.data(), transposed_values_.data(), e_, n_);
    write_rows<T>(d.v, transposed_.data(), rows_);

    put_product(from_state_.data(), values(o_), {state, d_, 1}, n_, d_, e_);
    weigh(from_state_.data(), from_state_.data(), decays_->from_start());
    put_product(weighted_.data(), values(v_), {after, d_, 1}, n_, d_, e_);
    weigh(weighted_.data(), weighted_.data(), decays_->to_end());
#pragma omp simd
    for (int64_t i = 0; i < n_ * d_; ++i) dq_[i] += from_state_[i];
#pragma omp simd
    for (int64_t i = 0; i < n_ * d_; ++i) dk_[i] += weighted_[i];
    if (p_.wide_gradients) {
      write_rows<W>(d.q, dq_.data(), rows_, static_cast<W>(p_.scale));
      write_rows<W>(d.k, dk_.data(), rows_);
    } else {
      write_rows<T>(d.q, dq_.data(), rows_, static_cast<W>(p_.scale));
      write_rows<T>(d.k, dk_.data(), rows_);
    }
    if (!d.g.defined()) return;
    std::fill(kept_.begin(), kept_.end(), W(0));
    for (int64_t x = 0; x < e_; ++x)
#pragma omp simd
      for (int64_t c = 0; c < d_; ++c) kept_[c] += state[x * d_ + c] * after[x * d_ + c];
#pragma omp simd
    for (int64_t c = 0; c < d_; ++c) kept_[c] *= total()[c];
    decays_->add_states(q_.data(), from_state_.data(), k_.data(), weighted_.data(), kept_.data());
    const int64_t width = d.g.rank() == 3 ? d_ : 1, pitch = heads_ * width;
    decays_->take_gate_gradient(d.g.data<W>() + rows_.first * pitch + rows_.head * width, pitch);
  }

 private:
  bool fixed() const { return gated_ && p_.g.rank() == 1; }
  MatrixView<W> keys(const W* x) const { return {x, d_, 1}; }
  MatrixView<W> values(const Scratch<W>& x) const { return {x.data(), e_, 1}; }
  static MatrixView<W> scores(const Scratch<W>& x) { return {x.data(), kLinearChunk, 1}; }

  void weigh(W* to, const W* x, const W* decay) const {
    if (!gated_ && to == x) return;
#pragma omp simd
    for (int64_t i = 0; i < n_ * d_; ++i) to[i] = x[i] * decay[i];
  }
  const W* weighed(const Scratch<W>& x, const W* decay) {
    if (!gated_) return x.data();
    weigh(weighted_.data(), x.data(), decay);
    return weighted_.data();
  }

  const LinearInputs& p_;
  int64_t heads_, d_, e_, n_ = 0;
  HeadRows rows_{};
  bool gated_;
  std::vector<ChunkDecays<W>> all_decays_;  // of heads that take turns, where they are fixed
  ChunkDecays<W>* decays_;                  // of this chunk
  Scratch<W> q_, k_, v_, o_;                // o_: outputs, or their gradients
  Scratch<W> weighted_, scores_, d_scores_, dq_, dk_, from_state_, transposed_, transposed_values_, kept_;
};

}  // namespace weft::cpu
