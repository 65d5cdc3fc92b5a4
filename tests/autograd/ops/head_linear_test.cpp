#include "autograd/ops/head_linear.h"

#include "autograd/flops.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/top_k.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

// Of `routed` heads behind `always`, `on` for each of n tokens.
struct Case {
  int64_t n, always, routed, on;

  int64_t heads() const { return always + routed; }
  Tensor chosen(Device device) const {
    if (device == Device::meta) return empty({n, on}, Dtype::i32, device);
    return top_k(random_tensor({n, routed}, 9), on).indices;
  }
  HeadTokens heads_on(Device device) const { return heads_of(chosen(device), always, routed); }
  // (N, H, 1), 0 or 1
  Variable mask(const Variable& like) const {
    if (like.device() == Device::meta) return empty({n, heads(), 1}, like.dtype(), like.device());
    const Variable routed_on = marks(chosen(like.device()), routed, like.dtype());
    return reshape(concatenate({full({n, always}, 1, like.dtype(), like.device()), routed_on}, 1),
                   {n, heads(), 1});
  }
};

constexpr int64_t kWidth = 5, kSize = 3, kFirst = 2;

Function to_heads(const Case& c) {
  return [=](const std::vector<Variable>& v) {
    return std::vector{linear_to_heads(v[0], v[1], kFirst, kSize, c.heads_on(v[0].device()))};
  };
}
Function masked_to_heads(const Case& c) {
  return [=](const std::vector<Variable>& v) {
    const Variable all = linear(v[0], slice(v[1], 0, kFirst, kFirst + c.heads() * kSize));
    return std::vector{multiply(reshape(all, {c.n, c.heads(), kSize}), c.mask(all))};
  };
}
Function from_heads(const Case& c) {
  return [=](const std::vector<Variable>& v) {
    return std::vector{linear_from_heads(v[0], v[1], c.heads_on(v[0].device()))};
  };
}
Function masked_from_heads(const Case& c) {
  return [=](const std::vector<Variable>& v) {
    return std::vector{linear(reshape(multiply(v[0], c.mask(v[0])), {c.n, c.heads() * kSize}), v[1])};
  };
}

std::vector<Tensor> inputs_of(const Case& c, bool into_heads) {
  const int64_t width = c.heads() * kSize;
  if (into_heads) return {random_tensor({c.n, kWidth}, 1), random_tensor({kFirst + width + 1, kWidth}, 2)};
  return {random_tensor({c.n, c.heads(), kSize}, 1), random_tensor({kWidth, width}, 2)};
}

// {y, dx, dweight} for random adjoints.
std::vector<Tensor> outcome(const Function& f, const std::vector<Tensor>& inputs) {
  Tape tape;
  std::vector<Variable> leaves;
  for (const Tensor& x : inputs) leaves.push_back(tape.input(x));
  const Variable y = f(leaves)[0];
  tape.backward(y, random_tensor(y.shape(), 3));
  return {y.value(), tape.gradient(leaves[0]), tape.gradient(leaves[1])};
}

// One head only is on for every token, for one token, for none.
const std::vector<Case> kCases{{11, 2, 4, 2}, {7, 0, 5, 1}, {1, 1, 3, 1},
                               {2, 0, 6, 1},  {9, 3, 2, 0}, {6, 0, 3, 3}};

TEST(HeadLinear, EqualsAllHeadsMasked) {
  for (const Case& c : kCases)
    for (const bool into : {true, false}) {
      const std::vector<Tensor> inputs = inputs_of(c, into);
      const auto mine = outcome(into ? to_heads(c) : from_heads(c), inputs),
                 all = outcome(into ? masked_to_heads(c) : masked_from_heads(c), inputs);
      for (size_t i = 0; i < mine.size(); ++i)
        EXPECT_LE(difference(mine[i], all[i]), 1e-12) << c.n << " " << c.routed << " " << into << " " << i;
    }
}

TEST(HeadLinear, Gradients) {
  for (const Case& c : kCases)
    for (const bool into : {true, false}) expect_op(into ? to_heads(c) : from_heads(c), inputs_of(c, into));
  const Case none{0, 1, 2, 1}, large{300, 1, 7, 3};
  expect_op(to_heads(none), inputs_of(none, true));
  expect_op(from_heads(none), inputs_of(none, false));
  expect_same_bits_on_threads(to_heads(large), inputs_of(large, true));
  expect_same_bits_on_threads(from_heads(large), inputs_of(large, false));
}

// Routing another token to a head, or away from it, changes no bit of this one.
TEST(HeadLinear, ATokenDependsOnNoOther) {
  const int64_t n = 3, width = 600, size = 300;  // short sums are the same either way
  const Tensor x = random_tensor({n, 2, size}, 1, Dtype::f32),
               wide = random_tensor({n, width}, 2, Dtype::f32);
  const Tensor out = random_tensor({width, 2 * size}, 3, Dtype::f32),
               in = random_tensor({2 * size, width}, 4, Dtype::f32);
  const auto first_token = [&](int32_t others) {
    const HeadTokens on = heads_of(from_ints({0, others, others}).reshape({n, 1}), 0, 2);
    std::vector<Tensor> first;
    for (const Variable& y : {linear_from_heads(x, out, on), linear_to_heads(wide, in, 0, size, on)})
      first.push_back(y.value().rows(0, 1));
    return first;
  };
  const std::vector<Tensor> alone = first_token(1), together = first_token(0);
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(alone[i], together[i])) << i;
}

TEST(HeadLinear, CostsWhatIsOn) {
  const auto flops = [](const Function& f, const std::vector<Tensor>& inputs) {
    const double before = counted_flops();
    outcome(f, inputs);
    return counted_flops() - before;
  };
  const Case quarter{64, 0, 8, 2}, half{64, 2, 6, 2}, all{64, 8, 0, 0};
  for (const bool into : {true, false}) {
    const auto of = [&](const Case& c) {
      return flops(into ? to_heads(c) : from_heads(c), inputs_of(c, into));
    };
    EXPECT_EQ(of(all), 3 * 2.0 * 64 * 8 * kSize * kWidth) << "three products of this size";
    EXPECT_EQ(of(half), of(all) / 2);
    EXPECT_EQ(of(quarter), of(all) / 4);
  }
}

TEST(HeadLinear, Refuses) {
  const HeadTokens on = all_heads(3, 2);
  EXPECT_THROW(linear_to_heads(random_tensor({4, 5}, 1), random_tensor({6, 5}, 2), 0, 3, on), Error);
  EXPECT_THROW(linear_to_heads(random_tensor({3, 5}, 1), random_tensor({6, 5}, 2), 1, 3, on), Error);
  EXPECT_THROW(linear_from_heads(random_tensor({3, 3, 2}, 1), random_tensor({5, 6}, 2), on), Error);
  EXPECT_THROW(heads_of(random_tensor({3, 2}, 1), 0, 4), Error);
}

}  // namespace
}  // namespace weft
