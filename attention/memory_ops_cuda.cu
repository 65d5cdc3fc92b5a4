#include "attention/memory_ops.h"

#include <algorithm>

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

// Step, keep and momentum of a head's tokens, in shared memory.
template <class T>
struct Gates {
  T *step, *keep, *momentum;

  __device__ Gates(const T* s, const T* k, const T* m, int64_t n) {
    extern __shared__ __align__(16) char raw[];
    step = reinterpret_cast<T*>(raw);
    keep = step + n;
    momentum = keep + n;
    const int64_t first = blockIdx.x * n;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      step[i] = s[first + i];
      keep[i] = k[first + i];
      momentum[i] = m != nullptr ? m[first + i] : T(0);
    }
    __syncthreads();
  }
};

// What the columns are written to, or come from.
template <class T>
struct Columns {
  T *from_a, *from_s, *taken, *last;

  __device__ T* at(int64_t c, int64_t t, int64_t n) const {
    const int64_t row = blockIdx.x * n + t;
    return c == 0 ? from_a + row : c == 1 ? from_s + row : taken + row * n + c - 2;
  }
  __device__ T* end(int64_t c, int64_t n) const { return last + blockIdx.x * 2 * (n + 2) + c; }
};

// A thread takes a column: the recurrence itself, of 1 in the place of A_0, S_0 or the gradient of a token.
template <class T>
__global__ void __launch_bounds__(kThreads)
    coefficients_kernel(Columns<T> to, const T* step, const T* keep, const T* momentum, int64_t n) {
  const Gates<T> g(step, keep, momentum, n);
  for (int64_t c = threadIdx.x; c < n + 2; c += blockDim.x) {
    T a = c == 0 ? 1 : 0, s = c == 1 ? 1 : 0;
    for (int64_t t = 0; t < n; ++t) {
      s = c - 2 == t ? g.step[t] : g.momentum[t] * s;
      a = g.keep[t] * a + s;
      *to.at(c, t, n) = a;
    }
    *to.end(c, n) = a;
    *to.end(n + 2 + c, n) = s;
  }
}

constexpr int kAtOnce = 8;

// Backwards along each column. The sums over columns are added warp by warp, in order. surprise (H, n, n + 2)
// is scratch.
template <class T>
__global__ void __launch_bounds__(kThreads)
    coefficients_backward_kernel(T* dstep, T* dkeep, T* dmomentum, const T* step, const T* keep,
                                 const T* momentum, Columns<T> y, Columns<T> dy, T* surprise, int64_t n) {
  const Gates<T> g(step, keep, momentum, n);
  const int64_t warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  T* partial = g.momentum + n;  // (warps, 2, n), in shared memory too
  T* sums = partial + warp * 2 * n;
  for (int64_t t = lane; t < 2 * n; t += kWarp) sums[t] = 0;
  __syncwarp();
  for (int64_t first = warp * kWarp; first < n + 2; first += blockDim.x) {
    const int64_t c = first + lane;
    const bool there = c < n + 2;
    T* own = surprise + blockIdx.x * n * (n + 2) + c;  // a row a token
    T s = c == 1 ? 1 : 0;
    if (there)
      for (int64_t t = 0; t < n; ++t) own[t * (n + 2)] = s = c - 2 == t ? g.step[t] : g.momentum[t] * s;
    T da = there ? *dy.end(c, n) : T(0), ds = there ? *dy.end(n + 2 + c, n) : T(0);
    // Some rows at a time: what is read of them does not wait for the recurrence.
    for (int64_t top = n; top > 0; top -= kAtOnce) {
      T dy_t[kAtOnce], y_before[kAtOnce], s_before[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t t = top - 1 - i;
        const bool reads = there && t >= 0 && t >= c - 2;
        dy_t[i] = reads ? *dy.at(c, t, n) : T(0);
        y_before[i] = reads && t > 0 ? *y.at(c, t - 1, n) : c == 0 ? T(1) : T(0);
        s_before[i] = reads && t > 0 ? own[(t - 1) * (n + 2)] : c == 1 ? T(1) : T(0);
      }
      T of_keep[kAtOnce] = {}, of_momentum[kAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t t = top - 1 - i;
        if (!there || t < 0 || t < c - 2) continue;
        da += dy_t[i];
        ds += da;
        of_keep[i] = da * y_before[i];
        da *= g.keep[t];
        if (c - 2 == t) {
          dstep[blockIdx.x * n + t] = ds;
        } else {
          of_momentum[i] = ds * s_before[i];
          ds *= g.momentum[t];
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t t = top - 1 - i;
        of_keep[i] = warp_sum(of_keep[i]);
        of_momentum[i] = warp_sum(of_momentum[i]);
        if (lane == 0 && t >= 0) {
          sums[t] += of_keep[i];
          sums[n + t] += of_momentum[i];
        }
      }
    }
  }
  __syncthreads();
  for (int64_t t = threadIdx.x; t < n; t += blockDim.x) {
    T of_keep = 0, of_momentum = 0;
    for (int64_t w = 0; w < warps; ++w) {
      const T* from = partial + w * 2 * n;
      of_keep += from[t];
      of_momentum += from[n + t];
    }
    dkeep[blockIdx.x * n + t] = of_keep;
    if (dmomentum != nullptr) dmomentum[blockIdx.x * n + t] = of_momentum;
  }
}

int column_threads(int64_t n) {
  return static_cast<int>(std::min<int64_t>(kThreads, (n + 2 + kWarp - 1) / kWarp * kWarp));
}

template <class T>
Columns<T> columns_of(const Tensor& from_a, const Tensor& from_s, const Tensor& taken, const Tensor& last) {
  return {data<T>(from_a), data<T>(from_s), data<T>(taken), data<T>(last)};
}

template <class T, auto kernel>
size_t gate_bytes(int64_t n, int64_t more = 0) {
  const size_t bytes = static_cast<size_t>(3 * n + more) * sizeof(T);
  CHECK(fits_shared<kernel>(bytes), "learning_coefficients: a chunk of ", n,
        " tokens is too long for this GPU");
  return bytes;
}

}  // namespace

void learning_coefficients(const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                           const Tensor& last, const Tensor& step, const Tensor& keep,
                           const Tensor& momentum) {
  const int64_t h = step.dim(0), n = step.dim(1);
  if (step.numel() == 0) return;
  with_wide(step.dtype(), [&]<class T>() {
    const size_t bytes = gate_bytes<T, coefficients_kernel<T>>(n);
    coefficients_kernel<T><<<static_cast<unsigned>(h), column_threads(n), bytes, stream()>>>(
        columns_of<T>(from_a, from_s, taken, last), data<const T>(step), data<const T>(keep),
        data<const T>(momentum), n);
  });
  check_launch("learning_coefficients");
}

void learning_coefficients_backward(const Tensor& dstep, const Tensor& dkeep, const Tensor& dmomentum,
                                    const Tensor& step, const Tensor& keep, const Tensor& momentum,
                                    const Tensor& from_a, const Tensor& from_s, const Tensor& taken,
                                    const Tensor& dfrom_a, const Tensor& dfrom_s, const Tensor& dtaken,
                                    const Tensor& dlast) {
  const int64_t h = step.dim(0), n = step.dim(1);
  if (step.numel() == 0) return;
  const int threads = column_threads(n);
  const Tensor surprise = empty({h, n, n + 2}, step.dtype(), step.device());
  with_wide(step.dtype(), [&]<class T>() {
    const size_t bytes = gate_bytes<T, coefficients_backward_kernel<T>>(n, threads / int64_t{kWarp} * 2 * n);
    coefficients_backward_kernel<T><<<static_cast<unsigned>(h), threads, bytes, stream()>>>(
        data<T>(dstep), data<T>(dkeep), data<T>(dmomentum), data<const T>(step), data<const T>(keep),
        data<const T>(momentum), columns_of<T>(from_a, from_s, taken, Tensor()),
        columns_of<T>(dfrom_a, dfrom_s, dtaken, dlast), data<T>(surprise), n);
  });
  check_launch("learning_coefficients_backward");
}

namespace {

template <class T>
void weigh_as(const Tensor& weighted, const Tensor& in, const Tensor& last) {
  const int64_t n = in.dim(1), d = in.dim(2), wide = weighted.dim(2);
  T* to = data<T>(weighted);
  const T *x = data<const T>(in), *c = data<const T>(last);
  each(weighted.numel(), [=] __device__(int64_t i) {
    int64_t column = i;
    int64_t token = divide(column, wide);
    const int64_t row = token, part = divide(column, d), h = divide(token, n);
    to[i] = c[(h * 2 + part) * (n + 2) + 2 + token] * x[row * d + column];
  });
}

template <class T>
void after_as(const Tensor& a_n, const Tensor& s_n, const Tensor& a, const Tensor& s, const Tensor& moved,
              const Tensor& last) {
  const int64_t size = a.row_size(), wide = moved.row_size(), columns = last.dim(2);
  T *to_a = data<T>(a_n), *to_s = data<T>(s_n);
  const T *A = data<const T>(a), *S = data<const T>(s), *gone = data<const T>(moved),
          *c = data<const T>(last);
  each(a.numel(), [=] __device__(int64_t i) {
    int64_t j = i;
    const int64_t h = divide(j, size);
    const T* own = c + h * 2 * columns;
    const T surprise = S != nullptr ? S[i] : T(0);
    to_a[i] = own[0] * A[i] + own[1] * surprise - gone[h * wide + j];
    if (S != nullptr) to_s[i] = own[columns + 1] * surprise - gone[h * wide + size + j];
  });
}

}  // namespace

void weigh_inputs(const Tensor& weighted, const Tensor& in, const Tensor& last) {
  with_wide(in.dtype(), [&]<class T>() { weigh_as<T>(weighted, in, last); });
}

void after_learning(const Tensor& a_n, const Tensor& s_n, const Tensor& a, const Tensor& s,
                    const Tensor& moved, const Tensor& last) {
  with_wide(a.dtype(), [&]<class T>() { after_as<T>(a_n, s_n, a, s, moved, last); });
}

namespace {

// A block a head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    after_backward_kernel(T* pack, T* da, T* ds, T* dlast, const T* a, const T* s, const T* last,
                          const T* da_n, const T* ds_n, int64_t size, int64_t wide, int64_t columns) {
  const int64_t h = blockIdx.x;
  const T* c = last + h * 2 * columns;
  T* dc = dlast + h * 2 * columns;
  T a_of_a = 0, a_of_s = 0, s_of_s = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const int64_t at = h * size + i;
    const T g = da_n[at];
    da[at] = c[0] * g;
    pack[h * wide + i] = g;
    a_of_a += g * a[at];
    if (s == nullptr) continue;
    const T g_s = ds_n[at], surprise = s[at];
    ds[at] = c[1] * g + c[columns + 1] * g_s;
    pack[h * wide + size + i] = g_s;
    a_of_s += g * surprise;
    s_of_s += g_s * surprise;
  }
  a_of_a = block_sum(a_of_a);
  a_of_s = block_sum(a_of_s);
  s_of_s = block_sum(s_of_s);
  if (threadIdx.x != 0) return;
  dc[0] = a_of_a;
  dc[1] = a_of_s;
  dc[columns] = 0;
  dc[columns + 1] = s_of_s;
}

// A warp a token.
template <class T>
__global__ void __launch_bounds__(kThreads)
    weigh_backward_kernel(T* din, T* dlast, const T* dweighted, const T* in, const T* last, int64_t rows,
                          int64_t n, int64_t d, int64_t wide) {
  const int64_t lane = threadIdx.x % kWarp, warps = int64_t{gridDim.x} * (kThreads / kWarp);
  for (int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp; row < rows;
       row += warps) {
    const int64_t first = row / n * 2 * (n + 2) + 2 + row % n, second = first + n + 2;
    const T c0 = last[first], c1 = last[second];
    T sum0 = 0, sum1 = 0;
    for (int64_t i = lane; i < d; i += kWarp) {
      const T x = in[row * d + i], g0 = dweighted[row * wide + i];
      const T g1 = wide > d ? dweighted[row * wide + d + i] : T(0);
      din[row * d + i] = c0 * g0 + (wide > d ? c1 * g1 : T(0));
      sum0 += g0 * x;
      sum1 += g1 * x;
    }
    sum0 = warp_sum(sum0);
    sum1 = warp_sum(sum1);
    if (lane == 0) {
      dlast[first] = sum0;
      dlast[second] = sum1;
    }
  }
}

}  // namespace

void after_learning_backward(const Tensor& pack, const Tensor& da, const Tensor& ds, const Tensor& dlast,
                             const Tensor& a, const Tensor& s, const Tensor& last, const Tensor& da_n,
                             const Tensor& ds_n) {
  if (a.dim(0) == 0) return;
  with_wide(a.dtype(), [&]<class T>() {
    after_backward_kernel<T><<<static_cast<unsigned>(a.dim(0)), kThreads, 0, stream()>>>(
        data<T>(pack), data<T>(da), data<T>(ds), data<T>(dlast), data<const T>(a), data<const T>(s),
        data<const T>(last), data<const T>(da_n), data<const T>(ds_n), a.row_size(), pack.row_size(),
        last.dim(2));
  });
  check_launch("after_learning_backward");
}

void weigh_inputs_backward(const Tensor& din, const Tensor& dlast, const Tensor& dweighted, const Tensor& in,
                           const Tensor& last) {
  const int64_t rows = in.dim(0) * in.dim(1);
  if (rows == 0) return;
  with_wide(in.dtype(), [&]<class T>() {
    weigh_backward_kernel<T><<<blocks_for(rows, kThreads / static_cast<int>(kWarp)), kThreads, 0, stream()>>>(
        data<T>(din), data<T>(dlast), data<const T>(dweighted), data<const T>(in), data<const T>(last), rows,
        in.dim(1), in.dim(2), dweighted.dim(2));
  });
  check_launch("weigh_inputs_backward");
}

namespace {

// What is read and written of a reading: x (H, n, d), a and s (H, d, e), out (H, n, e). s is null where there
// is none.
template <class T>
struct Reading {
  T *x, *scores, *a, *s, *out, *from_a, *from_s, *taken;
  int64_t n, d, e, wide;
};

// The elements of `asked`, then those of `known`.
template <class T>
void pack_as(T* asked, T* known, const Reading<const T>& r, int64_t heads) {
  const int64_t first = heads * r.n * r.wide;
  each(first + heads * r.wide * r.e, [=] __device__(int64_t i) {
    if (i < first) {
      int64_t c = i;
      const int64_t row = divide(c, r.wide);
      const int64_t token = c - (r.wide - r.n);  // among those learned from
      T y;
      if (token >= 0)
        y = r.scores[row * r.n + token] * r.taken[row * r.n + token];
      else if (c < r.d)
        y = r.from_a[row] * r.x[row * r.d + c];
      else
        y = r.from_s[row] * r.x[row * r.d + c - r.d];
      asked[i] = y;
      return;
    }
    int64_t c = i - first;
    int64_t row = divide(c, r.e);
    const int64_t h = divide(row, r.wide), token = row - (r.wide - r.n);
    T y;
    if (token >= 0)
      y = -r.out[(h * r.n + token) * r.e + c];
    else
      y = row < r.d ? r.a[(h * r.d + row) * r.e + c] : r.s[(h * r.d + row - r.d) * r.e + c];
    known[i - first] = y;
  });
}

template <class T>
void unpack_known(const T* dknown, const Reading<T>& d, int64_t heads) {
  each(heads * d.wide * d.e, [=] __device__(int64_t i) {
    int64_t c = i;
    int64_t row = divide(c, d.e);
    const int64_t h = divide(row, d.wide), token = row - (d.wide - d.n);
    if (token >= 0)
      d.out[(h * d.n + token) * d.e + c] = -dknown[i];
    else if (row < d.d)
      d.a[(h * d.d + row) * d.e + c] = dknown[i];
    else
      d.s[(h * d.d + row - d.d) * d.e + c] = dknown[i];
  });
}

// A warp a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    unpack_asked_kernel(Reading<T> to, const T* dasked, Reading<const T> r, int64_t rows) {
  const int64_t lane = threadIdx.x % kWarp, warps = int64_t{gridDim.x} * (kThreads / kWarp);
  for (int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp; row < rows;
       row += warps) {
    const T* g = dasked + row * r.wide;
    T by_a = 0, by_s = 0;
    for (int64_t i = lane; i < r.d; i += kWarp) {
      const T x = r.x[row * r.d + i];
      T dx = r.from_a[row] * g[i];
      by_a += g[i] * x;
      if (to.s != nullptr) {
        dx += r.from_s[row] * g[r.d + i];
        by_s += g[r.d + i] * x;
      }
      to.x[row * r.d + i] = dx;
    }
    by_a = warp_sum(by_a);
    by_s = warp_sum(by_s);
    if (lane == 0) {
      to.from_a[row] = by_a;
      if (to.s != nullptr) to.from_s[row] = by_s;
    }
    for (int64_t j = lane; j < r.n; j += kWarp) {
      const T by_score = g[r.wide - r.n + j];
      to.scores[row * r.n + j] = by_score * r.taken[row * r.n + j];
      to.taken[row * r.n + j] = by_score * r.scores[row * r.n + j];
    }
  }
}

}  // namespace

void pack_reading(const Tensor& asked, const Tensor& known, const Tensor& x, const Tensor& scores,
                  const Tensor& a, const Tensor& s, const Tensor& out, const Tensor& from_a,
                  const Tensor& from_s, const Tensor& taken) {
  with_wide(x.dtype(), [&]<class T>() {
    using In = const T;
    pack_as<T>(data<T>(asked), data<T>(known),
               {data<In>(x), data<In>(scores), data<In>(a), data<In>(s), data<In>(out), data<In>(from_a),
                data<In>(from_s), data<In>(taken), x.dim(1), x.dim(2), out.dim(2), asked.dim(2)},
               x.dim(0));
  });
}

void pack_reading_backward(const Tensor& dx, const Tensor& dscores, const Tensor& da, const Tensor& ds,
                           const Tensor& dout, const Tensor& dfrom_a, const Tensor& dfrom_s,
                           const Tensor& dtaken, const Tensor& dasked, const Tensor& dknown, const Tensor& x,
                           const Tensor& scores, const Tensor& from_a, const Tensor& from_s,
                           const Tensor& taken) {
  const int64_t rows = x.dim(0) * x.dim(1);
  if (rows == 0) return;
  with_wide(x.dtype(), [&]<class T>() {
    using In = const T;
    const Reading<T> to{data<T>(dx),   data<T>(dscores), data<T>(da),      data<T>(ds),
                        data<T>(dout), data<T>(dfrom_a), data<T>(dfrom_s), data<T>(dtaken),
                        x.dim(1),      x.dim(2),         dout.dim(2),      dasked.dim(2)};
    const Reading<In> from{data<In>(x), data<In>(scores), nullptr,          nullptr,
                           nullptr,     data<In>(from_a), data<In>(from_s), data<In>(taken),
                           x.dim(1),    x.dim(2),         dout.dim(2),      dasked.dim(2)};
    unpack_asked_kernel<T><<<blocks_for(rows, kThreads / static_cast<int>(kWarp)), kThreads, 0, stream()>>>(
        to, data<In>(dasked), from, rows);
    check_launch("read_while_learning_backward");
    unpack_known<T>(data<In>(dknown), to, x.dim(0));
  });
}

}  // namespace weft::cuda
