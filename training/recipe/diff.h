#pragma once
// A recipe written out whole, and what differs between two.

#include <string>
#include <vector>

#include "training/recipe/recipe.h"

namespace weft {

// YAML with every key; it reloads to an equal recipe.
std::string resolved_recipe(const Recipe& recipe);

struct RecipeDifference {
  std::string key;
  std::string before;
  std::string after;
  bool fixed;               // a resumed run has to keep this key
  bool speed_only = false;  // settings of mechanisms that change speed, not results

  std::string line() const { return key + ": " + before + " -> " + after; }
};

// In the order of the keys; empty where the recipes are equal. same_function: what model.mechanisms says in
// both is the same but for speed (mechanism_settings.h).
std::vector<RecipeDifference> recipe_diff(const Recipe& before, const Recipe& after,
                                          bool same_function = false);

// Whether a run saved with one recipe may go on with another. Model, precision, optimizer kind, tokenizer,
// data and seed have to stay, and optim.ema may not begin: Exit::recipe names what differs. Returns the
// differences that are allowed.
std::vector<RecipeDifference> check_resume(const Recipe& saved, const Recipe& now,
                                           bool same_function = false);

}  // namespace weft
