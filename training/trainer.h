#pragma once
// One optimizer step after another, on one rank of a mesh. What it computes (loss, order of the data,
// updates) does not depend on the mesh, up to the order of sums.

#include <functional>
#include <memory>

#include "autograd/fault.h"
#include "distributed/mesh.h"
#include "distributed/rank_crossing.h"
#include "optim/ema.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "optim/spike_guard.h"
#include "training/evaluate.h"
#include "training/micro_step.h"
#include "training/setup.h"

namespace weft {

struct StepResult {
  double loss = 0;  // nats a token, of the global batch, auxiliary losses apart
  double grad_norm = 0;
  double lr = 0;
  int64_t labels = 0;   // tokens that had a target, of the global batch
  bool applied = true;  // false: the guard refused it and no weight changed
  bool rewind = false;  // the guard asks for the last checkpoint
  std::string reason;   // why it was not applied
  int rank = 0;         // the first that brought in a number that is not finite
  double comm_s = 0;
};

class Trainer {
 public:
  // world: all ranks, or null for one. device meta: a dry run; its world is a planned_communicator.
  Trainer(const Recipe& recipe, const Tokenizer& tokenizer, Communicator* world,
          Device device = default_device());

  // The samples of this rank in a step: [begin, end) of the global batch.
  Slice samples_of_step() const;
  int64_t samples_per_step() const { return samples_per_step_; }
  // Of them, on this rank at a time.
  int64_t micro_samples() const { return micro_samples_; }

  StepResult step(int64_t step, const Batch& batch);
  // Over the first `samples` samples of a data set, shared among the data ranks. `stop` is asked before each
  // batch, on all ranks as often and with one answer; what it ends has no result.
  std::optional<Evaluation> evaluate(const Dataset& data, int64_t samples,
                                     const std::function<bool()>& stop = {});

  const Recipe& recipe() const { return recipe_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }
  const Model& model() const { return model_; }
  ParameterStore& store() { return store_; }
  Optimizer& optimizer() { return *optimizer_; }
  SpikeGuard& guard() { return guard_; }
  Communicator* world() { return world_; }
  const MeshShape& mesh() const { return mesh_.shape; }
  // Updates made so far: of the checkpoint's state, with the optimizer's and the guard's.
  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }
  // Bytes that this rank has sent; of a dry run, would have sent.
  WireBytes wire() const;
  // A warning where ranks get no sample, or where mesh.cp cuts no sample: then its borders fall between
  // samples and nothing crosses them.
  std::string idle_ranks() const;
  // Floating-point operations of the last step on this rank, and those of the model alone, without what
  // checkpointing computes again.
  double step_flops() const { return step_flops_; }
  double model_flops() const { return step_flops_ - recomputed_; }
  StepGraphs& graphs() { return micro_step_.graphs(); }

 private:
  MicroBatch cut(const Batch& batch, Device device) const;
  std::unique_ptr<CrossingFactory> crossings(const MicroBatch& micro) const;
  void reduce_gradients();
  void check_wire() const;
  void break_gradient(std::initializer_list<fault::Phase> phases);  // where the fault hook asks for it

  Recipe recipe_;
  const Tokenizer& tokenizer_;
  Communicator* world_;
  Device device_;
  Mesh mesh_;
  ParameterStore store_;
  Model model_;
  MicroStep micro_step_;
  std::unique_ptr<Optimizer> optimizer_;
  Schedule schedule_;
  SpikeGuard guard_;
  SegmentPlan plan_;
  int64_t samples_per_step_, micro_samples_;  // of the global batch, at a time on this rank
  double step_flops_ = 0, recomputed_ = 0;
  mutable WireBytes expected_;  // of the context group, by the formulas of the parts crossed
  int64_t updates_ = 0;
};

}  // namespace weft
