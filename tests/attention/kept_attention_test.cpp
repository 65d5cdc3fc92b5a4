#include "attention/kept_attention.h"

#include "attention/sparsek.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "tests/attention/conformance.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

// Texts of many tiles and more candidates than meet a list at once, with many equal scores, as a crossing
// without a stream takes them, and as one with a stream does, which folds lists of pairs chunk by chunk.
TEST(KeptAttention, LongTextsAreAsTheyAreByChunks) {
  const Dimensions dims{.heads = 4, .kv_heads = 2, .key = 72, .value = 136, .width = 8};
  for (const char* gate : {"kv", "v"}) {
    ParameterStore store(Dtype::f64);
    const SparseK layer({.k = 37, .window = 5, .support = 150, .slope = 0.001, .gate = gate}, dims,
                        {store, ""});
    const Layout layout = whole_documents({2100, 1, 0, 163});
    std::vector<Tensor> inputs = random_inputs(layer, layout.tokens(), Dtype::f64);
    std::vector<double> scores = to_values(inputs[3]);
    for (double& u : scores) u = std::round(8 * u) / 8;
    inputs[3] = from_values(inputs[3].shape(), Dtype::f64, scores);
    const auto run = [&](Stream* stream) {
      Tape tape;
      std::vector<Variable> x;
      for (const Tensor& input : inputs) x.push_back(tape.input(input));
      LocalCrossing cross(layout, stream);
      const Variable y = layer.forward(block_of(x, layout), cross);
      tape.backward(y, random_tensor(y.shape(), 7));
      std::vector<Tensor> out{y.value()};
      for (const Variable& v : x) out.push_back(tape.gradient(v));
      return out;
    };
    Stream stream;
    const std::vector<Tensor> whole = run(nullptr), chunks = run(&stream);
    for (size_t i = 0; i < whole.size(); ++i)
      EXPECT_LE(difference(whole[i], chunks[i]), 1e-9) << gate << " " << i;
  }
}

// More candidates than meet the list at once, and heads wider than a block makes.
TEST(KeptAttention, AGpuDoesAsTheCpu) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "two devices are compared";
  struct Case {
    std::vector<int64_t> lengths;
    int64_t heads, groups, key, value, kept, support;
  };
  for (const Case& c : {Case{{1100}, 1, 1, 8, 8, 7, 40}, {{70, 1, 0}, 4, 2, 72, 136, 37, 50}})
    for (const bool gate_keys : {true, false}) {
      const auto run = [&](Device device) {
        const Layout layout = whole_documents(c.lengths, device);
        const int64_t n = layout.tokens();
        Tape tape;
        std::vector<Variable> x;
        for (const Shape& shape : {Shape{n, c.heads, c.key}, Shape{n, c.groups, c.key},
                                   Shape{n, c.groups, c.value}, Shape{n, c.heads}})
          x.push_back(tape.input(random_tensor(shape, static_cast<uint32_t>(x.size())).to(device)));
        const std::vector<Variable> y =
            kept_attention(x[0], x[1], x[2], x[3], layout,
                           {.kept = c.kept, .support = c.support, .scale = 0.3, .gate_keys = gate_keys});
        tape.backward(y,
                      {random_tensor(y[0].shape(), 7).to(device), random_tensor(y[1].shape(), 8).to(device)});
        std::vector<Tensor> all(y.begin(), y.end());
        for (const Variable& v : x) all.push_back(tape.gradient(v));
        return all;
      };
      const std::vector<Tensor> gpu = run(Device::cuda), cpu = run(Device::cpu);
      for (size_t i = 0; i < cpu.size(); ++i) EXPECT_LE(difference(gpu[i], cpu[i]), 1e-9) << i;
    }
}

TEST(KeptAttention, NoCandidateAndNotANumber) {
  const Layout layout = whole_documents({4});
  const Tensor q = random_tensor({4, 1, 3}, 1), k = random_tensor({4, 1, 3}, 2),
               v = random_tensor({4, 1, 2}, 3);
  const Tensor u = from_values({4, 1}, Dtype::f64, {-INFINITY, 0.5, NAN, -INFINITY});
  const auto y = kept_attention(q, k, v, u, layout, {.kept = 1, .support = 2});
  const std::vector<double> o = to_values(y[0]), lse = to_values(y[1]), V = to_values(v);
  EXPECT_EQ(lse[0], -INFINITY);
  for (int c = 0; c < 2; ++c) {
    EXPECT_EQ(o[c], 0);
    for (int t = 1; t < 4; ++t) EXPECT_DOUBLE_EQ(o[2 * t + c], V[2 + c]);
  }
}

TEST(KeptAttention, NobodyAndWrongShapes) {
  const Tensor none = zeros({0, 2, 4}, Dtype::f64), no_scores = zeros({0, 2}, Dtype::f64);
  const KeptOptions options{.kept = 1, .support = 2};
  EXPECT_EQ(kept_attention(none, none, none, no_scores, whole_documents({}), options)[0].shape(),
            (Shape{0, 2, 4}));
  const Tensor q = random_tensor({6, 2, 4}, 1), u = random_tensor({6, 2}, 2);
  EXPECT_THROW(kept_attention(q, q, q, u, whole_documents({5}), options), Error);
  EXPECT_THROW(kept_attention(q, q, q, random_tensor({6, 1}, 2), whole_documents({6}), options), Error);
  EXPECT_THROW(kept_attention(q, q, q, u, whole_documents({6}), {.kept = 2, .support = 2}), Error);
}

}  // namespace
}  // namespace weft
