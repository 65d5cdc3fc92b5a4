#include "optim/muon.h"

#include <omp.h>

#include <Eigen/SVD>

#include "autograd/ops/elementwise.h"
#include "tests/optim/example_store.h"

namespace weft {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix as_matrix(const Tensor& x) {
  const std::vector<double> v = to_values(x);
  return Eigen::Map<const Matrix>(v.data(), x.dim(0), x.dim(1));
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

TEST(Orthogonalize, ActsOnSingularValuesAlone) {
  for (const Shape& shape : {Shape{24, 40}, Shape{40, 24}, Shape{31, 31}, Shape{1, 9}, Shape{9, 1}}) {
    const Tensor x = random_matrix(shape, Dtype::f64, 5);
    const Eigen::JacobiSVD<Matrix> svd(as_matrix(x), Eigen::ComputeThinU | Eigen::ComputeThinV);
    const Eigen::VectorXd s = svd.singularValues() / as_matrix(x).norm();
    const Matrix expected = svd.matrixU() * s.unaryExpr(&quintic).asDiagonal() * svd.matrixV().transpose();
    EXPECT_LE((as_matrix(orthogonalize(x)) - expected).norm(), 1e-10) << shape;
  }
}

TEST(Orthogonalize, SingularValuesEndNearOne) {
  for (const Dtype dtype : {Dtype::f32, Dtype::f64})
    for (const Shape& shape : {Shape{96, 64}, Shape{64, 96}, Shape{200, 200}}) {
      const Tensor x = random_matrix(shape, dtype, 6);
      cpu::affine(x, x, 1e-12, 0);  // the size of x plays no part
      const Eigen::VectorXd s = Eigen::JacobiSVD<Matrix>(as_matrix(orthogonalize(x))).singularValues();
      EXPECT_LE(s.maxCoeff(), 1.21) << shape;
      // A square Gaussian matrix has a few singular values near nothing.
      const bool square = shape[0] == shape[1];
      EXPECT_GE(s(square ? s.size() * 9 / 10 : s.size() - 1), 0.68) << shape;
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
  Matrix w = as_matrix(p->master), m = Matrix::Zero(20, 5);
  StepState s;
  s.gradient_scale = 4;
  for (uint32_t t = 1; t <= 4; ++t) {
    draw_gradients(store, t);
    s.rate = 1.0 / t;
    const Matrix g = 4 * as_matrix(p->gradient);
    m = 0.9 * m + 0.1 * g;
    const Matrix u = 0.9 * m + 0.1 * g;
    const Eigen::JacobiSVD<Matrix> svd(u, Eigen::ComputeThinU | Eigen::ComputeThinV);
    const Eigen::VectorXd values = (svd.singularValues() / u.norm()).unaryExpr(&quintic);
    const Matrix direction = svd.matrixU() * values.asDiagonal() * svd.matrixV().transpose();
    w = w * (1 - 0.1 / t * 0.2) - 0.1 / t * std::sqrt(20.0 / 5) * direction;
    optimizer.step(s);
  }
  EXPECT_LE((as_matrix(p->master) - w).norm(), 1e-10);
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
    const Matrix w = as_matrix(p->master.rows(i, i + 1).reshape({8, 5}));
    EXPECT_LE((w + std::sqrt(8.0 / 5) * as_matrix(orthogonalize(g))).norm(), 1e-12);
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
