#include "attention/selected_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/row_math.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {

void selected_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& gate, const Tensor& index, const SelectedOptions& options) {
  const int64_t n = q.dim(0), d = q.dim(1), e = v.dim(1), count = gate.dim(1);
  const int32_t* rows = index.data<int32_t>();
  with_wide(q.dtype(), [&]<class T>() {
    const T *Q = q.data<T>(), *K = k.data<T>(), *V = v.data<T>(), *G = gate.data<T>();
    const T scale = static_cast<T>(options.scale), never = -std::numeric_limits<T>::infinity();
    parallel_for(n, 1 + (1 << 14) / (count * (d + e) + 1), [&](int64_t begin, int64_t end) {
      Scratch<T> score(static_cast<size_t>(count));
      for (int64_t i = begin; i < end; ++i) {
        const T* g = G + i * count;
        const int32_t* row = rows + i * count;
        T* out = o.data<T>() + i * e;
        std::fill_n(out, e, T(0));
        T top = never, sum = 0;
        for (int64_t j = 0; j < count; ++j) {
          score[j] = never;
          if (g[j] == T(0)) continue;
          score[j] = scale * (options.gate_keys ? g[j] : T(1)) * dot(Q + i * d, K + row[j] * d, d);
          top = std::max(top, score[j]);
        }
        if (top > never) {
          for (int64_t j = 0; j < count; ++j) {
            if (g[j] == T(0)) continue;
            score[j] = vector_math::exp(score[j] - top);
            sum += score[j];
          }
          for (int64_t j = 0; j < count; ++j)
            if (g[j] != T(0)) add_scaled(out, score[j] * g[j] / sum, V + row[j] * e, e);
        }
        lse.data<T>()[i] = top > never ? top + std::log(sum) : never;
      }
    });
  });
}

// With P = exp(s - lse), a = dO . v_j and D = dO . o - dlse:  ds = P (gate a - D),  dgate = P a + scale ds q
// . k, dv = P gate dO,  dq = scale gate ds k,  dk = scale gate ds q. A group's rows have one writer.
void selected_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& d_gate,
                       const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                       const Tensor& index, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                       const Tensor& d_lse, const SelectedOptions& options) {
  const int64_t d = q.dim(1), e = v.dim(1), count = gate.dim(1);
  const int64_t queries = options.groups > 0 ? q.dim(0) / options.groups : 0;
  const int32_t* rows = index.data<int32_t>();
  dq.zero();
  dk.zero();
  dv.zero();
  d_gate.zero();
  with_wide(q.dtype(), [&]<class T>() {
    const T *Q = q.data<T>(), *K = k.data<T>(), *V = v.data<T>(), *G = gate.data<T>();
    const T *dO = d_o.data<T>(), *O = o.data<T>();
    const T scale = static_cast<T>(options.scale);
    parallel_for(options.groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * queries; i < end * queries; ++i) {
        const T whole = lse.data<T>()[i];
        if (whole == -std::numeric_limits<T>::infinity()) continue;
        const T delta = dot(dO + i * e, O + i * e, e) - d_lse.data<T>()[i];
        for (int64_t j = 0; j < count; ++j) {
          const T g = G[i * count + j], on_key = options.gate_keys ? g : T(1);
          if (g == T(0)) continue;
          const int64_t row = rows[i * count + j];
          const T product = scale * dot(Q + i * d, K + row * d, d), a = dot(dO + i * e, V + row * e, e);
          const T p = vector_math::exp(on_key * product - whole), ds = p * (g * a - delta);
          d_gate.data<T>()[i * count + j] = p * a + (options.gate_keys ? ds * product : T(0));
          add_scaled(dv.data<T>() + row * e, p * g, dO + i * e, e);
          add_scaled(dq.data<T>() + i * d, scale * on_key * ds, K + row * d, d);
          add_scaled(dk.data<T>() + row * d, scale * on_key * ds, Q + i * d, d);
        }
      }
    });
  });
}

}  // namespace weft::cpu
