#include "attention/feature_map.h"

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

std::vector<Variable> features_of(const std::vector<Variable>& v) { return {taylor_features(v[0])}; }

TEST(TaylorFeatures, AreWhatBasicOpsGive) {
  for (const int64_t d : {1, 2, 7, 32})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const Tensor x = random_tensor({9, 3, d}, 1).to(dtype);
      const auto got = outputs_and_gradients(features_of, {x}),
                 expected = outputs_and_gradients(
                     [](const auto&v) { return std::vector{taylor_features_by_ops(v[0])}; }, {x});
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(difference(got[i], expected[i]), tolerance::of(dtype))
            << name_of(dtype) << ", " << d << " components, result " << i;
    }
}

TEST(TaylorFeatures, AreAnOp) {
  for (const Shape& shape : {Shape{5, 2, 3}, {40, 3, 17}, {0, 2, 3}}) {
    const std::vector<Tensor> inputs{random_tensor(shape, 2)};
    expect_op(features_of, inputs);
    expect_same_bits_on_threads(features_of, inputs);
  }
}

}  // namespace
}  // namespace weft
