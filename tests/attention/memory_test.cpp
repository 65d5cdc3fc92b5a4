// A memory by chunks makes its answers chunk by chunk or for many at once, as suits the device: either way
// answers, states and gradients are the same.

#include "attention/memory.h"

#include "autograd/ops/elementwise.h"
#include "tests/attention/conformance.h"

namespace weft {
namespace {

constexpr int64_t kMemoryHeads = 2, kMemoryKey = 3, kMemoryValue = 5, kMemoryChunk = 4, kMemoryChunks = 6;

// Answers, the state behind them, and the gradients of everything that goes in.
std::vector<std::vector<double>> learned_in(int64_t groups, const MemoryPolicy& policy) {
  const ChunkedMemory memory(policy, kMemoryChunk);
  Tape tape;
  std::vector<Variable> inputs;
  const auto input = [&](const Shape& shape, bool gate) {
    const Tensor x = random_tensor(shape, static_cast<uint64_t>(inputs.size()) + 1);
    inputs.push_back(tape.input(gate ? sigmoid(x).value() : x));
    return inputs.back();
  };
  const auto tokens = [&](int64_t size, bool gate) {
    return input({kMemoryChunks * kMemoryHeads, kMemoryChunk, size}, gate);
  };
  MemoryTokens t{tokens(kMemoryKey, false),
                 tokens(kMemoryKey, false),
                 tokens(kMemoryValue, false),
                 tokens(1, true),
                 tokens(1, true),
                 {},
                 tokens(1, true)};
  if (policy.momentum) t.momentum = tokens(1, true);
  State a;
  for (const Shape& shape : policy.memory.shapes) a.push_back(input(shape, false));
  const auto [y, after] = memory.learn_in_groups(t, kMemoryChunks, groups, 0, memory.start(a));
  std::vector<Variable> outputs{y};
  outputs.insert(outputs.end(), after.begin(), after.end() - 1);  // the place has no gradient
  std::vector<Tensor> seeds;
  for (const Variable& x : outputs) seeds.push_back(random_tensor(x.shape(), 99 + seeds.size()));
  tape.backward(outputs, seeds);
  std::vector<std::vector<double>> all;
  for (const Variable& x : outputs) all.push_back(to_values(x.value()));
  for (const Variable& x : inputs) all.push_back(to_values(tape.gradient(x)));
  return all;
}

TEST(MemoryByChunks, GroupsOfAnswersChangeNothing) {
  const Memory matrix = matrix_memory(kMemoryHeads, kMemoryKey, kMemoryValue),
               mlp = mlp_memory(kMemoryHeads, kMemoryKey, 7, kMemoryValue);
  const std::vector<MemoryPolicy> policies{
      {mlp, squared_bias(), {}, true},
      {mlp, huber_bias(), {}, false},
      {matrix, huber_bias(), {}, false},
      {mlp, power_bias(3, 1e-2), norm_retention(4, 1e-2), false},
      {mlp, power_bias(2.5, 1e-2), norm_retention(5, 1e-2), true},
      {mlp, squared_bias(), softmax_retention(), false},
  };
  for (size_t p = 0; p < policies.size(); ++p) {
    const auto at_once = learned_in(1, policies[p]);
    for (const int64_t groups : {kMemoryChunks, kMemoryChunks / 2}) {
      const auto apart = learned_in(groups, policies[p]);
      ASSERT_EQ(apart.size(), at_once.size());
      for (size_t i = 0; i < apart.size(); ++i) {
        ASSERT_EQ(apart[i].size(), at_once[i].size());
        for (size_t j = 0; j < apart[i].size(); ++j)
          ASSERT_NEAR(apart[i][j], at_once[i][j], tolerance::of(Dtype::f64) * (1 + std::abs(at_once[i][j])))
              << "policy " << p << ", " << groups << " groups, tensor " << i;
      }
    }
  }
}

}  // namespace
}  // namespace weft
