#include "autograd/ops/swiglu.h"

#include "autograd/ops/rows.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"

namespace weft::cpu {

namespace {

// What the unit makes of a gate x; and with e, the gradient that arrives times the other factor, what goes
// back.
struct Swish {
  template <class A>
  static A value(A x) {
    return x * vector_math::sigmoid(x);
  }
  template <class A>
  static A to_gate(A x, A e) {
    const A s = vector_math::sigmoid(x);
    return e * s * (A(1) + x * (A(1) - s));
  }
  template <class A>
  static A to_up(A x, A e) {
    return e * x * vector_math::sigmoid(x);
  }
};
struct Identity {
  template <class A>
  static A value(A x) {
    return x;
  }
  template <class A>
  static A to_gate(A, A e) {
    return e;
  }
  template <class A>
  static A to_up(A x, A e) {
    return e * x;
  }
};

template <class F>
void forward(const Tensor& y, const Tensor& gate, const Tensor& up) {
  const int64_t n = y.dim(1);
  with_float(y.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Rows<T> py(y), pg(gate), pu(up);
    parallel_for(y.dim(0), row_grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T *g = pg[i], *u = pu[i];
        T* b = py[i];
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) store(b[j], F::value(A(g[j])) * A(u[j]));
      }
    });
  });
}

template <class F>
void backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
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
          const A x = A(g[j]), e = A(d[j]);
          store(dg[j], F::to_gate(x, e * A(u[j])));
          store(du[j], F::to_up(x, e));
        }
      }
    });
  });
}

}  // namespace

void swiglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) { forward<Swish>(y, gate, up); }
void swiglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                     const Tensor& dy) {
  backward<Swish>(dgate, dup, gate, up, dy);
}
void sglu_forward(const Tensor& y, const Tensor& gate, const Tensor& up) { forward<Identity>(y, gate, up); }
void sglu_backward(const Tensor& dgate, const Tensor& dup, const Tensor& gate, const Tensor& up,
                   const Tensor& dy) {
  backward<Identity>(dgate, dup, gate, up, dy);
}

}  // namespace weft::cpu
