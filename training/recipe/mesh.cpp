#include "training/recipe/mesh.h"

#include <algorithm>

#include "autograd/check.h"

namespace weft {

ResolvedMesh resolve_mesh(int64_t world, const Recipe::Mesh& mesh, const std::string& where) {
  CHECK(world >= 1 && mesh.cp >= 1 && mesh.dp >= 0, "resolve_mesh: world ", world, ", dp ", mesh.dp, ", cp ",
        mesh.cp);
  if (mesh.dp > 0) {
    if (mesh.dp * mesh.cp != world)
      throw Error(Exit::recipe,
                  text("mesh.dp ", mesh.dp, " times mesh.cp ", mesh.cp, " is ", mesh.dp * mesh.cp,
                       ", and the world has ", world, world == 1 ? " rank" : " ranks"),
                  where, text("start ", mesh.dp * mesh.cp, " ranks, or set mesh.dp to 0 to derive it"));
    return {mesh.dp, mesh.cp, {}};
  }
  int64_t cp = std::min(world, mesh.cp);
  while (world % cp != 0) --cp;
  ResolvedMesh resolved{world / cp, cp, {}};
  if (cp != mesh.cp)
    resolved.notice = text("mesh.cp ", mesh.cp, " does not divide the ", world,
                           world == 1 ? " rank" : " ranks", " here: runs with cp ", cp, ", dp ", resolved.dp);
  return resolved;
}

}  // namespace weft
