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

// The cut with the least time expected of both passes, for sweeps that run side by side (one forward, three
// backward) or, with a gate of channels, one after another. A block of threads needs chunk_us for a chunk of
// 64 tokens, as long as memory keeps up with all that run at once.
inline Cut choose_cut(const LinearAttention& p, const CutDevice& device) {
  const bool channels = p.gate == Gate::channel, gated = p.gate == Gate::head;
  const double state_chunk_us = channels ? 3 : 0.8;
  constexpr double launches_us = 15;  // to cut, of states and their fold, in each pass
  if (p.documents > most_cut_documents || p.tokens == 0 || p.segment == 0) return {};
  if (p.segment > 0) return {p.segment, int(p.documents + p.tokens / p.segment)};
  const auto mean = double(p.tokens) / p.documents;
  const int64_t longest = std::max(p.longest, int64_t(std::ceil(mean)));
  const int at_once = p.d_k == 64 ? 2 : 1;
  const double rows = double(p.tokens) * p.heads;
  const double row_bytes = 2.0 * (p.d_k + p.d_v) + (channels ? 4 * p.d_k : 0);

  auto kernel = [&](int64_t segments, int64_t length, int blocks_each, int places, double us, double bytes) {
    const double waves = std::ceil(double(segments) * blocks_each / places);
    const double chain =
        std::min(waves * double(length), double(p.tokens) * blocks_each / places + double(length));
    return std::max(chain / 64 * us, bytes / device.bytes_us);
  };
  auto sweeps = [&](int64_t segments, int64_t length, bool backward) {
    const bool exact = backward && gated, wide = p.d_k >= 128;
    const double chunk_us = channels       ? (p.d_k == 64 ? 3
                                              : backward  ? 5.3
                                                          : 4)
                            : exact        ? (p.d_k == 256 ? 4.5 : 3)
                            : p.d_k == 256 ? 2.2
                            : p.d_k == 64  ? (backward ? 1.65 : 1.35)
                                           : (backward ? 1.8 : 2);
    const int columns = channels ? p.d_v : wide && p.d_v >= 128 ? 128 : 64, count = backward ? 3 : 1;
    const int turns = channels ? count : 1;
    return turns * kernel(segments, length, p.heads * (count / turns) * (p.d_v / columns),
                          device.multiprocessors * at_once, chunk_us,
                          rows * row_bytes * (backward ? 5 : 2) / turns);
  };
  auto states = [&](int64_t segments, int64_t length) {
    const double bytes = 16.0 * double(segments) * p.heads * p.d_k * p.d_v;
    return launches_us + kernel(segments, length, p.heads * std::max(1, p.d_v / 128), device.multiprocessors,
                                state_chunk_us, rows * row_bytes + bytes);
  };
  double least = sweeps(p.documents, longest, false) + sweeps(p.documents, longest, true);
  Cut best;
  for (int64_t pieces = 2; pieces <= 256; ++pieces) {
    const int64_t length = (longest + 64 * pieces - 1) / (64 * pieces) * 64;
    if (length < 256) break;
    const auto segments = int64_t(p.documents * std::ceil(mean / double(length)));
    const double total =
        sweeps(segments, length, false) + sweeps(segments, length, true) + 2 * states(segments, length);
    if (total < 0.97 * least) {  // more segments have to gain something
      least = total;
      best = {length, int(p.offsets ? p.documents + p.tokens / length : segments)};
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
