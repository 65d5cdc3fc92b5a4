// Linear attention with decay on the CPU, chunk by chunk in tiles that stay in the caches (cpu.md, "Linear
// attention"). A task is a segment of a few heads. Where tasks are fewer than threads can share, what chunks
// do to states comes first, for all chunks at once, then states are folded, then chunks finish; the sums are
// the same, so the bits are.

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
        transpose_or_zero(after.back(), state_in<W>(d_final_state, task.segment, task.head + h), d, e);
      }
      for (int64_t group = (behind - 1 - begin) / kGroup; group >= 0; --group) {
        const int64_t first = begin + group * kGroup, last = std::min(first + kGroup, behind);
        for (int64_t h = 0; h < task.heads; ++h)
          transpose_or_zero(state(h, first),
                            group == 0 ? state_in<W>(p.initial_state, task.segment, task.head + h)
                                       : kept_state(kept, task.segment, group, task.head + h),
                            d, e);
        for (int64_t m = first; m + 1 < last; ++m)
          for (int64_t h = 0; h < task.heads; ++h) {
            chunk.at(task.head + h, cut.chunks[m]);
            chunk.summarize_transposed(state(h, m + 1));
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
          transpose_or_zero(state_in<W>(grads.initial_state, task.segment, task.head + h), after[h], e, d);
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
  // All states of all heads, (H, shares.states, d, e); transposed on the way back.
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
      chunk.summarize_transposed(at(states, head, cut.chunks[m].state + 1));
      chunk.summarize_gradient(at(adjoints, head, cut.chunks[m].state));
      std::copy_n(chunk.total(), d, total(head, m));
    });
    each_state([&](int64_t segment, int64_t head) {
      transpose_or_zero(first_state(states, segment, head), state_in<W>(p.initial_state, segment, head), d,
                        e);
      transpose_or_zero(last_state(adjoints, segment, head), state_in<W>(d_final_state, segment, head), d, e);
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
      transpose_or_zero(state_in<W>(grads.initial_state, segment, head), first_state(adjoints, segment, head),
                        e, d);
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
