#include "attention/memory_attention.h"

#include <cmath>

#include "attention/chunks.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"

namespace weft {
namespace {

Memory memory_of(const MemoryConfig& config, const Dimensions& d) {
  if (config.memory == "matrix") return matrix_memory(d.heads, d.key, d.value);
  return mlp_memory(d.heads, d.key, config.expansion * d.key, d.value);
}

}  // namespace

void MemoryConfig::fields(FieldVisitor& f) {
  f("chunk", chunk,
    "tokens whose gradients are taken at the same weights; part of the function, not only of its speed",
    {.unit = "tokens", .min = 1, .max = 1 << 20, .fixed = true});
  f("memory", memory, "what learns: x M, or x + norm(gelu(x W1) W2)",
    {.choices = {"matrix", "mlp"}, .fixed = true});
  f("expansion", expansion, "inner size of the MLP, in key sizes", {.min = 1, .max = 1 << 20, .fixed = true});
}

MemoryAttention::MemoryAttention(const MemoryConfig& config, Dimensions dims, const ParameterScope& scope,
                                 Bias bias, Retention retention, bool momentum)
    : Mechanism(dims),
      config_(config),
      momentum_(momentum),
      memory_({memory_of(config, dims), std::move(bias), std::move(retention), momentum}, config.chunk) {
  require_equal_heads(dims, "a learning memory");
  if (config.memory == "matrix") return;
  const MemoryPolicy& policy = memory_.policy();
  for (size_t i = 0; i < policy.memory.names.size(); ++i) {
    const Shape& shape = policy.memory.shapes[i];
    const double deviation = policy.retention.deviation;
    start_.push_back(scope.declare(
        {policy.memory.names[i], shape, ParameterKind::vector,
         Initializer::normal(deviation > 0 ? deviation : 1 / std::sqrt(static_cast<double>(shape[1])))}));
  }
}

State MemoryAttention::initial(Dtype type, Device device) const {
  State a;
  for (const Parameter& p : start_) a.push_back(cast(p, type));
  if (a.empty()) a.push_back(zeros({dims().heads, dims().key, dims().value}, type, device));
  return a;
}

namespace {

// Of each of B documents the rows of a cut, (B tokens, H, ...), to (chunks B H, size, d) of a type.
Variable by_chunk(const Variable& x, int64_t documents, const ChunkedMemory::Cut& cut, Dtype type) {
  if (!x.defined()) return x;
  const int64_t h = x.dim(1), d = x.rank() == 3 ? x.dim(2) : 1, tokens = x.dim(0) / documents;
  const int64_t end = cut.begin + cut.chunks * cut.size;
  const Variable rows =
      end - cut.begin == tokens ? x : slice(reshape(x, {documents, tokens, h, d}), 1, cut.begin, end);
  const Variable chunks = reshape(cast(rows, type), {documents, cut.chunks, cut.size, h, d});
  return reshape(permute(chunks, {1, 0, 3, 2, 4}), {cut.chunks * documents * h, cut.size, d});
}

// And back, (B, chunks size, H, d).
Variable by_document(const Variable& y, int64_t documents, const ChunkedMemory::Cut& cut) {
  const int64_t h = y.dim(0) / (cut.chunks * documents), d = y.dim(2);
  const Variable chunks = reshape(y, {cut.chunks, documents, h, cut.size, d});
  return reshape(permute(chunks, {1, 0, 3, 2, 4}), {documents, cut.chunks * cut.size, h, d});
}

}  // namespace

Carry MemoryAttention::carry(Dtype dtype, Device device) const {
  const Dtype type = wide_of(dtype);
  Carry carry;
  carry.names = memory_.names();
  carry.chunk = config_.chunk;
  carry.start = [this, type, device] { return memory_.start(initial(type, device)); };
  carry.step = [this, type, dtype](const Block& b, const State& state) {
    const int64_t documents = state.back().dim(0), tokens = b.x[0].dim(0) / documents;
    const Gates g = gates(b);
    State now = state;
    std::vector<Variable> answers;
    for (const ChunkedMemory::Cut& cut : memory_.cuts(memory_.place(state), tokens)) {
      const auto own = [&](const Variable& x) { return by_chunk(x, documents, cut, type); };
      auto [y, after] = memory_.learn(
          {own(b.x[0]), own(b.x[1]), own(b.x[2]), own(g.step), own(g.keep), own(g.momentum), own(g.bound)},
          cut.chunks, cut.place, now);
      answers.push_back(by_document(y, documents, cut));
      now = after;
    }
    const Variable y = answers.size() == 1 ? answers[0] : concatenate(answers, 1);
    return std::pair{cast(reshape(y, {b.x[0].dim(0), dims().heads, dims().value}), dtype), now};
  };
  return carry;
}

Variable MemoryAttention::forward(const Block& block, Crossing& cross) const {
  return cross(carry(block.x[2].dtype(), block.x[2].device()), block);
}

Variable MemoryAttention::naive_weights_inside(const Variable& a, const Variable&) const { return a; }

namespace {

// x (H, 1, d) as d' features: the rectangular identity, written out.
Variable through_identity(const Variable& x, int64_t size) {
  std::vector<double> one(static_cast<size_t>(x.dim(2) * size));
  for (int64_t i = 0; i < std::min(x.dim(2), size); ++i) one[i * size + i] = 1;
  return matmul(x, from_values({x.dim(2), size}, x.dtype(), one));
}

// The Jacobian of a row's normalisation, (1 - 1 1^T / d - n n^T / d) / deviation, (H, d, d).
Variable norm_jacobian(const Variable& z) {
  const int64_t d = z.dim(2);
  const Variable n = layer_norm(z, {}, {}, 1e-3);
  const Variable variance = subtract(mean(square(z), 2, true), square(mean(z, 2, true)));
  std::vector<double> centre(static_cast<size_t>(d * d), -1.0 / static_cast<double>(d));
  for (int64_t i = 0; i < d; ++i) centre[i * d + i] += 1;
  const Variable along = scale(matmul(n, n, {true, false}), -1.0 / static_cast<double>(d));
  return divide(add(along, from_values({d, d}, z.dtype(), centre)), sqrt(scale(variance, 1, 1e-3)));
}

// d/dx of x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3)
Variable naive_gelu_slope(const Variable& x) {
  const double c = std::sqrt(2 / M_PI);
  const Variable t = tanh(scale(multiply(x, scale(square(x), 0.044715, 1)), c));
  const Variable inner = scale(scale(square(x), 3 * 0.044715, 1), c);
  return add(scale(t, 0.5, 0.5), multiply(multiply(scale(x, 0.5), scale(square(t), -1, 1)), inner));
}

}  // namespace

Variable MemoryAttention::naive_answer(const State& w, const Variable& x) const {
  if (w.size() == 1) return matmul(x, w[0]);
  return add(through_identity(x, dims().value),
             layer_norm(matmul(gelu(matmul(x, w[0])), w[1]), {}, {}, 1e-3));
}

State MemoryAttention::naive_gradient(const State& w, const Variable& k, const Variable& v,
                                      const Variable& bound) const {
  const Variable slope = naive_slope(subtract(naive_answer(w, k), v), bound);
  if (w.size() == 1) return {matmul(k, slope, {true, false})};
  const Variable h = matmul(k, w[0]), a = gelu(h), z = matmul(a, w[1]);
  const Variable dz = matmul(slope, norm_jacobian(z));
  const Variable dh = multiply(matmul(dz, w[1], {false, true}), naive_gelu_slope(h));
  return {matmul(k, dh, {true, false}), matmul(a, dz, {true, false})};
}

MemoryAttention::Naive MemoryAttention::naive_begin(Dtype dtype, Device device) const {
  Naive memory;
  memory.a = initial(dtype, device);
  for (const Variable& a : memory.a) memory.s.push_back(zeros(a.shape(), dtype, device));
  return memory;
}

Variable MemoryAttention::naive_recall(Naive& m, const Variable& q) const {
  if (m.tokens % config_.chunk == 0) {
    m.start = m.a;
    m.weights.clear();
    for (const Variable& a : m.a) m.weights.push_back(naive_weights(a));
  }
  const Variable y = naive_answer(m.weights, reshape(q, {dims().heads, 1, dims().key}));
  return reshape(y, {1, dims().heads, dims().value});
}

// The gradient of a token is taken at the weights where its chunk began.
Variable MemoryAttention::naive_learn(Naive& m, const Block& token) const {
  const auto column = [&](const Variable& x) {  // (1, H, ...) -> (H, 1, d)
    return x.defined() ? reshape(x, {dims().heads, 1, x.numel() / dims().heads}) : x;
  };
  naive_recall(m, token.x[0]);
  const Gates g = gates(token);
  const State gradient = naive_gradient(m.weights, column(token.x[1]), column(token.x[2]), column(g.bound));
  const bool last = ++m.tokens % config_.chunk == 0;
  State now;
  for (size_t i = 0; i < m.a.size(); ++i) {
    const Variable step = negate(multiply(gradient[i], column(g.step)));
    m.s[i] = momentum_ ? add(multiply(m.s[i], column(g.momentum)), step) : step;
    m.a[i] = add(multiply(m.a[i], column(g.keep)), m.s[i]);
    now.push_back(last ? naive_weights(m.a[i]) : naive_weights_inside(m.a[i], m.start[i]));
  }
  return reshape(naive_answer(now, column(token.x[0])), {1, dims().heads, dims().value});
}

Variable MemoryAttention::reference(const Block& block) const {
  Naive memory = naive_begin(block.x[0].dtype(), block.x[0].device());
  std::vector<Variable> outputs;
  for (int64_t t = 0; t < block.x[0].dim(0); ++t)
    outputs.push_back(naive_learn(memory, slice_block(block, t, t + 1)));
  return concatenate(outputs, 0);
}

}  // namespace weft
