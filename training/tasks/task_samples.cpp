#include "training/tasks/task_samples.h"

#include <algorithm>

#include "autograd/check.h"

namespace weft {

TaskSamples::TaskSamples(const std::vector<TaskText>& texts, const Tokenizer& tokenizer, int64_t context,
                         uint32_t seed, TaskSplit split)
    : context_(context), mix_{seed, stream_of("task.mix"), static_cast<uint32_t>(split)} {
  if (texts.empty()) throw Error(Exit::recipe, "no task is named", "data.task", "`weft ls` lists the tasks");
  for (const TaskText& text : texts) {
    Part part{text.make(tokenizer),
              text.weight,
              0,
              {seed, stream_of("task." + text.id), static_cast<uint32_t>(split)}};
    if (part.task->length() > context)
      throw Error(Exit::recipe,
                  weft::text("an example of ", text.id, " has ", part.task->length(), " tokens, the context ",
                             context),
                  "context", "set the context to its length or a multiple");
    part.examples = context / part.task->length();
    documents_ = std::max(documents_, part.examples + 1);
    weights_ += part.weight;
    parts_.push_back(std::move(part));
  }
}

int64_t TaskSamples::vocab() const {
  int64_t most = 0;
  for (const Part& part : parts_) most = std::max(most, part.task->vocab());
  return most;
}

int64_t TaskSamples::task_of(int64_t number) const {
  if (parts_.size() == 1) return 0;
  double left = mix_.uniform(static_cast<uint64_t>(number)) * weights_;
  for (size_t i = 0; i + 1 < parts_.size(); ++i)
    if ((left -= parts_[i].weight) <= 0) return static_cast<int64_t>(i);
  return static_cast<int64_t>(parts_.size()) - 1;
}

Example TaskSamples::example(int64_t number, int64_t place) const {
  const Part& part = parts_[static_cast<size_t>(task_of(number))];
  Draws draws(part.key, static_cast<uint64_t>(number * documents_ + place));
  return part.task->make(draws);
}

void TaskSamples::append(int64_t number, Batch& batch) const {
  const size_t end = batch.tokens.size() + static_cast<size_t>(context_);
  const int64_t examples = parts_[static_cast<size_t>(task_of(number))].examples;
  for (int64_t place = 0; place < examples; ++place) {
    const Example e = example(number, place);
    batch.tokens.insert(batch.tokens.end(), e.tokens.begin(), e.tokens.end());
    batch.targets.insert(batch.targets.end(), e.targets.begin(), e.targets.end());
    batch.offsets.push_back(static_cast<int64_t>(batch.tokens.size()));
  }
  if (batch.tokens.size() == end) return;
  batch.tokens.resize(end, 0);
  batch.targets.resize(end, -1);
  batch.offsets.push_back(static_cast<int64_t>(end));
}

}  // namespace weft
