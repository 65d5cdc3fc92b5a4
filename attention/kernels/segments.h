#pragma once
// Long documents of few heads: cut into segments that run side by side (README, "Few heads").
//
//   cut_documents      where segments begin
//   segment_states     what each segment's own tokens leave behind it, from a state of zero, and its decay
//   fold_segments      along each document: the state that every segment starts from
//
// Then the ordinary sweeps run with segments as documents. Sums have one order, so equal inputs give equal
// bits; where cuts lie depends on sizes and on the kind of GPU.

#include <algorithm>
#include <cmath>

#include "attention/kernels/sweep.h"

namespace weft::cuda {

// Segments of `length` tokens, a multiple of 64; the last of a document may be shorter. Up to `most` of them.
// A length of 0 leaves documents whole.
struct Cut {
  int64_t length = 0;
  int most = 0;
};

constexpr int most_cut_documents = 256;

struct CutDevice {
  int multiprocessors = 132;
  double bytes_us = 3e6;  // that memory moves in a microsecond
};

// The cut with the least time expected of both passes (README, "Few heads", has what the constants are of):
// of sweeps that run side by side (one forward, three backward) or, with a gate of channels, one after
// another, and of the passes for states. A block of threads takes start_us and chunk_us for each chunk of 64
// tokens, as long as memory keeps up with all that run at once.
inline Cut choose_cut(const LinearAttention& p, const CutDevice& device) {
  if (p.documents > most_cut_documents || p.tokens == 0 || p.segment == 0) return {};
  if (p.segment > 0) return {p.segment, int(p.documents + p.tokens / p.segment)};
  constexpr double start_us = 8;                // state, first tiles
  constexpr double fold_us = 4, step_us = .16;  // once, and for each segment of a document
  const auto chunk_us = [](int d_a) { return d_a == 64 ? 1 : d_a == 128 ? 1.55 : 2; };
  const bool channels = p.gate == Gate::channel;
  const double forward = channels ? 2.25 : 1, backward = channels ? 3 : p.gate == Gate::head ? 1.75 : 1;

  const auto mean = double(p.tokens) / p.documents;
  const int64_t longest = std::max(p.longest, int64_t(std::ceil(mean)));
  const auto pieces_of_longest = [&](int64_t length) { return std::ceil(double(longest) / double(length)); };
  const double rows = double(p.tokens) * p.heads;
  const double row_bytes = 2.0 * (p.d_k + p.d_v) + (channels ? 4 * p.d_k : 0);

  auto both_passes = [&](double segments, int64_t length) {
    auto kernel = [&](int blocks_each, int d_a, double slower, double bytes) {
      const bool two = d_a == 64;  // on a multiprocessor, where each is the slower for it
      const double blocks = segments * blocks_each, places = device.multiprocessors * (two ? 2 : 1);
      const double rounds =
          std::min(std::ceil(blocks / places), double(p.tokens) * blocks_each / (places * length) + 1);
      const double us = chunk_us(d_a) * slower * (two && blocks > device.multiprocessors ? 1.4 : 1);
      return std::max(rounds * (start_us + double(length) / 64 * us), bytes / device.bytes_us);
    };
    auto sweeps = [&](int count, int d_a, int d_c, double slower, double tensors) {
      const int turns = channels ? count : 1;
      const int columns = channels ? d_c : d_a >= 128 && d_c >= 128 ? 128 : 64;
      return turns * kernel(p.heads * (d_c / columns) * (count / turns), d_a, slower,
                            rows * row_bytes / 2 * tensors / turns);
    };
    double us = sweeps(1, p.d_k, p.d_v, forward, 4);
    us += p.d_k == p.d_v ? sweeps(3, p.d_k, p.d_k, backward, 10)
                         : sweeps(2, p.d_v, p.d_k, backward, 7) + sweeps(1, p.d_k, p.d_v, forward, 3);
    if (length < longest) {
      const double states =
          kernel(p.heads * (channels ? 1 : std::max(1, p.d_v / 128)), p.d_k, forward / 2, rows * row_bytes);
      const double bytes = 12.0 * segments * p.heads * p.d_k * p.d_v;
      const double fold = std::max(step_us * pieces_of_longest(length), bytes / device.bytes_us);
      us += 2 * (states + fold_us + fold);
    }
    return us;
  };
  double least = both_passes(p.documents, longest);
  Cut best;
  for (int64_t pieces = 2; pieces <= 256; ++pieces) {
    const int64_t length = (longest + 64 * pieces - 1) / (64 * pieces) * 64;
    if (length < 128) break;
    const double of_equal = double(p.documents) * pieces_of_longest(length);
    const double segments =
        double(longest) == mean
            ? of_equal
            : pieces_of_longest(length) + std::max(p.documents - 1.0, double(p.tokens - longest) / length);
    const double us = both_passes(segments, length);
    if (us < 0.97 * least) {  // more segments have to gain something
      least = us;
      best = {length, int(p.offsets ? p.documents + p.tokens / length : int64_t(of_equal))};
    }
  }
  return best;
}

// That of calls with this shape, on this GPU.
Cut cut_of(const LinearAttention& p);

// offsets (cut.most + 1): the tokens where segments begin, after the last one where documents end. first
// (documents + 1): the segments where documents begin.
void cut_documents(const LinearAttention& p, const Cut& cut, int* offsets, int* first, cudaStream_t stream);

// What the tokens of each segment leave behind it, from a state of zero.
struct SegmentStates {
  Sweeps sweeps;           // one, of segments: b, c, reverse and state_out; bf16, widths of 64, 128 or 256
  float* decay = nullptr;  // (segments, heads), with a gate of channels (..., d_a): over the segment
  // Unless end_wanted, the state where a document ends (backward: begins) may be left out.
  bool end_wanted = false;
  const int* first = nullptr;  // of cut_documents
  int documents = 0;

#ifdef __CUDACC__
  __device__ bool unwanted(int segment) const {
    if (end_wanted) return false;
    const int border = segment + (sweeps.sweep[0].reverse ? 0 : 1);
    int low = 0, high = documents;  // the first of `first` that is not less
    while (low < high) {
      const int middle = (low + high) / 2;
      if (first[middle] < border)
        low = middle + 1;
      else
        high = middle;
    }
    return first[low] == border;
  }
#endif
};
// Calls f.operator()<D_a, W>(): the width of a, and how many times 64 columns of c a block has.
template <class F>
void with_state_shape(const Sweeps& s, F f) {
  const auto with_columns = [&]<int D_a>() {
    s.d_c == 64 ? f.template operator()<D_a, 1>() : f.template operator()<D_a, 2>();
  };
  switch (s.d_a) {
    case 64: return with_columns.template operator()<64>();
    case 128: return with_columns.template operator()<128>();
    case 256: return with_columns.template operator()<256>();
  }
  throw Error(Exit::internal, text("linear attention (segment states): width ", s.d_a));
}
void segment_states(const SegmentStates& states, cudaStream_t stream);        // by mma.sync
void segment_states_wgmma(const SegmentStates& states, cudaStream_t stream);  // compute capability 9.0
// With a gate for each channel of b (widths of 64 and 128).
void channel_segment_states(const SegmentStates& states, bool wgmma, cudaStream_t stream);

// states (segments, heads, d_k, d_v): what each segment leaves becomes `scale` times what those before it
// in its document leave it (in reverse: those after it); `from` at the document's start and `to` after its
// end (documents, heads, d_k, d_v) may be null.
struct Fold {
  int documents = 0, heads = 0, d_k = 0, d_v = 0;
  const int* first = nullptr;
  float* decay = nullptr;  // (segments, heads), or with `channels` (segments, heads, d_k)
  bool channels = false;
  float* states = nullptr;
  const float* from = nullptr;
  float* to = nullptr;
  float scale = 1;
  bool reverse = false;
};
void fold_segments(const Fold& fold, cudaStream_t stream);

}  // namespace weft::cuda
