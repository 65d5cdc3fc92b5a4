#pragma once
// Text from a model, token by token, with the state of each layer kept between calls.

#include <functional>

#include "layers/model.h"

namespace weft {

struct SamplingOptions {
  int64_t tokens = 128;
  double temperature = 0.8;  // 0: the likeliest token
  int64_t top_k = 0;         // 0: all
  int64_t vocab = 0;         // only ids below it: a model may have more rows than its tokenizer; 0: all
  uint32_t seed = 1;
  int32_t stop = -1;  // a token that ends the text; -1: none
};

// The token drawn from logits (V): a pure function of (seed, index). Exposed for tests.
int32_t sample_token(const Tensor& logits, const SamplingOptions& options, uint64_t index);

// Continues `prompt` (at least one token). each(token) is called as tokens come; false ends the text. Returns
// the new tokens, without `stop`.
std::vector<int32_t> generate(const Model& model, const std::vector<int32_t>& prompt,
                              const SamplingOptions& options,
                              const std::function<bool(int32_t)>& each = nullptr);

}  // namespace weft
