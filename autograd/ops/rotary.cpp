#include "autograd/ops/rotary.h"

#include <algorithm>

namespace weft {
namespace {

struct Turn {
  double theta;
  int64_t rotated;
};

Turn turn_of(const std::vector<Variable>& x, const Tensor& position, double theta, int64_t rotated) {
  CHECK(!x.empty(), "rotary: nothing turns");
  const Variable& first = x[0];
  CHECK(first.rank() == 3, "rotary: x ", first.shape());
  const Turn turn{theta, rotated == 0 ? first.dim(2) : rotated};
  CHECK(turn.rotated % 2 == 0 && turn.rotated >= 0 && turn.rotated <= first.dim(2), "rotary: ", turn.rotated,
        " features of ", first.dim(2));
  for (const Variable& v : x)
    CHECK(v.rank() == 3 && position.shape() == Shape{v.dim(0)} && position.dtype() == Dtype::i32 &&
              v.dtype() == first.dtype() && v.dim(2) == first.dim(2),
          "rotary: x ", v.shape(), " ", name_of(v.dtype()), ", position ", position.shape(), " ",
          name_of(position.dtype()));
  return turn;
}

void run(const std::vector<cpu::RotaryPart>& parts, const Tensor& position, const Turn& turn, double way) {
  if (parts.empty()) return;
  ON_DEVICE(parts[0].x.device(), rotary(parts, position, turn.theta, turn.rotated, way));
}

}  // namespace

Variable rotary(const Variable& x, const Tensor& position, double theta, int64_t rotated) {
  return rotary(std::vector{x}, position, theta, rotated)[0];
}

std::vector<Variable> rotary(const std::vector<Variable>& x, const Tensor& position, double theta,
                             int64_t rotated) {
  const Turn turn = turn_of(x, position, theta, rotated);
  std::vector<Tensor> outputs;
  std::vector<cpu::RotaryPart> parts;
  for (const Variable& v : x) {
    outputs.push_back(empty_like(v));
    parts.push_back({outputs.back(), v});
  }
  run(parts, position, turn, 1);
  return record_many("rotary", x, outputs, save(position), turn, [](Backward& grads, const Turn& turn) {
    std::vector<cpu::RotaryPart> parts;
    for (int i = 0; i < grads.inputs(); ++i) {
      const Tensor dy = grads.grad(i);
      parts.push_back({grads.room(i, dy), dy});
    }
    run(parts, grads.saved(0), turn, -1);
    for (size_t i = 0; i < parts.size(); ++i) grads.add(static_cast<int>(i), parts[i].y);
  });
}

// One slot of the tape stands for x before this entry and for y behind it. On the way back those who read y
// have added their gradients when the entry is met, and those who read x add theirs to what it leaves.
void rotary_in_place(const std::vector<Variable>& x, const Tensor& position, double theta, int64_t rotated) {
  const Turn turn = turn_of(x, position, theta, rotated);
  std::vector<cpu::RotaryPart> parts;
  for (const Variable& v : x) parts.push_back({v, v});
  run(parts, position, turn, 1);
  if (std::none_of(x.begin(), x.end(), [](const Variable& v) { return v.differentiable(); })) return;
  record_many(
      "rotary in place", x, {}, save(position), turn,
      [](Backward& grads, const Turn& turn) {
        std::vector<int> inputs;
        std::vector<cpu::RotaryPart> parts;
        for (int i = 0; i < grads.inputs(); ++i) {
          const Tensor dy = grads.collect(i);
          if (!dy.defined()) continue;
          const bool ours = dy.unique() && !dy.repeats();
          inputs.push_back(i);
          parts.push_back({ours ? dy : grads.room(i, dy), dy});
        }
        run(parts, grads.saved(0), turn, -1);
        for (size_t i = 0; i < parts.size(); ++i) grads.add(inputs[i], parts[i].y);
      },
      true);  // it has no output that a gradient could reach
}

}  // namespace weft
