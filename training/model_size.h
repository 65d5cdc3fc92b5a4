#pragma once
// How large a model is, found on the meta device: nothing is allocated, nothing is drawn. vocab: rows of its
// embedding (vocabulary_of).

#include "training/setup.h"

namespace weft {

int64_t count_parameters(const Recipe& recipe, int64_t vocab);

// What all layers keep of one document of recipe.context tokens to decode the next one, in bytes: states and
// caches. Error (recipe) where a layer cannot decode.
int64_t count_state_bytes(const Recipe& recipe, int64_t vocab);

}  // namespace weft
