#pragma once
// Scans work chunk by chunk. These functions cut tokens into chunks and fold states along them; the crossings
// of one rank and of many share them.

#include "attention/part.h"

namespace weft {

// How N tokens become M chunks of equal length. A chunk never straddles a segment; the last one of a segment
// is padded.
struct Chunks {
  int64_t count = 0, length = 0;
  bool exact = false;      // no padding anywhere: a reshape does it
  Tensor to_chunks;        // (M length) i32: token, or -1
  Tensor to_tokens;        // (N) i32: row among the M length
  std::vector<int> first;  // of each segment, its first chunk; and after the last the total
  Tensor segment;          // (M) i32: of each chunk, its segment
};
Chunks cut_chunks(const Layout& layout, int64_t length, Device device);

// (N, ...) -> (M, length, ...), positions and documents too (-1 in the padding).
Block into_chunks(const Block& block, const Chunks& chunks, const std::vector<double>& pad);
// (M, length, ...) -> (N, ...)
Variable out_of_chunks(const Variable& y, const Chunks& chunks);
// x (M, length, ...) with the padding of every chunk (document -1) before its tokens instead of after them:
// for when a token's distance to the end of the text counts, not its distance to the end of the chunk.
Variable padding_in_front(const Variable& x, const Tensor& document);

// States of M chunks folded within each of G segments, from the identity on.
struct Folded {
  State prefix;  // (M, ...): of the chunks before
  State total;   // (G, ...): of the whole segment
};
Folded fold(const Scan& scan, const State& summaries, const Chunks& chunks);

// The sum of each segment's rows: x (N, ...) -> (G, ...)
Variable sum_by_segment(const Variable& x, const Layout& layout);

// The rows of each segment from its last to its first, (N) i32; applied twice, it is the identity.
Tensor turned_rows(const Layout& layout, Device device);
// These rows of every tensor of a block.
Block gather_block(const Block& block, const Tensor& rows);

// Tokens [begin, end).
Block slice_block(const Block& block, int64_t begin, int64_t end);

// Rows of every tensor of a state by index, and states one after another.
State gather_state(const State& state, const Tensor& index);
State concatenate_states(const std::vector<State>& states);

// A Carry over whole documents from their starts, all side by side: (N, ...).
Variable carry_abreast(const Carry& part, const Block& block, const Layout& layout);
// The output of a Carry for no tokens: without rows.
Variable carry_nothing(const Carry& part, const Block& block);

namespace cpu {
// The rows that padding_in_front takes, -1 for the padding; both (M, length) i32.
void rows_padded_in_front(const Tensor& rows, const Tensor& document);
}  // namespace cpu
namespace cuda {
void rows_padded_in_front(const Tensor& rows, const Tensor& document);
}  // namespace cuda

}  // namespace weft
