#pragma once
// Hand-written splitters for the patterns that most tokenizers use; equal to the regular expressions.

#include <memory>

#include "training/data/pretokenize.h"

namespace weft {

// Null when the rule is none of gpt2_pattern, llama3_pattern, qwen2_pattern, each piece isolated.
std::unique_ptr<Splitter> make_fast_splitter(const SplitRule& rule);

}  // namespace weft
