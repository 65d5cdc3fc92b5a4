// Linear attention with decay on the CPU, chunk by chunk in tiles that stay in the caches (README.md, "Linear
// attention on a CPU"). A task is a segment of a few heads. Where tasks are fewer than threads can share,
// what chunks do to states comes first, for all chunks at once, then states are folded, then chunks finish;
// the sums are the same, so the bits are.

#include <algorithm>
#include <vector>

#include "attention/linear_chunk.h"
#include "attention/linear_run.h"
#include "attention/scan_tiles.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

constexpr int64_t kTaskStates = int64_t{1} << 16;  // numbers, of the states of a task
constexpr int64_t kGroup = 32;                     // chunks; the state before each group is kept

struct LinearPlace {
  int64_t token, n, state;  // state: the place of the one before it, among those of a head
};

// Segments in chunks, at least one each, and a state more than chunks.
struct LinearCut {
  std::vector<LinearPlace> chunks;
  std::vector<int64_t> first;  // chunk of each segment; then how many chunks there are
  std::vector<int64_t> kept;   // of each segment: where its states begin among those that a head keeps

  explicit LinearCut(const Tensor& offsets) {
    const int32_t* at = offsets.data<int32_t>();
    int64_t groups = 0;
    for (int64_t s = 0; s + 1 < offsets.dim(0); ++s) {
      first.push_back(std::ssize(chunks));
      int64_t token = at[s];
      do {
        const int64_t n = std::min<int64_t>(kLinearChunk, at[s + 1] - token);
        chunks.push_back({token, n, std::ssize(chunks) + s});
        token += n;
      } while (token < at[s + 1]);
      kept.push_back(groups);
      groups += (std::ssize(chunks) - 1 - first.back()) / kGroup;
    }
    first.push_back(std::ssize(chunks));
  }
  int64_t segments() const { return std::ssize(first) - 1; }
  int64_t size() const { return std::ssize(chunks); }
};

// How the work is shared out. From bounds alone, so that a plan of memory, which has no offsets, agrees.
struct LinearShares {
  bool apart;            // chunks of one task on several threads
  int64_t together;      // heads of a task, which go chunk by chunk side by side: rows are read whole
  int64_t ranges;        // of tasks, one a thread
  int64_t states, kept;  // of a head
  int64_t group;         // chunks of the largest
  int64_t grain;         // chunks that are worth a thread

  explicit LinearShares(const LinearInputs& p) {
    const int64_t tokens = p.q.dim(0), heads = p.q.dim(1), d = p.q.dim(2), e = p.v.dim(2),
                  documents = p.bounds.documents;
    const int64_t of_chunk = kLinearChunk * (2 * d * e + kLinearChunk * (d + e));
    grain = 1 + kWorthACore / (of_chunk + 1);
    states = tokens / kLinearChunk + 2 * documents;
    kept = tokens / (kGroup * kLinearChunk);
    group = std::min(p.bounds.longest / kLinearChunk + 1, kGroup);
    const int64_t threads =
        std::clamp<int64_t>(heads * states / grain, 1, omp_in_parallel() ? 1 : omp_get_max_threads());
    apart = threads > 1 && p.bounds.longest * threads > tokens * heads;
    together =
        std::clamp<int64_t>(std::min(heads * documents / threads, kTaskStates / (d * e + 1)), 1, heads);
    ranges = std::min(threads, (heads + together - 1) / together * documents);
  }
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
void turn_matrix(W* to, const W* from, int64_t rows, int64_t d) {
  if (from == nullptr)
    std::fill_n(to, rows * d, W(0));
  else
    base::transpose(to, rows, MatrixView<W>{from, d, 1}, rows, d);
}

// One thread's chunk. On the way out states are (d, e), on the way back (e, d): so most products need no
// operand turned.
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
    turned_.resize(std::max(keys, values));
    turned_values_.resize(values);
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

  // What its tokens add to the state behind it: (d, e), and turned.
  void summarize(W* to) {
    put_product(to, keys(weighed(k_, decays_->to_end())).transposed(), values(v_), d_, e_, n_);
  }
  void summarize_turned(W* to) {
    put_product(to, values(v_).transposed(), keys(weighed(k_, decays_->to_end())), e_, d_, n_);
  }
  // What it adds to the gradient of the state before it, turned.
  void summarize_gradient(W* to) {
    put_product(to, values(o_).transposed(), keys(weighed(q_, decays_->from_start())), e_, d_, n_);
  }

  void outputs(const Tensor& o, const W* state) {
    decays_->scores(scores_.data(), q_.data(), k_.data());
    put_product(o_.data(), scores(scores_), values(v_), n_, e_, n_);
    put_product(o_.data(), keys(weighed(q_, decays_->from_start())), {state, e_, 1}, n_, e_, d_, W(1), W(1));
    write_rows<T>(o, o_.data(), rows_);
  }

  // state: before the chunk; after: the gradient of the one behind it. Both turned.
  void gradients(const LinearGradients& d, const W* state, const W* after) {
    const MatrixView<W> turned_values{turned_values_.data(), n_, 1}, turned{turned_.data(), n_, 1};
    turn_matrix(turned_values_.data(), v_.data(), n_, e_);
    multiply(Product<W, W, W>{d_scores_.data(), kLinearChunk, values(o_), turned_values, n_, n_, e_, 1, 0});
    decays_->backward(scores_.data(), d_scores_.data(), q_.data(), k_.data(), dq_.data(), dk_.data());

    // dv, turned
    turn_matrix(turned_.data(), weighed(k_, decays_->to_end()), n_, d_);
    put_product(turned_values_.data(), values(o_).transposed(), scores(scores_), e_, n_, n_);
    put_product(turned_values_.data(), {after, d_, 1}, turned, e_, n_, d_, W(1), W(1));
    turn_matrix(turned_.data(), turned_values_.data(), e_, n_);
    write_rows<T>(d.v, turned_.data(), rows_);

    put_product(from_state_.data(), values(o_), {state, d_, 1}, n_, d_, e_);
    weigh(from_state_.data(), from_state_.data(), decays_->from_start());
    put_product(weighted_.data(), values(v_), {after, d_, 1}, n_, d_, e_);
    weigh(weighted_.data(), weighted_.data(), decays_->to_end());
#pragma omp simd
    for (int64_t i = 0; i < n_ * d_; ++i) dq_[i] += from_state_[i];
#pragma omp simd
    for (int64_t i = 0; i < n_ * d_; ++i) dk_[i] += weighted_[i];
    write_rows<T>(d.q, dq_.data(), rows_, static_cast<W>(p_.scale));
    write_rows<T>(d.k, dk_.data(), rows_);
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
  Scratch<W> weighted_, scores_, d_scores_, dq_, dk_, from_state_, turned_, turned_values_, kept_;
};

struct LinearTask {
  int64_t segment, head, heads;  // head: the first
};

// Of each range: the tasks that begin within its share of the chunks.
std::vector<std::vector<LinearTask>> linear_tasks(const LinearShares& shares, const LinearCut& cut,
                                                  int64_t heads) {
  std::vector<std::vector<LinearTask>> tasks(static_cast<size_t>(shares.ranges));
  for (int64_t h = 0; h < heads; h += shares.together)
    for (int64_t s = 0; s < cut.segments(); ++s) {
      const int64_t before = h * cut.size() + cut.first[s] * std::min(shares.together, heads - h);
      tasks[before * shares.ranges / (heads * cut.size())].push_back(
          {s, h, std::min(shares.together, heads - h)});
    }
  return tasks;
}

template <class T, class W = Acc<T>>
struct LinearPass {
  const LinearInputs& p;
  const LinearShares shares{p};
  const LinearCut cut{p.offsets};
  const int64_t heads = p.q.dim(1), d = p.q.dim(2), e = p.v.dim(2), size = d * e;

  // f(chunk, range, task) for the tasks of all ranges.
  template <class F>
  void each_task(const LinearGradients* grads, F f) const {
    const auto tasks = linear_tasks(shares, cut, heads);
    parallel_for(shares.ranges, 1, [&](int64_t first, int64_t last) {
      LinearChunk<T> chunk(p, grads, shares.together);
      for (int64_t range = first; range < last; ++range)
        for (const LinearTask& task : tasks[range]) f(chunk, range, task);
    });
  }

  // The state before a group that is not the first of its segment.
  W* kept_state(const Tensor& kept, int64_t segment, int64_t group, int64_t head) const {
    return kept.data<W>() + (head * shares.kept + cut.kept[segment] + group - 1) * size;
  }

  void forward(const Tensor& o, const Tensor& final_state, const Tensor& kept) const {
    each_task(nullptr, [&](LinearChunk<T>& chunk, int64_t, const LinearTask& task) {
      Scratch<W> states(static_cast<size_t>((task.heads + 1) * size));
      W* next = states.data() + task.heads * size;
      std::vector<W*> state;
      for (int64_t h = 0; h < task.heads; ++h) {
        state.push_back(states.data() + h * size);
        copy_state(state.back(), state_in<W>(p.initial_state, task.segment, task.head + h), size);
      }
      const int64_t begin = cut.first[task.segment], behind = cut.first[task.segment + 1];
      for (int64_t m = begin; m < behind; ++m)
        for (int64_t h = 0; h < task.heads; ++h) {
          if (kept.numel() > 0 && m > begin && (m - begin) % kGroup == 0)
            std::copy_n(state[h], size, kept_state(kept, task.segment, (m - begin) / kGroup, task.head + h));
          chunk.at(task.head + h, cut.chunks[m]);
          chunk.take_queries();
          chunk.outputs(o, state[h]);
          if (m + 1 == behind && !final_state.defined()) continue;
          chunk.summarize(next);
          add_decayed_rows(next, chunk.total(), state[h], d, e);
          std::swap(next, state[h]);
        }
      if (final_state.defined())
        for (int64_t h = 0; h < task.heads; ++h)
          std::copy_n(state[h], size, state_in<W>(final_state, task.segment, task.head + h));
    });
  }

  // workspace: the states before the chunks of a group, for each range
  void backward(const Tensor& d_o, const Tensor& d_final_state, const Tensor& kept,
                const LinearGradients& grads, W* workspace) const {
    each_task(&grads, [&](LinearChunk<T>& chunk, int64_t range, const LinearTask& task) {
      const int64_t begin = cut.first[task.segment], behind = cut.first[task.segment + 1];
      W* const states = workspace + range * shares.together * shares.group * size;
      const auto state = [&](int64_t h, int64_t m) {
        return states + ((m - begin) % kGroup * task.heads + h) * size;
      };
      Scratch<W> adjoints(static_cast<size_t>((task.heads + 1) * size));
      W* before = adjoints.data() + task.heads * size;
      std::vector<W*> after;
      for (int64_t h = 0; h < task.heads; ++h) {
        after.push_back(adjoints.data() + h * size);
        turn_matrix(after.back(), state_in<W>(d_final_state, task.segment, task.head + h), d, e);
      }
      for (int64_t group = (behind - 1 - begin) / kGroup; group >= 0; --group) {
        const int64_t first = begin + group * kGroup, last = std::min(first + kGroup, behind);
        for (int64_t h = 0; h < task.heads; ++h)
          turn_matrix(state(h, first),
                      group == 0 ? state_in<W>(p.initial_state, task.segment, task.head + h)
                                 : kept_state(kept, task.segment, group, task.head + h),
                      d, e);
        for (int64_t m = first; m + 1 < last; ++m)
          for (int64_t h = 0; h < task.heads; ++h) {
            chunk.at(task.head + h, cut.chunks[m]);
            chunk.summarize_turned(state(h, m + 1));
            add_decayed_columns(state(h, m + 1), chunk.total(), state(h, m), e, d);
          }
        for (int64_t m = last - 1; m >= first; --m)
          for (int64_t h = 0; h < task.heads; ++h) {
            chunk.at(task.head + h, cut.chunks[m]);
            chunk.take_queries();
            chunk.take_adjoint(d_o);
            chunk.gradients(grads, state(h, m), after[h]);
            if (m == begin && !grads.initial_state.defined()) continue;
            chunk.summarize_gradient(before);
            add_decayed_columns(before, chunk.total(), after[h], e, d);
            std::swap(before, after[h]);
          }
      }
      if (grads.initial_state.defined())
        for (int64_t h = 0; h < task.heads; ++h)
          turn_matrix(state_in<W>(grads.initial_state, task.segment, task.head + h), after[h], e, d);
    });
  }

  // f(chunk, head, index of a chunk) for all chunks, on all threads.
  template <class F>
  void each_chunk(const LinearGradients* grads, F f) const {
    parallel_for(heads * cut.size(), shares.grain, [&](int64_t first, int64_t last) {
      LinearChunk<T> chunk(p, grads, shares.together);
      for (int64_t i = first; i < last; ++i) {
        const int64_t head = i / cut.size(), m = i % cut.size();
        chunk.at(head, cut.chunks[m]);
        f(chunk, head, m);
      }
    });
  }
  // All states of all heads, (H, shares.states, d, e); turned on the way back.
  W* at(W* states, int64_t head, int64_t place) const {
    return states + (head * shares.states + place) * size;
  }
  W* first_state(W* states, int64_t segment, int64_t head) const {
    return at(states, head, cut.chunks[cut.first[segment]].state);
  }
  W* last_state(W* states, int64_t segment, int64_t head) const {
    return at(states, head, cut.chunks[cut.first[segment + 1] - 1].state + 1);
  }
  // f(segment, head)
  template <class F>
  void each_state(F f) const {
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t s = 0; s < cut.segments(); ++s) f(s, h);
  }
  // f(segment, head, row) for all rows of a state, on all threads.
  template <class F>
  void each_row(int64_t rows, F f) const {
    const int64_t all = heads * cut.segments() * rows, work = heads * cut.size() * size / all;
    parallel_for(all, 1 + kWorthACore / 64 / (work + 1), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        f(i / rows % cut.segments(), i / rows / cut.segments(), i % rows);
    });
  }

  void forward_apart(const Tensor& o, const Tensor& final_state, const Tensor& kept, W* states) const {
    Scratch<W> totals(static_cast<size_t>(heads * cut.size() * d));
    const auto total = [&](int64_t head, int64_t m) { return &totals[(head * cut.size() + m) * d]; };
    each_chunk(nullptr, [&](LinearChunk<T>& chunk, int64_t head, int64_t m) {
      chunk.summarize(at(states, head, cut.chunks[m].state + 1));
      std::copy_n(chunk.total(), d, total(head, m));
    });
    each_state([&](int64_t segment, int64_t head) {
      copy_state(first_state(states, segment, head), state_in<W>(p.initial_state, segment, head), size);
    });
    each_row(d, [&](int64_t segment, int64_t head, int64_t row) {
      W* state = first_state(states, segment, head) + row * e;
      for (int64_t m = cut.first[segment]; m < cut.first[segment + 1]; ++m, state += size)
        add_decayed_rows(state + size, total(head, m) + row, state, 1, e);
    });
    each_chunk(nullptr, [&](LinearChunk<T>& chunk, int64_t head, int64_t m) {
      chunk.take_queries();
      chunk.outputs(o, at(states, head, cut.chunks[m].state));
    });
    each_state([&](int64_t segment, int64_t head) {
      for (int64_t m = cut.first[segment] + kGroup, group = 1; kept.numel() > 0 && m < cut.first[segment + 1];
           m += kGroup, ++group)
        std::copy_n(at(states, head, cut.chunks[m].state), size, kept_state(kept, segment, group, head));
    });
    if (!final_state.defined()) return;
    each_state([&](int64_t segment, int64_t head) {
      std::copy_n(last_state(states, segment, head), size, state_in<W>(final_state, segment, head));
    });
  }

  // Behind the states lie their gradients.
  void backward_apart(const Tensor& d_o, const Tensor& d_final_state, const LinearGradients& grads,
                      W* states) const {
    W* const adjoints = at(states, heads, 0);
    Scratch<W> totals(static_cast<size_t>(heads * cut.size() * d));
    const auto total = [&](int64_t head, int64_t m) { return &totals[(head * cut.size() + m) * d]; };
    each_chunk(&grads, [&](LinearChunk<T>& chunk, int64_t head, int64_t m) {
      chunk.take_queries();
      chunk.take_adjoint(d_o);
      chunk.summarize_turned(at(states, head, cut.chunks[m].state + 1));
      chunk.summarize_gradient(at(adjoints, head, cut.chunks[m].state));
      std::copy_n(chunk.total(), d, total(head, m));
    });
    each_state([&](int64_t segment, int64_t head) {
      turn_matrix(first_state(states, segment, head), state_in<W>(p.initial_state, segment, head), d, e);
      turn_matrix(last_state(adjoints, segment, head), state_in<W>(d_final_state, segment, head), d, e);
    });
    each_row(e, [&](int64_t segment, int64_t head, int64_t row) {
      const int64_t begin = cut.first[segment], behind = cut.first[segment + 1];
      W* state = first_state(states, segment, head) + row * d;
      for (int64_t m = begin; m < behind; ++m, state += size)
        add_decayed_columns(state + size, total(head, m), state, 1, d);
      state = last_state(adjoints, segment, head) + row * d;
      for (int64_t m = behind - 1; m >= begin; --m, state -= size)
        add_decayed_columns(state - size, total(head, m), state, 1, d);
    });
    each_chunk(&grads, [&](LinearChunk<T>& chunk, int64_t head, int64_t m) {
      chunk.take_queries();
      chunk.take_adjoint(d_o);
      const int64_t place = cut.chunks[m].state;
      chunk.gradients(grads, at(states, head, place), at(adjoints, head, place + 1));
    });
    if (!grads.initial_state.defined()) return;
    each_state([&](int64_t segment, int64_t head) {
      turn_matrix(state_in<W>(grads.initial_state, segment, head), first_state(adjoints, segment, head), e,
                  d);
    });
  }
};

}  // namespace

void linear_run_buffers(RunBuffers& buffers, const LinearInputs& x, bool backward_follows) {
  const LinearShares shares(x);
  const int64_t state = x.q.dim(2) * x.v.dim(2), all = x.q.dim(1) * shares.states * state;
  if (backward_follows) buffers.kept = x.q.dim(1) * shares.kept * state;
  buffers.forward = shares.apart ? all : 0;
  buffers.backward = shares.apart ? 2 * all : shares.ranges * shares.together * shares.group * state;
}

void linear_run_forward(const Tensor& o, const Tensor& final_state, const Tensor& kept,
                        const Tensor& workspace, const LinearInputs& x) {
  with_float(x.q.dtype(), [&]<class T>() {
    const LinearPass<T> pass{x};
    if (pass.shares.apart)
      pass.forward_apart(o, final_state, kept, workspace.data<Acc<T>>());
    else
      pass.forward(o, final_state, kept);
  });
}

void linear_run_backward(const LinearGradients& d, const Tensor& workspace, const LinearInputs& x,
                         const Tensor& kept, const Tensor& d_o, const Tensor& d_final_state) {
  with_float(x.q.dtype(), [&]<class T>() {
    auto* const states = workspace.data<Acc<T>>();
    const LinearPass<T> pass{x};
    if (pass.shares.apart)
      pass.backward_apart(d_o, d_final_state, d, states);
    else
      pass.backward(d_o, d_final_state, kept, d, states);
  });
}

}  // namespace weft::cpu
