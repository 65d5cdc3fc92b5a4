#pragma once
// What `weft train` does, behind train.h: its parts are in training_run_start.cpp (the folder, what is
// continued), training_run_measure.cpp, training_run_save.cpp (checkpoints, and ways back to them) and
// train.cpp (the steps).

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "training/data/loader.h"
#include "training/held_folder.h"
#include "training/log/run_log.h"
#include "training/log/step_timer.h"
#include "training/log/stop_request.h"
#include "training/recipe/diff.h"
#include "training/state.h"
#include "training/train.h"

namespace weft {

// What each rank does alone first is done by rank 0, and all ranks learn whether it went well.
template <class F>
void on_first_rank(Communicator* world, F f) {
  const bool first = world == nullptr || world->rank() == 0;
  if (first) f();  // an exception ends the job with its own code
  if (world != nullptr) world->barrier("first rank is ready");
}

class TrainingRun {
 public:
  TrainingRun(const Recipe& recipe, const TrainOptions& options, Communicator* world)
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
  void hold_folder();
  void stop_at_checkpoint();
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
