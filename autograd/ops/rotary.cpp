#include "autograd/ops/rotary.h"

namespace weft {

Variable rotary(const Variable& x, const Tensor& position, double theta, int64_t rotated) {
  return rotary({x}, {}, position, theta, rotated)[0];
}

std::vector<Variable> rotary(const std::vector<Variable>& turning, const std::vector<Variable>& staying,
                             const Tensor& position, double theta, int64_t rotated) {
  CHECK(!turning.empty(), "rotary: nothing turns");
  const Variable& first = turning[0];
  CHECK(first.rank() == 3, "rotary: x ", first.shape());
  struct Turn {
    double theta;
    int64_t rotated;
    int turning;
  };
  const Turn turn{theta, rotated == 0 ? first.dim(2) : rotated, static_cast<int>(turning.size())};
  CHECK(turn.rotated % 2 == 0 && turn.rotated >= 0 && turn.rotated <= first.dim(2), "rotary: ", turn.rotated,
        " features of ", first.dim(2));
  std::vector<Variable> inputs = turning;
  inputs.insert(inputs.end(), staying.begin(), staying.end());
  std::vector<Tensor> outputs;
  std::vector<cpu::RotaryPart> parts;
  for (const Variable& x : inputs) {
    const bool turns = parts.size() < turning.size();
    CHECK(x.rank() == 3 && position.shape() == Shape{x.dim(0)} && position.dtype() == Dtype::i32 &&
              x.dtype() == first.dtype() && (!turns || x.dim(2) == first.dim(2)),
          "rotary: x ", x.shape(), " ", name_of(x.dtype()), ", position ", position.shape(), " ",
          name_of(position.dtype()));
    outputs.push_back(empty_like(x));
    parts.push_back({outputs.back(), x, turns});
  }
  ON_DEVICE(first.device(), rotary(parts, position, turn.theta, turn.rotated, 1));
  return record_many("rotary", inputs, outputs, save(position), turn, [](Backward& grads, const Turn& turn) {
    std::vector<cpu::RotaryPart> parts;
    for (int i = 0; i < grads.inputs(); ++i) {
      const Tensor dy = grads.grad(i);
      parts.push_back({grads.room(i, dy), dy, i < turn.turning});
    }
    ON_DEVICE(parts[0].x.device(), rotary(parts, grads.saved(0), turn.theta, turn.rotated, -1));
    for (size_t i = 0; i < parts.size(); ++i) grads.add(static_cast<int>(i), parts[i].y);
  });
}

}  // namespace weft
