#include "autograd/ops/causal_convolution.h"

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

Function over(const std::vector<int32_t>& first) {
  return [first](const std::vector<Variable>& v) {
    return std::vector{causal_convolution(v[0], v[1], from_ints(first))};
  };
}

TEST(CausalConvolution, AgainstTheDefinition) {
  // Lengths around powers of two, an empty document, more channels than one block of lanes.
  for (const std::vector<int32_t>& first :
       {std::vector<int32_t>{0, 1}, {0, 2, 5}, {0, 8, 17, 17, 24}, {0, 33, 64, 65}, {0, 100}})
    for (const int64_t channels : {1, 3, 16, 21}) {
      const int64_t n = first.back(), length = n + 3;
      const Tensor x = random_tensor({n, channels}, 1), kernel = random_tensor({channels, length}, 2);
      const std::vector<double> a = to_values(x), k = to_values(kernel),
                                y = to_values(causal_convolution(x, kernel, from_ints(first)));
      for (size_t g = 0; g + 1 < first.size(); ++g)
        for (int64_t t = first[g]; t < first[g + 1]; ++t)
          for (int64_t c = 0; c < channels; ++c) {
            double sum = 0;
            for (int64_t s = first[g]; s <= t; ++s) sum += k[c * length + t - s] * a[s * channels + c];
            EXPECT_NEAR(y[t * channels + c], sum, 1e-11) << "token " << t << ", channel " << c;
          }
    }
}

TEST(CausalConvolution, Gradients) {
  for (const std::vector<int32_t>& first : {std::vector<int32_t>{0, 1}, {0, 4, 4, 9, 12}, {0, 17}, {0}}) {
    const int64_t n = first.back();
    expect_op(over(first), {random_tensor({n, 3}, 1), random_tensor({3, 17}, 2)});
  }
  expect_same_bits_on_threads(over({0, 300, 400}),
                              {random_tensor({400, 130}, 1), random_tensor({130, 300}, 2)});
}

TEST(CausalConvolution, Checks) {
  const Tensor x = random_tensor({5, 2}, 1);
  EXPECT_THROW(causal_convolution(x, random_tensor({3, 5}, 2), from_ints({0, 5})), Error);
  EXPECT_THROW(causal_convolution(x, random_tensor({2, 4}, 2), from_ints({0, 5})), Error);
  EXPECT_THROW(causal_convolution(x, random_tensor({2, 5}, 2), from_ints({0, 4})), Error);
}

}  // namespace
}  // namespace weft
