#pragma once
// A complete checkpoint, whatever number of ranks wrote it: arrays by name, read whole or by range.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "training/checkpoint/array.h"
#include "training/checkpoint/manifest.h"
#include "training/checkpoint/shard.h"

namespace weft::ckpt {

class Checkpoint {
 public:
  struct Array {
    Dtype dtype = Dtype::f32;
    std::vector<int64_t> shape;
    std::vector<StoredPiece> pieces;  // in order, without hole or overlap
  };

  // Opens the shards that `manifest` names; their hashes are to be verified before. Errors: Exit::data where
  // the shards are not of this run and step, or do not hold each array exactly once.
  Checkpoint(std::string folder, Manifest manifest);

  const std::string& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }
  const std::map<std::string, Array>& arrays() const { return arrays_; }
  bool contains(const std::string& name) const { return arrays_.count(name) > 0; }
  const Array& at(const std::string& name) const;  // Exit::data: not in the checkpoint

  OwnedArray read(const std::string& name) const;
  // Elements [begin, begin + count) of the flattened array, in its own type.
  void read(const std::string& name, int64_t begin, int64_t count, void* out) const;

  // weights_hash() of hash.h over the arrays PREFIX + NAME, as NAME, a block at a time.
  std::string weights_hash(const std::string& prefix) const;

 private:
  std::string folder_;
  Manifest manifest_;
  std::map<std::string, Array> arrays_;
};

}  // namespace weft::ckpt
