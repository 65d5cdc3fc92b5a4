#include "optim/muon.h"

#include <omp.h>

#include <algorithm>
#include <numeric>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "tests/optim/example_store.h"

namespace weft {
namespace {

double norm(const Tensor& x) {
  const std::vector<double> v = to_values(x);
  return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
}

double norm_of_difference(const Tensor& a, const Tensor& b) {
  return norm(subtract(a.to(Dtype::f64).to(Device::cpu), b.to(Dtype::f64).to(Device::cpu)));
}

// x = left^T right: the rows of `right` are orthonormal, those of `left` orthogonal, and their lengths are
// the singular values, in no order. By one-sided rotations (Hestenes 1958); x not wider than high.
struct Decomposition {
  Tensor left, right;
  std::vector<double> values;
};

Decomposition decompose(const Tensor& x) {
  const int64_t m = x.dim(0), n = x.dim(1);
  CHECK(n <= m, "decompose: ", x.shape());
  std::vector<double> identity(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) identity[static_cast<size_t>(i * n + i)] = 1;
  const Tensor right = from_values({n, n}, Dtype::f64, identity, Device::cpu);
  const Tensor left = matmul(right, x.to(Dtype::f64).to(Device::cpu), {false, true});
  const auto dot = [&](int64_t i, int64_t j) {
    const double* w = left.data<double>();
    return std::inner_product(w + i * m, w + (i + 1) * m, w + j * m, 0.0);
  };
  const auto rotate = [](double* a, double* b, int64_t size, double c, double s) {
    for (int64_t k = 0; k < size; ++k) {
      const double y = c * a[k] - s * b[k];
      b[k] = s * a[k] + c * b[k];
      a[k] = y;
    }
  };
  bool rotated = true;
  for (int sweep = 0; rotated && sweep < 40; ++sweep) {
    rotated = false;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) {
        const double a = dot(i, i), b = dot(j, j), overlap = dot(i, j);
        if (std::abs(overlap) <= 1e-13 * std::sqrt(a * b)) continue;
        rotated = true;
        const double z = (b - a) / (2 * overlap);
        const double t = std::copysign(1 / (std::abs(z) + std::sqrt(1 + z * z)), z);
        const double c = 1 / std::sqrt(1 + t * t);
        rotate(left.data<double>() + i * m, left.data<double>() + j * m, m, c, c * t);
        rotate(right.data<double>() + i * n, right.data<double>() + j * n, n, c, c * t);
      }
  }
  std::vector<double> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(std::sqrt(dot(i, i)));
  return {left, right, values};
}

Tensor turned(const Tensor& x) { return permute(x, {1, 0}); }

std::vector<double> singular_values(const Tensor& x) {
  std::vector<double> values = decompose(x.dim(0) < x.dim(1) ? turned(x) : x).values;
  std::sort(values.rbegin(), values.rend());
  return values;
}

Tensor random_matrix(const Shape& shape, Dtype dtype, uint32_t seed) {
  const Tensor x = empty(shape, dtype);
  fill_with(x, [&](int64_t i) { return RandomKey{seed}.normal(static_cast<uint64_t>(i)); });
  return x;
}

// Five times the quintic, on one singular value.
double quintic(double x) {
  for (int i = 0; i < 5; ++i) x = 3.4445 * x - 4.7750 * x * x * x + 2.0315 * x * x * x * x * x;
  return x;
}

// U f(S) V^T of x = U S V^T, f five times the quintic and S relative to the norm of x.
Tensor orthogonal_by_definition(const Tensor& x) {
  if (x.dim(0) < x.dim(1)) return turned(orthogonal_by_definition(turned(x)));
  const Decomposition d = decompose(x);
  const int64_t m = x.dim(0);
  for (size_t j = 0; j < d.values.size(); ++j)
    for (int64_t i = 0; i < m; ++i)
      d.left.data<double>()[static_cast<int64_t>(j) * m + i] *= quintic(d.values[j] / norm(x)) / d.values[j];
  return matmul(d.left, d.right, {true, false}).value().to(x.device());
}

TEST(Orthogonalize, ActsOnSingularValuesAlone) {
  for (const Shape& shape : {Shape{24, 40}, Shape{40, 24}, Shape{31, 31}, Shape{1, 9}, Shape{9, 1}}) {
    const Tensor x = random_matrix(shape, Dtype::f64, 5);
    EXPECT_LE(norm_of_difference(orthogonalize(x), orthogonal_by_definition(x)), 1e-10) << shape;
  }
}

TEST(Orthogonalize, SingularValuesEndNearOne) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64})
    for (const Shape& shape : {Shape{96, 64}, Shape{64, 96}, Shape{200, 200}}) {
      const Tensor x = random_matrix(shape, dtype, 6);
      const Tensor small = scale(x, 1e-12, 0);  // the size of x plays no part
      const std::vector<double> s = singular_values(orthogonalize(small));
      EXPECT_LE(s.front(), 1.21) << shape;
      // A square Gaussian matrix has a few singular values near nothing.
      const bool square = shape[0] == shape[1];
      EXPECT_GE(square ? s[s.size() * 9 / 10] : s.back(), 0.68) << shape;
    }
}

TEST(Orthogonalize, ZeroStaysZero) {
  EXPECT_TRUE(same_bits(orthogonalize(zeros({4, 3}, Dtype::f32)), zeros({4, 3}, Dtype::f32)));
}

TEST(Muon, EqualsTheDefinition) {
  const MuonConfig config{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.2};
  ParameterStore store(Dtype::f64);
  const Parameter p = store.declare({"p", {20, 5}, ParameterKind::matrix, Initializer::normal(1)});
  store.commit();
  Muon optimizer(config, store, whole(store));
  Tensor w = scale(p->master, 1), m = zeros({20, 5}, Dtype::f64);
  StepState s;
  s.gradient_scale = 4;
  for (uint32_t t = 1; t <= 4; ++t) {
    draw_gradients(store, t);
    s.rate = 1.0 / t;
    const Tensor g = scale(p->gradient, 4);
    m = add(scale(m, 0.9), scale(g, 0.1));
    const Tensor u = add(scale(m, 0.9), scale(g, 0.1));
    w = subtract(scale(w, 1 - 0.1 / t * 0.2),
                 scale(orthogonal_by_definition(u), 0.1 / t * std::sqrt(20.0 / 5)));
    optimizer.step(s);
  }
  EXPECT_LE(norm_of_difference(p->master, w), 1e-10);
}

TEST(Muon, PartsOfAFusedProjectionAreMatricesOfTheirOwn) {
  for (const Dtype precision : {Dtype::f32, Dtype::bf16}) {
    ParameterStore fused(precision), apart(precision);
    const Tensor values = random_matrix({22, 7}, Dtype::f64, 8),
                 steps = random_matrix({22, 7}, Dtype::f64, 9);
    const Initializer init = Initializer::from(to_values(values));
    const Parameter whole_p = fused.declare({"p", {22, 7}, ParameterKind::matrix, init, {9, 9, 4}});
    fused.commit();
    whole_p->gradient.copy_from(steps);
    const std::vector<int64_t> borders{0, 9, 18, 22};
    std::vector<Parameter> parts;
    for (size_t i = 0; i < 3; ++i)
      parts.push_back(apart.declare({text("p", i),
                                     {borders[i + 1] - borders[i], 7},
                                     ParameterKind::matrix,
                                     Initializer::from(to_values(values.rows(borders[i], borders[i + 1])))}));
    apart.commit();
    for (size_t i = 0; i < 3; ++i) parts[i]->gradient.copy_from(steps.rows(borders[i], borders[i + 1]));

    Muon one({}, fused, whole(fused)), three({}, apart, whole(apart));
    StepState a, b;
    one.step(a);
    three.step(b);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(same_bits(whole_p->master.rows(borders[i], borders[i + 1]), parts[i]->master));
      EXPECT_TRUE(same_bits(whole_p->working.rows(borders[i], borders[i + 1]), parts[i]->working));
    }
  }
}

TEST(Muon, ASingleLargeMatrixDoesNotDependOnThreads) {
  const Tensor x = random_matrix({601, 590}, Dtype::f32, 10);
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Tensor one = orthogonalize(x);
  for (const int threads : {2, 5}) {
    omp_set_num_threads(threads);
    EXPECT_TRUE(same_bits(orthogonalize(x), one)) << threads;
  }
  omp_set_num_threads(before);
}

TEST(Muon, LeadingDimensionsCountMatrices) {
  ParameterStore store(Dtype::f64);
  const Parameter p = store.declare({"experts", {3, 8, 5}, ParameterKind::matrix, Initializer::constant(0)});
  store.commit();
  draw_gradients(store, 1);
  Muon optimizer({.lr = 1, .momentum = 0, .weight_decay = 0}, store, whole(store));
  StepState s;
  optimizer.step(s);
  for (int64_t i = 0; i < 3; ++i) {
    const Tensor g = p->gradient.rows(i, i + 1).reshape({8, 5});
    const Tensor w = p->master.rows(i, i + 1).reshape({8, 5});
    EXPECT_LE(norm_of_difference(w, scale(orthogonalize(g), -std::sqrt(8.0 / 5))), 1e-12);
  }
}

TEST(Muon, RefusesWhatItCannotCut) {
  ParameterStore store;
  store.declare({"a", {8, 8}, ParameterKind::matrix});
  store.declare({"b", {4, 8}, ParameterKind::matrix, Initializer::constant(0), {1, 2}});
  store.commit();
  EXPECT_THROW(Muon({}, store, {{0, 0, 32}}), Error);  // half of a
  EXPECT_THROW(Muon({}, store, whole(store)), Error);  // the parts of b leave a row
  const auto example = example_store(Dtype::f32);
  EXPECT_THROW(Muon({}, *example, whole(*example)), Error);  // embeddings and vectors
}

}  // namespace
}  // namespace weft
