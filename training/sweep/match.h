#pragma once
// Models made equally large, so that what a sweep compares is the mechanism: one key of the recipe is
// searched until the model's parameters, FLOPs a token or state are within 2 % of a target.

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "training/plan.h"

namespace weft {

enum class MatchBy { none, parameters, flops, state };

constexpr double kMatchTolerance = 0.02;  // of the target

// parameters: of the whole model. flops: a token, forward and backward, as `weft validate` plans them. state:
// bytes that all layers keep to decode after one context (count_state_bytes). planner: for the recipe's data.
double model_size(const Recipe& recipe, MatchBy by, const Planner& planner);

struct Match {
  std::vector<std::string> overrides;  // "model.ffn=224"; none where the recipe fits as it is
  double size = 0;
};

// The recipe with more overrides after its own. It may throw: such a value is then passed over.
using RecipeWith = std::function<Recipe(const std::vector<std::string>& more)>;

// key: a whole number of the recipe that the size grows with. Empty: model.ffn, and where that alone does not
// reach it, the nearest model.width with which it does; for the state model.head_size, then model.heads. Of
// several values that fit, the one that divides by the largest power of two up to 64. Error (recipe) names
// the nearest size that was found.
Match match_size(const RecipeWith& recipe_with, MatchBy by, const std::string& key, double target,
                 const Planner& planner);

}  // namespace weft
