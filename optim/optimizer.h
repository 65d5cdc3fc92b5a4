#pragma once
// Optimizers act on ranges of the flat groups of a ParameterStore, and nest: Ema over Clip over AdamW. The
// state that each keeps is a list of named flat tensors.

#include <memory>
#include <string>
#include <vector>

#include "optim/partition.h"
#include "optim/step_state.h"

namespace weft {

// One state tensor over one owned range; pieces(store, range) says which parameter lies where.
struct StateTensor {
  std::string name;  // "adamw.m"
  Range range;
  Tensor values;  // (range.size()), in the type of the masters
};

class Optimizer {
 public:
  // Acts on the ranges `owned` of the store, which it refers to and which is committed.
  Optimizer(ParameterStore& store, Ranges owned) : store_(store), owned_(std::move(owned)) {}
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One update of all owned ranges, masters and working copies; with s.skip, nothing at all.
  void step(StepState& s);

  // The same in two halves, for ranks that update a range as soon as its gradient is reduced: begin() once,
  // then update() of ranges that make up the owned ones.
  void begin(StepState& s) const;
  void update(const Range& range, const StepState& s);

  const Ranges& owned() const { return owned_; }
  virtual std::vector<StateTensor> state() const = 0;

 protected:
  friend class Clip;
  friend class Ema;
  friend class Split;
  // Fills in what this optimizer puts into the state of a step.
  virtual void prepare(StepState& s) const = 0;
  virtual void apply(const Range& range, const StepState& s) = 0;

  ParameterGroup& group_of(const Range& range) const {
    return store_.groups()[static_cast<size_t>(range.group)];
  }

  ParameterStore& store_;
  Ranges owned_;
};

// A flat tensor of state for each owned range, zero at first.
class RangeState {
 public:
  RangeState(std::string name, const ParameterStore& store, const Ranges& owned);
  Tensor at(const Range& range) const;  // the part over a range inside an owned one
  const std::vector<StateTensor>& tensors() const { return tensors_; }

 private:
  std::vector<StateTensor> tensors_;
};

struct OptimizerConfig {
  std::string kind = "adamw";  // muon: Muon for groups of matrices, AdamW for the rest
  double lr = 3e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip = 1;  // largest norm of the gradient; 0: off
  double ema = 0;   // decay of the running mean of the weights; 0: off
  double muon_lr = 0.02;
  double muon_momentum = 0.95;
};

// ema over clip over `kind`. owned: all of the store, or this rank's partition(); with Muon one that keeps
// matrices whole. Exit::recipe for an unknown kind.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config, ParameterStore& store, Ranges owned);
std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config, ParameterStore& store);

}  // namespace weft
