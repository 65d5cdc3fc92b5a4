#include "training/training_run.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <string_view>
#include <thread>

#include "autograd/cuda_version.h"
#include "autograd/device_times.h"
#include "autograd/rank_error.h"
#include "autograd/start_span.h"
#include "distributed/agree.h"
#include "distributed/mpi_comm.h"
#include "training/checkpoint/files.h"
#include "training/checkpoint/folder.h"
#include "training/device_peak.h"
#include "training/log/environment_file.h"
#include "training/mechanism_settings.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

bool run_exists(const std::string& run) {
  std::error_code unreachable;  // what cannot be looked at cannot be created either, which then is the error
  return fs::exists(run + "/recipe.yaml", unreachable) || fs::exists(run + "/checkpoints", unreachable);
}

std::map<std::string, std::string> library_versions(Device device, const Communicator* world) {
  std::map<std::string, std::string> versions;
  if (device == Device::cuda) versions["cuda"] = cuda_version();
  if (world != nullptr && world->name() == std::string_view("mpi")) versions["mpi"] = mpi_version();
  return versions;
}

}  // namespace

// True: the run goes on from its checkpoint.
bool TrainingRun::start() {
  require_same_program(world_);
  require_same(world_, "recipe", resolved_recipe(recipe_));
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
    starts_ = data_->train.first_tokens();
  }
  require_same(world_, "data", fingerprint_, Exit::data);
  order_.emplace(data_->train.order(static_cast<uint64_t>(recipe_.seed), recipe_.data.shuffle));
  const bool resume = prepare_folder();

  run_id_ = gather_texts(world_, ckpt::new_run_id())[0];
  // Before the log: its lines of steps after the checkpoint that is really good have to go.
  std::vector<std::string> warnings;
  if (resume)
    warnings = load_checkpoint();
  else if (!recipe_.init.empty())
    warnings = start_from_other();
  write_recipe();
  std::optional<int64_t> resume_step;
  if (resume || options_.resume_auto || options_.resume) resume_step = state_.step;
  log_.emplace(RunLogOptions{.folder = recipe_.run,
                             .rank = rank_of(world_),
                             .steps = recipe_.steps,
                             .every = recipe_.log.every,
                             .tensorboard = recipe_.log.tensorboard,
                             .console = !options_.quiet,
                             .resume_step = resume_step});
  if (folder_ && !folder_->note().empty()) log_->warning(folder_->note());
  log_->environment({.command_line = options_.command_line,
                     .device = describe_device(trainer_->store().device()),
                     .world = size_of(world_),
                     .versions = library_versions(trainer_->store().device(), world_)});
  if (!trainer_->mesh().note.empty()) log_->info(trainer_->mesh().note);
  if (const std::string idle = trainer_->idle_ranks(); !idle.empty()) log_->warning(idle);
  for (const std::string& warning : recipe_warnings(recipe_)) log_->warning(warning);
  for (const std::string& w : warnings) log_->warning(w);
  for (const RecipeDifference& change : changes_)
    if (change.key != "run") log_->info("changed: " + change.line());
  if (resume) {
    if (rank_of(world_) == 0) {
      const LastLearned last = last_learned(recipe_.run + "/metrics.jsonl", state_.step);
      summary_.loss = last.loss;
      summary_.grad_norm = last.grad_norm;
    }
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
  return resume;
}

bool TrainingRun::prepare_folder() {
  bool resume = false;
  on_first_rank(world_, [&] {
    const bool exists = run_exists(recipe_.run);
    if (exists && !options_.resume && !options_.resume_auto)
      throw Error(Exit::cannot_create, "the run already exists", recipe_.run,
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
  return any_rank(world_, resume);
}

std::vector<std::string> TrainingRun::load_checkpoint() {
  const ckpt::Loaded loaded =
      ckpt::load(recipe_.run, {.strict = recipe_.checkpoint.strict}, peers_of(world_));
  state_ = restore_run(*trainer_, loaded.checkpoint);
  const std::string& saved = state_.data;
  if (const std::string now = Datasets::is_sampled(saved) ? data_->sampled_fingerprint() : fingerprint_;
      !saved.empty() && saved != now) {
    const bool held_out = Datasets::of_training(saved) == Datasets::of_training(now);
    throw Error(Exit::data,
                text(held_out ? "the held-out text is not the one that the run was measured on"
                              : "the text is not the one that the run was trained on",
                     ": it had ", saved, ", now ", now),
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

std::vector<std::string> TrainingRun::start_from_other() {
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

// After everything that may refuse it: a run whose recipe it cannot follow would be lost. A folder that some
// ranks do not see would lose every checkpoint, hours later.
void TrainingRun::write_recipe() {
  const std::string path = recipe_.run + "/recipe.yaml";
  on_first_rank(world_, [&] { write_file_atomically(path, resolved_recipe(recipe_)); });
  if (world_ == nullptr) return;
  std::error_code unknown;
  for (int i = 0; i < 100 && !fs::exists(path, unknown); ++i)  // a network folder may be slow to show it
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const std::vector<int64_t> seen = gather_values(world_, int64_t{fs::exists(path, unknown)});
  const auto blind = std::find(seen.begin(), seen.end(), 0);
  if (blind == seen.end()) return;
  const auto rank = static_cast<int>(blind - seen.begin());
  throw RankError(rank, Error(Exit::cannot_create, text("rank ", rank, " does not see the run folder"),
                              recipe_.run, "set run to a folder that all ranks share"));
}

void TrainingRun::start_loader() {
  const Slice own = trainer_->samples_of_step();
  loader_ = std::make_unique<Loader>(data_->train, *order_,
                                     Loader::Config{.samples_per_step = trainer_->samples_per_step(),
                                                    .begin = own.begin,
                                                    .end = own.end,
                                                    .first_step = state_.step + state_.skipped_steps,
                                                    .ahead = recipe_.data.prefetch});
}

}  // namespace weft
