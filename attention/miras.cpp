#include "attention/miras.h"

#include <cmath>

#include "attention/titans.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"

namespace weft {

// From e^-5 on, gradients grow through the chunks of a long text where an MLP learns: by 1e17 over 256 chunks
// of Yaad (docs/learning.md). A matrix starts at zero, and Moneta's W moves against the size of A: small
// steps would keep it where W is steepest.
std::vector<Input> Miras::inputs() const {
  return {{"q", "h k", Domain::direction},
          {"k", "h k", Domain::direction},
          {"v", "h v"},
          {"eta", "h", Domain::unit, config_.memory == "mlp" ? -8.0 : -3.0},
          {"alpha", "h", Domain::unit, 6}};
}

MemoryAttention::Gates Miras::gates(const Block& block) const {
  const Dtype type = wide_of(block.x[3].dtype());
  return {cast(block.x[3], type), cast(block.x[4], type), {}, {}};
}

Variable Miras::naive_slope(const Variable& error, const Variable&) const { return scale(error, 2); }

void MonetaConfig::fields(FieldVisitor& f) {
  MemoryConfig::fields(f);
  f("p", p, "power of the inner loss", {.min = 1, .fixed = true});
  f("q", q, "q of the L_q norm that turns the accumulator into weights", {.min = 2, .fixed = true});
  f("epsilon", epsilon, "|x| is sqrt(x^2 + epsilon)", {.min = 0, .above_min = true, .fixed = true});
}

Moneta::Moneta(const Config& config, Dimensions dims, const ParameterScope& scope)
    : Miras(config, dims, scope, power_bias(config.p, config.epsilon),
            norm_retention(config.q, config.epsilon), false),
      p_(config.p),
      q_(config.q),
      epsilon_(config.epsilon) {}

namespace {

// sqrt(x^2 + epsilon)^power, by its logarithm.
Variable naive_power(const Variable& x, double power, double epsilon) {
  return exp(scale(log(sqrt(scale(square(x), 1, epsilon))), power));
}

}  // namespace

// p |e|^(p-1) times e / |e|.
Variable Moneta::naive_slope(const Variable& error, const Variable&) const {
  const Variable sign = divide(error, naive_power(error, 1, epsilon_));
  return scale(multiply(naive_power(error, p_ - 1, epsilon_), sign), p_);
}

Variable Moneta::norm_factor(const Variable& a) const {
  const Variable total = sum(sum(naive_power(a, q_, epsilon_), 2, true), 1, true);
  const Variable norm = exp(scale(log(total), 1 / q_));
  return exp(scale(log(norm), q_ - 2));
}

Variable Moneta::naive_weights(const Variable& a) const { return divide(a, norm_factor(a)); }

Variable Moneta::naive_weights_inside(const Variable& a, const Variable& a_start) const {
  return divide(a, norm_factor(a_start));
}

Yaad::Yaad(const Config& config, Dimensions dims, const ParameterScope& scope)
    : Miras(config, dims, scope, huber_bias(), {}, false) {}

std::vector<Input> Yaad::inputs() const {
  std::vector<Input> inputs = Miras::inputs();
  inputs.push_back({"delta", "h", Domain::positive, 2});
  return inputs;
}

MemoryAttention::Gates Yaad::gates(const Block& block) const {
  Gates g = Miras::gates(block);
  g.bound = cast(block.x[5], g.step.dtype());
  return g;
}

Variable Yaad::naive_slope(const Variable& error, const Variable& bound) const {
  // min(1, bound / |e|), without the slope of |e| at 0, which is none.
  const Variable length = sqrt(maximum(sum(square(error), 2, true), square(bound)));
  return scale(multiply(error, divide(bound, length)), 2);
}

Memora::Memora(const Config& config, Dimensions dims, const ParameterScope& scope)
    : Miras(config, dims, scope, squared_bias(), softmax_retention(), false) {}

Variable Memora::naive_weights(const Variable& a) const {
  const Variable power = exp(a);
  return divide(power, sum(power, 2, true));
}

Variable Memora::naive_weights_inside(const Variable&, const Variable& a_start) const {
  return naive_weights(a_start);
}

namespace {

struct MirasTrial {
  MirasTrial(const Mechanism& m, int64_t n) : layout(whole_documents({n})), block(random_block(m, layout)) {}
  Layout layout;
  Block block;
};

// A mechanism whose parameters are what its initialiser draws: the same for the same names.
template <class M>
struct Drawn {
  Drawn(const typename M::Config& config, const Dimensions& d)
      : store(Dtype::f64), mechanism(config, d, {store, ""}) {
    store.commit();
  }
  Variable run(const MirasTrial& trial, const std::vector<Variable>& inputs) const {
    LocalCrossing cross(trial.layout);
    return mechanism.forward({inputs, trial.block.position, trial.block.document}, cross);
  }
  ParameterStore store;
  M mechanism;
};

// The same q, k, v, step and kept part to a memory of Titans without momentum.
Variable titans_without_momentum(const MemoryConfig& config, const Dimensions& d, const MirasTrial& trial) {
  TitansConfig titans;
  static_cast<MemoryConfig&>(titans) = config;
  const std::vector<Variable>& x = trial.block.x;
  const Tensor none = zeros(x[3].shape(), Dtype::f64);
  return Drawn<Titans>(titans, d).run(trial, {x[0], x[1], x[2], x[3], none, scale(x[4], -1, 1)});
}

const char* const kMemories[] = {"matrix", "mlp"};

}  // namespace

std::vector<Identity> Moneta::identities() const {
  std::vector<Identity> out;
  for (const char* memory : kMemories)
    out.push_back(
        {text("p = q = 2, a memory of ", memory, ": Titans without momentum"), 1e-10, [d = dims(), memory] {
           MonetaConfig config;
           config.p = config.q = 2;
           config.chunk = 8;
           config.memory = memory;
           const Drawn<Moneta> moneta(config, d);
           const MirasTrial trial(moneta.mechanism, 37);
           return largest_difference(moneta.run(trial, trial.block.x),
                                     titans_without_momentum(config, d, trial));
         }});
  return out;
}

std::vector<Identity> Yaad::identities() const {
  std::vector<Identity> out;
  for (const char* memory : kMemories)
    out.push_back({text("delta without bound, a memory of ", memory, ": Titans without momentum"), 1e-10,
                   [d = dims(), memory] {
                     MemoryConfig config;
                     config.chunk = 8;
                     config.memory = memory;
                     const Drawn<Yaad> yaad(config, d);
                     MirasTrial trial(yaad.mechanism, 37);
                     trial.block.x[5] = full({37, d.heads}, 1e100, Dtype::f64);
                     return largest_difference(yaad.run(trial, trial.block.x),
                                               titans_without_momentum(config, d, trial));
                   }});
  out.push_back({"a value off by 1000 costs less than a hundredth of what it costs under the squared error",
                 0.01, [d = dims()] {
                   const int64_t n = 20, last = n - 1;
                   MemoryConfig config;
                   config.chunk = 1;
                   config.memory = "matrix";
                   const Drawn<Yaad> yaad(config, d);
                   MirasTrial trial(yaad.mechanism, n);
                   std::vector<Variable>& x = trial.block.x;
                   const std::vector<int32_t> first(static_cast<size_t>(n), 0);
                   for (int i = 0; i < 3; ++i) x[i] = gather_rows(x[i], from_ints(first));
                   x[0] = x[1];
                   const Variable truth = slice(x[2], 0, 0, 1);
                   x[2] = concatenate({slice(x[2], 0, 0, last), scale(truth, 1, 1000)}, 0);
                   for (const auto& [gate, value] : {std::pair{3, 0.25}, {4, 1.0}, {5, 1.0}})
                     x[gate] = full({n, d.heads}, value, Dtype::f64);
                   const auto error = [&](const Variable& y) {
                     return largest_difference(slice(y, 0, last, n), truth);
                   };
                   return error(yaad.run(trial, x)) / error(titans_without_momentum(config, d, trial));
                 }});
  return out;
}

// Of a matrix memory of Memora after many tokens, fed through its carry.
// Steps of logarithms, so that weights move by a factor.
std::vector<Input> Memora::inputs() const {
  std::vector<Input> inputs = Miras::inputs();
  if (config_.memory == "mlp") inputs[3].start = -5;
  return inputs;
}

std::vector<Identity> Memora::identities() const {
  return {{"after a hundred thousand tokens weights are not negative and those of one input sum to 1", 1e-12,
           [d = dims()] {
             const int64_t n = 100000;
             MemoryConfig config;
             config.memory = "matrix";
             config.chunk = 250;
             const Drawn<Memora> memora(config, d);
             const MirasTrial trial(memora.mechanism, n);
             Stream stream;
             LocalCrossing cross(trial.layout, &stream);
             memora.mechanism.forward(trial.block, cross);
             const Variable w = softmax_retention().weights(stream.slots[0].states.at(0)[0]);
             double worst = 0;
             for (const double x : to_values(w)) worst = std::max(worst, -x);
             for (const double x : to_values(sum(w, 2))) worst = std::max(worst, std::abs(x - 1));
             return worst;
           }}};
}

}  // namespace weft
