// Heads as wide as the tiles of a GPU's kernels are, which the small heads of the conformance suite are not:
// bf16 against f64, with gradients, over packed documents and piece by piece.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "attention/crossing.h"
#include "attention/linear_run.h"
#include "tests/attention/conformance.h"
#include "tests/tolerances.h"
#ifdef WEFT_CUDA
#include "attention/kernels/segments.h"
#endif

namespace weft {
namespace {

class LinearRunHeads : public testing::TestWithParam<const char*> {
 protected:
  static Subject::Make make() {
    return [](const Dimensions& dims, const ParameterScope& scope) {
      return find_mechanism(GetParam()).make({}, dims, scope);
    };
  }
};
INSTANTIATE_TEST_SUITE_P(Registry, LinearRunHeads,
                         testing::Values("lightning", "simple_gla", "gla", "regla"));

// bf16 against f64, with gradients.
void expect_definition(const Subject::Make& make, int64_t key, int64_t value,
                       const std::vector<int64_t>& lengths) {
  const Dimensions dims{2, 2, key, value, 32};
  Subject exact(dims, Dtype::f64, make), narrow(dims, Dtype::bf16, make);
  exact.take_parameters(narrow);
  const Layout layout = whole_documents(lengths);
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t(0));
  const std::vector<Tensor> inputs = random_inputs(*narrow.mechanism, tokens, Dtype::bf16);
  std::vector<Tensor> wide;
  for (const Tensor& x : inputs) wide.push_back(x.to(Dtype::f64));
  const Outcome got = run_with_gradients(narrow, layout, inputs);
  const Outcome expected = run_with_gradients(exact, layout, wide, nullptr,
                                              random_adjoint(got.output.shape(), Dtype::bf16).to(Dtype::f64));
  EXPECT_LE(norm_difference(got.output, expected.output), tolerance::kBf16Norm);
  for (size_t i = 0; i < got.gradients.size(); ++i)
    EXPECT_LE(norm_difference(got.gradients[i], expected.gradients[i]), tolerance::kBf16Norm)
        << "gradient " << i;
}

TEST_P(LinearRunHeads, EqualTheDefinition) {
  for (const auto& [key, value] : {std::pair{64, 64}, {64, 128}, {128, 64}, {128, 128}})
    expect_definition(make(), key, value, {70, 1, 0, 130});
}

TEST_P(LinearRunHeads, WideOnesEqualTheDefinition) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  for (const auto& [key, value] : {std::pair{256, 256}, {256, 128}, {128, 256}, {256, 64}})
    expect_definition(make(), key, value, {257, 1, 0, 130});
}

// Which kernels cut into segments.
TEST_P(LinearRunHeads, LongDocumentsEqualTheDefinition) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  expect_definition(make(), 128, 128, {5000, 70});
}

#ifdef WEFT_CUDA
// The same of widths that differ, and of heads of 256: of two heads and one long document all are cut.
class LinearRunSegments : public LinearRunHeads {};
INSTANTIATE_TEST_SUITE_P(Registry, LinearRunSegments, testing::Values("lightning", "simple_gla", "gla"));

TEST_P(LinearRunSegments, OfAllWidthsEqualTheDefinition) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  const std::string name = GetParam();
  const cuda::Gate gate = name == "gla"          ? cuda::Gate::channel
                          : name == "simple_gla" ? cuda::Gate::head
                                                 : cuda::Gate::fixed;
  std::vector<std::pair<int64_t, int64_t>> widths{{64, 128}, {128, 64}};
  if (gate != cuda::Gate::channel)  // which has no tiles of 256
    for (const auto& wide : {std::pair{256, 256}, {256, 128}, {128, 256}, {256, 64}, {64, 256}})
      widths.emplace_back(wide);
  for (const auto& [key, value] : widths) {
    SCOPED_TRACE(text(key, " by ", value));
    const cuda::LinearAttention p{.tokens = 5070,
                                  .documents = 2,
                                  .longest = 5000,
                                  .heads = 2,
                                  .d_k = static_cast<int>(key),
                                  .d_v = static_cast<int>(value),
                                  .gate = gate};
    EXPECT_GT(cuda::linear_attention_kept(p), 0) << "not cut";
    expect_definition(make(), key, value, {5000, 70});
  }
}
#endif

// A fixed decay goes to other kernels than the same numbers for each token do: once they are a row, once they
// are told to be learned. Either gives the same bits when it runs again.
TEST(LinearRun, ARowOfDecaysEqualsItsCopies) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  for (const auto& [heads, size, tokens] : {std::tuple{3, 64, 200}, {2, 128, 5000}, {2, 256, 300}}) {
    const Layout layout = whole_documents({tokens, 70});
    const int64_t n = layout.tokens();
    std::vector<double> decays;
    for (int h = 0; h < heads; ++h) decays.push_back(-std::exp2(-4.0 * h - 1));
    const Tensor row = from_values({1, heads}, Dtype::f32, decays).repeated(n);
    const auto outcome = [&](bool learned) {
      Tape tape;
      std::vector<Variable> in;
      for (uint32_t i = 0; i < 3; ++i)
        in.push_back(tape.input(random_tensor({n, heads, size}, i).to(Dtype::bf16)));
      const Variable g = learned ? tape.input(row.contiguous()) : Variable(row);
      const LinearRun r = linear_run(in[0], in[1], in[2], g, {}, 0.1, layout, true);
      tape.backward(std::vector<Variable>{r.o, r.final_state},
                    {random_tensor(r.o.shape(), 3).to(Dtype::bf16),
                     random_tensor(r.final_state.shape(), 4).to(Dtype::f32)});
      std::vector<Tensor> all{r.o, r.final_state};
      for (const Variable& x : in) all.push_back(tape.gradient(x));
      return all;
    };
    const auto row_of = outcome(false), each_of = outcome(true);
    for (size_t i = 0; i < row_of.size(); ++i)
      EXPECT_LE(norm_difference(row_of[i], each_of[i]), tolerance::kBf16Norm) << size << " result " << i;
    const auto row_again = outcome(false), each_again = outcome(true);
    for (size_t i = 0; i < row_of.size(); ++i) {
      EXPECT_TRUE(same_bits(row_of[i], row_again[i])) << size << " result " << i;
      EXPECT_TRUE(same_bits(each_of[i], each_again[i])) << size << " result " << i;
    }
  }
}

// Gates of channels that within one chunk forget little, all, and by far more than f32 holds: the kernels
// take the first kind of chunk otherwise than the rest (attention/kernels/channel_gate.md).
TEST(LinearRun, GatesOfAnyReachEqualTheirRecurrence) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  for (const auto& [key, value] : {std::pair{64, 64}, {64, 128}, {128, 64}, {128, 128}}) {
    const int64_t heads = 2;
    const Layout layout = whole_documents({400, 1, 70});
    const Shape gates{layout.tokens(), heads, key};
    std::vector<double> decays = to_values(random_tensor(gates, 9));
    for (size_t i = 0; i < decays.size(); ++i) {
      const size_t chunk = i / static_cast<size_t>(64 * heads * key);
      decays[i] = -std::abs(decays[i]) * (chunk % 3 == 0 ? 0.1 : chunk % 3 == 1 ? 1 : 0.2);
      if (chunk % 3 == 2 && i % 173 == 0) decays[i] = i % 346 == 0 ? -INFINITY : -1000;
    }
    const Tensor g = from_values(gates, Dtype::f32, decays);
    const auto outcome = [&](Dtype dtype) {
      Tape tape;
      const auto input = [&](int64_t width, uint32_t stream) {
        return random_tensor({layout.tokens(), heads, width}, stream).to(Dtype::bf16).to(dtype);
      };
      const std::vector<Variable> in{tape.input(input(key, 0)), tape.input(input(key, 1)),
                                     tape.input(input(value, 2)), tape.input(g)};
      const LinearRun r = linear_run(in[0], in[1], in[2], in[3], {}, 0.1, layout, true);
      tape.backward(std::vector<Variable>{r.o, r.final_state},
                    {input(value, 3), random_tensor(r.final_state.shape(), 4).to(Dtype::f32)});
      std::vector<Tensor> all{r.o, r.final_state};
      for (const Variable& x : in) all.push_back(tape.gradient(x));
      return all;
    };
    const auto wide = outcome(Dtype::f32), narrow = outcome(Dtype::bf16);
    for (size_t i = 0; i < wide.size(); ++i)
      EXPECT_LE(norm_difference(narrow[i], wide[i]), tolerance::kBf16Norm)
          << key << " x " << value << ", result " << i;
  }
}

// Results of linear_run and then of its backward: o, perhaps the final state, and gradients of q, k, v,
// perhaps of the initial state and of a gate that is learned. Numbers are those of bf16, whatever the types.
struct WideCase {
  int64_t key, value;
  std::vector<int64_t> lengths;
  bool gated = false, states = false;
};
std::vector<Tensor> wide_outcome(const WideCase& c, Dtype of_keys, Dtype of_values) {
  const int64_t heads = 2;
  const Layout layout = whole_documents(c.lengths);
  const int64_t n = layout.tokens();
  const auto random = [](const Shape& shape, uint32_t stream) {
    return random_tensor(shape, stream).to(Dtype::bf16);
  };
  Tape tape;
  std::vector<Variable> in{tape.input(random({n, heads, c.key}, 0).to(of_keys)),
                           tape.input(random({n, heads, c.key}, 1).to(of_keys)),
                           tape.input(random({n, heads, c.value}, 2).to(of_values))};
  Variable g, start;
  if (c.gated) {
    std::vector<double> decays = to_values(random_tensor({n, heads}, 5));
    for (double& x : decays) x *= -0.05 * x;
    in.push_back(g = tape.input(from_values({n, heads}, Dtype::f32, decays)));
  } else {
    g = from_values({1, heads}, Dtype::f32, {-0.0625, -0.004}).repeated(n);
  }
  const Shape states{std::ssize(layout.segments), heads, c.key, c.value};
  if (c.states) in.push_back(start = tape.input(random(states, 6).to(Dtype::f32)));
  const LinearRun r = linear_run(in[0], in[1], in[2], g, start, 0.5, layout, c.states);
  std::vector<Variable> outputs{r.o};
  std::vector<Tensor> adjoints{random(r.o.shape(), 3).to(of_values)};
  if (c.states) outputs.push_back(r.final_state), adjoints.push_back(random(states, 4).to(Dtype::f32));
  tape.backward(outputs, adjoints);
  std::vector<Tensor> all{outputs.begin(), outputs.end()};
  for (const Variable& x : in) all.push_back(tape.gradient(x));
  return all;
}

// Of each head and channel, the sum over tokens of t (q dq - k dk).
Tensor position_sums(const Tensor& q, const Tensor& dq, const Tensor& k, const Tensor& dk) {
  const std::vector<double> x = to_values(q), dx = to_values(dq), y = to_values(k), dy = to_values(dk);
  const auto row = static_cast<size_t>(q.dim(1) * q.dim(2));
  std::vector<double> sums(row);
  for (size_t i = 0; i < x.size(); ++i)
    sums[i % row] += static_cast<double>(i / row) * (x[i] * dx[i] - y[i] * dy[i]);
  return from_values({q.dim(1), q.dim(2)}, Dtype::f64, sums);
}

void expect_wide_gradients(const WideCase& c) {
  SCOPED_TRACE(text(c.key, " by ", c.value, ", ", c.lengths[0], " tokens", c.gated ? ", gate" : "",
                    c.states ? ", states" : ""));
  const std::vector<Tensor> exact = wide_outcome(c, Dtype::f32, Dtype::f32),
                            got = wide_outcome(c, Dtype::f32, Dtype::bf16);
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_LE(norm_difference(got[i], exact[i]), tolerance::kBf16Norm) << "result " << i;
  if (c.states) return;  // what they contribute to the sums does not cancel
  const size_t dq = 1;
  const int64_t n = whole_documents(c.lengths).tokens();
  const Tensor q = random_tensor({n, 2, c.key}, 0).to(Dtype::bf16),
               k = random_tensor({n, 2, c.key}, 1).to(Dtype::bf16);
  EXPECT_LE(norm_difference(position_sums(q, got[dq], k, got[dq + 1]),
                            position_sums(q, exact[dq], k, exact[dq + 1])),
            tolerance::kPositionSums);
}

TEST(LinearRun, GradientsInF32HoldWhatSumsOverPositionsNeed) {
  for (const auto& [key, value] :
       {std::pair{64, 64}, {128, 64}, {64, 128}, {128, 128}, {256, 128}, {128, 256}, {256, 256}, {40, 24}}) {
    if (default_device() == Device::cpu && key >= 64) continue;  // whose kernel is one for all
    expect_wide_gradients({key, value, {1500, 0, 1, 70}, false, false});
    expect_wide_gradients({key, value, {0, 130, 65}, true, true});
  }
  expect_wide_gradients({40, 24, {1500, 0, 1, 70}, true, false});
  if (default_device() == Device::cpu) return;
  expect_wide_gradients({128, 64, {1500, 0, 1, 70}, true, false});
  expect_wide_gradients({128, 128, {5000, 70}, false, false});  // which kernels cut
  expect_wide_gradients({128, 128, {5000, 70}, true, true});
}

// What is not in f32 has the bits that it has without.
TEST(LinearRun, GradientsInF32LeaveOthersAsTheyAre) {
  for (const auto& [key, value] : {std::pair{128, 128}, {128, 64}, {256, 128}, {40, 24}}) {
    const WideCase c{key, value, {200, 1, 70}};
    const std::vector<Tensor> wide = wide_outcome(c, Dtype::f32, Dtype::bf16),
                              again = wide_outcome(c, Dtype::f32, Dtype::bf16),
                              narrow = wide_outcome(c, Dtype::bf16, Dtype::bf16);
    for (size_t i = 0; i < wide.size(); ++i)
      EXPECT_TRUE(same_bits(wide[i], again[i])) << key << " result " << i;
    for (const size_t i : {0, 3}) EXPECT_TRUE(same_bits(wide[i], narrow[i])) << key << " result " << i;
    for (const size_t i : {1, 2}) {
      EXPECT_EQ(wide[i].dtype(), Dtype::f32);
      EXPECT_LE(norm_difference(wide[i], narrow[i]), tolerance::kBf16Norm) << key << " result " << i;
    }
  }
}

TEST_P(LinearRunHeads, PiecesEqualTheWhole) {
  const Dimensions dims{2, 2, 64, 64, 32};
  Subject s(dims, Dtype::bf16, make());
  const std::vector<Tensor> inputs = random_inputs(*s.mechanism, 2000, Dtype::bf16);
  const Tensor whole = run_whole(*s.mechanism, whole_documents({2000}), {inputs.begin(), inputs.end()});
  Stream stream;
  int64_t at = 0;
  for (const int64_t count : {1400, 1, 64, 535}) {
    const Layout piece = make_layout({{0, at, at + count}});
    LocalCrossing cross(piece, &stream);
    std::vector<Variable> part;
    for (const Tensor& x : inputs) part.push_back(x.rows(at, at + count));
    const Tensor y = s.mechanism->forward(block_of(part, piece), cross);
    EXPECT_LE(norm_difference(y, whole.rows(at, at + count)), tolerance::kBf16Norm) << "at " << at;
    at += count;
  }
}

#ifdef WEFT_CUDA
// What GPUs before Hopper run (README of attention/kernels), on this one: right, cut or not, and not by
// chance the same kernels.
class OtherKernels : public LinearRunHeads {
 protected:
  void SetUp() override { setenv("WEFT_KERNELS", "mma", 1); }
  void TearDown() override { unsetenv("WEFT_KERNELS"); }
};
INSTANTIATE_TEST_SUITE_P(Registry, OtherKernels, testing::Values("lightning", "simple_gla", "gla"));

TEST_P(OtherKernels, EqualTheDefinition) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  for (const auto& [key, value] : {std::pair{64, 64}, {64, 128}, {128, 64}, {128, 128}})
    expect_definition(make(), key, value, {70, 1, 0, 130});
  expect_definition(make(), 128, 128, {5000, 70});
}

TEST(WeftKernels, MmaGivesGradientsInF32) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  setenv("WEFT_KERNELS", "mma", 1);
  expect_wide_gradients({128, 64, {1500, 0, 1, 70}, false, true});
  expect_wide_gradients({256, 128, {1500, 0, 1, 70}, true, false});
  expect_wide_gradients({64, 128, {5000, 70}, false, false});
  unsetenv("WEFT_KERNELS");
}

TEST(WeftKernels, MmaLeavesHopperOut) {
  if (default_device() != Device::cuda || !cuda::hopper()) GTEST_SKIP() << "needs compute capability 9.0";
  setenv("WEFT_KERNELS", "mma", 1);
  EXPECT_FALSE(cuda::hopper());
  unsetenv("WEFT_KERNELS");
  EXPECT_TRUE(cuda::hopper());
}

// Cut where that was measured to be faster, and not where it was slower (attention/kernels/README.md).
TEST(ChooseCut, AsMeasured) {
  const auto length = [](int64_t documents, int64_t tokens, int heads, int d, cuda::Gate gate) {
    const cuda::LinearAttention p{.tokens = documents * tokens,
                                  .documents = static_cast<int>(documents),
                                  .longest = tokens,
                                  .heads = heads,
                                  .d_k = d,
                                  .d_v = d,
                                  .gate = gate};
    return cuda::choose_cut(p, {132, 4.18e6}).length;
  };
  for (const cuda::Gate gate : {cuda::Gate::fixed, cuda::Gate::head}) {
    EXPECT_GT(length(1, 131072, 8, 128, gate), 0);
    EXPECT_GT(length(1, 32768, 12, 64, gate), 0);
    EXPECT_GT(length(1, 16384, 16, 256, gate), 0);
    EXPECT_EQ(length(8, 8192, 16, 128, gate), 0);
    EXPECT_EQ(length(8, 8192, 16, 64, gate), 0);
    EXPECT_EQ(length(8, 2048, 32, 256, gate), 0);
    EXPECT_EQ(length(4, 2048, 16, 64, gate), 0);
    EXPECT_EQ(length(1, 2048, 1, 128, gate), 128);
    // As many segments as multiprocessors would take longer to fold.
    EXPECT_GT(length(1, 65536, 1, 64, gate), 500);
  }
  const auto of_channels = [&](int64_t documents, int64_t tokens, int heads, int d) {
    return length(documents, tokens, heads, d, cuda::Gate::channel);
  };
  EXPECT_EQ(of_channels(1, 131072, 8, 128), 8192);
  EXPECT_EQ(of_channels(2, 8192, 32, 128), 4096);
  EXPECT_EQ(of_channels(2, 16384, 16, 128), 4096);
  EXPECT_LT(of_channels(1, 32768, 12, 64), 3000);
  EXPECT_EQ(of_channels(8, 8192, 16, 128), 0);
  EXPECT_EQ(of_channels(8, 8192, 16, 64), 4096);  // two blocks on a multiprocessor instead of one
  EXPECT_EQ(of_channels(16, 1024, 32, 128), 0);
}

TEST(ChooseCut, OfUnequalDocumentsAsMeasured) {
  const auto length = [](const std::vector<int64_t>& documents, int heads, cuda::Gate gate) {
    const int offsets[1] = {};  // that there are some is all that is asked
    const cuda::LinearAttention p{.tokens = std::accumulate(documents.begin(), documents.end(), int64_t{0}),
                                  .documents = static_cast<int>(documents.size()),
                                  .offsets = offsets,
                                  .longest = *std::max_element(documents.begin(), documents.end()),
                                  .heads = heads,
                                  .d_k = 128,
                                  .d_v = 128,
                                  .gate = gate};
    const cuda::Cut cut = cuda::choose_cut(p, {132, 4.18e6});
    int64_t segments = 0;
    for (const int64_t tokens : documents) segments += (tokens + cut.length - 1) / cut.length;
    EXPECT_GE(cut.most, segments) << "there is room for all";
    return cut.length;
  };
  for (const cuda::Gate gate : {cuda::Gate::fixed, cuda::Gate::head, cuda::Gate::channel}) {
    EXPECT_EQ(length({5120, 2048, 1024}, 16, gate), 1024);
    EXPECT_EQ(length({30001, 9000, 700}, 6, gate), 1920);
  }
  // 3584, half a segment less by the tokens, needs a second round of blocks.
  EXPECT_EQ(length({50000, 3000, 3000, 3000}, 8, cuda::Gate::channel), 3904);
}
#endif

}  // namespace
}  // namespace weft
