#pragma once
// Unicode normalisation and the other rewriting that happens before a text is cut into pieces.

#include <string>
#include <string_view>
#include <vector>

#include "training/data/bpe.h"

namespace weft {

// The steps applied in order. Bytes that are not valid UTF-8 stay as they are.
std::string normalize(std::string_view text, const std::vector<NormalizerStep>& steps);

// Every `from` replaced by `to`.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

}  // namespace weft
