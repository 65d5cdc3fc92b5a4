#include "distributed/mesh.h"

#include <algorithm>

namespace weft {

MeshShape plan_mesh(int world, int cp_wish, int dp_demand) {
  CHECK(world > 0, "mesh: ", world, " ranks");
  if (cp_wish < 1)
    throw Error(Exit::recipe, text("mesh.cp is ", cp_wish, "; it counts ranks, 1 or more"), "mesh.cp");
  if (dp_demand < 0)
    throw Error(Exit::recipe, text("mesh.dp is ", dp_demand, "; it counts groups of ranks, 1 or more"),
                "mesh.dp");
  if (dp_demand > 0) {
    if (int64_t{dp_demand} * cp_wish != world)
      throw Error(Exit::recipe,
                  text("mesh.dp ", dp_demand, " times mesh.cp ", cp_wish, " is ",
                       int64_t{dp_demand} * cp_wish, " ranks, but there are ", world),
                  "mesh.dp", "leave mesh.dp out: it follows from the number of ranks");
    return {dp_demand, cp_wish, {}};
  }
  int cp = std::min(cp_wish, world);
  while (world % cp != 0) --cp;
  MeshShape shape{world / cp, cp, {}};
  if (cp != cp_wish)
    shape.note = text("mesh: cp ", cp, " instead of ", cp_wish, ", the largest divisor of ", world,
                      " ranks; dp ", shape.dp);
  return shape;
}

Mesh make_mesh(Communicator& world, const MeshShape& shape) {
  CHECK(shape.dp * shape.cp == world.size(), "mesh: ", shape.dp, " x ", shape.cp, " on ", world.size(),
        " ranks");
  Mesh mesh{shape, nullptr, nullptr};
  mesh.context = world.split(world.rank() / shape.cp, world.rank());
  mesh.data = world.split(world.rank() % shape.cp, world.rank());
  return mesh;
}

}  // namespace weft
