#include "attention/delta_rule.h"

#include <cmath>

#include "attention/delta_run.h"
#include "attention/in_chunk.h"
#include "attention/linear_attention.h"
#include "attention/scan_kernel.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"

namespace weft {
namespace {

Variable unit_matrix(int64_t n, Dtype dtype, Device device) {
  const Variable ones = full({1, 1, n, n}, 1, dtype, device);
  return subtract(lower_triangle(ones, 0), lower_triangle(ones, -1));
}

// What a chunk writes at its keys, as a function of the state S before it: from_values - from_state S.
struct Writes {
  Variable k, decay;                 // (M, H, C, Dk), (M, H, C): the running sum of log decays
  Variable from_values, from_state;  // (M, H, C, Dv), (M, H, C, Dk)
};

// b.x: q, k, v, beta and, if gated, g
Writes writes_of(const Block& b) {
  const Variable k = by_head(b.x[1]), v = by_head(b.x[2]), beta = as_column(number_by_head(b.x[3]));
  const Variable decay = b.x.size() > 4
                             ? running_decay(b.x[4])
                             : Variable(zeros({k.dim(0), k.dim(1), k.dim(2)}, k.dtype(), k.device()));
  const Variable scaled = multiply(k, beta);
  const Variable met = multiply(matmul(scaled, k, {false, true}), decay_between(decay, -1));
  const Variable both =
      solve_unit_lower(met, concatenate({multiply(v, beta), multiply(scaled, as_column(exp(decay)))}, 3));
  const int64_t e = v.dim(3);
  return {k, decay, slice(both, 3, 0, e), slice(both, 3, e, both.dim(3))};
}

Scan delta_scan(double scale, int64_t chunk, bool gated, const Dimensions& dims, Dtype dtype, Device device) {
  Scan scan;
  scan.names = {"", "S"};
  scan.pad.assign(gated ? 5 : 4, 0);
  scan.chunk = chunk;
  const Dtype type = wide_of(dtype);
  const int64_t h = dims.heads, d = dims.key, e = dims.value;
  scan.identity = [=] {
    return State{add(zeros({1, h, d, d}, type, device), unit_matrix(d, type, device)),
                 zeros({1, h, d, e}, type, device)};
  };
  scan.summarize = [=](const Block& b) {
    const Writes w = writes_of(b);
    const int64_t n = w.k.dim(2);
    const Variable last = slice(w.decay, 2, n - 1, n);
    const Variable k = multiply(w.k, as_column(exp(subtract(last, w.decay))));  // decayed to the end
    return State{subtract(multiply(as_column(exp(last)), unit_matrix(d, type, device)),
                          matmul(k, w.from_state, {true, false})),
                 matmul(k, w.from_values, {true, false})};
  };
  scan.combine = [](const State& before, const State& after) {
    return State{matmul(after[0], before[0]), add(matmul(after[0], before[1]), after[1])};
  };
  scan.apply = [=](const Block& b, const State& prefix) {
    const Writes w = writes_of(b);
    const Variable q = weft::scale(by_head(b.x[0]), scale);
    const Variable written = subtract(w.from_values, matmul(w.from_state, prefix[1]));
    const Variable scores = multiply(matmul(q, w.k, {false, true}), decay_between(w.decay, 0));
    const Variable past = matmul(multiply(q, as_column(exp(w.decay))), prefix[1]);
    return by_token(add(matmul(scores, written), past), b.x[2].dtype());
  };
  scan.kernel.serves = [=](Device where) { return has_scan_kernel(where, dtype, d, e); };
  scan.kernel.run = [=, identity = scan.identity](const Block& b, const Layout& layout, const State& start,
                                                  bool want_end) {
    const DeltaRun r = delta_run(cast(b.x[0], dtype), cast(b.x[1], dtype), cast(b.x[2], dtype), b.x[3],
                                 gated ? b.x[4] : Variable(), start.empty() ? Variable() : start[1], scale,
                                 layout, want_end);
    return run_result(r.o, r.final_state, identity);
  };
  // What becomes of the unit matrix where nothing is written.
  scan.kernel.transition = [=, identity = scan.identity](const Block& b, const Layout& layout) {
    const Variable k = cast(b.x[1], dtype);
    const std::vector<int32_t> each(layout.segments.size(), 0);
    return delta_run(k, k, zeros(k.shape(), dtype, device), b.x[3], gated ? b.x[4] : Variable(),
                     gather_rows(identity()[0], from_ints(each, device)), scale, layout, true)
        .final_state;
  };
  use_recurrent_step(scan, scale, d, 3, gated ? 4 : -1);
  return scan;
}

}  // namespace

void DeltaRuleConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of what is read from the state; 0 = 1 / sqrt(key size)", {.min = 0});
  f("chunk", chunk, "tokens processed as one matrix product",
    {.unit = "tokens", .min = 1, .speed_only = true});
}

DeltaRule::DeltaRule(Config config, Dimensions dims, const ParameterScope&)
    : Mechanism(dims), config_(config) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  require_equal_heads(dims, "the delta rule");
}

std::vector<Input> DeltaRule::inputs() const {
  return {{"q", "h k"}, {"k", "h k", Domain::direction}, {"v", "h v"}, {"beta", "h", Domain::unit}};
}

std::vector<Input> GatedDeltaRule::inputs() const {
  std::vector<Input> inputs = DeltaRule::inputs();
  inputs.push_back({"g", "h", Domain::log_decay});
  return inputs;
}

Variable DeltaRule::forward(const Block& block, Crossing& cross) const {
  return cross(
      delta_scan(config_.scale, config_.chunk, gated(), dims(), block.x[2].dtype(), block.x[2].device()),
      block);
}

// Token by token: what the memory answers is read, and the error written.
Variable DeltaRule::reference(const Block& block) const {
  const int64_t h = dims().heads, d = dims().key, e = dims().value;
  Variable s = zeros({h, d, e}, block.x[0].dtype());
  std::vector<Variable> outputs;
  for (int64_t t = 0; t < block.x[0].dim(0); ++t) {
    const auto row = [&](int i, int64_t size) {
      return reshape(slice(block.x[i], 0, t, t + 1), {h, 1, size});
    };
    if (gated()) s = multiply(s, exp(row(4, 1)));
    const Variable error = subtract(row(2, e), matmul(row(1, d), s));
    s = add(s, matmul(row(1, d), multiply(error, row(3, 1)), {true, false}));
    outputs.push_back(reshape(scale(matmul(row(0, d), s), config_.scale), {1, h, e}));
  }
  return concatenate(outputs, 0);
}

std::vector<Identity> DeltaRule::identities() const {
  const Dimensions d = dims();
  return {{"with beta = 1 and a unit key, the memory answers the last value written for it", 1e-12,
           [d] {
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
           }},
          {"with beta = 1 the memory answers the last value of each of many keys that are alike", 1e-9, [d] {
             const int64_t n = 100;
             ParameterStore store(Dtype::f64);
             const DeltaRule m({.scale = 1, .chunk = 64}, d, {store, ""});
             const Layout layout = whole_documents({n});
             Block b = random_block(m, layout);
             // Keys of a narrow cone: the system of a chunk is as far from the unit matrix as it gets.
             const Tensor noise = b.x[1];
             const Variable near = add(scale(noise, 0.01), full(noise.shape(), 1, Dtype::f64));
             b.x[1] = divide(near, sqrt(sum(square(near), -1, true)));
             b.x[0] = b.x[1];
             b.x[3] = full({n, d.heads}, 1, Dtype::f64);
             LocalCrossing cross(layout);
             return largest_difference(m.forward(b, cross), b.x[2]);
           }}};
}

std::vector<Identity> GatedDeltaRule::identities() const {
  const Dimensions d = dims();
  return {{"without decay it is the delta rule", 1e-12,
           [d] {
             ParameterStore store(Dtype::f64);
             const GatedDeltaRule gated({.chunk = 16}, d, {store, "a."});
             const DeltaRule plain({.chunk = 8}, d, {store, "b."});
             const Layout layout = whole_documents({37});
             Block b = random_block(gated, layout);
             b.x[4] = zeros(b.x[4].shape(), Dtype::f64);
             LocalCrossing first(layout), second(layout);
             const Variable with = gated.forward(b, first);
             b.x.pop_back();
             return largest_difference(with, plain.forward(b, second));
           }},
          {"keys that never meet again make it scalar-gated linear attention with values beta v", 1e-12, [d] {
             ParameterStore store(Dtype::f64);
             const GatedDeltaRule gated({.chunk = 3}, d, {store, "a."});
             const SimpleGla linear({.chunk = 2}, d, {store, "b."});
             const int64_t n = d.key;
             const Layout layout = whole_documents({n});
             Block b = random_block(gated, layout);
             std::vector<double> axes(static_cast<size_t>(n * d.heads * d.key));  // token t: the t-th axis
             for (int64_t t = 0; t < n; ++t)
               for (int64_t h = 0; h < d.heads; ++h) axes[(t * d.heads + h) * d.key + t] = 1;
             b.x[1] = from_values(b.x[1].shape(), Dtype::f64, axes);
             LocalCrossing first(layout), second(layout);
             const Variable y = gated.forward(b, first);
             const Variable v = multiply(b.x[2], reshape(b.x[3], {n, d.heads, 1}));
             return largest_difference(
                 y, linear.forward({{b.x[0], b.x[1], v, b.x[4]}, b.position, b.document}, second));
           }}};
}

}  // namespace weft
