#include "attention/memory_ops.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/rows.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"

namespace weft::cpu {

// A column of coefficients is the recurrence itself, of 1 in the place of A_0, S_0 or a g_j.
void learning_coefficients(const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                           const Tensor& last, const Tensor& step, const Tensor& keep,
                           const Tensor& momentum) {
  const int64_t n = step.dim(1);
  with_wide(step.dtype(), [&]<class T>() {
    parallel_for(step.dim(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) {
        const T *theta = step.data<T>() + h * n, *kept = keep.data<T>() + h * n;
        const T* eta = momentum.defined() ? momentum.data<T>() + h * n : nullptr;
        T* ends = last.data<T>() + h * 2 * (n + 2);
        for (int64_t c = 0; c < n + 2; ++c) {
          T a = c == 0 ? 1 : 0, s = c == 1 ? 1 : 0;
          for (int64_t t = 0; t < n; ++t) {
            s = c - 2 == t ? theta[t] : eta != nullptr ? eta[t] * s : T(0);
            a = kept[t] * a + s;
            if (c == 0)
              from_a.data<T>()[h * n + t] = a;
            else if (c == 1)
              from_s.data<T>()[h * n + t] = a;
            else
              taken.data<T>()[(h * n + t) * n + c - 2] = a;
          }
          ends[c] = a;
          ends[n + 2 + c] = s;
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
  const int64_t n = step.dim(1);
  with_wide(step.dtype(), [&]<class T>() {
    parallel_for(step.dim(0), 1, [&](int64_t begin, int64_t end) {
      std::vector<T> surprise(static_cast<size_t>(n));
      for (int64_t h = begin; h < end; ++h) {
        const T *theta = step.data<T>() + h * n, *kept = keep.data<T>() + h * n;
        const T* eta = momentum.defined() ? momentum.data<T>() + h * n : nullptr;
        const T* ends = dlast.data<T>() + h * 2 * (n + 2);
        T *dtheta = dstep.data<T>() + h * n, *dkept = dkeep.data<T>() + h * n;
        T* deta = eta != nullptr ? dmomentum.data<T>() + h * n : nullptr;
        std::fill_n(dkept, n, T(0));
        if (deta != nullptr) std::fill_n(deta, n, T(0));
        for (int64_t c = 0; c < n + 2; ++c) {
          const T start_a = c == 0 ? 1 : 0, start_s = c == 1 ? 1 : 0;
          const auto at = [&](const Tensor& a, const Tensor& s, const Tensor& g, int64_t t) {
            return c == 0   ? a.data<T>()[h * n + t]
                   : c == 1 ? s.data<T>()[h * n + t]
                            : g.data<T>()[(h * n + t) * n + c - 2];
          };
          T s = start_s;
          for (int64_t t = 0; t < n; ++t)
            surprise[t] = s = c - 2 == t ? theta[t] : eta != nullptr ? eta[t] * s : T(0);
          T da = ends[c], ds = ends[n + 2 + c];
          for (int64_t t = n; t-- > std::max<int64_t>(0, c - 2);) {
            da += at(dfrom_a, dfrom_s, dtaken, t);
            ds += da;
            dkept[t] += da * (t > 0 ? at(from_a, from_s, taken, t - 1) : start_a);
            da *= kept[t];
            if (c - 2 == t) {
              dtheta[t] = ds;
            } else if (eta != nullptr) {
              deta[t] += ds * (t > 0 ? surprise[t - 1] : start_s);
              ds *= eta[t];
            } else {
              ds = 0;
            }
          }
        }
      }
    });
  });
}

void weigh_inputs(const Tensor& weighted, const Tensor& in, const Tensor& last) {
  const int64_t n = in.dim(1), d = in.dim(2), wide = weighted.dim(2);
  with_wide(in.dtype(), [&]<class T>() {
    for (int64_t row = 0; row < in.dim(0) * n; ++row)
      for (int64_t part = 0; part < wide / d; ++part) {
        const T c = last.data<T>()[(row / n * 2 + part) * (n + 2) + 2 + row % n];
        for (int64_t i = 0; i < d; ++i)
          weighted.data<T>()[row * wide + part * d + i] = c * in.data<T>()[row * d + i];
      }
  });
}

void after_learning(const Tensor& a_n, const Tensor& s_n, const Tensor& a, const Tensor& s,
                    const Tensor& moved, const Tensor& last) {
  const int64_t size = a.row_size(), wide = moved.row_size(), columns = last.dim(2);
  with_wide(a.dtype(), [&]<class T>() {
    for (int64_t h = 0; h < a.dim(0); ++h) {
      const T* c = last.data<T>() + h * 2 * columns;
      for (int64_t i = 0; i < size; ++i) {
        const T A = a.data<T>()[h * size + i], S = s.defined() ? s.data<T>()[h * size + i] : T(0);
        const T* gone = moved.data<T>() + h * wide + i;
        a_n.data<T>()[h * size + i] = c[0] * A + c[1] * S - gone[0];
        if (s.defined()) s_n.data<T>()[h * size + i] = c[columns + 1] * S - gone[size];
      }
    }
  });
}

void after_learning_backward(const Tensor& pack, const Tensor& da, const Tensor& ds, const Tensor& dlast,
                             const Tensor& a, const Tensor& s, const Tensor& last, const Tensor& da_n,
                             const Tensor& ds_n) {
  const int64_t size = a.row_size(), wide = pack.row_size(), columns = last.dim(2);
  with_wide(a.dtype(), [&]<class T>() {
    for (int64_t h = 0; h < a.dim(0); ++h) {
      const T* c = last.data<T>() + h * 2 * columns;
      T* dc = dlast.data<T>() + h * 2 * columns;
      T a_of_a = 0, a_of_s = 0, s_of_s = 0;
      for (int64_t i = 0; i < size; ++i) {
        const int64_t at = h * size + i;
        const T g = da_n.data<T>()[at];
        da.data<T>()[at] = c[0] * g;
        pack.data<T>()[h * wide + i] = g;
        a_of_a += g * a.data<T>()[at];
        if (!s.defined()) continue;
        const T g_s = ds_n.data<T>()[at], S = s.data<T>()[at];
        ds.data<T>()[at] = c[1] * g + c[columns + 1] * g_s;
        pack.data<T>()[h * wide + size + i] = g_s;
        a_of_s += g * S;
        s_of_s += g_s * S;
      }
      dc[0] = a_of_a;
      dc[1] = a_of_s;
      dc[columns] = 0;
      dc[columns + 1] = s_of_s;
    }
  });
}

void weigh_inputs_backward(const Tensor& din, const Tensor& dlast, const Tensor& dweighted, const Tensor& in,
                           const Tensor& last) {
  const int64_t n = in.dim(1), d = in.dim(2), wide = dweighted.dim(2);
  with_wide(in.dtype(), [&]<class T>() {
    for (int64_t row = 0; row < in.dim(0) * n; ++row) {
      const T* x = in.data<T>() + row * d;
      T* dx = din.data<T>() + row * d;
      std::fill_n(dx, d, T(0));
      for (int64_t part = 0; part < 2; ++part) {
        const int64_t at = (row / n * 2 + part) * (n + 2) + 2 + row % n;
        const T c = last.data<T>()[at];
        T sum = 0;
        if (part * d < wide)
          for (int64_t i = 0; i < d; ++i) {
            const T g = dweighted.data<T>()[row * wide + part * d + i];
            dx[i] += c * g;
            sum += g * x[i];
          }
        dlast.data<T>()[at] = sum;
      }
    }
  });
}

void pack_reading(const Tensor& asked, const Tensor& known, const Tensor& x, const Tensor& scores,
                  const Tensor& a, const Tensor& s, const Tensor& out, const Tensor& from_a,
                  const Tensor& from_s, const Tensor& taken) {
  const int64_t heads = x.dim(0), n = x.dim(1), d = x.dim(2), e = out.dim(2), wide = asked.dim(2);
  with_wide(x.dtype(), [&]<class T>() {
    for (int64_t row = 0; row < heads * n; ++row) {
      T* to = asked.data<T>() + row * wide;
      for (int64_t i = 0; i < d; ++i) *to++ = from_a.data<T>()[row] * x.data<T>()[row * d + i];
      for (int64_t i = 0; i < d && s.defined(); ++i) *to++ = from_s.data<T>()[row] * x.data<T>()[row * d + i];
      for (int64_t j = row * n; j < (row + 1) * n; ++j) *to++ = scores.data<T>()[j] * taken.data<T>()[j];
    }
    for (int64_t h = 0; h < heads; ++h) {
      T* to = std::copy_n(a.data<T>() + h * d * e, d * e, known.data<T>() + h * wide * e);
      if (s.defined()) to = std::copy_n(s.data<T>() + h * d * e, d * e, to);
      for (int64_t i = h * n * e; i < (h + 1) * n * e; ++i) *to++ = -out.data<T>()[i];
    }
  });
}

void pack_reading_backward(const Tensor& dx, const Tensor& dscores, const Tensor& da, const Tensor& ds,
                           const Tensor& dout, const Tensor& dfrom_a, const Tensor& dfrom_s,
                           const Tensor& dtaken, const Tensor& dasked, const Tensor& dknown, const Tensor& x,
                           const Tensor& scores, const Tensor& from_a, const Tensor& from_s,
                           const Tensor& taken) {
  const int64_t heads = x.dim(0), n = x.dim(1), d = x.dim(2), e = dout.dim(2), wide = dasked.dim(2);
  with_wide(x.dtype(), [&]<class T>() {
    for (int64_t row = 0; row < heads * n; ++row) {
      const T *g = dasked.data<T>() + row * wide, *own = x.data<T>() + row * d;
      T* to = dx.data<T>() + row * d;
      T by_a = 0, by_s = 0;
      for (int64_t i = 0; i < d; ++i) {
        to[i] = from_a.data<T>()[row] * g[i];
        by_a += g[i] * own[i];
        if (!ds.defined()) continue;
        to[i] += from_s.data<T>()[row] * g[d + i];
        by_s += g[d + i] * own[i];
      }
      dfrom_a.data<T>()[row] = by_a;
      if (ds.defined()) dfrom_s.data<T>()[row] = by_s;
      for (int64_t j = 0; j < n; ++j) {
        const T by_score = g[wide - n + j];
        dscores.data<T>()[row * n + j] = by_score * taken.data<T>()[row * n + j];
        dtaken.data<T>()[row * n + j] = by_score * scores.data<T>()[row * n + j];
      }
    }
    for (int64_t h = 0; h < heads; ++h) {
      const T* g = dknown.data<T>() + h * wide * e;
      std::copy_n(g, d * e, da.data<T>() + h * d * e);
      if (ds.defined()) std::copy_n(g + d * e, d * e, ds.data<T>() + h * d * e);
      for (int64_t i = 0; i < n * e; ++i) dout.data<T>()[h * n * e + i] = -g[(wide - n) * e + i];
    }
  });
}

namespace {

// f(row, head) for each token of each head, as where they start in rows and in heads.
template <class F>
void for_each_row(const Tensor& heads, int64_t documents, F f) {
  const int64_t h = heads.dim(0) / documents, n = heads.dim(1), size = heads.dim(2);
  for (int64_t i = 0; i < heads.dim(0) * n; ++i) {
    const int64_t document = i / n / h, head = i / n % h;
    f(((document * n + i % n) * h + head) * size, i * size);
  }
}

}  // namespace

void heads_together(const Tensor& rows, const Tensor& heads, int64_t documents) {
  with_float(rows.dtype(), [&]<class T>() {
    for_each_row(heads, documents, [&](int64_t row, int64_t head) {
      for (int64_t c = 0; c < heads.dim(2); ++c)
        store(rows.data<T>()[row + c], heads.data<Acc<T>>()[head + c]);
    });
  });
}

void heads_apart(const Tensor& heads, const Tensor& rows, int64_t documents) {
  with_float(rows.dtype(), [&]<class T>() {
    for_each_row(heads, documents, [&](int64_t row, int64_t head) {
      for (int64_t c = 0; c < heads.dim(2); ++c)
        heads.data<Acc<T>>()[head + c] = Acc<T>(rows.data<T>()[row + c]);
    });
  });
}

namespace {

// Where a head of a token stands: its columns of rows, and its row among the outputs.
struct Places {
  int64_t from, gate, to;
};
template <class F>
void for_each_head(const Tensor& logits, const MemoryTokenSizes& s, F f) {
  const int64_t n = logits.dim(0) / s.documents;
  parallel_for(s.documents * n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t h = 0; h < s.heads; ++h)
        f(h, Places{(i / n) * (s.skip + n) + s.skip + i % n, i, (i / n * s.heads + h) * n + i % n});
  });
}

template <class A>
A sigmoid_of(A x) {
  return A(1) / (A(1) + vector_math::exp(-x));
}

}  // namespace

void memory_tokens(const std::vector<Tensor>& to, const Tensor& rows, const Tensor& logits,
                   const MemoryTokenSizes& s) {
  with_float(rows.dtype(), [&]<class T>() {
    using A = Acc<T>;
    for_each_head(logits, s, [&](int64_t h, const Places& p) {
      int64_t column = 0;
      for (int part = 0; part < 3; ++part) {
        const int64_t size = part < 2 ? s.key : s.value;
        const T* x = rows.data<T>() + p.from * rows.dim(1) + column + h * size;
        A* y = to[part].data<A>() + p.to * size;
        A squares = 0;
        for (int64_t c = 0; c < size; ++c) {
          y[c] = A(x[c]) * sigmoid_of(A(x[c]));
          squares += y[c] * y[c];
        }
        if (part < 2)
          for (int64_t c = 0; c < size; ++c) y[c] *= A(1) / std::sqrt(squares + A(1e-6));
        column += s.heads * size;
        const A gate = sigmoid_of(A(logits.data<T>()[p.gate * 3 * s.heads + part * s.heads + h]));
        to[3 + part].data<A>()[p.to] = part < 2 ? gate : A(1) - gate;
      }
    });
  });
}

void memory_tokens_backward(const Tensor& drows, const Tensor& dlogits, const std::vector<Tensor>& d,
                            const Tensor& rows, const Tensor& logits, const MemoryTokenSizes& s) {
  drows.zero();
  with_float(rows.dtype(), [&]<class T>() {
    using A = Acc<T>;
    for_each_head(logits, s, [&](int64_t h, const Places& p) {
      int64_t column = 0;
      for (int part = 0; part < 3; ++part) {
        const int64_t size = part < 2 ? s.key : s.value, at = p.from * rows.dim(1) + column + h * size;
        const T* x = rows.data<T>() + at;
        T* dx = drows.data<T>() + at;
        const A* g = d[part].data<A>() + p.to * size;
        A squares = 0, along = 0;
        for (int64_t c = 0; c < size; ++c) {
          const A y = A(x[c]) * sigmoid_of(A(x[c]));
          squares += y * y;
          along += y * g[c];
        }
        const A factor = A(1) / std::sqrt(squares + A(1e-6));
        for (int64_t c = 0; c < size; ++c) {
          const A share = sigmoid_of(A(x[c])), y = A(x[c]) * share;
          const A dy = part < 2 ? factor * (g[c] - factor * factor * along * y) : g[c];
          store(dx[c], dy * share * (A(1) + A(x[c]) * (A(1) - share)));
        }
        column += s.heads * size;
        const int64_t gate_at = p.gate * 3 * s.heads + part * s.heads + h;
        const A gate = sigmoid_of(A(logits.data<T>()[gate_at])), slope = gate * (A(1) - gate);
        store(dlogits.data<T>()[gate_at], d[3 + part].data<A>()[p.to] * (part < 2 ? slope : -slope));
      }
    });
  });
}

}  // namespace weft::cpu
