#include "optim/muon.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/matmul.h"
#include "autograd/parallel.h"
#include "optim/factors.h"
#include "optim/gradient_norm.h"

namespace weft {
namespace {

// p(x) = a x + b x^3 + c x^5: the steepest start at 0 for which five steps still end near 1.
constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
constexpr int kSteps = 5;

}  // namespace

Tensor orthogonalize(const Tensor& x) {
  CHECK(x.rank() == 2 && x.dense(), "orthogonalize: ", x.shape());
  const bool tall = x.dim(0) > x.dim(1);
  const int64_t side = std::min(x.dim(0), x.dim(1));
  Tensor y = empty_like(x), next = empty_like(x);
  const Tensor gram = empty({side, side}, x.dtype(), x.device()), factor = empty_like(gram);
  const Tensor squares = empty({1}, Dtype::f64, x.device());  // stays on the device: no wait for each matrix
  ON_DEVICE(x.device(), sum_of_squares(squares, x.reshape({x.numel()})));
  ON_DEVICE(x.device(), muon_normalize(y, x, squares));
  for (int i = 0; i < kSteps; ++i) {
    // With G the smaller of y y^T and y^T y:  p(y) = a y + (b G + c G^2) y, from whichever side fits.
    ON_DEVICE(x.device(), gemm(gram, y, y, {tall, !tall}, 1, 0));
    factor.copy_from(gram);
    ON_DEVICE(x.device(), gemm(factor, gram, gram, {}, kC, kB));
    next.copy_from(y);
    ON_DEVICE(x.device(), gemm(next, tall ? y : factor, tall ? factor : y, {}, 1, kA));
    std::swap(y, next);
  }
  return y;
}

Muon::Muon(const MuonConfig& config, ParameterStore& store, Ranges owned)
    : Optimizer(store, std::move(owned)),
      config_(config),
      momentum_("muon.momentum", store, owned_),
      factors_(zeros({3}, Dtype::f64, store.device())) {
  for (const Range& range : owned_) {
    CHECK(group_of(range).kind == ParameterKind::matrix, "muon: a group that holds no matrices");
    for (const ParameterPiece& piece : pieces(store, range)) {
      const ParameterEntry& e = *piece.entry;
      CHECK(piece.count == e.master.numel(), "muon: a range cuts ", e.info.name);
      matrices_of(e);
    }
  }
}

std::vector<Muon::Matrix> Muon::matrices_of(const ParameterEntry& entry) {
  const Shape& shape = entry.info.shape;
  CHECK(shape.rank() >= 2, "muon: ", entry.info.name, " ", shape, " is not a matrix");
  const int64_t columns = shape[-1];
  std::vector<int64_t> parts = entry.info.parts;
  if (parts.empty()) parts.assign(static_cast<size_t>(shape.product(0, shape.rank() - 2)), shape[-2]);
  std::vector<Matrix> matrices;
  int64_t row = 0;
  for (const int64_t rows : parts) {
    if (rows * columns > 0) matrices.push_back({entry.offset + row * columns, rows, columns});
    row += rows;
  }
  CHECK(row * columns == shape.numel(), "muon: the parts of ", entry.info.name, " have ", row,
        " rows, its shape is ", shape);
  return matrices;
}

void Muon::prepare(StepState& s) const {
  const double lr = config_.lr * s.rate;
  put_factors(factors_, {s.gradient_scale * s.clip, 1 - lr * config_.weight_decay, lr});
}

void Muon::apply(const Range& range, const StepState&) {
  std::vector<Matrix> matrices;
  for (const ParameterPiece& piece : pieces(store_, range)) {
    CHECK(piece.count == piece.entry->master.numel(), "muon: a range cuts ", piece.entry->info.name);
    for (const Matrix& m : matrices_of(*piece.entry)) matrices.push_back(m);
  }
  const auto update = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) update_matrix(matrices[static_cast<size_t>(i)], range);
  };
  const auto count = static_cast<int64_t>(matrices.size());
  // One core a matrix; a single matrix is spread over the cores by its products. Same bits either way.
  if (store_.device() == Device::cpu)
    parallel_for(count, 1, update);
  else
    update(0, count);
}

void Muon::update_matrix(const Matrix& matrix, const Range& range) {
  const MemoryScope scope("muon");
  const ParameterGroup& group = group_of(range);
  const int64_t begin = matrix.offset, end = begin + matrix.rows * matrix.columns;
  const auto part = [&](const Tensor& flat) { return flat.rows(begin, end); };
  const Device device = store_.device();
  const Tensor u = empty({end - begin}, group.master.dtype(), device);
  ON_DEVICE(device, muon_momentum(u, momentum_.at({range.group, begin, end}), part(group.gradient),
                                  config_.momentum, factors_));
  const Tensor direction = orthogonalize(u.reshape({matrix.rows, matrix.columns}));
  const double shape = std::sqrt(std::max(1.0, static_cast<double>(matrix.rows) / matrix.columns));
  ON_DEVICE(device, muon_apply(part(group.master), part(group.working), direction.reshape({end - begin}),
                               shape, factors_));
}

}  // namespace weft
