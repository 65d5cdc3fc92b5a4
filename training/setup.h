#pragma once
// From a recipe to the parts it names.

#include "distributed/communicator.h"
#include "distributed/segments.h"
#include "layers/model.h"
#include "training/data/dataset.h"
#include "training/data/tokenizer.h"
#include "training/recipe/recipe.h"
#include "training/tasks/task_samples.h"

namespace weft {

Dtype precision_of(const Recipe& recipe);

// Another program may not even make the same calls: its ranks would wait for ever. Error (recipe), as
// require_same.
void require_same_program(Communicator* world);

// Warnings about what a recipe may say but hardly means: a learning rate that is never reached, a key that
// nothing listens to, validation on the training text.
std::vector<std::string> recipe_warnings(const Recipe& recipe);

// "bytes" (or "byte") or a tokenizer.json, a path relative to the working directory.
std::shared_ptr<const Tokenizer> open_tokenizer(const Recipe& recipe);
// Size of the vocabulary: model.vocab if set, which must be at least that of the data; else that of the data,
// which is the tokenizer's or that of data.task. Error (recipe).
int64_t vocabulary_of(const Recipe& recipe, const Tokenizer& tokenizer);

// model.position, rope_theta and qk_norm set these attributes of every mechanism that has them, unless
// model.mechanisms states others. Errors (recipe) name the line of the recipe.
ModelConfig model_config(const Recipe& recipe, int64_t vocab);

// The tasks of a list such as data.task, whose place an error names.
std::vector<TaskText> task_texts(const Recipe& recipe, const std::string& key,
                                 const std::vector<std::string>& texts);

// data.task or data.train. Errors: Exit::recipe without either, or with both; Exit::data for files.
Datasets open_recipe_data(const Recipe& recipe, const Tokenizer& tokenizer, int64_t vocab);

// mesh.layout, `auto` decided by the model's parts.
SegmentPlan segment_plan(const Recipe& recipe, const Model& model);

}  // namespace weft
