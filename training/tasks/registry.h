#pragma once
// Every task there is, by name, and how a person names one with its settings:
//
//   mqar                                       with its defaults
//   mqar length=256 pairs=16                   with these
//   mqar length=64,256 pairs=4,8               four of them: a grid to be scored on

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "training/data/tokenizer.h"
#include "training/tasks/task.h"

namespace weft {

struct TaskEntry {
  std::string id, title, url;  // of the paper
  std::string metric;  // by which it is judged: accuracy of labelled tokens, or exact, of whole answers
  // settings: a map value. Wrong ones are an Error (recipe) with their place. The tokenizer must outlive it.
  std::function<std::unique_ptr<Task>(const FieldValue& settings, const Tokenizer&)> make;
  std::function<std::vector<FieldDescription>()> describe;
};

const std::vector<TaskEntry>& tasks();
// An unknown name is an Error (usage) with the nearest one.
const TaskEntry& find_task(const std::string& name);

// A task as a person wrote it.
struct TaskText {
  std::string id;
  FieldValue settings;  // a map value
  double weight = 1;    // setting `weight`: share of the training samples

  // "mqar length=64 pairs=4". Where a `KEY=VALUE` is malformed: Error (recipe) at `place`.
  static TaskText parse(const std::string& text, const Place& place = {});
  std::unique_ptr<Task> make(const Tokenizer& tokenizer) const;
  // One for each choice among values with commas, the last setting fastest.
  std::vector<TaskText> grid() const;
};

}  // namespace weft
