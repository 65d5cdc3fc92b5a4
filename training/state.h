#pragma once
// A training run's state in a checkpoint: masters, optimizer state, and where the run stood. Any world size
// writes it, any reads it.

#include "training/checkpoint/load.h"
#include "training/checkpoint/save.h"
#include "training/recipe/diff.h"
#include "training/trainer.h"

namespace weft {

struct RunState {
  int64_t step = 0;           // steps done
  int64_t tokens = 0;         // label-bearing or not, of all ranks
  int64_t skipped_steps = 0;  // steps of data passed over by rewinds: step s reads the data of step s + this
  std::string order_hash;     // OrderHash, 32 hex digits; "" before the first step
  std::string data = {};      // Datasets::fingerprint, before that its sampled one, before that ""
  std::vector<int32_t> starts = {};  // Dataset::first_tokens of the training text
};

// XXH3-128 over the f32 masters (docs/contract.md). Every rank has the same.
std::string weights_hash_of(const ParameterStore& store);

ckpt::Peers peers_of(Communicator* world);

// All ranks together. Returns warnings. Errors: those of ckpt::save; Exit::internal where the ranks' weights
// are not the same.
// damaged: steps of before that do not count among those to keep.
std::vector<std::string> save_run(Trainer& trainer, const RunState& state, const std::string& run_id,
                                  const std::vector<int64_t>& damaged = {});

// Records in the run folder that the run went back. The next checkpoint, which knows it too, may be some
// steps away, and a run killed before it must not meet the same data again: from a checkpoint of fewer
// rewinds it continues at `data`.
struct Rewind {
  int64_t rewinds = 0;
  int64_t data = 0;  // in steps
};
void write_rewind(const std::string& run, const Rewind& rewind);  // atomic. Errors: Exit::io
// None where the run never went back. Errors: Exit::no_checkpoint.
std::optional<Rewind> read_rewind(const std::string& run);
void forget_rewind(const std::string& run);  // of an earlier run in this folder

// Error (recipe) where a mechanism had other settings when this was saved (mechanism_settings.h).
void require_saved_settings(const ckpt::Checkpoint& checkpoint, const Recipe& recipe);

// Error (recipe) where a key that a run has to keep is not as it was when this was saved, in `section` or
// ("") anywhere. Not asked of data and mechanisms, which are told by what they hold and do.
void require_saved_recipe(const ckpt::Checkpoint& checkpoint, const Recipe& recipe,
                          const std::string& section);

// In what the recipe differs from that of this checkpoint; empty where it keeps none.
std::vector<RecipeDifference> changes_since(const ckpt::Checkpoint& checkpoint, const Recipe& recipe);

// Into a trainer of the same recipe, past the data of the last rewind. Errors: Exit::no_checkpoint where an
// array is missing or of another shape, Exit::data for a checkpoint of a run with another seed,
// Exit::recipe for mechanisms set to something else.
RunState restore_run(Trainer& trainer, const ckpt::Checkpoint& checkpoint);

// Loads weights to start another model from, by name. A mechanism with projections of its own, such as moh,
// takes those of the layer of a plain mechanism. Returns the names of the parameters that the checkpoint
// lacks. Errors: Exit::recipe for another shape or precision, or where nothing fits.
std::vector<std::string> start_from(ParameterStore& store, const ckpt::Checkpoint& checkpoint);

// RunState::starts of what saved it; empty where it kept none.
std::vector<int32_t> saved_starts(const ckpt::Checkpoint& checkpoint);

// Weights only, for generation and scoring: their running mean where the run keeps one, as its own validation
// and samples have it.
void restore_weights(ParameterStore& store, const ckpt::Checkpoint& checkpoint);

}  // namespace weft
