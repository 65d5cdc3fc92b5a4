#pragma once
// Texts from a model, token by token, with the state of each layer kept between calls.

#include <functional>

#include "layers/model.h"

namespace weft {

struct SamplingOptions {
  int64_t tokens = 128;
  double temperature = 0.8;  // 0: the likeliest token
  int64_t top_k = 0;         // 0: all
  double top_p = 1;          // 1: all
  int64_t vocab = 0;         // only ids below it: a model may have more rows than its tokenizer; 0: all
  uint32_t seed = 1;
  int32_t stop = -1;  // a token that ends a text; -1: none
};

// What an empty prompt starts with: one of the first tokens of training documents (at least one), drawn. Of
// anything else, the end token included, no loss has read what follows it at a start.
int32_t drawn_start(const std::vector<int32_t>& starts, uint32_t seed);

// Continues every prompt (at least one token each), side by side. each(i, token) is called as the tokens of
// prompt i come; false ends its text. Returns the new tokens, without `stop`. Every text is drawn from the
// same numbers, so a text depends on its prompt and the options alone: on the CPU bit for bit; on a
// GPU too in bf16, for up to 16 prompts and layers that decode by steps (attention/steps.h), else up to
// rounding, since other kernels there may depend on how many rows they have.
std::vector<std::vector<int32_t>> generate(const Model& model,
                                           const std::vector<std::vector<int32_t>>& prompts,
                                           const SamplingOptions& options,
                                           const std::function<bool(size_t, int32_t)>& each = nullptr);

}  // namespace weft
