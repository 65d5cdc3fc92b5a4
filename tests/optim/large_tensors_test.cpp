// Optimizers of more than 2^31 weights.

#include "tests/autograd/large_tensors.h"

#include "optim/adamw.h"
#include "optim/ema.h"
#include "optim/gradient_norm.h"
#include "optim/muon.h"

namespace weft {
namespace {

using namespace large;

constexpr int64_t kWeights = (int64_t{1} << 31) + (int64_t{1} << 20) + 5, kAtOnce = int64_t{1} << 28;

// f of all weights and of kAtOnce at a time, each on a copy of `tensors`: equal to the bit. Compared in
// pieces as well, since a row of `apart` is one number here.
template <class F>
void expect_weights(std::vector<Tensor> tensors, F f) {
  std::vector<Tensor> parts;
  for (const Tensor& x : tensors) {
    parts.push_back(empty_like(x));
    parts.back().copy_from(x);
  }
  f(tensors);
  for (int64_t begin = 0; begin < kWeights; begin += kAtOnce) {
    const int64_t end = std::min(kWeights, begin + kAtOnce);
    std::vector<Tensor> own;
    for (const Tensor& x : parts) own.push_back(x.rows(begin, end));
    f(own);
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    const int64_t body = kWeights / 4096 * 4096;
    const auto rows = [=](const Tensor& x) { return x.rows(0, body).reshape({body / 4096, 4096}); };
    EXPECT_EQ(apart(rows(tensors[i]), rows(parts[i])), 0) << "tensor " << i;
    EXPECT_EQ(apart(tensors[i].rows(body, kWeights), parts[i].rows(body, kWeights)), 0) << "tensor " << i;
  }
}

Tensor weights(uint32_t seed, Dtype dtype = Dtype::f32) { return noise({kWeights}, dtype, seed); }

TEST(LargeTensors, AdamW) {
  NEEDS_GPU_MEMORY(90);
  const Tensor factors = from_values({4}, Dtype::f64, {0.5, 0.999, 0.01, 1.1});
  expect_weights({weights(1), weights(2, Dtype::bf16), weights(3), abs(Variable(weights(4))), weights(5)},
                 [&](const std::vector<Tensor>& x) {
                   ON_DEVICE(x[0].device(), adamw(x[0], x[1], x[2], x[3], x[4], {}, true, factors));
                 });
}

TEST(LargeTensors, Means) {
  NEEDS_GPU_MEMORY(60);
  const Tensor weight = from_values({1}, Dtype::f64, {0.25});
  expect_weights({weights(1), weights(2)},
                 [&](const std::vector<Tensor>& x) { ON_DEVICE(x[0].device(), ema(x[0], x[1], weight)); });
  const Tensor x = weights(3);
  double all = 0;
  for (int64_t begin = 0; begin < kWeights; begin += kAtOnce)
    all += sum_of_squares(x.rows(begin, std::min(kWeights, begin + kAtOnce)));
  EXPECT_NEAR(sum_of_squares(x) / all, 1, 1e-12);
}

TEST(LargeTensors, Muon) {
  NEEDS_GPU_MEMORY(90);
  const Tensor factors = from_values({3}, Dtype::f64, {0.5, 0.999, 0.01}),
               squares = from_values({1}, Dtype::f64, {7});
  expect_weights({weights(1), weights(2), weights(3)}, [&](const std::vector<Tensor>& x) {
    ON_DEVICE(x[0].device(), muon_momentum(x[0], x[1], x[2], 0.95, factors));
    ON_DEVICE(x[0].device(), muon_normalize(x[2], x[0], squares));
  });
  expect_weights({weights(1), weights(2, Dtype::bf16), weights(3)}, [&](const std::vector<Tensor>& x) {
    ON_DEVICE(x[0].device(), muon_apply(x[0], x[1], x[2], 1.5, factors));
  });
}

}  // namespace
}  // namespace weft
