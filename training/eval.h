#pragma once
// `weft eval`: scores a trained model on a grid of task settings, or on text, one row for each cell.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "training/evaluate.h"
#include "training/open_model.h"

namespace weft {

struct EvalRow {
  std::vector<std::pair<std::string, std::string>> keys;  // task, and the grid's settings
  int64_t seed = 0;                                       // of the examples
  std::string metric;
  double value = 0;
  int64_t n = 0;        // what value is the mean over: labelled tokens, whole answers, or tokens of text
  double chance = NAN;  // of a task: the same metric for always giving the commonest answer
};

struct EvalOptions {
  int64_t examples = 500;           // a cell, at least
  int64_t seed = 1;                 // of the held-out examples
  std::function<bool()> stop = {};  // asked before each batch: Exit::stopped
};

// The name under which text is a task: bits_per_byte by position.
inline constexpr const char* kTextTask = "lm";
std::vector<FieldDescription> describe_text_task();  // its settings

// Each text names a task, or a grid of one (training/tasks/registry.h). Gives accuracy, and exact where
// answers have several tokens, on examples that no training seed makes. Sequences are as long as the
// examples, whatever the model was trained on. `lm context=256 buckets=4`: the text of `paths`, by default
// the recipe's held-out text, in samples of `context` tokens; a row for all, then one for each of `buckets`
// equal parts of the positions. Errors: Exit::usage for an unknown task; Exit::recipe for settings, and tasks
// with more tokens than the model.
std::vector<EvalRow> eval(const OpenModel& model, const std::vector<std::string>& texts,
                          const EvalOptions& options = {}, const std::vector<std::string>& paths = {});

// What to score a run on by default: eval.grid, else data.task, else lm.
std::vector<std::string> eval_texts(const Recipe& recipe);

}  // namespace weft
