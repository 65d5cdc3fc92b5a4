#pragma once
// One rank's part of a checkpoint: an HDF5 file, written once, never updated in place. HDF5 can lose a file
// whose writer dies, so such a file counts only once it was closed, synced, hashed, and named in a manifest.
//
// Layout, readable with h5ls or h5py: one contiguous dataset a piece. A whole array is a dataset of its name
// and shape; a part is a flat dataset "NAME[BEGIN:END]" with the attributes `begin` and `shape` (of the
// whole). Each dataset has the attribute `dtype`; bf16 is stored as u16. The root carries `format`, `run`,
// `step`, `rank`, `world`.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "training/checkpoint/array.h"

namespace weft::ckpt {

constexpr int64_t shard_format = 1;

struct ShardIdentity {
  std::string run;  // id of the run
  int64_t step = 0;
  int64_t rank = 0, world = 1;
};

// Where a piece lies: `count` elements of `dtype` from byte `offset` of `file` on.
struct StoredPiece {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;  // of the whole array
  int64_t begin = 0, count = 0;
  std::string file;
  int64_t offset = 0;
};

// Writes and closes; to sync is the caller's. Fault points save.data, save.mid. Errors: Exit::io, and what
// was written then has to be thrown away.
void write_shard(const std::string& path, const ShardIdentity& identity,
                 const std::vector<ArrayPiece>& pieces, const std::function<void()>& pulse = {});

// The table of contents; every type, shape, extent and attribute checked, `identity` compared. Errors:
// Exit::data. HDF5 itself may misbehave on a damaged file: verify the file's hash first.
std::vector<StoredPiece> read_shard_index(const std::string& path, const ShardIdentity& identity);

}  // namespace weft::ckpt
