#pragma once
// Tasks as the samples of a data set: a sample holds as many examples as fit into its context, each a
// document of its own, and what is left over is a document without labels. With several tasks every sample is
// of one of them, drawn in proportion to their weights.

#include <memory>
#include <string>
#include <vector>

#include "training/data/dataset.h"
#include "training/tasks/registry.h"

namespace weft {

// Which examples: no seed and no number gives two splits the same draws.
enum class TaskSplit : uint32_t { train, held_out };

class TaskSamples : public SampleMaker {
 public:
  // Errors: those of the tasks; Exit::recipe where one is longer than the context or there is none.
  TaskSamples(const std::vector<TaskText>& texts, const Tokenizer& tokenizer, int64_t context, uint32_t seed,
              TaskSplit split);

  void append(int64_t number, Batch& batch) const override;
  int64_t documents() const override { return documents_; }
  int64_t vocab() const;  // that holds all of the tasks' tokens

  // The task of a sample, and an example of it by its place in the sample. Exposed for tests.
  int64_t task_of(int64_t number) const;
  Example example(int64_t number, int64_t place) const;

 private:
  struct Part {
    std::unique_ptr<Task> task;
    double weight;
    int64_t examples;  // in a sample
    RandomKey key;
  };
  std::vector<Part> parts_;
  double weights_ = 0;
  int64_t context_, documents_ = 0;
  RandomKey mix_;
};

}  // namespace weft
