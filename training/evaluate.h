#pragma once
// How well a model predicts given tokens: its loss and, where examples have answers, how many are correct.

#include <cmath>

#include "distributed/communicator.h"
#include "layers/model.h"
#include "training/data/tokenizer.h"
#include "training/micro_batch.h"

namespace weft {

struct Evaluation {
  double loss = NAN;           // nats a labelled token; NaN where there is none
  double bits_per_byte = NAN;  // of text
  double accuracy = NAN;       // share of labelled tokens whose label is the most likely token
  double exact = NAN;          // share of examples for which that holds for all labels
  int64_t tokens = 0;          // labelled
  int64_t examples = 0;        // documents with a label
};

// Sums over batches; each rank adds its own.
class Evaluator {
 public:
  struct Options {
    const Tokenizer* tokenizer = nullptr;  // for text: to count its bytes
    int64_t documents = 0;                 // of all batches and ranks, numbered from 0: counts right answers
    int64_t bucket = 0;                    // tokens: sums by position, `bucket` positions together
  };
  Evaluator(const Model& model, const Options& options);

  // numbers: those of the documents of the batch, whole, where Options::documents counts them.
  void add(const MicroBatch& micro, CrossingFactory& crossings, const std::vector<int64_t>& numbers = {});
  // Of all ranks together; null: one. Collective.
  Evaluation finish(Communicator* world = nullptr) const;
  // Of text, by position / bucket, on this rank alone.
  std::vector<Evaluation> buckets() const;

 private:
  struct Sums {
    double nats = 0, text_nats = 0, bytes = 0, tokens = 0;
    Evaluation mean() const;
  };
  // Adds to asked_ and wrong_.
  void judge(const MicroBatch& micro, const Tensor& hidden, const std::vector<int64_t>& numbers);

  const Model& model_;
  Options options_;
  Sums sums_;
  std::vector<Sums> buckets_;
  std::vector<double> asked_, wrong_;  // labels of each document
};

// Of the documents of a batch of samples of `context` tokens: sample s of the data set has s * most and up.
std::vector<int64_t> document_numbers(const Batch& batch, int64_t context, int64_t most);

}  // namespace weft
