// How far the recurrences' kernels in bf16 lie from the same recurrences in f32, token by token, on the same
// inputs: what is rounded on the way must stay small beside the rounding of what comes out. Gates with a
// memory of a few tokens, for which most of an output comes from the token's own chunk. Errors are norms over
// norms.

#include <gtest/gtest.h>

#include <cmath>

#include "attention/delta_run.h"
#include "attention/linear_run.h"
#include "autograd/gradcheck.h"
#include "autograd/layout.h"
#include "tests/tolerances.h"

namespace weft {
namespace {

constexpr int64_t kFewHeads = 2;

class KernelErrors : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  }
  const int64_t size = GetParam();
  const double scale = 1 / std::sqrt(double(size));
  const Layout layout = whole_documents({1000, 70});
  const Shape shape{layout.tokens(), kFewHeads, size}, numbers{layout.tokens(), kFewHeads};
};
INSTANTIATE_TEST_SUITE_P(Sizes, KernelErrors, testing::Values(64, 128));

// log sigmoid(x + 2) of noise x
Tensor short_memories(const Shape& shape, uint32_t seed) {
  std::vector<double> g = to_values(random_tensor(shape, seed));
  for (double& x : g) x = -std::log1p(std::exp(-x - 2));
  return from_values(shape, Dtype::f32, g);
}

// f(inputs), and the gradients of all inputs.
template <class F>
std::vector<Tensor> outcome(const std::vector<Tensor>& inputs, F f) {
  Tape tape;
  std::vector<Variable> in;
  for (const Tensor& x : inputs) in.push_back(tape.input(x));
  const Variable o = f(in);
  tape.backward(std::vector<Variable>{o}, {random_tensor(o.shape(), 9).to(Dtype::bf16).to(o.dtype())});
  std::vector<Tensor> all{o};
  for (const Variable& x : in) all.push_back(tape.gradient(x));
  return all;
}

// Of o and of each input's gradient. The first three inputs are bf16, gates f32.
template <class F>
std::vector<double> errors(std::vector<Tensor> inputs, F f) {
  const std::vector<Tensor> narrow = outcome(inputs, f);
  for (Tensor& x : inputs) x = x.to(Dtype::f32);
  const std::vector<Tensor> wide = outcome(inputs, f);
  std::vector<double> all;
  for (size_t i = 0; i < wide.size(); ++i) {
    const std::vector<double> a = to_values(narrow[i]), b = to_values(wide[i]);
    double difference = 0, size = 0;
    for (size_t j = 0; j < b.size(); ++j) difference += (a[j] - b[j]) * (a[j] - b[j]), size += b[j] * b[j];
    all.push_back(std::sqrt(difference / size));
  }
  return all;
}

Tensor noise(const Shape& shape, uint32_t seed) { return random_tensor(shape, seed).to(Dtype::bf16); }

TEST_P(KernelErrors, AGateForEachChannel) {
  const std::vector<double> e = errors(
      {noise(shape, 0), noise(shape, 1), noise(shape, 2), short_memories(shape, 3)},
      [&](const auto& in) { return linear_run(in[0], in[1], in[2], in[3], {}, scale, layout, false).o; });
  for (const int i : {0, 3}) EXPECT_LE(e[i], tolerance::kChannelProducts) << "o, or the gradient of v";
  for (const int i : {1, 2}) EXPECT_LE(e[i], tolerance::kChannelSums) << "gradient of q or k";
  EXPECT_LE(e[4], tolerance::kChannelGate) << "gradient of the gate";
}

// Keys that are alike are corrected most.
TEST_P(KernelErrors, GatedDeltaRule) {
  std::vector<double> key = to_values(random_tensor(shape, 1)), beta = to_values(random_tensor(numbers, 3));
  for (size_t i = 0; i < key.size(); i += size) {
    double square = 0;
    for (int64_t j = 0; j < size; ++j) key[i + j] += 1, square += key[i + j] * key[i + j];
    for (int64_t j = 0; j < size; ++j) key[i + j] /= std::sqrt(square);
  }
  for (size_t i = 0; i < beta.size(); ++i) beta[i] = i % 5 == 0 ? 0 : 1 / (1 + std::exp(-beta[i]));
  const std::vector<double> e =
      errors({noise(shape, 0), from_values(shape, Dtype::bf16, key), noise(shape, 2),
              from_values(numbers, Dtype::f32, beta), short_memories(numbers, 4)},
             [&](const auto& in) {
               return delta_run(in[0], in[1], in[2], in[3], in[4], {}, scale, layout, false).o;
             });
  for (size_t i = 0; i < e.size(); ++i) EXPECT_LE(e[i], tolerance::kDeltaRule) << "result " << i;
}

}  // namespace
}  // namespace weft
