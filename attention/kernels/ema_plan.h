#pragma once
// How the tokens of packed documents are dealt out to threads that each walk over some of them
// (moving_average.md, "Spans").

#include <algorithm>
#include <cstdint>
#include <vector>

#include "autograd/check.h"

namespace weft::cuda {

// Spans of tokens, one after the other. A span holds whole documents, or a piece of one.
struct EmaPlan {
  int documents = 0, spans = 0;  // documents that have tokens
  bool cut = false;              // some span starts inside a document
  bool matrices = false;         // for the kernels on tensor cores, where they can be used
  // offsets of the documents (documents + 1), the row of each document's state (documents), offsets of the
  // spans (spans + 1), and the document of each span's first token (spans)
  std::vector<int32_t> values;
};

constexpr int64_t kEmaMatrixTile = 512;

// Documents of up to `most` tokens are put together as long as no span exceeds `most`; longer ones are cut
// into equal pieces of whole tiles.
inline EmaPlan ema_spans(const std::vector<int64_t>& lengths, int64_t most, bool matrices = false) {
  const int64_t tile = matrices ? kEmaMatrixTile : 64;
  std::vector<int32_t> offsets{0}, rows, spans{0}, first;
  EmaPlan plan;
  plan.matrices = matrices;
  int64_t filled = 0;  // of the span that is still open
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t length = lengths[i], begin = offsets.back();
    if (length == 0) continue;
    const auto document = static_cast<int32_t>(rows.size());
    rows.push_back(static_cast<int32_t>(i));
    CHECK(begin + length <= INT32_MAX, "ema: ", begin + length, " tokens at once");
    offsets.push_back(static_cast<int32_t>(begin + length));
    const int64_t pieces = (length + most - 1) / most;
    const int64_t piece = pieces == 1 ? length : ((length + pieces - 1) / pieces + tile - 1) / tile * tile;
    for (int64_t at = 0; at < length; at += piece) {
      const int64_t size = std::min(piece, length - at);
      if (at == 0 && filled > 0 && filled + size <= most) {
        spans.back() += static_cast<int32_t>(size);
        filled += size;
        continue;
      }
      first.push_back(document);
      spans.push_back(static_cast<int32_t>(begin + at + size));
      filled = pieces == 1 ? size : most;
      plan.cut = plan.cut || at > 0;
    }
  }
  plan.documents = static_cast<int>(rows.size());
  plan.spans = static_cast<int>(first.size());
  for (const auto* part : {&offsets, &rows, &spans, &first})
    plan.values.insert(plan.values.end(), part->begin(), part->end());
  return plan;
}

// Nanoseconds of both passes on an H200, roughly. It depends on sizes alone, so the order of all sums does
// too. What a token costs is that of a warp of 32 channels on every scheduler, or of a block of 16 (matrices)
// on every multiprocessor, and a block has tables to make first. A cut costs one more pass of about half the
// work, and small launches; a span, its part of the coefficients' gradients: three arrays written and read.
inline double ema_cost(const EmaPlan& plan, int64_t channels, int64_t size) {
  constexpr int64_t multiprocessors = 132, tile = kEmaMatrixTile;
  const double token = plan.matrices ? 9.5 : 104, start = plan.matrices ? 10000 : 0,
               second_pass = plan.matrices ? 0.4 : 0.6, launches = plan.matrices ? 10000 : 300 * token,
               rate = plan.matrices ? 3000 : 70000 / token;  // bytes
  const int64_t width = plan.matrices ? 16 : 32,
                places = plan.matrices ? multiprocessors : multiprocessors * 4;
  const int32_t *offsets = plan.values.data(), *spans = offsets + 2 * plan.documents + 1,
                *first = spans + plan.spans + 1;
  int64_t longest = 0;
  for (int i = 0; i < plan.spans; ++i) {
    int64_t tokens = spans[i + 1] - spans[i];
    if (plan.matrices) {  // whole tiles of each document
      tokens = 0;
      for (int64_t at = spans[i], d = first[i]; at < spans[i + 1]; at = offsets[++d])
        tokens += (std::min(offsets[d + 1], spans[i + 1]) - at + tile - 1) / tile * tile;
    }
    longest = std::max(longest, tokens);
  }
  const int64_t turns = (plan.spans * ((channels + width - 1) / width) + places - 1) / places;
  // Where pieces are walked twice, two warps a scheduler hide some of what one waits for.
  const double hidden = !plan.matrices && plan.cut && turns > 1 ? 0.1 : 0;
  const double pass =
      (1 - hidden) * static_cast<double>(turns) * (static_cast<double>(longest) * token + start);
  const double parts = static_cast<double>(plan.spans * channels * size * 24) / rate;
  return parts + (plan.cut ? pass * (1 + second_pass) + launches : pass);
}

inline EmaPlan best_ema_plan(const std::vector<int64_t>& lengths, int64_t channels, int64_t size,
                             bool matrices) {
  constexpr int64_t least = 64;  // tokens that are worth a thread of their own
  int64_t tokens = 0, longest = 1;
  for (const int64_t length : lengths) {
    tokens += length;
    longest = std::max(longest, length);
  }
  EmaPlan best = ema_spans(lengths, longest, matrices);
  // Nothing is gained beyond a few warps a scheduler.
  const int64_t useful = std::max<int64_t>(1, 4 * 132 * 4 * 32 / std::max<int64_t>(1, channels));
  for (int64_t count = 1; count <= useful && tokens / count >= least; count += count / 8 + 1) {
    EmaPlan other = ema_spans(lengths, (tokens + count - 1) / count, matrices);
    if (ema_cost(other, channels, size) < ema_cost(best, channels, size)) best = std::move(other);
  }
  return best;
}

// matrices: whether the kernels on tensor cores can be used.
inline EmaPlan plan_ema(const std::vector<int64_t>& lengths, int64_t channels, int64_t size, bool matrices) {
  EmaPlan scalars = best_ema_plan(lengths, channels, size, false);
  if (!matrices || size > 16) return scalars;
  EmaPlan plan = best_ema_plan(lengths, channels, size, true);
  return ema_cost(plan, channels, size) < ema_cost(scalars, channels, size) ? plan : scalars;
}

}  // namespace weft::cuda
