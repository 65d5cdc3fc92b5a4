#include "layers/model.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/projected_cross_entropy.h"
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

TEST(Model, GradientsOfAllMechanismsTogether) {
  ParameterStore store(Dtype::f64);
  ModelConfig config = small(all_mechanisms());
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

}  // namespace
}  // namespace weft
