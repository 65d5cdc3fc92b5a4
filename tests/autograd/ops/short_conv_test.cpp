#include "autograd/ops/short_conv.h"

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

// Three documents: the first goes on from an earlier piece, the last two start here.
const std::vector<int32_t> kPlaces{2, 3, 4, 5, 6, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

std::vector<Variable> full(const std::vector<Variable>& v) {
  return {short_conv(v[0], v[1], v[2], v[3], v.size() > 4 ? v[4] : Variable())};
}
std::vector<Variable> plain(const std::vector<Variable>& v) { return {short_conv(v[0], v[1], {}, v[2])}; }

TEST(ShortConv, AgainstTheDefinition) {
  const int64_t n = static_cast<int64_t>(kPlaces.size()), channels = 5;
  for (int64_t width = 1; width <= 8; ++width) {
    const Tensor x = random_tensor({n, channels}, 1), weight = random_tensor({channels, width}, 2),
                 bias = random_tensor({channels}, 3), before = random_tensor({width - 1, channels}, 4);
    const std::vector<double> a = to_values(x), w = to_values(weight), b = to_values(bias),
                              front = to_values(before);
    const std::vector<double> y = to_values(short_conv(x, weight, bias, from_ints(kPlaces), before));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < channels; ++c) {
        double sum = b[c];
        for (int64_t j = 0; j < width && j <= kPlaces[i]; ++j)
          sum += w[c * width + width - 1 - j] *
                 (i >= j ? a[(i - j) * channels + c] : front[(width - 1 + i - j) * channels + c]);
        EXPECT_NEAR(y[i * channels + c], sum, 1e-12) << width << " " << i;
      }
  }
}

TEST(ShortConv, Gradients) {
  const int64_t n = static_cast<int64_t>(kPlaces.size());
  for (const int64_t width : {1, 2, 4, 8}) {
    const Tensor x = random_tensor({n, 3}, 1), weight = random_tensor({3, width}, 2),
                 bias = random_tensor({3}, 3), before = random_tensor({width - 1, 3}, 4);
    expect_op(full, {x, weight, bias, from_ints(kPlaces), before});
    expect_op(full, {x, weight, bias, from_ints(kPlaces)});
    expect_op(plain, {x, weight, from_ints(kPlaces)});
  }
  const Tensor weight = random_tensor({2, 4}, 2), before = random_tensor({3, 2}, 4),
               bias = random_tensor({2}, 3);
  expect_op(full, {random_tensor({1, 2}, 1), weight, bias, from_ints({9}), before});
  expect_op(full, {random_tensor({0, 2}, 1), weight, bias, from_ints({}), before});
  expect_same_bits_on_threads(full, {random_tensor({400, 130}, 1), random_tensor({130, 4}, 2),
                                     random_tensor({130}, 3), random_ints(400, 6, 5)});
}

// The line cut in two, the second part given the last rows of the first: the same bits, also one by one.
TEST(ShortConv, ACutLineContinues) {
  const int64_t n = static_cast<int64_t>(kPlaces.size()), width = 4;
  const Tensor x = random_tensor({n, 3}, 1, Dtype::f32), weight = random_tensor({3, width}, 2, Dtype::f32),
               position = from_ints(kPlaces), padded = zeros({n + width - 1, 3}, Dtype::f32);
  padded.rows(width - 1, n + width - 1).copy_from(x);
  const Tensor whole = short_conv(x, weight, {}, position);
  for (const int64_t step : {1, 2, 7})
    for (int64_t i = 0; i < n; i += step) {
      const int64_t end = std::min(n, i + step);
      EXPECT_TRUE(same_bits(
          short_conv(x.rows(i, end), weight, {}, position.rows(i, end), padded.rows(i, i + width - 1)),
          whole.rows(i, end)));
    }
}

TEST(ShortConv, ColumnViewsParametersAndBadShapes) {
  const Tensor wide = random_tensor({6, 9}, 1, Dtype::bf16), view = wide.columns(2, 5);
  const Tensor position = from_ints({0, 1, 2, 0, 1, 2});
  ParameterStore store(Dtype::bf16);
  const Parameter weight = store.declare({"w", {3, 4}, ParameterKind::vector, Initializer::normal(1)});
  store.commit();
  std::vector<Tensor> gradients;
  for (const Tensor& x : {view, view.contiguous()}) {
    store.begin_step();
    Tape tape;
    tape.backward(short_conv(x, weight, {}, position), random_tensor({6, 3}, 2, Dtype::bf16));
    gradients.push_back(empty_like(weight->gradient));
    gradients.back().copy_from(weight->gradient);
  }
  EXPECT_TRUE(same_bits(gradients[0], gradients[1]));
  EXPECT_TRUE(
      same_bits(short_conv(view, weight, {}, position), short_conv(view.contiguous(), weight, {}, position)));
  const Tensor x = random_tensor({6, 3}, 1);
  EXPECT_THROW(short_conv(x, random_tensor({3, 9}, 1), {}, position), Error);
  EXPECT_THROW(short_conv(x, random_tensor({2, 4}, 1), {}, position), Error);
  EXPECT_THROW(short_conv(x, random_tensor({3, 4}, 1), {}, position, random_tensor({4, 3}, 1)), Error);
}

}  // namespace
}  // namespace weft
