#include "attention/memory_ops.h"

#include <utility>

#include "attention/row_math.h"
#include "autograd/ops/convert.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"

namespace weft {

LearningCoefficients learning_coefficients(const Variable& step, const Variable& keep,
                                           const Variable& momentum) {
  CHECK(step.rank() == 3 && step.dim(2) == 1 && keep.shape() == step.shape() &&
            step.dtype() == wide_of(step.dtype()) && keep.dtype() == step.dtype() &&
            (!momentum.defined() || (momentum.shape() == step.shape() && momentum.dtype() == step.dtype())),
        "learning_coefficients: step ", step.shape(), " ", name_of(step.dtype()), ", keep ", keep.shape());
  const int64_t h = step.dim(0), n = step.dim(1);
  const Dtype type = step.dtype();
  const Device device = step.device();
  const Tensor theta = step.value().contiguous(), kept = keep.value().contiguous();
  const Tensor eta = momentum.defined() ? momentum.value().contiguous() : Tensor();
  const Tensor from_a = empty({h, n, 1}, type, device), from_s = empty({h, n, 1}, type, device),
               taken = empty({h, n, n}, type, device), last = empty({h, 2, n + 2}, type, device);
  ON_DEVICE(device, learning_coefficients(from_a, from_s, taken, last, theta, kept, eta));
  std::vector<Variable> inputs{step, keep};
  if (momentum.defined()) inputs.push_back(momentum);
  const std::vector<Variable> y = record_many(
      "learning_coefficients", inputs, {from_a, from_s, taken, last},
      save(theta, kept, eta, from_a, from_s, taken), NoAttributes{}, [](Backward& b, const NoAttributes&) {
        const Tensor &theta = b.saved(0), &eta = b.saved(2);
        const Tensor dstep = empty_like(theta), dkeep = empty_like(theta);
        const Tensor dmomentum = eta.defined() ? empty_like(eta) : Tensor();
        ON_DEVICE(theta.device(), learning_coefficients_backward(
                                      dstep, dkeep, dmomentum, theta, b.saved(1), eta, b.saved(3), b.saved(4),
                                      b.saved(5), b.grad(0).contiguous(), b.grad(1).contiguous(),
                                      b.grad(2).contiguous(), b.grad(3).contiguous()));
        b.add(0, dstep);
        b.add(1, dkeep);
        if (eta.defined()) b.add(2, dmomentum);
      });
  return {y[0], y[1], y[2], y[3]};
}

std::vector<Variable> after_learning(const Variable& a, const Variable& s, const Variable& in,
                                     const Variable& out, const Variable& last) {
  CHECK(a.rank() == 3 && in.rank() == 3 && out.rank() == 3 && in.dim(1) == out.dim(1) &&
            a.shape() == Shape({in.dim(0), in.dim(2), out.dim(2)}) && out.dim(0) == in.dim(0) &&
            last.shape() == Shape({in.dim(0), 2, in.dim(1) + 2}) && (!s.defined() || s.shape() == a.shape()),
        "after_learning: a ", a.shape(), ", in ", in.shape(), ", out ", out.shape(), ", last ", last.shape());
  const int64_t h = a.dim(0), n = in.dim(1), wide = (s.defined() ? 2 : 1) * in.dim(2);
  const Dtype type = a.dtype();
  const Device device = a.device();
  const Tensor A = a.value().contiguous(), S = s.defined() ? s.value().contiguous() : Tensor(),
               I = in.value().contiguous(), O = out.value().contiguous(), L = last.value().contiguous();
  const Tensor weighted = empty({h, n, wide}, type, device),
               moved = empty({h, wide, out.dim(2)}, type, device);
  ON_DEVICE(device, weigh_inputs(weighted, I, L));
  gemm(moved, weighted, O, {true, false}, 1, 0);
  const Tensor a_n = empty_like(A), s_n = s.defined() ? empty_like(A) : Tensor();
  ON_DEVICE(device, after_learning(a_n, s_n, A, S, moved, L));
  std::vector<Variable> inputs{a, in, out, last};
  std::vector<Tensor> outputs{a_n};
  if (s.defined()) {
    inputs.push_back(s);
    outputs.push_back(s_n);
  }
  return record_many(
      "after_learning", inputs, outputs, save(A, S, I, O, L), NoAttributes{},
      [](Backward& b, const NoAttributes&) {
        const Tensor &A = b.saved(0), &S = b.saved(1), &I = b.saved(2), &O = b.saved(3), &L = b.saved(4);
        // Made again: kept for every chunk they would be most of what a layer keeps.
        const int64_t wide = (S.defined() ? 2 : 1) * I.dim(2);
        const Tensor weighted = empty({I.dim(0), I.dim(1), wide}, I.dtype(), I.device());
        ON_DEVICE(I.device(), weigh_inputs(weighted, I, L));
        const Tensor da_n = b.grad(0).contiguous();
        const Tensor ds_n = S.defined() ? b.grad(1).contiguous() : Tensor();
        const Tensor da = empty_like(A), ds = S.defined() ? empty_like(A) : Tensor();
        const Tensor dlast = empty_like(L), din = empty_like(I), dout = empty_like(O);
        const Tensor pack = empty({A.dim(0), weighted.dim(2), A.dim(2)}, A.dtype(), A.device());
        ON_DEVICE(A.device(), after_learning_backward(pack, da, ds, dlast, A, S, L, da_n, ds_n));
        gemm(dout, weighted, pack, {false, false}, -1, 0);
        const Tensor dweighted = empty_like(weighted);
        gemm(dweighted, O, pack, {false, true}, -1, 0);
        ON_DEVICE(A.device(), weigh_inputs_backward(din, dlast, dweighted, I, L));
        b.add(0, da);
        b.add(1, din);
        b.add(2, dout);
        b.add(3, dlast);
        if (S.defined()) b.add(4, ds);
      });
}

namespace {

// A gradient to add to: itself, if nobody else can see it.
Tensor own(const Tensor& g) {
  if (g.unique() && g.dense()) return g;
  const Tensor copy = empty_like(g);
  copy.copy_from(g);
  return copy;
}

}  // namespace

MatrixLearning learn_matrix(const Variable& a, const Variable& s, const Variable& k, const Variable& v,
                            const Variable& last, int64_t chunks) {
  const int64_t h = a.dim(0), n = k.dim(1);
  CHECK(a.rank() == 3 && s.shape() == a.shape() && chunks >= 1 &&
            k.shape() == Shape({chunks * h, n, a.dim(1)}) && v.shape() == Shape({chunks * h, n, a.dim(2)}) &&
            last.shape() == Shape({chunks * h, 2, n + 2}),
        "learn_matrix: ", chunks, " chunks, a ", a.shape(), ", k ", k.shape(), ", v ", v.shape(), ", last ",
        last.shape());
  const Dtype type = a.dtype();
  const Device device = a.device();
  const Tensor K = k.value().contiguous(), L = last.value().contiguous(), error = empty_like(v);
  ON_DEVICE(device, affine(error, v.value().contiguous(), -2, 0));
  Tensor A = a.value().contiguous(), S = s.value().contiguous();
  // A single chunk begins with what is there already.
  Tensor before_a = A, before_s = S;
  if (chunks > 1) {
    before_a = empty({chunks * h, a.dim(1), a.dim(2)}, type, device), before_s = empty_like(before_a);
    before_a.rows(0, h).copy_from(A);
    before_s.rows(0, h).copy_from(S);
  }
  const Tensor weighted = empty({h, n, 2 * a.dim(1)}, type, device),
               moved = empty({h, 2 * a.dim(1), a.dim(2)}, type, device);
  for (int64_t c = 0; c < chunks; ++c) {
    const auto rows = [&](const Tensor& x, int64_t chunk) { return x.rows(chunk * h, (chunk + 1) * h); };
    const Tensor own_k = rows(K, c), own_error = rows(error, c), own_last = rows(L, c);
    gemm(own_error, own_k, A, {}, 2, 1);
    ON_DEVICE(device, weigh_inputs(weighted, own_k, own_last));
    gemm(moved, weighted, own_error, {true, false}, 1, 0);
    const bool ends = c + 1 == chunks;
    const Tensor next_a = ends ? empty_like(A) : rows(before_a, c + 1),
                 next_s = ends ? empty_like(S) : rows(before_s, c + 1);
    ON_DEVICE(device, after_learning(next_a, next_s, A, S, moved, own_last));
    A = next_a, S = next_s;
  }
  std::vector<Tensor> outputs{error, A, S};
  if (chunks > 1) outputs.insert(outputs.end(), {before_a, before_s});
  const std::vector<Variable> y = record_many(
      "learn_matrix", {a, s, k, v, last}, outputs, save(before_a, before_s, K, error, L), NoAttributes{},
      [](Backward& b, const NoAttributes&) {
        const Tensor &before_a = b.saved(0), &before_s = b.saved(1), &K = b.saved(2), &error = b.saved(3),
                     &L = b.saved(4);
        const int64_t h = b.shape(0)[0], chunks = K.dim(0) / h;
        const Device device = K.device();
        Tensor da = b.grad(1).contiguous(), ds = b.grad(2).contiguous();
        // Of the chunk before, while those of this one are read.
        Tensor next_da = empty_like(da), next_ds = empty_like(da);
        const Tensor derror = own(b.grad(0)), dk = empty_like(K), dlast = empty_like(L);
        const Tensor weighted = empty({h, K.dim(1), 2 * K.dim(2)}, K.dtype(), device),
                     dweighted = empty_like(weighted),
                     pack = empty({h, 2 * da.dim(1), da.dim(2)}, K.dtype(), device);
        for (int64_t c = chunks; c-- > 0;) {
          const auto rows = [&](const Tensor& x) { return x.rows(c * h, (c + 1) * h); };
          const Tensor own_k = rows(K), own_last = rows(L), own_derror = rows(derror),
                       own_dlast = rows(dlast);
          if (c > 0 && device == Device::cpu)
            for (const Tensor* x : {&before_a, &before_s, &b.grad(3), &b.grad(4), &K, &error, &derror, &dk}) {
              const Tensor next = x->rows((c - 1) * h, c * h);
              cpu::prefetch(next.raw(), next.bytes());
            }
          ON_DEVICE(device, after_learning_backward(pack, next_da, next_ds, own_dlast, rows(before_a),
                                                    rows(before_s), own_last, da, ds));
          ON_DEVICE(device, weigh_inputs(weighted, own_k, own_last));
          gemm(own_derror, weighted, pack, {}, -1, 1);
          gemm(dweighted, rows(error), pack, {false, true}, -1, 0);
          ON_DEVICE(device, weigh_inputs_backward(rows(dk), own_dlast, dweighted, own_k, own_last));
          gemm(next_da, own_k, own_derror, {true, false}, 2, 1);
          if (chunks > 1) {
            ON_DEVICE(device, accumulate(next_da, rows(b.grad(3))));
            ON_DEVICE(device, accumulate(next_ds, rows(b.grad(4))));
          }
          // The first to be read came from others.
          const bool from_others = c + 1 == chunks;
          da = std::exchange(next_da, from_others && c > 0 ? empty_like(da) : da);
          ds = std::exchange(next_ds, from_others && c > 0 ? empty_like(ds) : ds);
        }
        gemm(dk, derror, before_a, {false, true}, 2, 1);
        const Tensor dv = empty_like(derror);
        ON_DEVICE(device, affine(dv, derror, -2, 0));
        b.add(0, da);
        b.add(1, ds);
        b.add(2, dk);
        b.add(3, dv);
        b.add(4, dlast);
      });
  return {y[0], chunks > 1 ? y[3] : a, chunks > 1 ? y[4] : s, y[1], y[2]};
}

Variable read_while_learning(const Variable& x, const Variable& a, const Variable& s, const Variable& in,
                             const Variable& out, const LearningCoefficients& c) {
  CHECK(x.rank() == 3 && x.shape() == in.shape() && a.shape() == Shape({x.dim(0), x.dim(2), out.dim(2)}) &&
            c.taken.shape() == Shape({x.dim(0), x.dim(1), x.dim(1)}) &&
            (!s.defined() || s.shape() == a.shape()),
        "read_while_learning: x ", x.shape(), ", a ", a.shape(), ", in ", in.shape(), ", out ", out.shape());
  const int64_t h = x.dim(0), n = x.dim(1), wide = (s.defined() ? 2 : 1) * x.dim(2) + n;
  const Dtype type = x.dtype();
  const Device device = x.device();
  const Tensor X = x.value().contiguous(), A = a.value().contiguous(),
               S = s.defined() ? s.value().contiguous() : Tensor(), I = in.value().contiguous(),
               O = out.value().contiguous(), from_a = c.from_a.value().contiguous(),
               from_s = c.from_s.value().contiguous(), taken = c.taken.value().contiguous();
  const Tensor scores = empty({h, n, n}, type, device), asked = empty({h, n, wide}, type, device),
               known = empty({h, wide, out.dim(2)}, type, device),
               y = empty({h, n, out.dim(2)}, type, device);
  gemm(scores, X, I, {false, true}, 1, 0);
  ON_DEVICE(device, pack_reading(asked, known, X, scores, A, S, O, from_a, from_s, taken));
  gemm(y, asked, known, {}, 1, 0);
  std::vector<Variable> inputs{x, a, in, out, c.from_a, c.taken};
  if (s.defined()) inputs.insert(inputs.end(), {s, c.from_s});
  return record(
      "read_while_learning", inputs, y, save(X, I, from_a, from_s, taken, A, S, O), NoAttributes{},
      [](Backward& b, const NoAttributes&) {
        const Tensor &x = b.saved(0), &in = b.saved(1), &from_a = b.saved(2), &from_s = b.saved(3),
                     &taken = b.saved(4), &S = b.saved(6), &O = b.saved(7);
        const Tensor scores = empty_like(taken);
        gemm(scores, x, in, {false, true}, 1, 0);
        const bool both = S.defined();
        const int64_t wide = (both ? 2 : 1) * x.dim(2) + x.dim(1);
        const Tensor asked = empty({x.dim(0), x.dim(1), wide}, x.dtype(), x.device()),
                     known = empty({x.dim(0), wide, O.dim(2)}, x.dtype(), x.device());
        ON_DEVICE(x.device(), pack_reading(asked, known, x, scores, b.saved(5), S, O, from_a, from_s, taken));
        const Tensor dy = b.grad().contiguous();
        const Tensor dasked = empty_like(asked), dknown = empty_like(known);
        gemm(dasked, dy, known, {false, true}, 1, 0);
        gemm(dknown, asked, dy, {true, false}, 1, 0);
        const Tensor dx = empty_like(x), dscores = empty_like(scores), din = empty_like(in);
        const Tensor da = empty({x.dim(0), x.dim(2), dy.dim(2)}, x.dtype(), x.device());
        const Tensor ds = both ? empty_like(da) : Tensor(), dout = empty_like(dy);
        const Tensor dfrom_a = empty_like(from_a), dtaken = empty_like(taken);
        const Tensor dfrom_s = both ? empty_like(from_s) : Tensor();
        ON_DEVICE(x.device(), pack_reading_backward(dx, dscores, da, ds, dout, dfrom_a, dfrom_s, dtaken,
                                                    dasked, dknown, x, scores, from_a, from_s, taken));
        gemm(dx, dscores, in, {}, 1, 1);
        gemm(din, dscores, x, {true, false}, 1, 0);
        b.add(0, dx);
        b.add(1, da);
        b.add(2, din);
        b.add(3, dout);
        b.add(4, dfrom_a);
        b.add(5, dtaken);
        if (!both) return;
        b.add(6, ds);
        b.add(7, dfrom_s);
      });
}

Variable heads_together(const Variable& y, int64_t documents, Dtype dtype) {
  CHECK(y.rank() == 3 && documents >= 1 && y.dim(0) % documents == 0 && y.dtype() == wide_of(dtype),
        "heads_together: y ", y.shape(), " ", name_of(y.dtype()), " of ", documents, " documents");
  const int64_t heads = y.dim(0) / documents;
  const Tensor rows = empty({documents * y.dim(1), heads * y.dim(2)}, dtype, y.device());
  ON_DEVICE(y.device(), heads_together(rows, y.value().contiguous(), documents));
  struct Sizes {
    int64_t documents, tokens, size;
  };
  return record("heads_together", {y}, rows, save(), Sizes{documents, y.dim(1), y.dim(2)},
                [](Backward& b, const Sizes& s) {
                  const Tensor rows = b.grad().contiguous();
                  const Tensor dy = empty({s.documents * rows.dim(1) / s.size, s.tokens, s.size},
                                          wide_of(rows.dtype()), rows.device());
                  ON_DEVICE(rows.device(), heads_apart(dy, rows, s.documents));
                  b.add(0, dy);
                });
}

std::vector<Variable> memory_tokens(const Variable& rows, const Variable& logits,
                                    const MemoryTokenSizes& sizes) {
  const int64_t b = sizes.documents, h = sizes.heads, k = sizes.key, v = sizes.value;
  CHECK(rows.rank() == 2 && logits.rank() == 2 && b >= 1 && rows.dim(1) == h * (2 * k + v) &&
            logits.dim(1) == 3 * h && logits.dim(0) % b == 0 &&
            rows.dim(0) == logits.dim(0) + b * sizes.skip && logits.dtype() == rows.dtype(),
        "memory_tokens: rows ", rows.shape(), ", logits ", logits.shape(), " of ", b, " documents");
  const int64_t n = logits.dim(0) / b;
  const Dtype type = wide_of(rows.dtype());
  const Tensor x = rows.value().contiguous(), gates = logits.value().contiguous();
  std::vector<Tensor> to;
  for (const int64_t size : {k, k, v, int64_t{1}, int64_t{1}, int64_t{1}})
    to.push_back(empty({b * h, n, size}, type, rows.device()));
  ON_DEVICE(x.device(), memory_tokens(to, x, gates, sizes));
  return record_many("memory_tokens", {rows, logits}, to, save(x, gates), sizes,
                     [](Backward& b, const MemoryTokenSizes& sizes) {
                       const Tensor &x = b.saved(0), &gates = b.saved(1);
                       std::vector<Tensor> d;
                       for (int i = 0; i < 6; ++i) d.push_back(b.grad(i).contiguous());
                       const Tensor dx = empty_like(x), dgates = empty_like(gates);
                       ON_DEVICE(x.device(), memory_tokens_backward(dx, dgates, d, x, gates, sizes));
                       b.add(0, dx);
                       b.add(1, dgates);
                     });
}

}  // namespace weft
