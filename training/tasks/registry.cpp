#include "training/tasks/registry.h"

#include <sstream>
#include <type_traits>

#include "autograd/check.h"
#include "autograd/nearest_name.h"
#include "training/tasks/induction.h"
#include "training/tasks/listops.h"
#include "training/tasks/mqar.h"
#include "training/tasks/needle.h"
#include "training/tasks/selective_copy.h"

namespace weft {
namespace {

template <class T>
TaskEntry entry(std::string id, std::string title, std::string url, std::string metric = "accuracy") {
  using Config = typename T::Config;
  TaskEntry e{id, std::move(title), std::move(url), std::move(metric), nullptr, nullptr};
  e.make = [id](const FieldValue& settings, const Tokenizer& tokenizer) -> std::unique_ptr<Task> {
    Config config;
    if (settings.kind != FieldValue::Kind::none) read_config(config, settings, id);
    if constexpr (std::is_constructible_v<T, Config, const Tokenizer&>)
      return std::make_unique<T>(config, tokenizer);
    else
      return std::make_unique<T>(config);
  };
  e.describe = [] { return weft::describe(Config{}); };
  return e;
}

}  // namespace

// One line a task.
const std::vector<TaskEntry>& tasks() {
  static const std::vector<TaskEntry> all{
      entry<Mqar>("mqar", "Zoology: Measuring and Improving Recall in Efficient Language Models",
                  "https://arxiv.org/abs/2312.04927"),
      entry<SelectiveCopy>("selective_copy",
                           "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
                           "https://arxiv.org/abs/2312.00752"),
      entry<Induction>("induction", "In-context Learning and Induction Heads",
                       "https://arxiv.org/abs/2209.11895"),
      entry<Needle>("needle", "RULER: What's the Real Context Size of Your Long-Context Language Models?",
                    "https://arxiv.org/abs/2404.06654", "exact"),
      entry<ListOps>("listops", "ListOps: A Diagnostic Dataset for Latent Tree Learning",
                     "https://arxiv.org/abs/1804.06028"),
  };
  return all;
}

const TaskEntry& find_task(const std::string& name) {
  std::vector<std::string> names;
  for (const TaskEntry& entry : tasks()) {
    if (entry.id == name) return entry;
    names.push_back(entry.id);
  }
  throw Error(Exit::usage, "there is no task " + shown(name), "", suggest_name(name, names, "tasks"));
}

TaskText TaskText::parse(const std::string& text, const Place& place) {
  TaskText task;
  task.settings.kind = FieldValue::Kind::map;
  std::istringstream words(text);
  words >> task.id;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == word.size())
      throw Error(Exit::recipe, task.id + " has " + shown(word) + ", no setting", place.text(),
                  "write NAME KEY=VALUE ..., such as mqar length=64 pairs=4");
    FieldValue item = text_value(word.substr(equals + 1));
    item.key = word.substr(0, equals);
    item.place = item.key_place = place;
    if (item.key == "weight")
      read_field({"weight", &task.weight, "", {.min = 0, .max = 1e9, .above_min = true}}, item, "weight");
    else
      task.settings.items.push_back(std::move(item));
  }
  return task;
}

std::unique_ptr<Task> TaskText::make(const Tokenizer& tokenizer) const {
  return find_task(id).make(settings, tokenizer);
}

std::vector<TaskText> TaskText::grid() const {
  std::vector<TaskText> all{*this};
  for (size_t i = 0; i < settings.items.size(); ++i) {
    std::vector<TaskText> wider;
    for (const TaskText& one : all) {
      std::istringstream values(one.settings.items[i].text);
      for (std::string value; std::getline(values, value, ',');) {
        wider.push_back(one);
        wider.back().settings.items[i].text = value;
      }
    }
    all = std::move(wider);
  }
  return all;
}

}  // namespace weft
