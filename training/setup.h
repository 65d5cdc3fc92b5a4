#pragma once
// From a recipe to the parts it names.

#include "distributed/segments.h"
#include "layers/model.h"
#include "training/data/dataset.h"
#include "training/data/tokenizer.h"
#include "training/recipe/recipe.h"

namespace weft {

Dtype precision_of(const Recipe& recipe);

// "bytes" (or "byte") or a tokenizer.json, a path relative to the working directory.
std::shared_ptr<const Tokenizer> open_tokenizer(const Recipe& recipe);
// Size of the vocabulary: model.vocab, which must hold the tokenizer's, or the tokenizer's. Error (recipe).
int64_t vocabulary_of(const Recipe& recipe, const Tokenizer& tokenizer);

// Attributes of model.position, rope_theta and qk_norm go to every mechanism that has them, under those that
// model.mechanisms states. Errors (recipe) name the line of the recipe.
ModelConfig model_config(const Recipe& recipe, int64_t vocab);

// Errors: Exit::recipe without data.train; Exit::data for files.
Datasets open_recipe_data(const Recipe& recipe, const Tokenizer& tokenizer, int64_t vocab);

// mesh.layout, `auto` decided by the model's parts.
SegmentPlan segment_plan(const Recipe& recipe, const Model& model);

}  // namespace weft
