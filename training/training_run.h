#pragma once
// The implementation of `weft train` (train.h): its parts are in training_run_start.cpp (the folder, what is
// continued), training_run_measure.cpp, training_run_save.cpp (checkpoints, and ways back to them) and
// train.cpp (the steps, and the end).

#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "distributed/agree.h"
#include "training/data/loader.h"
#include "training/held_folder.h"
#include "training/log/run_log.h"
#include "training/log/step_timer.h"
#include "training/log/stop_request.h"
#include "training/recipe/diff.h"
#include "training/state.h"
#include "training/train.h"

namespace weft {

// Runs f on rank 0 while the others wait. If f throws, the exception ends the job with its own exit code.
template <class F>
void on_first_rank(Communicator* world, F f) {
  if (rank_of(world) == 0) f();
  if (world != nullptr) world->barrier("first rank is ready");
}

class TrainingRun {
 public:
  TrainingRun(const Recipe& recipe, const TrainOptions& options, Communicator* world)
      : stop_(rank_of(world) == 0),
        recipe_(recipe),
        options_(options),
        world_(world),
        first_(rank_of(world) == 0) {}

  TrainSummary train();

 private:
  bool start();                                 // true: continued
  bool prepare_folder();                        // true: continue
  std::vector<std::string> load_checkpoint();   // what to warn of
  std::vector<std::string> start_from_other();  // the same
  void write_recipe();
  void start_loader();
  bool step();
  void finish();
  void tell_start();
  std::optional<double> mfu(double seconds);
  bool evaluate();  // false where a signal ended it
  void put_evaluation(StepRecord& record);
  StepRecord record_of(const StepResult& result, const StepTimes& times);
  bool redo_stopped_evaluation();
  void sample();
  bool may_finish(const StepResult& result);
  void save();
  bool weights_not_finite();
  void hold_folder();
  void stop_at_checkpoint();
  void rewind();

  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
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
  std::vector<int32_t> starts_;            // first tokens of training documents
  std::vector<RecipeDifference> changes_;  // of a resumed run's recipe
  std::set<int64_t> damaged_;              // checkpoints that were passed over
  std::optional<SampleOrder> order_;
  std::unique_ptr<Loader> loader_;
  std::optional<StepTimer> timer_;
  OrderHash order_hash_;
  RunState state_;
  std::optional<RunState> learned_;  // at the last step that was applied, if this process has made one
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

}  // namespace weft
