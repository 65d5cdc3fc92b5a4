#include "optim/gradient_norm.h"

#include <omp.h>

#include <limits>

#include "tests/optim/example_store.h"

namespace weft {
namespace {

TEST(GradientNorm, IsTheEuclideanNormOfAllTrainable) {
  for (const Dtype precision : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const auto store = example_store(precision, true);
    draw_gradients(*store, 1, 3);
    double sum = 0;
    for (const auto& entry : store->entries())
      if (entry->info.trainable)
        for (const double g : to_values(entry->gradient)) sum += g * g;
    const GradientNorm norm = gradient_norm(*store);
    EXPECT_NEAR(norm.value, std::sqrt(sum), 1e-11 * std::sqrt(sum));
    EXPECT_EQ(norm.non_finite, "");
  }
}

TEST(GradientNorm, KeepsTheRangeOfF32) {
  const auto store = example_store(Dtype::f32);
  for (const double huge : {3e38, 1e-40}) {
    draw_gradients(*store, 1, 0);
    edit<float>(store->find("last")->gradient, [&](float* g) { g[17] = static_cast<float>(huge); });
    EXPECT_NEAR(gradient_norm(*store).value / huge, 1, 1e-4);
  }
}

TEST(GradientNorm, NamesTheFirstParameterThatIsNotFinite) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = INFINITY;
  for (const float bad : {kNan, kInf, -kInf}) {
    const auto store = example_store(Dtype::bf16);
    draw_gradients(*store, 1);
    edit<float>(store->find("last")->gradient, [&](float* g) { g[41 * 33 - 1] = bad; });
    EXPECT_EQ(gradient_norm(*store).non_finite, "last");
    edit<float>(store->find("a.gain")->gradient, [&](float* g) { g[12] = bad; });
    const GradientNorm norm = gradient_norm(*store);
    EXPECT_EQ(norm.non_finite, "a.gain");  // declared before, though in a later group
    EXPECT_FALSE(std::isfinite(norm.value));
  }
}

TEST(GradientNorm, NamesTheFirstWeightThatIsNotFinite) {
  const auto store = example_store(Dtype::bf16);
  EXPECT_EQ(first_non_finite_weight(*store), "");
  edit<float>(store->find("last")->master, [&](float* w) { w[41 * 33 - 1] = 3e38F; });
  EXPECT_EQ(first_non_finite_weight(*store), "");
  edit<float>(store->find("last")->master, [&](float* w) { w[41 * 33 - 1] = INFINITY; });
  EXPECT_EQ(first_non_finite_weight(*store), "last");
  edit<float>(store->find("a.gain")->master, [&](float* w) { w[12] = NAN; });
  EXPECT_EQ(first_non_finite_weight(*store), "a.gain");
}

TEST(GradientNorm, DoesNotDependOnThreads) {
  const auto store = example_store(Dtype::f32, true);
  draw_gradients(*store, 1);
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const double one = gradient_norm(*store).value;
  for (const int threads : {2, 3, 7}) {
    omp_set_num_threads(threads);
    EXPECT_EQ(gradient_norm(*store).value, one);
  }
  omp_set_num_threads(before);
}

TEST(GradientNorm, AddsUpOverAPartition) {
  const auto store = example_store(Dtype::f32);
  draw_gradients(*store, 1);
  double sum = 0;
  for (int64_t part = 0; part < 3; ++part)
    sum += squared_gradient_norm(*store, partition(*store, 3, part, false));
  EXPECT_NEAR(std::sqrt(sum), gradient_norm(*store).value, 1e-9);
}

}  // namespace
}  // namespace weft
