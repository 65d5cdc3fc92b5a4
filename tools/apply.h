#pragma once
// weft apply: one mechanism on tensors of a safetensors file, for tests and scripts in any language. What it
// reads and writes is docs/contract.md, section "weft apply".

#include <string>
#include <vector>

namespace weft {

// words: the command line after `weft apply`. Returns the exit code, 0; anything wrong is an Error with its
// own.
int run_apply(const std::vector<std::string>& words);

}  // namespace weft
