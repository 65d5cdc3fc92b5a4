#pragma once
// The world as dp x cp: `cp` neighbouring ranks share a sequence, `dp` groups of them share the batch.

#include <memory>
#include <string>

#include "distributed/communicator.h"

namespace weft {

struct MeshShape {
  int dp = 1;
  int cp = 1;
  std::string note;  // one line for the log where the wish for cp was not met, else empty
};

// cp is a wish: the largest divisor of the world not above it, dp the rest. dp, when not 0, is a demand:
// Error (recipe) unless dp times cp is the world.
MeshShape plan_mesh(int world, int cp_wish, int dp_demand = 0);

struct Mesh {
  MeshShape shape;
  std::unique_ptr<Communicator> data;     // the dp ranks that hold the same part of different sequences
  std::unique_ptr<Communicator> context;  // the cp ranks that hold parts of the same sequences
};

// Collective over the world. World rank = data rank · cp + context rank.
Mesh make_mesh(Communicator& world, const MeshShape& shape);

}  // namespace weft
