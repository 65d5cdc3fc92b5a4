#pragma once
// Finding and verifying the checkpoint to continue from.

#include <optional>
#include <string>
#include <vector>

#include "training/checkpoint/checkpoint.h"
#include "training/checkpoint/save.h"

namespace weft::ckpt {

struct LoadOptions {
  bool strict = false;               // the first choice has to be good: no falling back
  std::optional<int64_t> step = {};  // this step and no other
  std::string run = {};              // the run it has to belong to; "" = any
};

struct Loaded {
  Checkpoint checkpoint;
  std::vector<std::string> warnings;  // print them: they say what was passed over, and why
  std::vector<int64_t> damaged = {};  // what was passed over
};

// The step that `latest` names, else the newest complete one. Every byte is verified, the work divided among
// the peers; a damaged step is passed over for the one before. Errors: Exit::no_checkpoint where none is
// good, and at once, without falling back, for a format version that this program does not read.
Loaded load(const std::string& run_folder, const LoadOptions& options = {}, const Peers& peers = {});

// What a person names: RUN, or one checkpoint of it, RUN/checkpoints/step-N.
struct Named {
  std::string run;
  std::optional<int64_t> step = {};
};
Named named(const std::string& path);

// MANIFEST and every file of one step against their hashes. Errors as above, but Exit::data for damage.
Manifest verify(const std::string& folder, int64_t step, const std::string& run = {},
                const Peers& share = {});

}  // namespace weft::ckpt
