#include "training/training_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "autograd/fault.h"
#include "autograd/notes.h"
#include "autograd/out_of_memory.h"
#include "autograd/rank_error.h"
#include "autograd/start_span.h"
#include "distributed/agree.h"
#include "training/data/baseline.h"
#include "training/plan.h"

namespace weft {
namespace {

constexpr int64_t kStopPatience = 3;  // refused steps that a stop waits for one that is applied

}  // namespace

bool TrainingRun::step() {
  fault::set_position(rank_of(world_), state_.step + 1);  // as metrics.jsonl counts
  if (options_.step != nullptr) *options_.step = state_.step + 1;
  if (world_ != nullptr) world_->beat(state_.step + 1, "step");
  fault::point(fault::Phase::load);
  Batch batch;
  {
    const auto span = timer_->data();
    batch = loader_->next();
  }
  const StepResult result = [&] {
    const StartSpan span("first step");
    return trainer_->step(state_.step, batch);
  }();
  if (summary_.first_step_s == 0) tell_start();
  const int64_t tokens = trainer_->samples_per_step() * recipe_.context;
  order_hash_.update(order_->step(state_.step + state_.skipped_steps, trainer_->samples_per_step()));
  ++state_.step;
  state_.tokens += tokens;
  timer_->add_communication(result.comm_s);
  const StepTimes times = timer_->finish_step(tokens);
  if (summary_.first_step_s == 0) summary_.first_step_s = times.step_s;
  for (const std::string& note : take_notes()) log_->info(note);
  if (!result.applied) {
    log_->event(Event::skip, state_.step, {{"reason", result.reason}});
    log_->warning(text("step ", state_.step, " was not applied: ", result.reason));
  }
  const bool last = state_.step == recipe_.steps;
  unmeasured_ = false;
  if (last || (recipe_.eval.every > 0 && state_.step % recipe_.eval.every == 0)) evaluate();

  const StepRecord record = record_of(result, times);
  const Pace pace = timer_->pace();
  log_->step(record, pace);
  if (result.applied) {
    summary_.loss = record.loss;
    summary_.grad_norm = result.grad_norm;
  }
  summary_.tokens_per_s = pace.tokens_per_s;
  summary_.mfu = record.mfu.value_or(NAN);
  summary_.peak_bytes = record.peak_bytes;

  // Ranks decide together what calls all of them make, by one number: how many are asked to stop, and, above
  // that, how many refused the step.
  constexpr int64_t kRefused = int64_t{1} << 32;
  const int64_t votes = sum_over_ranks(world_, (stop_.requested() ? 1 : 0) + (result.applied ? 0 : kRefused));
  const bool asked = votes % kRefused > 0, applied = votes < kRefused;
  if (result.rewind) {
    if (saved_step_ < 0)
      throw RankError(result.rank, Error(Exit::numerics,
                                         text("step ", state_.step, ": ", result.reason,
                                              ", too often, and no checkpoint to go back to"),
                                         {}, "lower optim.lr, or save earlier with checkpoint.every"));
    rewind();
    return !asked;
  }
  refused_in_a_row_ = applied ? 0 : refused_in_a_row_ + 1;
  if (applied) {
    learned_ = state_;
    learned_->order_hash = order_hash_.hex();
  }
  if (last && !may_finish(result)) {
    rewind();
    return !asked;
  }
  if (last || (recipe_.sample.every > 0 && state_.step % recipe_.sample.every == 0)) sample();
  save_is_due_ |= recipe_.checkpoint.every > 0 && state_.step % recipe_.checkpoint.every == 0;
  // After a refused step nobody knows how good the weights are. Saved, they could be what a rewind goes back
  // to, and the good checkpoints would give way to them: it waits for a step that is applied, or for the
  // rewind.
  if (asked && !applied && ++refused_since_asked_ >= kStopPatience && saved_step_ >= 0 && !last) {
    stop_at_checkpoint();
    return false;
  }
  const bool stop = asked && (applied || refused_since_asked_ >= kStopPatience);
  if (!last && !stop && !(save_is_due_ && applied)) return true;
  if (weights_not_finite()) {
    rewind();
    return !asked;
  }
  save();
  return !stop;
}

void TrainingRun::finish() {
  summary_.exit = state_.step < recipe_.steps || unmeasured_ ? Exit::stopped : Exit::ok;
  summary_.status = summary_.exit == Exit::ok ? "done" : "stopped";
  summary_.baseline_bpb = first_ && !options_.quiet && data_->val && summary_.exit == Exit::ok
                              ? baseline_bits_per_byte(data_->train, *data_->val, *tokenizer_)
                              : NAN;
  summary_.run = recipe_.run;
  summary_.step = state_.step;
  summary_.steps = recipe_.steps;
  summary_.tokens = state_.tokens;
  summary_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
  summary_.world = size_of(world_);
  summary_.mesh = trainer_->mesh();
  summary_.weights_hash = weights_hash_of(trainer_->store());
  summary_.order_hash = order_hash_.hex();
  summary_.wire = trainer_->wire();
  log_->finish();
}

TrainSummary TrainingRun::train() {
  const bool resumed = start();
  bool go_on = !resumed || redo_stopped_evaluation();
  const bool measured = !std::isnan(summary_.val_loss);  // already
  if (state_.step < recipe_.steps) start_loader();
  while (go_on && state_.step < recipe_.steps) go_on = step();
  loader_.reset();
  while (saved_step_ != state_.step) save();  // until it works, or has failed too often

  if (go_on && !measured && summary_.first_step_s == 0) evaluate();  // nothing was left to do
  finish();
  return summary_;
}

TrainSummary train(const Recipe& recipe, const TrainOptions& options, Communicator* world) {
  try {
    return TrainingRun(recipe, options, world).train();
  } catch (const OutOfMemory& e) {  // the run is gone and its memory free: there is room for a plan
    throw Error(e.code, e.what(), e.where, change_that_fits(recipe, size_of(world), e.in_use));
  }
}

}  // namespace weft
