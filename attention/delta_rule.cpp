#include "attention/delta_rule.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"

namespace weft {

void DeltaRuleConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the read; 0 = 1 / sqrt(key size)", {.min = 0});
}

DeltaRule::DeltaRule(Config config, Dimensions dims, const ParameterScope&)
    : Mechanism(dims), config_(config) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  if (dims.heads != dims.kv_heads)
    throw Error(
        Exit::recipe,
        text("the delta rule has one key head a query head, got ", dims.heads, " and ", dims.kv_heads),
        "kv_heads", "set kv_heads = heads");
}

std::vector<Input> DeltaRule::inputs() const {
  return {{"q", "h k"}, {"k", "h k", Domain::direction}, {"v", "h v"}, {"beta", "h", Domain::unit}};
}

Variable DeltaRule::forward(const Block& block, Crossing& cross) const {
  const int64_t h = dims().heads, d = dims().key, e = dims().value;
  const Dtype type = wide_of(block.x[0].dtype());
  const Device device = block.x[0].device();
  Carry carry;
  carry.names = {"S"};
  carry.start = [=] { return State{zeros({h, d, e}, type, device)}; };
  carry.step = [=, factor = config_.scale](const Block& b, const State& state) {
    const Variable q = cast(b.x[0], type), k = cast(b.x[1], type), v = cast(b.x[2], type),
                   beta = cast(b.x[3], type);
    Variable s = state[0];
    std::vector<Variable> outputs;
    for (int64_t t = 0; t < q.dim(0); ++t) {
      const auto row = [&](const Variable& x, int64_t size) {
        return reshape(slice(x, 0, t, t + 1), {h, 1, size});
      };
      const Variable key = row(k, d), error = subtract(row(v, e), matmul(key, s));
      s = add(s, matmul(key, multiply(error, row(beta, 1)), {true, false}));
      outputs.push_back(reshape(scale(matmul(row(q, d), s), factor), {1, h, e}));
    }
    return std::pair{cast(concatenate(outputs, 0), b.x[2].dtype()), State{s}};
  };
  return cross(carry, block);
}

// As a linear recurrence with explicit transitions: S_t = (I - beta k k^T) S_{t-1} + beta k v^T.
Variable DeltaRule::reference(const Block& block) const {
  const int64_t n = block.x[0].dim(0), h = dims().heads, d = dims().key, e = dims().value;
  const Dtype type = block.x[0].dtype();
  std::vector<double> identity(static_cast<size_t>(d * d));
  for (int64_t i = 0; i < d; ++i) identity[i * d + i] = 1;
  const Tensor one = from_values({1, d, d}, type, identity);
  Variable s = zeros({h, d, e}, type);
  std::vector<Variable> outputs;
  for (int64_t t = 0; t < n; ++t) {
    const auto row = [&](int i, int64_t size) {
      return reshape(slice(block.x[i], 0, t, t + 1), {h, 1, size});
    };
    const Variable scaled = multiply(row(1, d), row(3, 1));  // beta k
    const Variable transition = subtract(one, matmul(scaled, row(1, d), {true, false}));
    s = add(matmul(transition, s), matmul(scaled, row(2, e), {true, false}));
    outputs.push_back(reshape(scale(matmul(row(0, d), s), config_.scale), {1, h, e}));
  }
  return concatenate(outputs, 0);
}

std::vector<Identity> DeltaRule::identities() const {
  const Dimensions d = dims();
  return {{"with beta = 1 and a unit key, the memory answers the last value written for it", 1e-12, [d] {
             const int64_t n = 5;
             ParameterStore store(Dtype::f64);
             const DeltaRule m({.scale = 1}, d, {store, ""});
             const Layout layout = whole_documents({n});
             // The same unit key at every token, and the query equal to it.
             std::vector<double> unit(static_cast<size_t>(n * d.heads * d.key));
             for (size_t i = 0; i < unit.size(); i += static_cast<size_t>(d.key)) unit[i] = 1;
             const Tensor key = from_values({n, d.heads, d.key}, Dtype::f64, unit);
             const Tensor v = random_tensor({n, d.heads, d.value}, 1);
             const Tensor one = full({n, d.heads}, 1, Dtype::f64);
             LocalCrossing cross(layout);
             return largest_difference(
                 m.forward({{key, key, v, one}, layout.position, layout.document}, cross), v);
           }}};
}

}  // namespace weft
