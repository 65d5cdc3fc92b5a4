#pragma once
// Times decoding as `weft generate` does it: a step of the model for every text of a batch, the draw, and the
// read of the tokens, with random weights, in bf16 on a GPU and f32 on the CPU.

#include "tools/bench_row.h"

namespace weft {

struct DecodeModel {
  std::string size;    // "tiny", "124M", "1.3B"
  std::string layers;  // "softmax", "lightning", or "hybrid": one softmax layer after three of lightning
};
// What the words name: sizes and kinds of layers, all of a kind where none is named; without a size "tiny" on
// the CPU, "124M" and "1.3B" on a GPU. Error (usage) for another word.
std::vector<DecodeModel> decode_models(const std::vector<std::string>& words, bool gpu);

// A row for each batch of {1, 16} and context of {2048, 32768} (tiny: {1, 2} and {64}) of a model, handed to
// `done` once measured: the time of a step, the median over `steps` of them. bytes: the weights, and what the
// texts keep, once; copy_rate: bytes a second that a large copy reads and writes, measured here.
void bench_decode(const DecodeModel& model, int64_t steps, double copy_rate, const BenchDone& done);
double measure_copy_rate();

}  // namespace weft
