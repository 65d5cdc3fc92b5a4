#include "training/train.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <utility>

#include "autograd/device_times.h"
#include "autograd/fault.h"
#include "autograd/notes.h"
#include "autograd/out_of_memory.h"
#include "autograd/start_span.h"
#include "distributed/agree.h"
#include "optim/gradient_norm.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/folder.h"
#include "training/checkpoint/hash.h"
#include "training/data/baseline.h"
#include "training/data/loader.h"
#include "training/device_peak.h"
#include "training/generate.h"
#include "training/held_folder.h"
#include "training/log/clock.h"
#include "training/log/environment_file.h"
#include "training/log/run_log.h"
#include "training/log/step_timer.h"
#include "training/log/stop_request.h"
#include "training/mechanism_settings.h"
#include "training/plan.h"
#include "training/recipe/diff.h"
#include "training/recipe/load.h"
#include "training/state.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// A failed save is a warning; so many in a row end the run.
constexpr int kFailedSaves = 3;
constexpr int64_t kStopPatience = 3;     // refused steps that a stop waits for one that is applied
constexpr int64_t kRefusedAtTheEnd = 3;  // in a row, with which a run is not done

bool run_exists(const std::string& run) {
  std::error_code unreachable;  // what cannot be looked at cannot be created either, which then is the error
  return fs::exists(run + "/recipe.yaml", unreachable) || fs::exists(run + "/checkpoints", unreachable);
}

// What each rank does alone first is done by rank 0, and all ranks learn whether it went well.
template <class F>
void on_first_rank(Communicator* world, F f) {
  const bool first = world == nullptr || world->rank() == 0;
  if (first) f();  // an exception ends the job with its own code
  if (world != nullptr) world->barrier("first rank is ready");
}

class Run {
 public:
  Run(const Recipe& recipe, const TrainOptions& options, Communicator* world)
      : stop_(world == nullptr || world->rank() == 0),
        recipe_(recipe),
        options_(options),
        world_(world),
        first_(world == nullptr || world->rank() == 0) {}

  TrainSummary train();

 private:
  bool prepare_folder();                        // true: continue
  std::vector<std::string> load_checkpoint();   // what to warn of
  std::vector<std::string> start_from_other();  // the same
  void keep_recipe();
  void start_loader();
  bool step();
  void tell_start();
  std::optional<double> mfu(double seconds);
  bool evaluate();  // false where a signal ended it
  void put_evaluation(StepRecord& record);
  bool make_up_evaluation();
  void sample();
  bool is_an_end(const StepResult& result);
  void save();
  bool weights_are_lost();
  void rewind();
  StopRequest stop_;

  const Recipe& recipe_;
  const TrainOptions& options_;
  Communicator* world_;
  bool first_;
  std::optional<HeldFolder> folder_;  // of the first rank
  std::optional<RunLog> log_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<double> peak_;  // FLOP/s of the device, where known
  bool impossible_ = false;     // more than that was counted once, and it was said
  std::optional<Datasets> data_;
  std::string fingerprint_;                // of the data
  std::vector<RecipeDifference> changes_;  // of a resumed run's recipe; known to the first rank
  std::set<int64_t> damaged_;              // checkpoints that were passed over
  std::optional<SampleOrder> order_;
  std::unique_ptr<Loader> loader_;
  std::optional<StepTimer> timer_;
  OrderHash order_hash_;
  RunState state_;
  std::string run_id_;
  int64_t saved_step_ = -1;
  int failed_saves_ = 0;
  bool save_is_due_ = false;
  int64_t refused_since_asked_ = 0;  // steps, since a stop was asked for
  int64_t refused_in_a_row_ = 0;
  bool unmeasured_ = false;  // a signal ended the evaluation of this step
  std::optional<Evaluation> last_evaluation_;
  TrainSummary summary_;
};

bool Run::prepare_folder() {
  bool resume = false;
  on_first_rank(world_, [&] {
    const bool exists = run_exists(recipe_.run);
    if (exists && !options_.resume && !options_.resume_auto)
      throw Error(Exit::cannot_create, "the run exists already", recipe_.run,
                  "continue it with --resume " + recipe_.run + ", or set run=another/folder");
    if (!exists && options_.resume)
      throw Error(Exit::no_checkpoint, "no run to continue", recipe_.run,
                  "start it with weft train RECIPE, or take --resume auto");
    std::error_code failed;
    fs::create_directories(recipe_.run, failed);
    if (failed)
      throw Error(Exit::cannot_create, "cannot create the run folder: " + failed.message(), recipe_.run);
    folder_.emplace(recipe_);
    ckpt::clean(recipe_.run);
    resume = exists && !ckpt::list_steps(recipe_.run).empty();
    if (!resume) forget_rewind(recipe_.run);
    if (options_.resume && !resume)
      throw Error(Exit::no_checkpoint, "the run has no complete checkpoint", recipe_.run,
                  "start a new run in another folder");
    if (exists && fs::exists(recipe_.run + "/recipe.yaml")) {
      const Recipe saved = load_recipe(recipe_.run + "/recipe.yaml");
      changes_ = check_resume(saved, recipe_, same_function(saved, recipe_));
    }
  });
  return world_ == nullptr ? resume : any_rank(*world_, resume);
}

std::vector<std::string> Run::load_checkpoint() {
  const ckpt::Loaded loaded =
      ckpt::load(recipe_.run, {.strict = recipe_.checkpoint.strict}, peers_of(world_));
  state_ = restore_run(*trainer_, loaded.checkpoint);
  if (!state_.data.empty() && state_.data != fingerprint_) {
    const bool held_out = state_.data.starts_with(data_->train.fingerprint());
    throw Error(Exit::data,
                text(held_out ? "the held-out text is not the one that the run was measured on"
                              : "the text is not the one that the run was trained on",
                     ": it had ", state_.data, ", now ", fingerprint_),
                recipe_.where(held_out ? "data.val" : "data.train"),
                "put the old files back, or start a new run with init=" + recipe_.run);
  }
  if (state_.step > recipe_.steps)
    throw Error(Exit::recipe,
                text("the run has done ", state_.step, " steps, its recipe now asks for ", recipe_.steps),
                recipe_.where("steps"), text("set steps to ", state_.step, " or more"));
  // Also what was edited in the run's own recipe, or what a run changed that has saved nothing since.
  for (RecipeDifference& d : changes_since(loaded.checkpoint, recipe_))
    if (std::none_of(changes_.begin(), changes_.end(), [&](const auto& c) { return c.key == d.key; }))
      changes_.push_back(std::move(d));
  for (const int64_t step : loaded.damaged) damaged_.insert(step);
  run_id_ = loaded.checkpoint.manifest().run;
  order_hash_ = state_.order_hash.empty() ? OrderHash() : OrderHash(state_.order_hash);
  saved_step_ = state_.step;
  return loaded.warnings;
}

std::vector<std::string> Run::start_from_other() {
  const ckpt::Named from = ckpt::named(recipe_.init);
  if (!run_exists(from.run))
    throw Error(Exit::no_checkpoint, "no run to start from in " + recipe_.init, recipe_.where("init"),
                "name the folder of a run that has saved");
  ckpt::Loaded loaded = ckpt::load(from.run, {.step = from.step}, peers_of(world_));
  if (loaded.checkpoint.manifest().tokenizer_hash != trainer_->tokenizer().hash())
    throw Error(Exit::recipe, "the tokenizer is not that of " + recipe_.init, "init",
                "use the tokenizer of that run");
  const std::vector<std::string> absent = start_from(trainer_->store(), loaded.checkpoint);
  restart_mean(trainer_->store(), trainer_->optimizer());
  if (!absent.empty())
    loaded.warnings.push_back(text(recipe_.init, " lacks ", absent.size(), " parameters, such as ", absent[0],
                                   ": they are initialised as usual"));
  return loaded.warnings;
}

// Behind everything that may refuse it: a run whose recipe it cannot follow would be lost. A folder that some
// ranks do not see would lose every checkpoint, hours later.
void Run::keep_recipe() {
  const std::string path = recipe_.run + "/recipe.yaml";
  on_first_rank(world_, [&] { write_file_atomically(path, resolved_recipe(recipe_)); });
  if (world_ == nullptr) return;
  std::error_code unknown;
  for (int i = 0; i < 100 && !fs::exists(path, unknown); ++i)  // a network folder may be slow to show it
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  if (!all_ranks(*world_, fs::exists(path, unknown)))
    throw Error(Exit::cannot_create, "some ranks do not see the run folder", recipe_.run,
                "set run to a folder that all ranks share");
}

void Run::start_loader() {
  const Slice own = trainer_->samples_of_step();
  loader_ = std::make_unique<Loader>(data_->train, *order_,
                                     Loader::Config{.samples_per_step = trainer_->samples_per_step(),
                                                    .begin = own.begin,
                                                    .end = own.end,
                                                    .first_step = state_.step + state_.skipped_steps,
                                                    .ahead = recipe_.data.prefetch});
}

bool Run::evaluate() {
  if (!data_->val) return true;
  const auto span = timer_->pause();
  const int64_t all = data_->val->samples(), each = trainer_->samples_per_step();
  last_evaluation_ = trainer_->evaluate(
      *data_->val, recipe_.eval.batches > all / each ? all : recipe_.eval.batches * each,
      [&] { return world_ == nullptr ? stop_.requested() : any_rank(*world_, stop_.requested()); });
  unmeasured_ = !last_evaluation_;
  if (unmeasured_) {
    log_->warning(text("the evaluation after step ", state_.step,
                       " was stopped; a run that continues there makes up for it"));
    return false;
  }
  summary_.val_loss = last_evaluation_->loss;
  summary_.val_bpb = last_evaluation_->bits_per_byte;
  summary_.val_accuracy = last_evaluation_->accuracy;
  summary_.val_exact = last_evaluation_->exact;
  return true;
}

void Run::put_evaluation(StepRecord& record) {
  record.val_stopped = unmeasured_;
  if (!last_evaluation_) return;
  const auto measured = [](double x) { return std::isnan(x) ? std::nullopt : std::optional(x); };
  record.val_loss = last_evaluation_->loss;
  if (recipe_.data.task.empty()) record.val_bpb = last_evaluation_->bits_per_byte;
  record.val_accuracy = measured(last_evaluation_->accuracy);
  record.val_exact = measured(last_evaluation_->exact);
  last_evaluation_.reset();
}

// Of the step that a resumed run begins at, where a signal had ended it. False where one does so again.
bool Run::make_up_evaluation() {
  bool due = first_ && evaluation_was_stopped(recipe_.run + "/metrics.jsonl", state_.step);
  if (world_ != nullptr) due = any_rank(*world_, due);
  if (!due) return true;
  if (!evaluate()) return false;
  StepRecord record;
  record.step = state_.step;
  record.time = wall_seconds();
  put_evaluation(record);
  log_->measured(record);
  return true;
}

void Run::sample() {
  const auto span = timer_->pause();
  if (!first_ || recipe_.sample.tokens == 0) return;
  if (!recipe_.data.task.empty()) return;  // whose tokens are no text
  const AveragedWeights averaged(trainer_->store(), trainer_->optimizer());
  std::vector<int32_t> prompt = tokenizer_->encode(recipe_.sample.prompt);
  if (prompt.empty()) prompt = {tokenizer_->eos_id()};
  const SamplingOptions options{.tokens = recipe_.sample.tokens,
                                .temperature = recipe_.sample.temperature,
                                .top_k = recipe_.sample.top_k,
                                .vocab = tokenizer_->vocab_size(),
                                .seed = static_cast<uint32_t>(recipe_.sample.seed),
                                .stop = tokenizer_->eos_id()};
  try {
    const std::vector<int32_t> tokens = generate(trainer_->model(), {prompt}, options)[0];
    summary_.sample = recipe_.sample.prompt + tokenizer_->decode(tokens);
  } catch (const Error& e) {
    if (e.code != Exit::numerics) throw;
    return log_->warning(text("no sample after step ", state_.step, ": ", e.what()));
  }
  log_->sample(state_.step, summary_.sample);
}

void Run::save() {
  if (saved_step_ == state_.step) return;
  const auto span = timer_->pause();
  save_is_due_ = false;
  state_.order_hash = order_hash_.hex();
  state_.data = fingerprint_;
  if (world_ != nullptr) world_->beat(state_.step, "save");
  if (folder_) folder_->mend(run_id_, [&](const std::string& warning) { log_->warning(warning); });
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
bool Run::weights_are_lost() {
  std::string name = first_non_finite_weight(trainer_->store()), where;
  if (world_ != nullptr) {  // the same words on all ranks, of the first that lost some
    const std::vector<std::string> all = gather_texts(*world_, name);
    const auto first = std::find_if(all.begin(), all.end(), [](const std::string& n) { return !n.empty(); });
    if (first == all.end()) return false;
    name = *first;
    where = text(" on rank ", first - all.begin());
  }
  if (name.empty()) return false;
  const std::string what = text("the weights after step ", state_.step, " are not finite", where);
  if (saved_step_ < 0 || !trainer_->guard().go_back())
    throw Error(
        Exit::numerics,
        what + (saved_step_ < 0 ? ", and no checkpoint to go back to" : ", and numerics.rewind is used up"),
        name, "lower optim.lr, or look at the machine if it comes again");
  log_->warning(what + " (first " + name + ")");
  return true;
}

// Whether the last step may be one. Behind steps in which nothing was learned it may not: the run goes back,
// as after too many of them anywhere, or else has failed. What was learned before is kept.
bool Run::is_an_end(const StepResult& result) {
  if (refused_in_a_row_ < std::min(kRefusedAtTheEnd, recipe_.steps)) return true;
  const std::string what = text("the last ", refused_in_a_row_, " steps were not applied: ", result.reason);
  if (saved_step_ >= 0 && trainer_->guard().go_back()) {
    log_->warning(what);
    return false;
  }
  if (saved_step_ < 0 && trainer_->updates() > 0 && !weights_are_lost()) save();
  throw Error(Exit::numerics, what, recipe_.run, "lower optim.lr, or look at the data of these steps");
}

// Back to the last good checkpoint, and past the data that led astray.
void Run::rewind() {
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

// Of the device's arithmetic, by the model's operations that the last step counted on this rank: what is
// computed again to save memory does not make it busier.
std::optional<double> Run::mfu(double seconds) {
  if (!peak_ || seconds <= 0) return {};
  const std::optional<double> share = share_of_peak(trainer_->model_flops(), seconds, *peak_);
  if (!share && !std::exchange(impossible_, true))
    log_->warning(text(trainer_->model_flops(), " operations in ", seconds,
                       " s are more than the device can do: work was counted that was not done, so mfu is "
                       "left out"));
  return share;
}

// On a GPU, where a start is more than a step.
void Run::tell_start() {
  if (trainer_->store().device() != Device::cuda) return;
  const auto seconds = [](double s) {
    char out[16];
    std::snprintf(out, sizeof out, "%.2f", s);
    return std::string(out);
  };
  std::string parts;
  for (const auto& [name, s] : start_spans()) parts += (parts.empty() ? "" : ", ") + name + " " + seconds(s);
  log_->info("first step " + seconds(process_age()) + " s after the start: " + parts);
}

bool Run::step() {
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
    for (const std::string& w : load_checkpoint()) log_->warning(w);
    log_->warning(
        text("stopped at the checkpoint of step ", state_.step, ": the steps since were not applied"));
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

TrainSummary Run::train() {
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
  for (const std::string& doubt : doubts(recipe_)) log_->warning(doubt);
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

}  // namespace

TrainSummary train(const Recipe& recipe, const TrainOptions& options, Communicator* world) {
  try {
    return Run(recipe, options, world).train();
  } catch (const OutOfMemory& e) {  // the run is gone and its memory free: there is room for a plan
    throw Error(e.code, e.what(), e.where,
                change_that_fits(recipe, world == nullptr ? 1 : world->size(), e.in_use));
  }
}

}  // namespace weft
