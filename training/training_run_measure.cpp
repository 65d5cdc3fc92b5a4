#include "training/training_run.h"

#include <cmath>
#include <cstdio>
#include <utility>

#include "autograd/start_span.h"
#include "distributed/agree.h"
#include "training/device_peak.h"
#include "training/generate.h"
#include "training/log/clock.h"

namespace weft {

bool TrainingRun::evaluate() {
  if (!data_->val) return true;
  const auto span = timer_->pause();
  const int64_t all = data_->val->samples(), each = trainer_->samples_per_step();
  last_evaluation_ =
      trainer_->evaluate(*data_->val, recipe_.eval.batches > all / each ? all : recipe_.eval.batches * each,
                         [&] { return any_rank(world_, stop_.requested()); });
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

void TrainingRun::put_evaluation(StepRecord& record) {
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
bool TrainingRun::redo_stopped_evaluation() {
  const bool due = first_ && evaluation_was_stopped(recipe_.run + "/metrics.jsonl", state_.step);
  if (!any_rank(world_, due)) return true;
  if (!evaluate()) return false;
  StepRecord record;
  record.step = state_.step;
  record.time = wall_seconds();
  put_evaluation(record);
  log_->measured(record);
  return true;
}

// Of the step that was just made. All ranks together.
StepRecord TrainingRun::record_of(const StepResult& result, const StepTimes& times) {
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
  record.peak_bytes = max_over_ranks(world_, memory_report(trainer_->store().device()).peak_bytes);
  put_evaluation(record);
  return record;
}

void TrainingRun::sample() {
  const auto span = timer_->pause();
  if (!first_ || recipe_.sample.tokens == 0) return;
  if (!recipe_.data.task.empty()) return;  // whose tokens are no text
  const AveragedWeights averaged(trainer_->store(), trainer_->optimizer());
  std::vector<int32_t> prompt = tokenizer_->encode(recipe_.sample.prompt);
  const bool unprompted = prompt.empty();
  if (unprompted) prompt = {drawn_start(starts_, static_cast<uint32_t>(recipe_.sample.seed))};
  const SamplingOptions options{.tokens = recipe_.sample.tokens,
                                .temperature = recipe_.sample.temperature,
                                .top_k = recipe_.sample.top_k,
                                .top_p = recipe_.sample.top_p,
                                .vocab = tokenizer_->vocab_size(),
                                .seed = static_cast<uint32_t>(recipe_.sample.seed),
                                .stop = tokenizer_->eos_id()};
  try {
    const std::vector<int32_t> tokens = generate(trainer_->model(), {prompt}, options)[0];
    StreamDecoder decoder(*tokenizer_, !recipe_.sample.prompt.empty());
    summary_.sample = unprompted ? decoder.push(prompt[0]) : recipe_.sample.prompt;
    for (const int32_t token : tokens) summary_.sample += decoder.push(token);
    summary_.sample += decoder.finish();
  } catch (const Error& e) {
    if (e.code != Exit::numerics) throw;
    return log_->warning(text("no sample after step ", state_.step, ": ", e.what()));
  }
  log_->sample(state_.step, summary_.sample);
}

// Of the device's arithmetic, by the model's operations that the last step counted on this rank: what is
// computed again to save memory does not make it busier.
std::optional<double> TrainingRun::mfu(double seconds) {
  if (!peak_ || seconds <= 0) return {};
  const std::optional<double> share = share_of_peak(trainer_->model_flops(), seconds, *peak_);
  if (!share && !std::exchange(impossible_, true))
    log_->warning(text(trainer_->model_flops(), " operations in ", seconds,
                       " s are more than the device can do: work was counted that was not done, so mfu is "
                       "left out"));
  return share;
}

// On a GPU, where a start is more than a step.
void TrainingRun::tell_start() {
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

}  // namespace weft
