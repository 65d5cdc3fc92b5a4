#include "attention/memory_ops.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "attention/row_math.h"
#include "autograd/ops/rows.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {

// Every coefficient is the recurrence itself, of 1 in the place of A_0, S_0 or a g_j: a line of n + 2 of them
// goes through time together. A g_j has no part in what is before it, which is zero in the line.
void learning_coefficients(const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                           const Tensor& last, const Tensor& step, const Tensor& keep,
                           const Tensor& momentum) {
  const int64_t n = step.dim(1), columns = n + 2;
  with_wide(step.dtype(), [&]<class T>() {
    const T *steps = step.data<T>(), *keeps = keep.data<T>();
    const T* momenta = momentum.defined() ? momentum.data<T>() : nullptr;
    T *of_a = from_a.data<T>(), *of_s = from_s.data<T>(), *of_g = taken.data<T>(), *ends = last.data<T>();
    parallel_for(step.dim(0), row_grain(n * columns), [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        T *a = ends + h * 2 * columns, *s = a + columns;
        std::fill_n(a, 2 * columns, T(0));
        a[0] = s[1] = 1;
        for (int64_t t = 0; t < n; ++t) {
          const int64_t row = h * n + t;
          const T kept = keeps[row], eta = momenta != nullptr ? momenta[row] : T(0);
#pragma omp simd
          for (int64_t c = 0; c < t + 2; ++c) {
            s[c] *= eta;
            a[c] = kept * a[c] + s[c];
          }
          a[t + 2] = s[t + 2] = steps[row];
          of_a[row] = a[0];
          of_s[row] = a[1];
          std::copy_n(a + 2, n, of_g + row * n);
        }
      }
    });
  });
}

void learning_coefficients_backward(const Tensor& dstep, const Tensor& dkeep, const Tensor& dmomentum,
                                    const Tensor& step, const Tensor& keep, const Tensor& momentum,
                                    const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                                    const Tensor& dfrom_a, const Tensor& dfrom_s, const Tensor& dtaken,
                                    const Tensor& dlast) {
  const int64_t n = step.dim(1), columns = n + 2;
  with_wide(step.dtype(), [&]<class T>() {
    const T *steps = step.data<T>(), *keeps = keep.data<T>(), *ends = dlast.data<T>();
    const T *of_a = from_a.data<T>(), *of_s = from_s.data<T>(), *of_g = taken.data<T>();
    const T *dof_a = dfrom_a.data<T>(), *dof_s = dfrom_s.data<T>(), *dof_g = dtaken.data<T>();
    const T* momenta = momentum.defined() ? momentum.data<T>() : nullptr;
    T *dsteps = dstep.data<T>(), *dkeeps = dkeep.data<T>();
    T* dmomenta = momenta != nullptr ? dmomentum.data<T>() : nullptr;
    parallel_for(step.dim(0), row_grain(n * columns), [&](int64_t begin, int64_t end) {
      // The line s before each token, of a before it, and the gradients of both behind it.
      Scratch<T> before(static_cast<size_t>((n + 1) * columns)), lines(static_cast<size_t>(3 * columns));
      T *a = lines.data(), *da = a + columns, *ds = da + columns;
      for (int64_t h = begin; h < end; ++h) {
        std::fill_n(before.data(), columns, T(0));
        before[1] = 1;
        for (int64_t t = 0; t < n; ++t) {
          const T eta = momenta != nullptr ? momenta[h * n + t] : T(0);
          const T* s = before.data() + t * columns;
          T* next = before.data() + (t + 1) * columns;
#pragma omp simd
          for (int64_t c = 0; c < columns; ++c) next[c] = eta * s[c];
          next[t + 2] = steps[h * n + t];
        }
        std::copy_n(ends + h * 2 * columns, columns, da);
        std::copy_n(ends + (h * 2 + 1) * columns, columns, ds);
        for (int64_t t = n; t-- > 0;) {
          const int64_t row = h * n + t;
          const T kept = keeps[row], eta = momenta != nullptr ? momenta[row] : T(0);
          a[0] = t > 0 ? of_a[row - 1] : T(1);
          a[1] = t > 0 ? of_s[row - 1] : T(0);
          if (t > 0) std::copy_n(of_g + (row - 1) * n, t, a + 2);
          da[0] += dof_a[row];
          da[1] += dof_s[row];
          const T *s = before.data() + t * columns, *g = dof_g + row * n - 2;
          for (int64_t c = 2; c <= t + 2; ++c) da[c] += g[c];
          dsteps[row] = ds[t + 2] + da[t + 2];
          T by_keep = 0, by_momentum = 0;
#pragma omp simd reduction(+ : by_keep, by_momentum)
          for (int64_t c = 0; c < t + 2; ++c) {
            by_keep += da[c] * a[c];
            ds[c] += da[c];
            by_momentum += ds[c] * s[c];
            da[c] *= kept;
            ds[c] *= eta;
          }
          dkeeps[row] = by_keep;
          if (dmomenta != nullptr) dmomenta[row] = by_momentum;
        }
      }
    });
  });
}

void weigh_inputs(const Tensor& weighted, const Tensor& in, const Tensor& last) {
  const int64_t n = in.dim(1), d = in.dim(2), wide = weighted.dim(2);
  with_wide(in.dtype(), [&]<class T>() {
    const T *inputs = in.data<T>(), *coefficients = last.data<T>();
    T* to = weighted.data<T>();
    parallel_for(in.dim(0) * n, row_grain(wide), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t part = 0; part < wide / d; ++part) {
          const T c = coefficients[(row / n * 2 + part) * (n + 2) + 2 + row % n];
          const T* x = inputs + row * d;
          T* y = to + row * wide + part * d;
          for (int64_t i = 0; i < d; ++i) y[i] = c * x[i];
        }
    });
  });
}

void after_learning(const Tensor& a_n, const Tensor& s_n, const Tensor& a, const Tensor& s,
                    const Tensor& moved, const Tensor& last) {
  const int64_t size = a.row_size(), wide = moved.row_size(), columns = last.dim(2);
  with_wide(a.dtype(), [&]<class T>() {
    parallel_for(a.dim(0), row_grain(wide), [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        const T* c = last.data<T>() + h * 2 * columns;
        const T a_by_a = c[0], a_by_s = c[1], s_by_s = c[columns + 1];
        const T *A = a.data<T>() + h * size, *gone = moved.data<T>() + h * wide;
        T* A_n = a_n.data<T>() + h * size;
        if (!s.defined()) {
          for (int64_t i = 0; i < size; ++i) A_n[i] = a_by_a * A[i] - gone[i];
          continue;
        }
        const T* S = s.data<T>() + h * size;
        T* S_n = s_n.data<T>() + h * size;
        for (int64_t i = 0; i < size; ++i) {
          A_n[i] = a_by_a * A[i] + a_by_s * S[i] - gone[i];
          S_n[i] = s_by_s * S[i] - gone[size + i];
        }
      }
    });
  });
}

void after_learning_backward(const Tensor& pack, const Tensor& da, const Tensor& ds, const Tensor& dlast,
                             const Tensor& a, const Tensor& s, const Tensor& last, const Tensor& da_n,
                             const Tensor& ds_n) {
  const int64_t size = a.row_size(), wide = pack.row_size(), columns = last.dim(2);
  with_wide(a.dtype(), [&]<class T>() {
    parallel_for(a.dim(0), row_grain(wide), [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        const T* c = last.data<T>() + h * 2 * columns;
        const T a_by_a = c[0], a_by_s = c[1], s_by_s = c[columns + 1];
        const T *A = a.data<T>() + h * size, *G = da_n.data<T>() + h * size;
        T *dA = da.data<T>() + h * size, *dc = dlast.data<T>() + h * 2 * columns;
        T* packed = std::copy_n(G, size, pack.data<T>() + h * wide);
        for (int64_t i = 0; i < size; ++i) dA[i] = a_by_a * G[i];
        dc[0] = row_sum<T>(size, [&](int64_t i) { return G[i] * A[i]; });
        dc[1] = dc[columns] = dc[columns + 1] = 0;
        if (!s.defined()) continue;
        const T *S = s.data<T>() + h * size, *G_s = ds_n.data<T>() + h * size;
        T* dS = ds.data<T>() + h * size;
        std::copy_n(G_s, size, packed);
        for (int64_t i = 0; i < size; ++i) dS[i] = a_by_s * G[i] + s_by_s * G_s[i];
        dc[1] = row_sum<T>(size, [&](int64_t i) { return G[i] * S[i]; });
        dc[columns + 1] = row_sum<T>(size, [&](int64_t i) { return G_s[i] * S[i]; });
      }
    });
  });
}

void weigh_inputs_backward(const Tensor& din, const Tensor& dlast, const Tensor& dweighted, const Tensor& in,
                           const Tensor& last) {
  const int64_t n = in.dim(1), d = in.dim(2), wide = dweighted.dim(2);
  with_wide(in.dtype(), [&]<class T>() {
    const T *inputs = in.data<T>(), *coefficients = last.data<T>(), *gradient = dweighted.data<T>();
    T *dinputs = din.data<T>(), *dcoefficients = dlast.data<T>();
    parallel_for(in.dim(0) * n, row_grain(wide), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = inputs + row * d;
        T* dx = dinputs + row * d;
        std::fill_n(dx, d, T(0));
        for (int64_t part = 0; part < 2; ++part) {
          const int64_t at = (row / n * 2 + part) * (n + 2) + 2 + row % n;
          dcoefficients[at] = 0;
          if (part * d >= wide) continue;
          const T* g = gradient + row * wide + part * d;
          add_scaled(dx, coefficients[at], g, d);
          dcoefficients[at] = dot(g, x, d);
        }
      }
    });
  });
}

void pack_reading(const Tensor& asked, const Tensor& known, const Tensor& x, const Tensor& scores,
                  const Tensor& a, const Tensor& s, const Tensor& out, const Tensor& from_a,
                  const Tensor& from_s, const Tensor& taken) {
  const int64_t heads = x.dim(0), n = x.dim(1), d = x.dim(2), e = out.dim(2), wide = asked.dim(2);
  with_wide(x.dtype(), [&]<class T>() {
    const T *of_a = from_a.data<T>(), *of_s = s.defined() ? from_s.data<T>() : nullptr;
    const T *of_g = taken.data<T>(), *score = scores.data<T>();
    parallel_for(heads * n, row_grain(wide), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *own = x.data<T>() + row * d, *by_score = score + row * n, *by_token = of_g + row * n;
        T* to = asked.data<T>() + row * wide;
        for (int64_t i = 0; i < d; ++i) to[i] = of_a[row] * own[i];
        if (of_s != nullptr)
          for (int64_t i = 0; i < d; ++i) to[d + i] = of_s[row] * own[i];
        to += wide - n;
        for (int64_t j = 0; j < n; ++j) to[j] = by_score[j] * by_token[j];
      }
    });
    parallel_for(heads, row_grain(wide * e), [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        const T* left = out.data<T>() + h * n * e;
        T* to = std::copy_n(a.data<T>() + h * d * e, d * e, known.data<T>() + h * wide * e);
        if (s.defined()) to = std::copy_n(s.data<T>() + h * d * e, d * e, to);
        for (int64_t i = 0; i < n * e; ++i) to[i] = -left[i];
      }
    });
  });
}

void pack_reading_backward(const Tensor& dx, const Tensor& dscores, const Tensor& da, const Tensor& ds,
                           const Tensor& dout, const Tensor& dfrom_a, const Tensor& dfrom_s,
                           const Tensor& dtaken, const Tensor& dasked, const Tensor& dknown, const Tensor& x,
                           const Tensor& scores, const Tensor& from_a, const Tensor& from_s,
                           const Tensor& taken) {
  const int64_t heads = x.dim(0), n = x.dim(1), d = x.dim(2), e = dout.dim(2), wide = dasked.dim(2);
  const bool both = ds.defined();
  with_wide(x.dtype(), [&]<class T>() {
    const T *of_a = from_a.data<T>(), *of_s = both ? from_s.data<T>() : nullptr;
    T *dof_a = dfrom_a.data<T>(), *dof_s = both ? dfrom_s.data<T>() : nullptr;
    parallel_for(heads * n, row_grain(wide), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T *g = dasked.data<T>() + row * wide, *own = x.data<T>() + row * d;
        T* to = dx.data<T>() + row * d;
        for (int64_t i = 0; i < d; ++i) to[i] = of_a[row] * g[i];
        dof_a[row] = dot(g, own, d);
        if (both) {
          add_scaled(to, of_s[row], g + d, d);
          dof_s[row] = dot(g + d, own, d);
        }
        g += wide - n;
        const T *score = scores.data<T>() + row * n, *of_g = taken.data<T>() + row * n;
        T *dscore = dscores.data<T>() + row * n, *dof_g = dtaken.data<T>() + row * n;
        for (int64_t j = 0; j < n; ++j) {
          dscore[j] = g[j] * of_g[j];
          dof_g[j] = g[j] * score[j];
        }
      }
    });
    parallel_for(heads, row_grain(wide * e), [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        const T* g = dknown.data<T>() + h * wide * e;
        std::copy_n(g, d * e, da.data<T>() + h * d * e);
        if (both) std::copy_n(g + d * e, d * e, ds.data<T>() + h * d * e);
        T* to = dout.data<T>() + h * n * e;
        g += (wide - n) * e;
        for (int64_t i = 0; i < n * e; ++i) to[i] = -g[i];
      }
    });
  });
}

namespace {

// f(row, head) for each token of each head, as where they start in rows and in heads.
template <class F>
void for_each_row(const Tensor& heads, int64_t documents, F f) {
  const int64_t h = heads.dim(0) / documents, n = heads.dim(1), size = heads.dim(2);
  parallel_for(heads.dim(0) * n, row_grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t document = i / n / h, head = i / n % h;
      f(((document * n + i % n) * h + head) * size, i * size);
    }
  });
}

}  // namespace

void heads_together(const Tensor& rows, const Tensor& heads, int64_t documents) {
  with_float(rows.dtype(), [&]<class T>() {
    T* to = rows.data<T>();
    const Acc<T>* from = heads.data<Acc<T>>();
    for_each_row(heads, documents, [&, size = heads.dim(2)](int64_t row, int64_t head) {
      for (int64_t c = 0; c < size; ++c) store(to[row + c], from[head + c]);
    });
  });
}

void heads_apart(const Tensor& heads, const Tensor& rows, int64_t documents) {
  with_float(rows.dtype(), [&]<class T>() {
    const T* from = rows.data<T>();
    Acc<T>* to = heads.data<Acc<T>>();
    for_each_row(heads, documents, [&, size = heads.dim(2)](int64_t row, int64_t head) {
      for (int64_t c = 0; c < size; ++c) to[head + c] = Acc<T>(from[row + c]);
    });
  });
}

namespace {

// Where a head of a token stands: its columns of rows, and its row among the outputs.
struct Places {
  int64_t from, gate, to;
};
// f(head, its places, room for a sigmoid of each of its features)
template <class A, class F>
void for_each_head(const Tensor& logits, const MemoryTokenSizes& s, F f) {
  const int64_t n = logits.dim(0) / s.documents;
  const int64_t grain = row_grain(4 * s.heads * (2 * s.key + s.value));
  parallel_for(s.documents * n, grain, [&](int64_t begin, int64_t end) {
    Scratch<A> room(static_cast<size_t>(std::max(s.key, s.value)));
    for (int64_t i = begin; i < end; ++i)
      for (int64_t h = 0; h < s.heads; ++h) {
        const Places p{(i / n) * (s.skip + n) + s.skip + i % n, i, (i / n * s.heads + h) * n + i % n};
        f(h, p, room.data());
      }
  });
}

// Where the numbers of each of the six outputs, or of their gradients, begin.
template <class A>
std::array<A*, 6> beginnings(const std::vector<Tensor>& x) {
  std::array<A*, 6> all;
  for (size_t i = 0; i < all.size(); ++i) all[i] = x[i].data<A>();
  return all;
}

// By themselves, so that the loop is vectors.
template <class T>
void sigmoids(Acc<T>* to, const T* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = vector_math::sigmoid(Acc<T>(x[i]));
}

}  // namespace

void memory_tokens(const std::vector<Tensor>& to, const Tensor& rows, const Tensor& logits,
                   const MemoryTokenSizes& s) {
  with_float(rows.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T *gates = logits.data<T>(), *all = rows.data<T>();
    const int64_t width = rows.dim(1);
    const std::array<A*, 6> out = beginnings<A>(to);
    for_each_head<A>(logits, s, [&](int64_t h, const Places& p, A* share) {
      int64_t column = 0;
      for (int part = 0; part < 3; ++part) {
        const int64_t size = part < 2 ? s.key : s.value;
        const T* x = all + p.from * width + column + h * size;
        A* y = out[part] + p.to * size;
        sigmoids(share, x, size);
        for (int64_t c = 0; c < size; ++c) y[c] = A(x[c]) * share[c];
        if (part < 2) {
          const A factor = A(1) / std::sqrt(dot(y, y, size) + A(1e-6));
          for (int64_t c = 0; c < size; ++c) y[c] *= factor;
        }
        column += s.heads * size;
        const A gate = vector_math::sigmoid(A(gates[p.gate * 3 * s.heads + part * s.heads + h]));
        out[3 + part][p.to] = part < 2 ? gate : A(1) - gate;
      }
    });
  });
}

void memory_tokens_backward(const Tensor& drows, const Tensor& dlogits, const std::vector<Tensor>& d,
                            const Tensor& rows, const Tensor& logits, const MemoryTokenSizes& s) {
  drows.zero();
  with_float(rows.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const T *gates = logits.data<T>(), *all = rows.data<T>();
    T *dgates = dlogits.data<T>(), *dall = drows.data<T>();
    const int64_t width = rows.dim(1);
    const std::array<A*, 6> dout = beginnings<A>(d);
    for_each_head<A>(logits, s, [&](int64_t h, const Places& p, A* share) {
      int64_t column = 0;
      for (int part = 0; part < 3; ++part) {
        const int64_t size = part < 2 ? s.key : s.value, at = p.from * width + column + h * size;
        const T* x = all + at;
        T* dx = dall + at;
        const A* g = dout[part] + p.to * size;
        sigmoids(share, x, size);
        A squares = 0, along = 0;
#pragma omp simd reduction(+ : squares, along)
        for (int64_t c = 0; c < size; ++c) {
          const A y = A(x[c]) * share[c];
          squares += y * y;
          along += y * g[c];
        }
        const A factor = A(1) / std::sqrt(squares + A(1e-6));
#pragma omp simd
        for (int64_t c = 0; c < size; ++c) {
          const A y = A(x[c]) * share[c];
          const A dy = part < 2 ? factor * (g[c] - factor * factor * along * y) : g[c];
          store(dx[c], dy * share[c] * (A(1) + A(x[c]) * (A(1) - share[c])));
        }
        column += s.heads * size;
        const int64_t gate_at = p.gate * 3 * s.heads + part * s.heads + h;
        const A gate = vector_math::sigmoid(A(gates[gate_at])), slope = gate * (A(1) - gate);
        store(dgates[gate_at], dout[3 + part][p.to] * (part < 2 ? slope : -slope));
      }
    });
  });
}

}  // namespace weft::cpu
