#pragma once
// Saving a checkpoint, all ranks together. The order of the steps is the whole point (README.md):
//   shards into step-N.tmp-RUN/, synced, read back and compared -> all ranks agree -> MANIFEST, synced ->
//   rename to step-N/, parent synced -> `latest` replaced -> older steps deleted.
// A crash at any moment leaves either the step before or this one, complete.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "training/checkpoint/array.h"
#include "training/checkpoint/manifest.h"

namespace weft::ckpt {

// The ranks that save or load together, on one file system. One process alone needs no callback.
struct Peers {
  int64_t rank = 0, size = 1;
  // True on every rank if every rank passed true. Called by all ranks the same number of times.
  std::function<bool(bool)> agree = [](bool ok) { return ok; };
  // What every rank says, in rank order. Called by all ranks the same number of times.
  std::function<std::vector<std::string>(const std::string&)> tell = [](const std::string& mine) {
    return std::vector<std::string>{mine};
  };
  // Called many times within what takes long, while the others may be waiting.
  std::function<void()> pulse = [] {};
};

struct SaveRequest {
  std::string run_folder;
  Manifest manifest;                  // `files` and `world` are filled in
  std::vector<ArrayPiece> pieces;     // what this rank holds; over all ranks each array exactly once
  int64_t keep = 2;                   // complete steps to keep, this one included
  std::vector<int64_t> damaged = {};  // steps that do not count
};

// Returns warnings to print. On failure older checkpoints are as they were, nothing of this one remains (or,
// if only `latest` could not be replaced, all of it), and every rank throws: one that failed its own error
// (Exit::io: disk full, sync or read-back failed; Exit::cannot_create), the others that of the first that
// did, as a RankError. The caller may go on and try again.
std::vector<std::string> save(const SaveRequest& request, const Peers& peers = {});

}  // namespace weft::ckpt
