#include "autograd/ops/swiglu.h"

#include "autograd/ops/rows.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"

namespace weft::cpu {

void swiglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) {
  const int64_t n = y.dim(1);
  with_float(y.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Rows<T> py(y), pg(gate), pu(up);
    parallel_for(y.dim(0), row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T *g = pg[i], *u = pu[i];
        T* b = py[i];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) store(b[j], A(g[j]) * vector_math::sigmoid(A(g[j])) * A(u[j]));
      }
    });
  });
}

void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                     const Tensor& dy) {
  const int64_t n = dy.dim(1);
  with_float(dy.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Rows<T> pdg(dgate), pdu(dup), pg(gate), pu(up), pd(dy);
    parallel_for(dy.dim(0), row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T *g = pg[i], *u = pu[i], *d = pd[i];
        T *dg = pdg[i], *du = pdu[i];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) {
          const A x = A(g[j]), s = vector_math::sigmoid(x), e = A(d[j]);
          store(dg[j], e * A(u[j]) * s * (A(1) + x * (A(1) - s)));
          store(du[j], e * x * s);
        }
      }
    });
  });
}

}  // namespace weft::cpu
