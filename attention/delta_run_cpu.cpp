// The delta rule on a CPU, chunk by chunk (cpu.md, "Delta rules"). All tiles of a chunk and the state of its
// head stay in the caches of a core.

#include <algorithm>

#include "attention/delta_run.h"
#include "attention/row_math.h"
#include "attention/scan_tiles.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

constexpr int64_t kDeltaChunk = 32;  // tokens
constexpr int64_t kSolvedAtOnce = 8;

// to = factor * from
template <class W>
void put_scaled_row(W* to, W factor, const W* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = factor * from[i];
}

template <class W>
void scale_row(W* row, W factor, int64_t n) {
  if (factor != 1) put_scaled_row(row, factor, row, n);
}

// n tokens of one head: their tiles, all dense, and what becomes of a state and of its gradient. Queries
// stand above keys in tiles of 2 n rows.
template <class T, class W>
class DeltaChunk {
 public:
  explicit DeltaChunk(const DeltaInputs& inputs) : in_(inputs) {
    const auto resize = [](Scratch<W>& tile, int64_t rows, int64_t columns) {
      tile.resize(static_cast<size_t>(rows * columns));
    };
    constexpr int64_t c = kDeltaChunk;
    for (Scratch<W>* column : {&beta_, &decay_, &since_}) resize(*column, c, 1);
    resize(rows_, 2 * c, d_);
    resize(between_, c, c);
    resize(scores_, 2 * c, c);
    resize(pairs_, 2 * c, c);
    resize(past_, 2 * c, e_);
    resize(dy_, 2 * c, e_);
    resize(written_, c, e_);
    resize(scaled_, c, e_);
    resize(drows_, 2 * c, d_);
    resize(dkeys_, c, d_);
  }

  // next: the first token of the chunk after this one
  void move_to(int64_t head, int64_t first, int64_t n, int64_t next) {
    place_ = {head, first, n_ = n}, next_ = next;
    read_rows<T>(rows_.data(), in_.q, place_);
    read_rows<T>(keys(), in_.k, place_);
    prefetch_next(in_.q);
    const W *beta = in_.beta.data<W>(), *g = in_.g.defined() ? in_.g.data<W>() : nullptr;
    for (int64_t i = 0; i < n; ++i) {
      beta_[i] = beta[number(i)];
      decay_[i] = g != nullptr ? vector_math::exp(g[number(i)]) : W(1);
    }
    // Products of decays, not differences of sums: a decay of 0 or 1e-38 is one like any other.
    W product = 1;
    const W* above = between_.data();
    for (int64_t i = 0; i < n; ++i) {
      since_[i] = product = decay_product(product, decay_[i]);
      W* const row = &between_[i * n];
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) row[j] = j < i ? decay_product(above[j], decay_[i]) : W(j == i);
      above = row;
    }
    put_product(scores_.data(), tile(rows_, d_), key_tile().transposed(), 2 * n, n, d_);
    prefetch_next(in_.k);
    mask(scores_.data());
  }

  // From the state before to the state behind. errors: (n, Dv)
  void forward(W* state, W* errors, const Tensor& o) {
    const int64_t n = n_;
    const W scale = static_cast<W>(in_.scale);
    read_rows<T>(errors, in_.v, place_);
    put_product(past_.data(), tile(rows_, d_), matrix(state), 2 * n, e_, d_);
    prefetch_next(in_.v);
    for (int64_t i = 0; i < n; ++i) {
      add_scaled(errors + i * e_, -since_[i], &past_[(n + i) * e_], e_);
      scale_row(&past_[i * e_], scale * since_[i], e_);
    }
    solve(errors);
    put_product(past_.data(), tile(scores_, n), tile(written_, e_), n, e_, n, scale, W(1));
    write_rows<T>(o, past_.data(), place_);
    prefetch_next(o);
    put_product(state, key_tile().transposed(), decayed_to_end(), d_, e_, n, W(1), since_[n - 1]);
  }

  // From the gradient of the state behind to that of the state before.
  void backward(const W* state, W* d_state, const W* errors, const Tensor& d_o, const DeltaGradients& to) {
    const int64_t n = n_;
    read_rows<T>(dy_.data(), d_o, place_);
    scale_row(dy_.data(), static_cast<W>(in_.scale), n * e_);
    for (int64_t i = 0; i < n; ++i) put_scaled_row(&written_[i * e_], beta_[i], errors + i * e_, e_);
    write_back(d_state, errors, to);
    prefetch_next(to.v);
    rows_back(state, d_state, to);
    prefetch_next(d_o);
    prefetch_next(to.q);
    for (int64_t i = 0; i < n; ++i) {
      scale_row(&dy_[i * e_], since_[i], e_);
      scale_row(&dy_[(n + i) * e_], since_[i], e_);
    }
    put_product(d_state, tile(rows_, d_).transposed(), tile(dy_, e_), d_, e_, 2 * n, W(1), since_[n - 1]);
    prefetch_next(to.k);
  }

 private:
  // Errors less what the tokens before wrote at like keys, and what is written, from the first token down.
  void solve(W* errors) {
    const int64_t n = n_;
    for (int64_t begin = 0; begin < n; begin += kSolvedAtOnce) {
      const int64_t end = std::min(n, begin + kSolvedAtOnce);
      const W* met = scores_.data() + (n + begin) * n;
      if (begin > 0)
        put_product(errors + begin * e_, {met, n, 1}, tile(written_, e_), end - begin, e_, begin, W(-1),
                    W(1));
      for (int64_t i = begin; i < end; ++i, met += n) {
        for (int64_t j = begin; j < i; ++j) add_scaled(errors + i * e_, -met[j], &written_[j * e_], e_);
        put_scaled_row(&written_[i * e_], beta_[i], errors + i * e_, e_);
      }
    }
  }

  // The gradients of what is written, from the last token up, and with them those of v and beta. Below the
  // gradients of outputs dy_ gets those of errors with a minus: both meet the state and the keys alike.
  void write_back(const W* d_state, const W* errors, const DeltaGradients& to) {
    const int64_t n = n_;
    W *const dwritten = past_.data(), *const minus = &dy_[n * e_];
    put_product(dwritten, key_tile(), matrix(d_state), n, e_, d_);
    for (int64_t i = 0; i < n; ++i) scale_row(dwritten + i * e_, until(i), e_);
    put_product(dwritten, tile(scores_, n).transposed(), tile(dy_, e_), n, e_, n, W(1), W(1));
    const W* const met = scores_.data() + n * n;
    for (int64_t end = n; end > 0;) {
      const int64_t begin = (end - 1) / kSolvedAtOnce * kSolvedAtOnce;
      if (end < n)
        put_product(dwritten + begin * e_, {met + end * n + begin, 1, n}, {minus + end * e_, e_, 1},
                    end - begin, e_, n - end, W(1), W(1));
      for (int64_t i = end - 1; i >= begin; --i) {
        put_scaled_row(minus + i * e_, -beta_[i], dwritten + i * e_, e_);
        for (int64_t j = begin; j < i; ++j) add_scaled(dwritten + j * e_, met[i * n + j], minus + i * e_, e_);
        to.beta.data<W>()[number(i)] = dot(dwritten + i * e_, errors + i * e_, e_);
      }
      end = begin;
    }
    put_scaled_row(dwritten, W(-1), minus, n * e_);
    write_rows<T>(to.v, dwritten, place_);
  }

  // The gradients of q, k and g. dkeys_: of keys as what others meet and what is written; drows_: the rest.
  void rows_back(const W* state, const W* d_state, const DeltaGradients& to) {
    const int64_t n = n_;
    put_product(pairs_.data(), tile(dy_, e_), tile(written_, e_).transposed(), 2 * n, n, e_);
    mask(pairs_.data());
    put_product(drows_.data(), tile(dy_, e_), matrix(state).transposed(), 2 * n, d_, e_);
    for (int64_t i = 0; i < n; ++i) {
      scale_row(&drows_[i * d_], since_[i], d_);
      scale_row(&drows_[(n + i) * d_], since_[i], d_);
    }
    put_product(drows_.data(), tile(pairs_, n), key_tile(), 2 * n, d_, n, W(1), W(1));
    put_product(dkeys_.data(), tile(written_, e_), matrix(d_state).transposed(), n, d_, e_);
    const bool gated = in_.g.defined();
    W reach = gated ? since_[n - 1] * dot(state, d_state, d_ * e_) : W(0);
    for (int64_t i = 0; i < n; ++i) {
      scale_row(&dkeys_[i * d_], until(i), d_);
      if (gated) reach += dot(keys() + i * d_, &dkeys_[i * d_], d_);
    }
    put_product(dkeys_.data(), tile(pairs_, n).transposed(), tile(rows_, d_), n, d_, 2 * n, W(1), W(1));
    // What a gate scales begins before its token and ends at it or later.
    if (gated)
      for (int64_t i = n - 1; i >= 0; --i) {
        const W *q = &rows_[i * d_], *k = keys() + i * d_;
        reach +=
            dot(q, &drows_[i * d_], d_) + dot(k, &drows_[(n + i) * d_], d_) - dot(k, &dkeys_[i * d_], d_);
        to.g.data<W>()[number(i)] = decay_[i] == 0 ? W(0) : reach;
      }
    add_scaled(dkeys_.data(), W(1), &drows_[n * d_], n * d_);
    write_rows<T>(to.q, drows_.data(), place_);
    write_rows<T>(to.k, dkeys_.data(), place_);
  }

  W* keys() { return &rows_[n_ * d_]; }
  MatrixView<W> key_tile() { return {keys(), d_, 1}; }
  static MatrixView<W> tile(const Scratch<W>& x, int64_t columns) { return {x.data(), columns, 1}; }
  MatrixView<W> matrix(const W* state) const { return {state, e_, 1}; }
  int64_t number(int64_t i) const { return (place_.first + i) * in_.q.dim(1) + place_.head; }
  W until(int64_t i) const { return between_[(n_ - 1) * n_ + i]; }  // the decay from token i to the last

  __attribute__((always_inline)) void prefetch_next(const Tensor& x) const {
    const int64_t width = x.dim(2), pitch = x.pitch(), end = std::min(next_ + kDeltaChunk, x.dim(0));
    for (int64_t i = std::max<int64_t>(0, next_); i < end; ++i)
      prefetch(x.data<T>() + i * pitch + place_.head * width, width * static_cast<int64_t>(sizeof(T)));
  }

  // Products of rows i with rows j: of queries and keys up to their own token, of keys and keys before it.
  void mask(W* x) const {
    for (int64_t i = 0; i < n_; ++i) {
      W *query = x + i * n_, *key = x + (n_ + i) * n_;
      const W* row = &between_[i * n_];
#pragma omp simd
      for (int64_t j = 0; j < n_; ++j) query[j] *= row[j], key[j] *= row[j];
      key[i] = 0;
    }
  }

  MatrixView<W> decayed_to_end() {
    if (!in_.g.defined()) return tile(written_, e_);
    for (int64_t i = 0; i < n_; ++i) put_scaled_row(&scaled_[i * e_], until(i), &written_[i * e_], e_);
    return tile(scaled_, e_);
  }

  const DeltaInputs& in_;
  const int64_t d_ = in_.q.dim(2), e_ = in_.v.dim(2);
  HeadRows place_{};
  int64_t n_ = 0, next_ = 0;
  Scratch<W> beta_, decay_, since_;  // since_: the decay from the state before
  Scratch<W> rows_, between_;        // (2 n, Dk); (n, n): the decay from token j to token i, 0 for j > i
  Scratch<W> scores_, pairs_;        // (2 n, n) and its gradient
  Scratch<W> past_, dy_;             // (2 n, Dv)
  Scratch<W> written_, scaled_;      // (n, Dv)
  Scratch<W> drows_, dkeys_;         // (2 n, Dk), (n, Dk): gradients, the latter of keys that others meet
};

// What of one head of one segment lies where.
template <class W>
struct DeltaSegment {
  int64_t segment, head, begin, end;
  W *states, *errors;  // kept: the states before its chunks, and (end - begin, Dv); null if nothing is
};

int64_t most_chunks(const DeltaInputs& x) { return x.q.dim(0) / kDeltaChunk + x.documents; }

// f(segment) for the segments of all heads, on all cores; those of a head one after another, so that cores
// share long ones. Each thread has its own copy of f.
template <class W, class F>
void for_each_delta_segment(const DeltaInputs& x, const Tensor& kept, const F& f) {
  const int64_t tokens = x.q.dim(0), heads = x.q.dim(1), width = x.v.dim(2), size = x.q.dim(2) * width;
  const int64_t work = 4 * tokens * size / std::max(1, x.documents);
  const int32_t* offsets = x.offsets.data<int32_t>();
  W* const all = kept.numel() > 0 ? kept.data<W>() : nullptr;
  parallel_for(heads * x.documents, 1 + kWorthACore / (work + 1), [&](int64_t first, int64_t last) {
    F mine = f;
    for (int64_t item = first; item < last; ++item) {
      const int64_t head = item / x.documents, segment = item % x.documents, begin = offsets[segment];
      DeltaSegment<W> s{segment, head, begin, offsets[segment + 1], nullptr, nullptr};
      if (all != nullptr) {
        // No two segments share a place, whatever their lengths.
        s.states = all + (head * most_chunks(x) + begin / kDeltaChunk + segment) * size;
        s.errors = all + heads * most_chunks(x) * size + (head * tokens + begin) * width;
      }
      mine(s);
    }
  });
}

}  // namespace

void delta_run_buffers(RunBuffers& buffers, const DeltaInputs& x, bool backward_follows) {
  const int64_t width = x.v.dim(2);
  if (backward_follows) buffers.kept = x.q.dim(1) * (most_chunks(x) * x.q.dim(2) + x.q.dim(0)) * width;
}

void delta_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept, const DeltaInputs& x,
                       bool) {
  with_float(x.q.dtype(), [&]<class T>() {
    using W = Acc<T>;
    const int64_t width = x.v.dim(2), size = x.q.dim(2) * width;
    for_each_delta_segment<W>(
        x, kept,
        [&, chunk = DeltaChunk<T, W>(x), state = Scratch<W>(size),
         errors = Scratch<W>(kDeltaChunk * width)](const DeltaSegment<W>& s) mutable {
          copy_state(state.data(), state_in<W>(x.initial_state, s.segment, s.head), size);
          for (int64_t t = s.begin, i = 0; t < s.end; t += kDeltaChunk, ++i) {
            if (s.states != nullptr) std::copy_n(state.data(), size, s.states + i * size);
            chunk.move_to(s.head, t, std::min(kDeltaChunk, s.end - t), t + kDeltaChunk);
            chunk.forward(state.data(),
                          s.errors != nullptr ? s.errors + i * kDeltaChunk * width : errors.data(), o);
          }
          if (final_state.defined())
            std::copy_n(state.data(), size, state_in<W>(final_state, s.segment, s.head));
        });
  });
}

void delta_run_backward(const DeltaGradients& d, const Tensor&, const DeltaInputs& x, const Tensor& kept,
                        const Tensor& d_o, const Tensor& d_final_state) {
  with_float(x.q.dtype(), [&]<class T>() {
    using W = Acc<T>;
    constexpr int64_t kBytes = sizeof(W);
    const int64_t width = x.v.dim(2), size = x.q.dim(2) * width;
    for_each_delta_segment<W>(
        x, kept,
        [&, chunk = DeltaChunk<T, W>(x), d_state = Scratch<W>(size)](const DeltaSegment<W>& s) mutable {
          copy_state(d_state.data(), state_in<W>(d_final_state, s.segment, s.head), size);
          for (int64_t i = (s.end - s.begin + kDeltaChunk - 1) / kDeltaChunk - 1; i >= 0; --i) {
            const int64_t t = s.begin + i * kDeltaChunk;
            const W *state = s.states + i * size, *errors = s.errors + i * kDeltaChunk * width;
            chunk.move_to(s.head, t, std::min(kDeltaChunk, s.end - t), t - kDeltaChunk);
            chunk.backward(state, d_state.data(), errors, d_o, d);
            if (i > 0) prefetch(state - size, size * kBytes);
            if (i > 0) prefetch(errors - kDeltaChunk * width, kDeltaChunk * width * kBytes);
          }
          if (d.initial_state.defined())
            std::copy_n(d_state.data(), size, state_in<W>(d.initial_state, s.segment, s.head));
        });
  });
}

}  // namespace weft::cpu
