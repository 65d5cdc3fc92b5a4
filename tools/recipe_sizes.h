#pragma once
// The size of a mechanism in a recipe, for describe_mechanism.h, which knows no recipes.

#include "tools/describe_mechanism.h"
#include "training/setup.h"

namespace weft {

// As the recipe's layers have it, decoding after one context.
inline MechanismSize size_in(const Recipe& recipe, const MechanismEntry& entry) {
  const ModelConfig config = model_config(recipe, 1);
  return {.attributes = config.attributes(entry.id),
          .dims = {.heads = config.heads,
                   .kv_heads = config.kv_heads,
                   .key = config.head_size,
                   .value = config.head_size,
                   .width = config.width},
          .dtype = precision_of(recipe),
          .tokens = recipe.context};
}

}  // namespace weft
