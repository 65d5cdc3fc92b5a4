#include "attention/titans.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"

namespace weft {

void TitansConfig::fields(FieldVisitor& f) {
  MemoryConfig::fields(f);
  f("step_limit", step_limit,
    "bounds the memory's step: theta is step_limit (1 - eta) / (2 chunk) of its gate, so that a chunk moves "
    "an "
    "answer by at most this share of its error, however alike its keys are. 1 keeps a matrix from growing "
    "without end (NaN early in training); larger ones write more of keys that differ. 0 = the paper's: no "
    "bound",
    {.min = 0, .fixed = true});
}

Titans::Titans(const Config& config, Dimensions dims, const ParameterScope& scope)
    : MemoryAttention(config, dims, scope, squared_bias(), {}, true), step_limit_(config.step_limit) {}

std::vector<Input> Titans::inputs() const {
  // Both layers of an MLP move, each makes the other's steps larger, and the norm of a small answer makes
  // them larger still: from e^-5 on, gradients grow through the chunks of a long text (docs/learning.md).
  const bool mlp = config_.memory == "mlp";
  double step = mlp ? -8 : -3;
  // A chunk's gradients are taken at one place, and where its keys are alike its steps add up: to 4 theta C
  // times the error, with momentum 1/2. So those of a long chunk begin at theta = 1 / (4 C), where the first
  // ones pass no answer by; those of up to 16 tokens begin where docs/learning.md has them.
  if (config_.chunk > 16) step -= std::log(static_cast<double>(config_.chunk) / (mlp ? 16 : 5));
  // With a limit the gate is a share of what is safe for a matrix: half of it.
  if (step_limit_ > 0) step = mlp ? -4 : 0;
  return {
      {"q", "h k", Domain::direction},    {"k", "h k", Domain::direction}, {"v", "h v"},
      {"theta", "h", Domain::unit, step}, {"eta", "h", Domain::unit},      {"alpha", "h", Domain::unit, -6}};
}

MemoryAttention::Gates Titans::gates(const Block& block) const {
  const Dtype type = wide_of(block.x[3].dtype());
  const Variable eta = cast(block.x[4], type);
  return {limited(cast(block.x[3], type), eta), scale(cast(block.x[5], type), -1, 1), eta, {}};
}

Variable Titans::limited(const Variable& theta, const Variable& eta) const {
  if (step_limit_ == 0) return theta;
  const double most = step_limit_ / (2 * static_cast<double>(config_.chunk));
  return multiply(theta, scale(eta, -most, most));
}

std::string Titans::warning() const {
  if (step_limit_ > 0) return {};
  return "nothing bounds the steps of its memory, which may grow until the run ends (80); step_limit: 1 does";
}

Variable Titans::naive_slope(const Variable& error, const Variable&) const { return scale(error, 2); }

namespace {

// One document of n tokens with a matrix memory.
struct Trial {
  Trial(const Dimensions& d, int64_t n) : dims(d), layout(whole_documents({n})) {
    ParameterStore store(Dtype::f64);
    block = random_block(Titans({}, d, {store, ""}), layout);
  }

  Variable run(int64_t chunk, double step_limit = 0) const {
    ParameterStore store(Dtype::f64);
    TitansConfig config;
    config.chunk = chunk;
    config.step_limit = step_limit;
    LocalCrossing cross(layout);
    return Titans(config, dims, {store, ""}).forward(block, cross);
  }

  // Row t of input i, (H, 1, size).
  Variable row(size_t i, int64_t t) const {
    const Variable& x = block.x[i];
    return reshape(slice(x, 0, t, t + 1), {dims.heads, 1, x.numel() / (x.dim(0) * dims.heads)});
  }

  // The output of M -> step(M, t), from zero.
  Variable recurrence(const std::function<Variable(const Variable& m, int64_t t)>& step) const {
    Variable m = zeros({dims.heads, dims.key, dims.value}, Dtype::f64);
    std::vector<Variable> outputs;
    for (int64_t t = 0; t < block.x[0].dim(0); ++t) {
      m = step(m, t);
      outputs.push_back(reshape(matmul(row(0, t), m), {1, dims.heads, dims.value}));
    }
    return concatenate(outputs, 0);
  }

  Dimensions dims;
  Layout layout;
  Block block;
};

}  // namespace

std::vector<Identity> Titans::identities() const {
  std::vector<Identity> out;
  for (const int64_t chunk : {1, 4, 8, 24})
    out.push_back(
        {text("by chunks of ", chunk, " = the recursion by tokens with gradients frozen in a chunk"), 1e-10,
         [d = dims(), chunk] {
           const Trial trial(d, 61);
           Variable s = zeros({d.heads, d.key, d.value}, Dtype::f64), start;
           const auto step = [&](const Variable& m, int64_t t) {
             if (t % chunk == 0) start = m;
             const Variable error = subtract(matmul(trial.row(1, t), start), trial.row(2, t));
             const Variable gradient = scale(matmul(trial.row(1, t), error, {true, false}), 2);
             s = subtract(multiply(s, trial.row(4, t)), multiply(gradient, trial.row(3, t)));
             return add(multiply(m, scale(trial.row(5, t), -1, 1)), s);
           };
           return largest_difference(trial.run(chunk), trial.recurrence(step));
         }});
  out.push_back({"a limit L of the step is theta times L (1 - eta) / (2 chunk)", 1e-12, [d = dims()] {
                   Trial trial(d, 43);
                   const Variable limited = trial.run(6, 1.5);
                   std::vector<double> theta = to_values(trial.block.x[3].value());
                   const std::vector<double> eta = to_values(trial.block.x[4].value());
                   for (size_t i = 0; i < theta.size(); ++i) theta[i] *= 1.5 * (1 - eta[i]) / 12;
                   trial.block.x[3] = from_values({43, d.heads}, Dtype::f64, theta);
                   return largest_difference(limited, trial.run(6));
                 }});
  out.push_back({"without momentum, chunks of one token are a gated delta rule with beta = 2 theta", 1e-12,
                 [d = dims()] {
                   Trial trial(d, 37);
                   trial.block.x[4] = zeros({37, d.heads}, Dtype::f64);
                   // M = keep M + beta k (v - M^T k)^T
                   const auto step = [&](const Variable& m, int64_t t) {
                     const Variable beta = scale(trial.row(3, t), 2), k = trial.row(1, t);
                     const Variable write = multiply(subtract(trial.row(2, t), matmul(k, m)), beta);
                     return add(multiply(m, scale(trial.row(5, t), -1, 1)), matmul(k, write, {true, false}));
                   };
                   return largest_difference(trial.run(1), trial.recurrence(step));
                 }});
  out.push_back({"forgetting all and without momentum, a token finds only its own step", 1e-12, [d = dims()] {
                   const int64_t n = 24;
                   Trial trial(d, n);
                   trial.block.x[4] = zeros({n, d.heads}, Dtype::f64);
                   trial.block.x[5] = full({n, d.heads}, 1, Dtype::f64);
                   Variable start = zeros({d.heads, d.key, d.value}, Dtype::f64);
                   const auto step = [&](const Variable& m, int64_t t) {
                     if (t % 8 == 0) start = m;
                     const Variable k = trial.row(1, t), error = subtract(trial.row(2, t), matmul(k, start));
                     return matmul(k, multiply(error, scale(trial.row(3, t), 2)), {true, false});
                   };
                   return largest_difference(trial.run(8), trial.recurrence(step));
                 }});
  return out;
}

}  // namespace weft
