#pragma once
// How a world of ranks divides into data parallel times context parallel. The world is not in the recipe.

#include <cstdint>
#include <string>

#include "training/recipe/recipe.h"

namespace weft {

struct ResolvedMesh {
  int64_t dp = 1;
  int64_t cp = 1;
  std::string notice;  // one line for the log where the wish could not be kept, else empty
};

// mesh.cp is a wish: it falls to the largest divisor of the world not above it, and dp = world / cp. A
// mesh.dp that is set is no wish: dp * cp must be the world, or Exit::recipe. world >= 1.
ResolvedMesh resolve_mesh(int64_t world, const Recipe::Mesh& mesh, const std::string& where = "mesh");

}  // namespace weft
