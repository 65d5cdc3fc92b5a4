#pragma once
// What is known about one finished training step. Its names are the keys of metrics.jsonl.

#include <cstdint>
#include <limits>
#include <optional>

namespace weft {

struct StepRecord {
  static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

  int64_t step = 0;               // 1 after the first update
  int64_t tokens = 0;             // seen since the start of the run, by all ranks
  double loss = unknown;          // nats a token, mean over the global batch
  double grad_norm = unknown;     // before clipping
  double lr = unknown;            // used by this step
  double tokens_per_s = unknown;  // of this step alone, all ranks
  std::optional<double> mfu;  // share of the devices' peak in [0, 1], of the model's operations alone: not
                              // of those that checkpointing computes again; none where the peak is unknown
  double step_s = unknown;    // seconds, without the pauses for evaluation and saving
  double data_s = unknown;    // of these: waiting for data
  double comm_s = unknown;    // of these: waiting for other ranks
  int64_t peak_bytes = 0;     // of the fullest rank
  double time = unknown;      // seconds since 1970; RunLog fills it in

  // Where measured after this step: nats a token, bits a byte; of a task, shares of right tokens and answers.
  std::optional<double> val_loss, val_bpb, val_accuracy, val_exact;
  bool val_stopped = false;  // a signal ended that evaluation; a run that continues makes up for it

  // For TensorBoard only: the largest loss of a rank; TFLOP/s a rank.
  std::optional<double> max_loss, tflops;
};

}  // namespace weft
