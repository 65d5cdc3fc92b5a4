#include "tools/bench_cpu.h"

#include <array>
#include <cmath>
#include <memory>

#include "attention/flash_attention.h"
#include "attention/moh.h"
#include "attention/registry.h"
#include "autograd/draw.h"
#include "autograd/flops.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "autograd/ops/top_k.h"
#include "layers/model.h"
#include "optim/gradient_norm.h"
#include "optim/optimizer.h"

namespace weft {
namespace {

// Adds the times of one function to a row.
void measure(BenchRow& row, double seconds, const std::function<void()>& once) {
  const size_t least = seconds > 0 ? 5 : 1;
  for (int i = 0; i < 2 && seconds > 0; ++i) once();
  std::vector<double> times;
  for (const auto start = BenchClock::now(); times.size() < least || ms_since(start) < 1e3 * seconds;) {
    const auto begin = BenchClock::now();
    once();
    times.push_back(ms_since(begin));
  }
  row.take(std::move(times));
}

Tensor noise(const Shape& shape, uint32_t stream) {
  const Tensor x = empty(shape, Dtype::f32);
  draw(x, Spread::normal, 1, {42, stream});
  return x;
}

BenchRow gemm_row(int64_t m, int64_t n, int64_t k, double seconds) {
  BenchRow row{.name = "gemm", .shape = text(m, "x", n, "x", k)};
  row.flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const Tensor a = noise({m, k}, 1), b = noise({n, k}, 2), c = empty({m, n}, Dtype::f32);
  // The layout of a linear layer: y = x W^T.
  measure(row, seconds, [&] { gemm(c, a, b, {false, true}, 1, 0); });
  return row;
}

struct AttentionShape {
  int64_t batch, length, heads, size;
  int64_t on = 0;  // heads of each token, drawn at random; 0: all
};

// Which heads of each token are on, (N, heads).
Tensor random_heads(int64_t n, int64_t heads, int64_t on) {
  return marks(top_k(noise({n, heads}, 5), on).indices, heads, Dtype::f32);
}

std::string heads_on(const AttentionShape& s) {
  return s.on > 0 ? text(", ", s.on, " of ", s.heads, " heads") : "";
}

// Causal: half of all pairs, counted exactly. Two products of them forward, five backward.
BenchRow attention_row(const AttentionShape& s, bool backward, double seconds) {
  BenchRow row{.name = text(backward ? "attention forward+backward" : "attention forward", heads_on(s)),
               .shape = text("B", s.batch, " T", s.length, " H", s.heads, " D", s.size)};
  const int64_t on = s.on > 0 ? s.on : s.heads, pairs = s.batch * on * s.length * (s.length + 1) / 2;
  row.flops = 2.0 * static_cast<double>(pairs * s.size) * (backward ? 7 : 2);
  row.tokens = s.batch * s.length;
  const Layout layout = whole_documents(std::vector<int64_t>(static_cast<size_t>(s.batch), s.length));
  const Shape shape{row.tokens, s.heads, s.size};
  const Tensor q = noise(shape, 1), k = noise(shape, 2), v = noise(shape, 3), d_o = noise(shape, 4);
  const Tensor d_lse = zeros({row.tokens, s.heads}, Dtype::f32);
  const Tensor active = s.on > 0 ? random_heads(row.tokens, s.heads, s.on) : Tensor();
  AttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(s.size));
  const Tensor &at = layout.position, &of = layout.document;
  measure(row, seconds, [&] {
    const std::vector<Tensor> y = flash_attention_forward(options, q, k, v, at, of, at, of, {}, active);
    if (backward)
      flash_attention_backward(options, q, k, v, at, of, at, of, {}, active, y[0], y[1], d_o, d_lse);
  });
  return row;
}

// One more token after `length` of them.
BenchRow decode_row(const AttentionShape& s, double seconds) {
  BenchRow row{.name = "attention decode" + heads_on(s),
               .shape = text("B1 T", s.length, " H", s.heads, " D", s.size)};
  row.flops = 4.0 * static_cast<double>((s.on > 0 ? s.on : s.heads) * s.length * s.size);
  row.tokens = 1;
  const Shape cache{s.length, s.heads, s.size}, one{1, s.heads, s.size};
  const Layout past = make_layout({{0, 0, s.length}}), next = make_layout({{0, s.length - 1, s.length}});
  const Tensor q = noise(one, 1), k = noise(cache, 2), v = noise(cache, 3);
  const Tensor active = s.on > 0 ? random_heads(1, s.heads, s.on) : Tensor();
  measure(row, seconds, [&] {
    flash_attention_forward({}, q, k, v, next.position, next.document, past.position, past.document, {},
                            active);
  });
  return row;
}

// A layer of mixture-of-head attention whole, projections and router included, each token with `on` routed
// heads.
class MohLayer {
 public:
  explicit MohLayer(const AttentionShape& s)
      : shape_(s),
        layer_({.top_k = s.on},
               {.heads = s.heads,
                .kv_heads = s.heads,
                .key = s.size,
                .value = s.size,
                .width = s.heads * s.size},
               {store_, ""}) {
    store_.commit();
  }

  BenchRow train(double seconds) {
    const Layout layout = whole_documents({shape_.length});
    const Tensor x = noise({shape_.length, layer_.dims().width}, 1);
    BenchRow row = row_of("moh forward+backward", text("T", shape_.length));
    row.tokens = shape_.length;
    timed(row, seconds, [&] {
      store_.begin_step();
      Tape tape;
      LocalCrossing cross(layout);
      const Variable y = layer_.forward({{tape.input(x)}, layout.position, layout.document}, cross);
      tape.backward(y, x);
      store_.finish_step();
    });
    return row;
  }

  BenchRow decode(double seconds) {
    const Layout past = whole_documents({shape_.length});
    const Layout next = make_layout({{0, shape_.length, shape_.length + 1}});
    Stream stream;
    LocalCrossing prefill(past, &stream);
    layer_.forward({{noise({shape_.length, layer_.dims().width}, 1)}, past.position, past.document}, prefill);
    const Tensor x = noise({1, layer_.dims().width}, 2);
    BenchRow row = row_of("moh decode", text("B1 T", shape_.length));
    row.tokens = 1;
    timed(row, seconds, [&] {
      Stream same = stream;  // its rows are shared, and the new one is written where it was the last time
      LocalCrossing cross(next, &same);
      layer_.forward({{x}, next.position, next.document}, cross);
    });
    return row;
  }

 private:
  BenchRow row_of(const std::string& name, const std::string& tokens) const {
    return {.name = name + heads_on(shape_), .shape = text(tokens, " H", shape_.heads, " D", shape_.size)};
  }
  // With the operations that its ops count.
  static void timed(BenchRow& row, double seconds, const std::function<void()>& once) {
    const double before = counted_flops();
    once();
    row.flops = counted_flops() - before;
    measure(row, seconds, once);
  }

  AttentionShape shape_;
  ParameterStore store_;
  Moh layer_;
};

// One training step as a run of the quickstart recipe makes it: forward, loss, backward, clipped Muon and
// AdamW.
BenchRow step_row(const std::string& name, const std::vector<std::string>& layers, double seconds) {
  constexpr int64_t kVocabulary = 2048, kWidth = 128, kHeads = 4, kContext = 512, kTokens = 4096;
  BenchRow row{
      .name = name,
      .shape = text(layers.size(), " layers, width ", kWidth, ", vocab ", kVocabulary, ", T", kContext)};
  row.tokens = kTokens;
  ModelConfig config{
      .layers = layers, .width = kWidth, .heads = kHeads, .kv_heads = kHeads, .head_size = kWidth / kHeads};
  config.vocab = kVocabulary;
  config.attributes = [](const std::string& id) {
    return id == "softmax" ? parse_attributes({"position=rope"}) : FieldValue();
  };
  ParameterStore store;
  const Model model(config, store);
  store.commit();
  const auto optimizer = make_optimizer({.kind = "muon", .lr = 3e-3}, store);
  StepState state;
  const Layout layout = whole_documents(std::vector<int64_t>(kTokens / kContext, kContext));
  std::vector<int32_t> ids;
  const RandomKey random{42, 5};
  for (int64_t i = 0; i <= kTokens; ++i)
    ids.push_back(static_cast<int32_t>(random.uniform(static_cast<uint64_t>(i)) * (kVocabulary - 1)));
  const Tensor tokens = from_ints({ids.begin(), ids.end() - 1}),
               targets = from_ints({ids.begin() + 1, ids.end()});
  measure(row, seconds, [&] {
    store.begin_step();
    Tape tape;
    LocalCrossings crossings;
    const Variable h = model.hidden(tokens, layout, crossings);
    const Variable loss = projected_cross_entropy(h, model.output_weight(), targets).loss;
    tape.backward(loss, full(loss.shape(), 1.0 / kTokens, Dtype::f32));
    store.finish_step();
    state.gradient_norm = gradient_norm(store).value;
    optimizer->step(state);
  });
  return row;
}

}  // namespace

void bench_cpu(double seconds, const BenchDone& done) {
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{512, 512, 512}, {1024, 1024, 1024}, {4096, 512, 512}, {2048, 128, 384}})
    done(gemm_row(m, n, k, seconds));
  for (const AttentionShape& shape : {AttentionShape{8, 512, 4, 32}, {1, 2048, 8, 64}})
    for (const bool backward : {false, true}) done(attention_row(shape, backward, seconds));
  done(step_row("step hybrid", {"lightning", "softmax", "lightning", "softmax"}, seconds));
  done(step_row("step softmax", {"softmax", "softmax", "softmax", "softmax"}, seconds));
}

void bench_heads(double seconds, const BenchDone& done) {
  for (const int64_t on : {2, 4, 6, 8}) {
    for (const bool backward : {false, true}) done(attention_row({1, 2048, 8, 64, on}, backward, seconds));
    done(decode_row({1, 16384, 8, 64, on}, seconds));
    done(MohLayer({1, 2048, 8, 64, on}).train(seconds));
    done(MohLayer({1, 256, 8, 64, on}).decode(seconds));
  }
}

}  // namespace weft
