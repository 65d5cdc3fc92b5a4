#include "training/training_run.h"

#include <algorithm>

#include "autograd/rank_error.h"
#include "distributed/agree.h"
#include "optim/gradient_norm.h"

namespace weft {
namespace {

// A failed save is a warning; so many in a row end the run.
constexpr int kFailedSaves = 3;

}  // namespace

void TrainingRun::save() {
  if (saved_step_ == state_.step) return;
  const auto span = timer_->pause();
  save_is_due_ = false;
  state_.order_hash = order_hash_.hex();
  state_.data = fingerprint_;
  state_.starts = starts_;
  if (world_ != nullptr) world_->beat(state_.step, "save");
  hold_folder();
  try {
    for (const std::string& w : save_run(*trainer_, state_, run_id_, {damaged_.begin(), damaged_.end()}))
      log_->warning(w);
    damaged_.erase(state_.step);
    saved_step_ = state_.step;
    failed_saves_ = 0;
    log_->event(Event::checkpoint, state_.step);
  } catch (const Error& e) {
    const bool disk = e.code == Exit::io || e.code == Exit::cannot_create || e.code == Exit::data;
    if (!disk || ++failed_saves_ >= kFailedSaves) throw;
    log_->warning(text("step ", state_.step, " was not saved: ", e.what(), "; training continues"));
    log_->event(Event::fault, state_.step, {{"what", std::string(e.what())}});
  }
}

// A flipped bit can do that behind the guard's back, and a checkpoint of such weights is none to go back to.
bool TrainingRun::weights_not_finite() {
  // The same words on all ranks, of the first that lost some.
  const std::vector<std::string> all = gather_texts(world_, first_non_finite_weight(trainer_->store()));
  const auto first = std::find_if(all.begin(), all.end(), [](const std::string& n) { return !n.empty(); });
  if (first == all.end()) return false;
  const auto rank = static_cast<int>(first - all.begin());
  const std::string &name = *first, where = world_ == nullptr ? "" : text(" on rank ", rank);
  const std::string what = text("the weights after step ", state_.step, " are not finite", where);
  if (saved_step_ < 0 || !trainer_->guard().go_back())
    throw RankError(rank, Error(Exit::numerics,
                                what + (saved_step_ < 0 ? ", and no checkpoint to go back to"
                                                        : ", and numerics.rewind is used up"),
                                name, "lower optim.lr, or look at the machine if it comes again"));
  log_->warning(what + " (first " + name + ")");
  return true;
}

// Whether the run may end with this step, its last. After steps in which nothing was learned it may not: the
// run goes back, as after too many of them anywhere, or else has failed. What was learned before is kept, as
// the step that learned it: the run is not done.
bool TrainingRun::may_finish(const StepResult& result) {
  if (refused_in_a_row_ < std::min(kRefusedAtTheEnd, recipe_.steps)) return true;
  const std::string what = text("the last ", refused_in_a_row_, " steps were not applied: ", result.reason);
  if (saved_step_ >= 0 && trainer_->guard().go_back()) {
    log_->warning(what);
    return false;
  }
  if (saved_step_ < 0 && learned_ && !weights_not_finite()) {
    state_ = *learned_;
    order_hash_ = OrderHash(state_.order_hash);
    save();
  }
  throw RankError(result.rank, Error(Exit::numerics, what, recipe_.run,
                                     "lower optim.lr, or look at the data of these steps"));
}

// Before it is read or written: it may be another run's by now.
void TrainingRun::hold_folder() {
  if (folder_) folder_->ensure_ours(run_id_, [&](const std::string& warning) { log_->warning(warning); });
}

// What a stop that no step is applied for ends at.
void TrainingRun::stop_at_checkpoint() {
  hold_folder();
  for (const std::string& w : load_checkpoint()) log_->warning(w);
  log_->warning(
      text("stopped at the checkpoint of step ", state_.step, ": the steps since were not applied"));
}

// Back to the last good checkpoint, and past the data that led astray.
void TrainingRun::rewind() {
  hold_folder();
  const int64_t from = state_.step, data = state_.step + state_.skipped_steps;
  save_is_due_ = false;
  refused_in_a_row_ = 0;
  loader_.reset();
  on_first_rank(world_, [&] {
    try {
      write_rewind(recipe_.run, {trainer_->guard().rewinds(), data});
    } catch (const Error& e) {
      log_->warning(text("a run killed before its next checkpoint will go back again: ", e.what()));
    }
  });
  for (const std::string& w : load_checkpoint()) log_->warning(w);
  state_.skipped_steps = data - state_.step;
  log_->rewind(from, state_.step);
  log_->warning(text("went back from step ", from, " to the checkpoint of step ", state_.step,
                     ", skipping the data in between"));
  start_loader();
}

}  // namespace weft
