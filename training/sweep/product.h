#pragma once
// The points of a sweep: every combination of the values that its keys may take.
//
//   model.layers=gla,[lightning*3,softmax] seed=1..3 steps=100
//
// are 2 x 3 recipes. Commas part values, but not inside brackets or quotes; 1..3 stands for 1,2,3. A value
// means what it means to `weft train`. Mistakes are an Error (usage) that names the override.

#include <string>
#include <vector>

namespace weft {

struct SweepAxis {
  std::string key;
  std::vector<std::string> values;
};

// overrides: "key=values" each, a key once.
std::vector<SweepAxis> sweep_axes(const std::vector<std::string>& overrides);

struct SweepPoint {
  std::string name;                    // of its folder, "layers-gla_seed-1": what varies, nothing else
  std::vector<std::string> overrides;  // "key=value", one an axis
};

// The last axis changes fastest. Without an axis of several values there is one point, "run".
std::vector<SweepPoint> sweep_points(const std::vector<SweepAxis>& axes);

}  // namespace weft
