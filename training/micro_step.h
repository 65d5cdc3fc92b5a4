#pragma once
// Forward and backward of a micro-batch; on a GPU as a CUDA graph (step_graphs.h). Everything that differs
// between micro-batches of one shape lies in buffers that stay in their places.

#include "layers/model.h"
#include "training/micro_batch.h"
#include "training/step_graphs.h"

namespace weft {

class MicroStep {
 public:
  using Crossings = std::function<std::unique_ptr<CrossingFactory>(const MicroBatch&)>;

  // graphs: how many are kept; 0: none.
  MicroStep(const Model& model, ParameterStore& store, int64_t graphs);

  // Where micro-batches have to be made: in host memory, if they are then copied into buffers of a GPU.
  Device made_on() const;
  // Adds to the store's gradients those of `share` times the loss, a sum over tokens, and of `share` times
  // the auxiliary losses times the micro-batch's labels, since these are means. Returns the loss, (1), which
  // the next call overwrites.
  Tensor operator()(const MicroBatch& micro, double share, const Crossings& crossings);
  StepGraphs& graphs() { return graphs_; }  // for other work of a step too

 private:
  void work(const MicroBatch& micro, const Crossings& crossings) const;
  void bounded_work(MicroBatch micro, const Crossings& crossings, bool recorded) const;

  const Model& model_;
  ParameterStore& store_;
  StepGraphs graphs_;
  Tensor lists_;         // i32: of the micro-batch
  Tensor seeds_, loss_;  // (2) f64: of the losses; (1)
};

}  // namespace weft
