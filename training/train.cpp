#include "training/training_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "autograd/device_times.h"
#include "autograd/fault.h"
#include "autograd/notes.h"
#include "autograd/out_of_memory.h"
#include "autograd/start_span.h"
#include "distributed/agree.h"
#include "training/checkpoint/folder.h"
#include "training/checkpoint/hash.h"
#include "training/data/baseline.h"
#include "training/device_peak.h"
#include "training/log/environment_file.h"
#include "training/plan.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

constexpr int64_t kStopPatience = 3;  // refused steps that a stop waits for one that is applied

}  // namespace

bool TrainingRun::step() {
  fault::set_position(world_ == nullptr ? 0 : world_->rank(), state_.step + 1);  // as metrics.jsonl counts
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

  StepRecord record;
  record.step = state_.step;
  record.tokens = state_.tokens;
  if (result.labels > 0) record.loss = result.loss;
  record.grad_norm = result.grad_norm;
  record.lr = result.lr;
  record.tokens_per_s = times.tokens_per_s;
  record.mfu = mfu(times.step_s);
  record.step_s = times.step_s;
  record.data_s = times.data_s;
  record.comm_s = times.comm_s;
  record.peak_bytes = memory_report(trainer_->store().device()).peak_bytes;
  if (world_ != nullptr) record.peak_bytes = max_over_ranks(*world_, record.peak_bytes);
  put_evaluation(record);
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
  int64_t votes = (stop_.requested() ? 1 : 0) + (result.applied ? 0 : kRefused);
  if (world_ != nullptr) votes = sum_over_ranks(*world_, votes);
  const bool asked = votes % kRefused > 0, applied = votes < kRefused;
  if (result.rewind) {
    if (saved_step_ < 0)
      throw Error(
          Exit::numerics,
          text("step ", state_.step, ": ", result.reason, ", too often, and no checkpoint to go back to"), {},
          "lower optim.lr, or save earlier with checkpoint.every");
    rewind();
    return !asked;
  }
  refused_in_a_row_ = applied ? 0 : refused_in_a_row_ + 1;
  if (applied) {
    learned_ = state_;
    learned_->order_hash = order_hash_.hex();
  }
  if (last && !is_an_end(result)) {
    rewind();
    return !asked;
  }
  if (last || (recipe_.sample.every > 0 && state_.step % recipe_.sample.every == 0)) sample();
  save_is_due_ |= recipe_.checkpoint.every > 0 && state_.step % recipe_.checkpoint.every == 0;
  // Behind a refused step nobody knows how good the weights are. Saved, they could be what a rewind goes back
  // to, and the good checkpoints would give way to them: it waits for a step that is applied, or for the
  // rewind.
  if (asked && !applied && ++refused_since_asked_ >= kStopPatience && saved_step_ >= 0 && !last) {
    stop_at_checkpoint();
    return false;
  }
  const bool stop = asked && (applied || refused_since_asked_ >= kStopPatience);
  if (!last && !stop && !(save_is_due_ && applied)) return true;
  if (weights_are_lost()) {
    rewind();
    return !asked;
  }
  save();
  return !stop;
}

TrainSummary TrainingRun::train() {
  const auto start = std::chrono::steady_clock::now();
  const std::string recipe_text = resolved_recipe(recipe_);
  if (world_ != nullptr) {  // another program may not even make the same calls: its ranks would wait for ever
    require_same(*world_, "the program",
                 text("commit ", build_commit().substr(0, 12), " ", hash_file("/proc/self/exe")));
    require_same(*world_, "recipe", recipe_text);
  }
  {
    const StartSpan span("driver");
    wait_for(default_device());
  }
  tokenizer_ = open_tokenizer(recipe_);
  const int64_t vocab = vocabulary_of(recipe_, *tokenizer_);
  trainer_ = std::make_unique<Trainer>(recipe_, *tokenizer_, world_);
  peak_ = peak_flops(describe_device(trainer_->store().device()), precision_of(recipe_));
  {
    const StartSpan span("data");
    data_.emplace(open_recipe_data(recipe_, *tokenizer_, vocab));
    fingerprint_ = data_->fingerprint();
  }
  if (world_ != nullptr) require_same(*world_, "data", fingerprint_, Exit::data);
  order_.emplace(data_->train.order(static_cast<uint64_t>(recipe_.seed), recipe_.data.shuffle));
  const bool resume = prepare_folder();

  run_id_ = ckpt::new_run_id();
  if (world_ != nullptr) run_id_ = gather_texts(*world_, run_id_)[0];
  // Before the log: its lines of steps after the checkpoint that is really good have to go.
  std::vector<std::string> warnings;
  if (resume)
    warnings = load_checkpoint();
  else if (!recipe_.init.empty())
    warnings = start_from_other();
  keep_recipe();
  std::optional<int64_t> resume_step;
  if (resume || options_.resume_auto || options_.resume) resume_step = state_.step;
  log_.emplace(RunLogOptions{.folder = recipe_.run,
                             .rank = world_ == nullptr ? 0 : world_->rank(),
                             .steps = recipe_.steps,
                             .every = recipe_.log.every,
                             .tensorboard = recipe_.log.tensorboard,
                             .console = !options_.quiet,
                             .resume_step = resume_step});
  if (folder_ && !folder_->note().empty()) log_->warning(folder_->note());
  log_->environment({.command_line = options_.command_line,
                     .device = describe_device(trainer_->store().device()),
                     .world = world_ == nullptr ? 1 : world_->size(),
                     .versions = {}});
  if (!trainer_->mesh().note.empty()) log_->info(trainer_->mesh().note);
  if (const std::string idle = trainer_->idle_ranks(); !idle.empty()) log_->warning(idle);
  for (const std::string& warning : recipe_warnings(recipe_)) log_->warning(warning);
  for (const std::string& w : warnings) log_->warning(w);
  for (const RecipeDifference& change : changes_)
    if (change.key != "run") log_->info("changed: " + change.line());
  if (resume) {
    log_->event(Event::resume, state_.step);
    const bool same_bits = recipe_.determinism == "run" || default_device() == Device::cpu;
    log_->info(text("continuing at step ", state_.step,
                    same_bits ? "" : "; determinism is off: equal in data, schedule and state, not in bits"));
  }
  const std::string source = recipe_.data.task.empty() ? text(data_->train.tokens(), " tokens an epoch")
                                                       : "new examples in every step";
  log_->info(text(trainer_->store().numel(), " parameters, ", source, ", ", recipe_.steps, " steps of ",
                  trainer_->samples_per_step() * recipe_.context, " tokens"));

  if (const int64_t bad = data_->train.bad_documents(); bad > 0)
    log_->warning(text(bad, " documents or lines of data.train are not usable and were skipped"));

  timer_.emplace(recipe_.steps - state_.step);
  bool go_on = !resume || make_up_evaluation();
  const bool measured = !std::isnan(summary_.val_loss);  // already
  if (state_.step < recipe_.steps) start_loader();
  while (go_on && state_.step < recipe_.steps) go_on = step();
  loader_.reset();
  while (saved_step_ != state_.step) save();  // until it works, or has failed too often

  if (go_on && !measured && summary_.first_step_s == 0) evaluate();  // nothing was left to do
  summary_.exit = state_.step < recipe_.steps || unmeasured_ ? Exit::stopped : Exit::ok;
  summary_.status = summary_.exit == Exit::ok ? "done" : "stopped";
  summary_.baseline_bpb = first_ && !options_.quiet && data_->val && summary_.exit == Exit::ok
                              ? baseline_bits_per_byte(data_->train, *data_->val, *tokenizer_)
                              : NAN;
  summary_.run = recipe_.run;
  summary_.step = state_.step;
  summary_.steps = recipe_.steps;
  summary_.tokens = state_.tokens;
  summary_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  summary_.world = world_ == nullptr ? 1 : world_->size();
  summary_.mesh = trainer_->mesh();
  summary_.weights_hash = weights_hash_of(trainer_->store());
  summary_.order_hash = order_hash_.hex();
  summary_.wire = trainer_->wire();
  log_->finish();
  return summary_;
}

TrainSummary train(const Recipe& recipe, const TrainOptions& options, Communicator* world) {
  try {
    return TrainingRun(recipe, options, world).train();
  } catch (const OutOfMemory& e) {  // the run is gone and its memory free: there is room for a plan
    throw Error(e.code, e.what(), e.where,
                change_that_fits(recipe, world == nullptr ? 1 : world->size(), e.in_use));
  }
}

}  // namespace weft
