#include "attention/softmax.h"

#include <algorithm>
#include <cmath>

#include "attention/flash_attention.h"
#include "attention/merge.h"
#include "attention/naive.h"
#include "attention/seen_pairs.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/rotary.h"

namespace weft {
namespace {

constexpr double kQueryNormEps = 1e-6;
constexpr double kNever = -INFINITY;

}  // namespace

Merge softmax_merge(const AttentionOptions& options) {
  return {
      options, flash_attention_forward, flash_attention_backward, {}, {has_attention_step, attention_step}};
}

void SoftmaxConfig::fields(FieldVisitor& f) {
  f("scale", scale, "factor of the scores q k; 0 = 1 / sqrt(key size)", {.min = 0});
  f("causal", causal, "a token sees no later tokens");
  f("position", position, "how positions are encoded", {.choices = {"none", "rope", "alibi"}});
  f("rope_theta", rope_theta, "base of the rotary wavelengths", {.min = 1});
  f("qk_norm", qk_norm, "RMS norm of queries and keys, per head, with learned gains");
  f("sink", sink, "a learned score for each head, as of one more key whose value is zero");
}

Softmax::Softmax(Config config, Dimensions dims, const ParameterScope& scope)
    : Mechanism(dims), config_(std::move(config)) {
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(dims.key));
  if (config_.position == "rope" && dims.key % 2 != 0)
    throw Error(Exit::recipe, text("rotary positions need an even key size, got ", dims.key), "position",
                "set position=none, or another key size");
  const auto gain = [&](const char* name) {
    return scope.declare({name, {dims.key}, ParameterKind::vector, Initializer::constant(1)});
  };
  if (config_.qk_norm) {
    q_gain_ = gain("q_norm");
    k_gain_ = gain("k_norm");
  }
  if (config_.sink)
    sink_ = scope.declare({"sink", {dims.heads}, ParameterKind::vector, Initializer::constant(0)});
}

std::vector<Input> Softmax::inputs() const { return {{"q", "h k"}, {"k", "g k"}, {"v", "g v"}}; }

AttentionOptions Softmax::options() const {
  return {
      .scale = config_.scale, .causal = config_.causal, .window = 0, .alibi = config_.position == "alibi"};
}

Block Softmax::prepare(const Block& block, bool turn) const {
  Block out = block;
  if (config_.qk_norm)
    for (int i = 0; i < 2; ++i) out.x[i] = rms_norm(out.x[i], i == 0 ? q_gain_ : k_gain_, kQueryNormEps);
  if (config_.position != "rope" || !turn) return out;
  const std::vector<Variable> q_and_k{out.x[0], out.x[1]};
  if (block.own || config_.qk_norm) {  // attention reads them where they are
    rotary_in_place(q_and_k, block.position, config_.rope_theta);
  } else {
    const std::vector<Variable> y = rotary(q_and_k, block.position, config_.rope_theta);
    std::copy(y.begin(), y.end(), out.x.begin());
  }
  return out;
}

Variable Softmax::drain(const Variable& o, const Variable& lse) const {
  if (!config_.sink) return o;
  // softmax with one more key of score s and value 0: o e^lse / (e^lse + e^s)
  const Variable share = sigmoid(subtract(lse, sink_));  // (N, H)
  return multiply(o, cast(reshape(share, {share.dim(0), share.dim(1), 1}), o.dtype()));
}

Variable Softmax::forward(const Block& block, Crossing& cross) const {
  const Merge part = softmax_merge(options());
  const bool turns = config_.position == "rope" && cross.steps(part, block);
  const std::vector<Variable> y =
      turns ? cross.step(part, prepare(block, false), config_.rope_theta) : cross(part, prepare(block));
  return drain(y[0], y[1]);
}

Variable Softmax::reference_in_window(const Block& block, int64_t window) const {
  const int64_t n = block.x[0].dim(0), heads = dims().heads;
  Variable q = block.x[0], k = block.x[1];
  if (config_.qk_norm) {
    q = naive_rms_norm(q, q_gain_, kQueryNormEps);
    k = naive_rms_norm(k, k_gain_, kQueryNormEps);
  }
  if (config_.position == "rope") {
    q = naive_rotary(q, 0, config_.rope_theta);
    k = naive_rotary(k, 0, config_.rope_theta);
  }
  const std::vector<double> slope =
      config_.position == "alibi" ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  const Tensor bias = naive_bias(heads, n, q.dtype(), [&](int64_t h, int64_t i, int64_t j) {
    const int64_t distance = std::abs(i - j);
    if ((config_.causal && j > i) || (window > 0 && distance >= window)) return kNever;
    return -slope[h] * static_cast<double>(distance);
  });
  return naive_attention(q, k, block.x[2], bias, config_.scale, config_.sink ? Variable(sink_) : Variable());
}

Variable Softmax::reference(const Block& block) const { return reference_in_window(block, 0); }

namespace {

struct SoftmaxTrial {
  explicit SoftmaxTrial(const Dimensions& dims, int64_t n) : layout(whole_documents({n})) {
    block = {{random_tensor({n, dims.heads, dims.key}, 1), random_tensor({n, dims.kv_heads, dims.key}, 2),
              random_tensor({n, dims.kv_heads, dims.value}, 3)},
             layout.position,
             layout.document};
  }
  Variable run(const Mechanism& m) {
    LocalCrossing cross(layout);
    return m.forward(block, cross);
  }
  Layout layout;
  Block block;
};

}  // namespace

std::vector<Identity> Softmax::identities() const {
  const Dimensions d = dims();
  return {
      {"equal scores average the values seen (Vaswani et al. 2017, eq. 1)", 1e-12,
       [d] {
         SoftmaxTrial t(d, 9);
         t.block.x[0] = zeros(t.block.x[0].shape(), Dtype::f64);
         ParameterStore store(Dtype::f64);
         const Softmax m({}, d, {store, ""});
         const std::vector<double> y = to_values(t.run(m)), v = to_values(t.block.x[2]);
         double worst = 0;
         for (int64_t h = 0; h < d.heads; ++h)
           for (int64_t e = 0; e < d.value; ++e) {
             double sum = 0;
             for (int64_t i = 0; i < 9; ++i) {
               sum += v[(i * d.kv_heads + h * d.kv_heads / d.heads) * d.value + e];
               worst = std::max(
                   worst, std::abs(y[(i * d.heads + h) * d.value + e] - sum / static_cast<double>(i + 1)));
             }
           }
         return worst;
       }},
      {"with rotary positions a shift of all positions changes nothing (Su et al. 2021)", 1e-9,
       [d] {
         SoftmaxTrial t(d, 9);
         ParameterStore store(Dtype::f64);
         const Softmax m({.position = "rope"}, d, {store, ""});
         const Tensor here = t.run(m);
         const Tensor moved = from_ints({100, 101, 102, 103, 104, 105, 106, 107, 108});
         t.block.position = moved;
         return largest_difference(t.run(m), here);
       }},
      {"with normed queries and keys their sizes change nothing (the eps aside)", 1e-9,
       [d] {
         SoftmaxTrial t(d, 9);
         ParameterStore store(Dtype::f64);
         const Softmax m({.qk_norm = true}, d, {store, ""});
         store.commit();
         for (int i = 0; i < 2; ++i) t.block.x[i] = scale(t.block.x[i], 1e4);
         const Tensor before = t.run(m);
         t.block.x[0] = scale(t.block.x[0], 7);
         t.block.x[1] = scale(t.block.x[1], 0.3);
         return largest_difference(t.run(m), before);
       }},
      {"a sink of score z takes e^z / (e^z + n) of n keys with score 0", 1e-12,
       [d] {
         SoftmaxTrial t(d, 9);
         t.block.x[0] = zeros(t.block.x[0].shape(), Dtype::f64);
         ParameterStore store(Dtype::f64);
         const Softmax drained({.sink = true}, d, {store, "a."}), plain({}, d, {store, "b."});
         store.commit();
         const Parameter sink = store.find("a.sink");
         sink->master.copy_from(full(sink->master.shape(), 0.7, Dtype::f64));
         store.refresh_working();
         std::vector<double> left;
         for (int n = 1; n <= 9; ++n) left.push_back(n / (n + std::exp(0.7)));
         return largest_difference(t.run(drained),
                                   multiply(t.run(plain), from_values({9, 1, 1}, Dtype::f64, left)));
       }},
  };
}

void SlidingWindowConfig::fields(FieldVisitor& f) {
  SoftmaxConfig::fields(f);
  f("window", window, "last tokens that a token sees, itself included",
    {.unit = "tokens", .min = 1, .max = kLongestWindow});
}

SlidingWindow::SlidingWindow(const Config& config, Dimensions dims, const ParameterScope& scope)
    : Softmax(config, dims, scope), window_(config.window) {
  if (!config_.causal)
    throw Error(Exit::recipe, "a sliding window must be causal", "causal", "leave causal=true");
}

Block own_then_before(const Block& block, const Block& before) {
  Block keys{{Variable()},
             concatenate({block.position, before.position}, 0).value(),
             concatenate({block.document, before.document}, 0).value()};
  for (size_t i = 1; i < block.x.size(); ++i) keys.x.push_back(concatenate({block.x[i], before.x[i]}, 0));
  return keys;
}

Halo window_attention(AttentionOptions options, int64_t window, const Layout& layout) {
  options.window = window;
  return {window - 1,
          [options, &layout](const Block& block, const Block& before) {
            const auto y = merge(softmax_merge(options), block, own_then_before(block, before),
                                 seen_pairs(options, layout.segments));
            // lse rides along as one more column, since a Halo gives one tensor.
            const Variable lse = cast(reshape(y[1], {y[1].dim(0), y[1].dim(1), 1}), y[0].dtype());
            return concatenate({y[0], lse}, 2);
          },
          true};
}

Variable SlidingWindow::forward(const Block& block, Crossing& cross) const {
  const Variable y = cross(window_attention(options(), window_, cross.layout()), prepare(block));
  const int64_t size = dims().value;
  const Variable o = slice(y, 2, 0, size), lse = slice(y, 2, size, size + 1);
  return drain(o, cast(reshape(lse, {lse.dim(0), lse.dim(1)}), wide_of(lse.dtype())));
}

Variable SlidingWindow::reference(const Block& block) const { return reference_in_window(block, window_); }

std::vector<Identity> SlidingWindow::identities() const {
  const Dimensions d = dims();
  const auto with_window = [d](int64_t window, SoftmaxTrial& t) {
    ParameterStore store(Dtype::f64);
    SlidingWindowConfig config;
    config.window = window;
    return t.run(SlidingWindow(config, d, {store, ""}));
  };
  return {
      {"a window as long as the text is full attention", 1e-12,
       [=] {
         SoftmaxTrial t(d, 11);
         ParameterStore store(Dtype::f64);
         return largest_difference(with_window(11, t), t.run(Softmax({}, d, {store, ""})));
       }},
      {"a window of one token gives back its value", 1e-12,
       [=] {
         SoftmaxTrial t(d, 11);
         std::vector<int32_t> owner;
         for (int64_t h = 0; h < d.heads; ++h)
           owner.push_back(static_cast<int32_t>(h * d.kv_heads / d.heads));
         const Variable v =
             permute(gather_rows(permute(t.block.x[2], {1, 0, 2}), from_ints(owner)), {1, 0, 2});
         return largest_difference(with_window(1, t), v);
       }},
  };
}

}  // namespace weft
