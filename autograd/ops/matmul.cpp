#include "autograd/ops/matmul.h"

#include "autograd/flops.h"

namespace weft {
namespace {

// All leading dimensions as rows of one matrix.
Tensor as_matrix(const Tensor& x) {
  return x.rank() == 2 ? x : x.reshape({x.shape().product(0, x.rank() - 1), x.dim(-1)});
}

void check_operands(const Variable& a, const Variable& b, Transpose t) {
  CHECK(a.rank() >= 2 && b.rank() == a.rank() && a.dtype() == b.dtype(), "matmul: ", a.shape(), " ",
        name_of(a.dtype()), " by ", b.shape(), " ", name_of(b.dtype()));
  for (int i = 0; i < a.rank() - 2; ++i)
    CHECK(a.dim(i) == b.dim(i), "matmul: ", a.shape(), " by ", b.shape());
  CHECK(a.dim(t.a ? -2 : -1) == b.dim(t.b ? -1 : -2), "matmul: ", a.shape(), t.a ? "^T" : "", " by ",
        b.shape(), t.b ? "^T" : "");
}

// Writes alpha op(a) op(b) into the gradient of input i, where it lands.
void gradient_product(Backward& grads, int i, const Tensor& a, const Tensor& b, Transpose t) {
  if (!grads.wants(i)) return;
  const Into into = grads.into(i);
  const Tensor target = into.target.rank() == a.rank() ? into.target : as_matrix(into.target);
  gemm(target, a, b, t, 1.0, into.beta);
}

}  // namespace

void gemm(const Tensor& c, const Tensor& a, const Tensor& b, Transpose transpose, double alpha, double beta) {
  count_flops(2.0 * static_cast<double>(c.numel()) * static_cast<double>(a.dim(transpose.a ? -2 : -1)));
  ON_DEVICE(c.device(), gemm(c, a, b, transpose, alpha, beta));
}

Variable matmul(const Variable& a, const Variable& b, Transpose transpose) {
  if (a.rank() > 2 && b.rank() == 2 && !transpose.a) {
    // One product over all rows; reshaped here and not through the tape, since the rule sees matrices only.
    return transpose.b ? linear(a, b) : [&] {
      const Tensor rows = as_matrix(a.value().contiguous());
      Tensor c(a.shape().with(-1, b.dim(1)), a.dtype(), a.device());
      CHECK(a.dtype() == b.dtype() && rows.dim(1) == b.dim(0), "matmul: ", a.shape(), " by ", b.shape());
      gemm(as_matrix(c), rows, b, {}, 1.0, 0.0);
      return record("matmul", {a, b}, c, save(rows, b), NoAttributes{},
                    [](Backward& grads, const NoAttributes&) {
                      const Tensor g = as_matrix(grads.grad().contiguous());
                      gradient_product(grads, 0, g, grads.saved(1), {false, true});
                      gradient_product(grads, 1, grads.saved(0), g, {true, false});
                    });
    }();
  }
  check_operands(a, b, transpose);
  Shape shape = a.shape();
  shape[-2] = a.dim(transpose.a ? -1 : -2);
  shape[-1] = b.dim(transpose.b ? -2 : -1);
  Tensor c(shape, a.dtype(), a.device());
  gemm(c, a, b, transpose, 1.0, 0.0);
  return record("matmul", {a, b}, c, save(a, b), transpose, [](Backward& grads, const Transpose& t) {
    const Tensor g = grads.grad().contiguous();
    const Tensor &a = grads.saved(0), &b = grads.saved(1);
    // c = op(a) op(b):  d op(a) = g op(b)^T,  d op(b) = op(a)^T g, each transposed again where op was.
    if (t.a)
      gradient_product(grads, 0, b, g, {t.b, true});
    else
      gradient_product(grads, 0, g, b, {false, !t.b});
    if (t.b)
      gradient_product(grads, 1, g, a, {true, t.a});
    else
      gradient_product(grads, 1, a, g, {!t.a, false});
  });
}

Variable gathered(const Parameter& weight, int64_t begin, int64_t end) {
  CHECK(weight->working.rank() == 2, "gathered: ", weight->info.shape);
  if (Tape::current() == nullptr || !weight->info.trainable) return weight->working.rows(begin, end);
  return Tape::current()->gather(weight, begin, end);
}
Variable gathered(const Parameter& weight) { return gathered(weight, 0, weight->info.shape[0]); }

Variable linear(const Variable& x, const Variable& weight, const Variable& bias) {
  CHECK(weight.rank() == 2 && x.rank() >= 1 && x.dim(-1) == weight.dim(1) && x.dtype() == weight.dtype(),
        "linear: x ", x.shape(), " ", name_of(x.dtype()), ", weight ", weight.shape(), " ",
        name_of(weight.dtype()));
  const Tensor rows = x.rank() == 2 ? x.value() : as_matrix(x.value().contiguous());
  Tensor y(x.shape().with(-1, weight.dim(0)), x.dtype(), x.device());
  gemm(as_matrix(y), rows, weight, {false, true}, 1.0, 0.0);
  if (bias.defined()) {
    CHECK(bias.rank() == 1 && bias.dim(0) == weight.dim(0), "linear: weight ", weight.shape(), ", bias ",
          bias.shape());
    ON_DEVICE(x.device(), add_row(as_matrix(y), bias));
  }
  std::vector<Variable> inputs{x, weight};
  if (bias.defined()) inputs.push_back(bias);
  return record("linear", inputs, y, save(rows, weight), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor g = as_matrix(grads.grad().contiguous());
                  gradient_product(grads, 0, g, grads.saved(1), {});
                  grads.add_product(1, g, grads.saved(0));
                  if (grads.inputs() == 3 && grads.wants(2)) {
                    const Into into = grads.into(2);
                    ON_DEVICE(g.device(), sum_rows(into.target, g, into.beta));
                  }
                });
}

}  // namespace weft
