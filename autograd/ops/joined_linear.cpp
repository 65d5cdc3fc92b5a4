#include "autograd/ops/joined_linear.h"

#include <algorithm>

#include "autograd/ops/matmul.h"

namespace weft {
namespace {

bool side_by_side(const std::vector<Parameter>& weights) {
  int64_t end = weights[0]->offset;
  for (const Parameter& w : weights) {
    if (w->group != weights[0]->group || w->offset != end) return false;
    end += w->info.shape.numel();
  }
  return true;
}

Tensor put_together(const std::vector<Parameter>& weights, const Shape& shape) {
  const Tensor& first = weights[0]->working;
  const Tensor all = empty(shape, first.dtype(), first.device());
  int64_t row = 0;
  for (const Parameter& w : weights) {
    all.rows(row, row + w->info.shape[0]).copy_from(w->working);
    row += w->info.shape[0];
  }
  return all;
}

// gradients: of all weights as one matrix, or undefined.
void weight_gradients(Backward& grads, const Tensor& g, const Tensor& rows, const Tensor& gradients) {
  std::vector<Into> into;
  for (int i = 1; i < grads.inputs(); ++i) into.push_back(grads.wants(i) ? grads.into(i) : Into{{}, 0});
  const double beta = into[0].beta;
  const bool alike = std::all_of(into.begin(), into.end(), [&](const Into& i) { return i.beta == beta; });
  if (gradients.defined() && alike) return gemm(gradients, g, rows, {true, false}, 1, beta);
  int64_t column = 0;
  for (size_t i = 0; i < into.size(); ++i) {
    const int64_t end = column + grads.shape(static_cast<int>(i) + 1)[0];
    if (into[i].target.defined())
      gemm(into[i].target, g.columns(column, end), rows, {true, false}, 1, into[i].beta);
    column = end;
  }
}

}  // namespace

Variable joined_linear(const Variable& x, const ParameterStore& store,
                       const std::vector<Parameter>& weights) {
  CHECK(x.rank() == 2 && !weights.empty(), "joined_linear: x ", x.shape(), ", ", weights.size(), " weights");
  Shape shape{0, x.dim(1)};
  std::vector<Variable> inputs{x};
  for (const Parameter& w : weights) {
    CHECK(w->info.shape.rank() == 2 && w->info.shape[1] == x.dim(1) && w->working.dtype() == x.dtype(),
          "joined_linear: x ", x.shape(), " ", name_of(x.dtype()), ", ", w->info.name, " ", w->info.shape);
    shape[0] += w->info.shape[0];
    inputs.emplace_back(w);
  }
  Tensor all, gradients;
  if (side_by_side(weights)) {
    const ParameterGroup& group = store.groups()[static_cast<size_t>(weights[0]->group)];
    const auto rows = [&](const Tensor& flat) {
      return flat.rows(weights[0]->offset, weights[0]->offset + shape.numel()).reshape(shape);
    };
    all = rows(group.working);
    if (group.trainable) gradients = rows(group.gradient);
  } else {
    all = put_together(weights, shape);
  }
  const Tensor y({x.dim(0), shape[0]}, x.dtype(), x.device());
  gemm(y, x, all, {false, true}, 1, 0);
  return record("joined_linear", inputs, y, save(x, all, gradients), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor g = grads.grad().contiguous();
                  if (grads.wants(0)) {
                    const Into into = grads.into(0);
                    gemm(into.target, g, grads.saved(1), {}, 1, into.beta);
                  }
                  weight_gradients(grads, g, grads.saved(0), grads.saved(2));
                });
}

}  // namespace weft
