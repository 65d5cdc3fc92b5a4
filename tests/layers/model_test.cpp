#include "layers/model.h"

#include <algorithm>

#include "attention/transnormer_llm.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "autograd/ops/reduce.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

ModelConfig small(std::vector<std::string> layers) {
  ModelConfig c;
  c.layers = std::move(layers);
  c.width = 12;
  c.heads = c.kv_heads = 2;
  c.head_size = 6;
  c.ffn = 16;
  c.vocab = 11;
  return c;
}

std::vector<std::string> all_mechanisms() {
  std::vector<std::string> ids;
  for (const MechanismEntry& e : mechanisms()) ids.push_back(e.id);
  return ids;
}

Tensor some_tokens(int64_t n) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>((i * 7 + i * i) % 11));
  return from_ints(ids);
}

// Every mechanism beside others, in models of six: differences cost the whole model for each parameter.
class ModelGradients : public testing::TestWithParam<size_t> {};
INSTANTIATE_TEST_SUITE_P(BySixes, ModelGradients, testing::Range<size_t>(0, (mechanisms().size() + 5) / 6));

TEST_P(ModelGradients, OfMechanismsTogether) {
  ParameterStore store(Dtype::f64);
  const std::vector<std::string> all = all_mechanisms();
  const auto first = all.begin() + static_cast<std::ptrdiff_t>(6 * GetParam());
  ModelConfig config = small({first, std::min(first + 6, all.end())});
  config.short_conv = 3;
  config.tied = false;
  const Model model(config, store);
  store.commit();
  const Layout layout = whole_documents({5, 4});
  const Tensor tokens = some_tokens(9), targets = from_ints({1, 2, 3, 4, -1, 5, 6, 7, -1});
  const GradcheckResult r = gradcheck(
      [&](const std::vector<Variable>&) {
        LocalCrossings crossings;
        const Variable h = model.hidden(tokens, layout, crossings);
        return std::vector{projected_cross_entropy(h, model.output_weight(), targets).loss};
      },
      {}, &store, 3);
  EXPECT_LE(r.error, tolerance::kGradcheck) << r.worst;
}

// 0.998, what a memory keeps, is 1 in bf16.
TEST(AttentionLayer, DecaysAndGatesAreWideInBf16) {
  class Watch : public LocalCrossing {
   public:
    using LocalCrossing::LocalCrossing;
    Variable operator()(const Scan& part, const Block& block) override {
      last = block.x.back().dtype();
      return LocalCrossing::operator()(part, block);
    }
    Dtype last = Dtype::i32;
  };
  for (const char* mechanism : {"simple_gla", "gla", "lightning", "delta_rule"}) {
    ParameterStore store(Dtype::bf16);
    const AttentionLayerConfig config{.mechanism = mechanism,
                                      .dims = {.heads = 2, .kv_heads = 2, .key = 4, .value = 4, .width = 8}};
    const AttentionLayer layer(config, {store, ""});
    store.commit();
    const Layout layout = whole_documents({7});
    Watch cross(layout);
    EXPECT_EQ(layer(random_tensor({7, 8}, 1, Dtype::bf16), cross).dtype(), Dtype::bf16) << mechanism;
    EXPECT_EQ(cross.last, Dtype::f32) << mechanism;
  }
}

// Keys of a delta rule: x / sqrt(|x|^2 + 1e-6) of what is projected.
// Muon takes a fused projection apart into what each input would have on its own.
TEST(AttentionLayer, ProjectionsOfSeveralInputsNameTheirParts) {
  ParameterStore store(Dtype::f32);
  const Model model(small({"gated_delta_rule", "titans"}), store);
  const auto parts = [&](const std::string& name) {
    const Parameter p = store.find(name);
    EXPECT_TRUE(p.defined()) << name;
    return p.defined() ? p->info.parts : std::vector<int64_t>{};
  };
  using Parts = std::vector<int64_t>;
  EXPECT_EQ(parts("blocks.0.attention.in.weight"), (Parts{12, 12, 12}));
  EXPECT_EQ(parts("blocks.0.attention.gate.weight"), (Parts{2, 2}));
  EXPECT_EQ(parts("blocks.1.attention.gate.weight"), (Parts{2, 2, 2}));
}

TEST(AttentionLayer, DirectionsHaveLengthOne) {
  class Watch : public LocalCrossing {
   public:
    using LocalCrossing::LocalCrossing;
    Variable operator()(const Scan& part, const Block& block) override {
      inputs = block.x;
      return LocalCrossing::operator()(part, block);
    }
    std::vector<Variable> inputs;
  };
  ParameterStore store(Dtype::f64);
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 5, .value = 4, .width = 8};
  const AttentionLayer layer({.mechanism = "delta_rule", .dims = dims}, {store, ""});
  store.commit();
  const Layout layout = whole_documents({7});
  Watch cross(layout);
  const Tensor x = scale(random_tensor({7, 8}, 1), 1e-3);  // so that 1e-6 shows
  layer(x, cross);
  const Variable keys = reshape(slice(linear(x, store.find("in.weight")), 1, 10, 20), {7, 2, 5});
  EXPECT_LE(difference(cross.inputs[1], divide(keys, sqrt(scale(sum(square(keys), -1, true), 1, 1e-6)))),
            1e-13);
}

// The first token reaches the others by its gate alone, which is its own: what it forgets is nothing yet.
TEST(AttentionLayer, GatesAreNotConvolved) {
  for (const char* mechanism : {"gla", "regla"}) {
    ParameterStore store(Dtype::f64);
    const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 4, .value = 4, .width = 8};
    const AttentionLayer layer({.mechanism = mechanism, .dims = dims, .short_conv = 3}, {store, ""});
    store.commit();
    const Parameter in = store.find("in.weight");
    std::vector<double> weights = to_values(in->master);
    for (int64_t row = 0; row < 24; ++row) weights[row * 8] = 0;  // q, k and v do not read channel 0
    in->master.copy_from(from_values(in->master.shape(), Dtype::f64, weights));
    store.refresh_working();
    const Layout layout = whole_documents({7});
    std::vector<double> x = to_values(random_tensor({7, 8}, 1));
    const auto run = [&] {
      LocalCrossing cross(layout);
      return layer(from_values({7, 8}, Dtype::f64, x), cross).value();
    };
    const Tensor before = run();
    x[0] += 1;
    EXPECT_LE(difference(run(), before), 1e-12) << mechanism;
    x[8] += 1;
    EXPECT_GE(difference(run(), before), 1e-4) << mechanism;
  }
}

TEST(Model, CheckpointingChangesNoBit) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    std::vector<std::vector<Tensor>> results;
    for (const char* mode : {"none", "attention", "ffn", "block"}) {
      ParameterStore store(dtype);
      ModelConfig config = small(all_mechanisms());
      config.checkpointing = mode;
      config.short_conv = 3;
      const Model model(config, store);
      store.commit();
      store.begin_step();
      Tape tape;
      LocalCrossings crossings;
      const Variable h = model.hidden(some_tokens(40), whole_documents({30, 10}), crossings);
      const Tensor targets = some_tokens(40);
      const Variable loss = projected_cross_entropy(h, model.output_weight(), targets).loss;
      tape.backward(loss);
      EXPECT_TRUE(store.finish_step().empty());
      std::vector<Tensor> result{loss.value()};
      for (const auto& e : store.entries()) {
        result.push_back(empty_like(e->gradient));
        result.back().copy_from(e->gradient);
      }
      results.push_back(result);
    }
    for (size_t mode = 1; mode < results.size(); ++mode)
      for (size_t i = 0; i < results[0].size(); ++i)
        EXPECT_TRUE(same_bits(results[mode][i], results[0][i])) << mode << " " << i;
  }
}

TEST(Model, StreamingEqualsWhole) {
  ParameterStore store(Dtype::f64);
  ModelConfig config = small(all_mechanisms());
  config.short_conv = 4;
  const Model model(config, store);
  store.commit();
  const int64_t n = 70;
  const Tensor tokens = some_tokens(n);
  LocalCrossings local;
  const Layout whole = whole_documents({n});
  const Tensor full = model.hidden(tokens, whole, local);
  StreamCrossings stream(static_cast<int>(config.layers.size()));
  int64_t at = 0;
  for (const int64_t count : {1, 37, 1, 1, 28, 1, 1}) {
    const Layout piece = make_layout({{0, at, at + count}});
    const Tensor y = model.hidden(tokens.rows(at, at + count), piece, stream);
    EXPECT_LE(difference(y, full.rows(at, at + count)), tolerance::of(Dtype::f64)) << at;
    at += count;
  }
  EXPECT_GT(stream.bytes(), 0);
  EXPECT_EQ(model.logits(full).shape(), (Shape{n, 11}));
}

// TransNormerLLM as its recipe has it: every layer knows its place, and nothing but the embedding, the mixers
// and the feed-forward layers has weights.
// Without a tape a few rows take fewer kernels on a GPU; with one they do not.
TEST(Model, AFewRowsAreTheSameWithoutATape) {
  for (const std::string ffn : {"swiglu", "sglu", "gelu"})
    for (const std::string norm : {"rms", "srms"})
      for (const int64_t short_conv : {0, 3}) {
        SCOPED_TRACE(ffn + ", " + norm);
        ParameterStore store(Dtype::bf16);
        ModelConfig config = small({"softmax", "lightning", "gla", "gated_delta_rule", "titans", "softmax"});
        config.width = 64;
        config.head_size = 64;
        config.ffn = 88;
        config.ffn_kind = ffn;
        config.norm = norm;
        config.short_conv = short_conv;
        const Model model(config, store);
        store.commit();
        const Layout layout = whole_documents({5, 4});
        LocalCrossings crossings;
        Tensor recorded;
        {
          Tape tape;
          recorded = model.hidden(some_tokens(9), layout, crossings);
        }
        const NoTape pause;
        const Tensor plain = model.hidden(some_tokens(9), layout, crossings);
        EXPECT_LE(norm_difference(plain, recorded), tolerance::kBf16Norm);
        const Tensor logits = model.logits(plain),
                     next = model.next_logits(some_tokens(9), layout, crossings);
        EXPECT_LE(norm_difference(next, logits), tolerance::kBf16Norm);
        if (default_device() == Device::cpu) {
          EXPECT_TRUE(same_bits(plain, recorded));
          EXPECT_TRUE(same_bits(next, logits));
        }
      }
}

TEST(Model, TransNormerLlmWhole) {
  ParameterStore store(Dtype::f64);
  ModelConfig config = small({"transnormer_llm", "transnormer_llm", "transnormer_llm"});
  config.norm = "srms";
  config.ffn_kind = "sglu";
  config.scale_embedding = true;
  config.tied = false;
  const Model model(config, store);
  store.commit();
  for (const auto& e : store.entries())
    EXPECT_EQ(e->info.name.find("norm"), std::string::npos) << e->info.name;
  EXPECT_TRUE(store.find("blocks.0.attention.mechanism.theta").defined());
  EXPECT_FALSE(store.find("blocks.1.attention.mechanism.theta").defined());
  for (int64_t l = 0; l < 3; ++l)
    EXPECT_EQ(model.blocks()[static_cast<size_t>(l)].attention().mechanism().fixed_input("g"),
              tnl_decay(2, l, 3, false));
  const Layout layout = whole_documents({5, 4});
  LocalCrossings crossings;
  std::vector<Variable> states;
  const Variable h = model.hidden(some_tokens(9), layout, crossings, nullptr, &states);
  const Variable rows = embedding(store.find("embedding.weight"), some_tokens(9));
  EXPECT_LE(difference(states[0], scale(rows, std::sqrt(12.0))), 1e-12);
  for (const double size : to_values(sum(square(h), -1))) EXPECT_NEAR(size, 12, 1e-3);  // SRMSNorm at the end
  const GradcheckResult r = gradcheck(
      [&](const std::vector<Variable>&) {
        LocalCrossings again;
        return std::vector{model.hidden(some_tokens(9), layout, again)};
      },
      {}, &store, 3);
  EXPECT_LE(r.error, tolerance::kGradcheck) << r.worst;
}

// (x W_v * x W_u) W_o, written out.
TEST(FeedForward, Sglu) {
  ParameterStore store(Dtype::f64);
  const FeedForward ffn("sglu", 4, 6, 1, {store, ""});
  store.commit();
  const Tensor x = random_tensor({3, 4}, 1), w = store.find("gate_up.weight")->working;
  const Variable inner = multiply(linear(x, w.rows(0, 6)), linear(x, w.rows(6, 12)));
  EXPECT_LE(difference(ffn(x), linear(inner, store.find("down.weight"))), 1e-14);
}

}  // namespace
}  // namespace weft
