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

// The cut with the least time expected, for one sweep (forward) or three (backward), which run side by side
// or, with a gate of channels, one after another. A block of threads needs chunk_us for a chunk of 64 tokens,
// as long as memory keeps up with all that run at once.
inline Cut choose_cut(const LinearAttention& p, int sweeps, const CutDevice& device) {
  const bool channels = p.gate == Gate::channel;
  const double chunk_us = channels ? 6.8 : sweeps > 1 && p.gate == Gate::head ? 3 : 1.6;
  const bool wide = p.d_k == 256;  // segment_states has one block to a multiprocessor then
  const double state_chunk_us = channels ? 3 : wide ? 3.5 : 1.5;
  constexpr double launches_us = 15;
  if (p.documents > most_cut_documents || p.tokens == 0 || p.segment == 0) return {};
  if (p.segment > 0) return {p.segment, int(p.documents + p.tokens / p.segment)};
  const auto mean = double(p.tokens) / p.documents;
  const int64_t longest = std::max(p.longest, int64_t(std::ceil(mean)));
  const int columns = channels ? p.d_v : p.d_k == 128 && p.d_v >= 128 ? 128 : 64;
  const int turns = channels ? sweeps : 1, at_once = p.d_k == 64 && !channels ? 2 : 1;
  const double rows = double(p.tokens) * p.heads;
  const double row_bytes = 2.0 * (p.d_k + p.d_v) + (channels ? 4 * p.d_k : 0);
  const int passes = sweeps == 1 ? 1 : 2, tensors = sweeps == 1 ? 2 : 5;

  auto kernel = [&](int64_t segments, int64_t length, int blocks_each, int places, double us, double bytes) {
    const double waves = std::ceil(double(segments) * blocks_each / places);
    const double chain =
        std::min(waves * double(length), double(p.tokens) * blocks_each / places + double(length));
    return std::max(chain / 64 * us, bytes / device.bytes_us);
  };
  auto time = [&](int64_t segments, int64_t length) {
    return turns * kernel(segments, length, p.heads * (sweeps / turns) * (p.d_v / columns),
                          device.multiprocessors * at_once, chunk_us, rows * row_bytes * tensors / turns);
  };
  double least = time(p.documents, longest);
  Cut best;
  for (int64_t pieces = 2; pieces <= 256; ++pieces) {
    const int64_t length = (longest + 64 * pieces - 1) / (64 * pieces) * 64;
    if (length < 256) break;
    const auto segments = int64_t(p.documents * std::ceil(mean / double(length)));
    const double states = 16.0 * double(segments) * p.heads * p.d_k * p.d_v;
    const double total = time(segments, length) + launches_us +
                         kernel(segments, length, p.heads * passes * std::max(1, p.d_v / 128),
                                (channels || wide ? 1 : 2) * device.multiprocessors, state_chunk_us,
                                passes * (rows * row_bytes + states));
    if (total < least) {
      least = total;
      best = {length, int(p.offsets ? p.documents + p.tokens / length : segments)};
    }
  }
  return best;
}

// offsets (cut.most + 1): the tokens where segments begin, behind the last one where documents end. first
// (documents + 1): the segments where documents begin.
void cut_documents(const LinearAttention& p, const Cut& cut, int* offsets, int* first, cudaStream_t stream);

// For sweeps of segments (their b, c, reverse and state_out; bf16, widths of 64, 128 or 256) from a state of
// zero. decay (segments, heads): exp of the segment's gates added up.
void segment_states(const Sweeps& sweeps, float* decay, bool wgmma, cudaStream_t stream);
// The same with a gate for each channel of b (widths of 64 and 128): decay (segments, heads, d_a).
void channel_segment_states(const Sweeps& sweeps, float* decay, bool wgmma, cudaStream_t stream);

// states (segments, heads, d_k, d_v): what each segment leaves becomes `scale` times what those before it
// in its document leave it (in reverse: those behind it); `from` at the document's start and `to` behind its
// end (documents, heads, d_k, d_v) may be null.
struct Fold {
  int documents = 0, heads = 0, d_k = 0, d_v = 0;
  const int* first = nullptr;
  const float* decay = nullptr;  // (segments, heads), or with `channels` (segments, heads, d_k)
  bool channels = false;
  float* states = nullptr;
  const float* from = nullptr;
  float* to = nullptr;
  float scale = 1;
  bool reverse = false;
};
void fold_segments(const Fold& fold, cudaStream_t stream);

}  // namespace weft::cuda
