#pragma once
// A model's logits and losses for given tokens, on one rank or over several.

#include "distributed/rank_crossing.h"
#include "layers/model.h"
#include "training/data/dataset.h"
#include "training/setup.h"

namespace weft {

struct Scores {
  Tensor logits;               // (N, V) f32 (f64)
  Tensor nll;                  // (N) f32 (f64), nats; 0 where there is no target
  std::vector<Tensor> hidden;  // (N, C) after the embedding and after each block
};

// All documents of the batch; ranks: those that share them, each with the same batch, or null for one. Rank 0
// has the scores, the others none. Errors: Exit::recipe where the strategy does not fit the model.
Scores score(const Model& model, const Batch& batch, Communicator* ranks = nullptr,
             SegmentPlan plan = SegmentPlan::contiguous,
             CrossingStrategy strategy = CrossingStrategy::native);

}  // namespace weft
