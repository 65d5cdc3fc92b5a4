// A warp takes a query and four of its rows at a time. Gradients of keys and values have one writer: a warp
// takes a row, looks for it in the lists of its run, and sums what it finds in order. That is time rows times
// list entries of a run, and a run is short.

#include <cmath>

#include "attention/selected_attention.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

constexpr int kAbreast = 4;
constexpr int kWarps = 8;  // of a block

template <class T, int V>
struct alignas(V * sizeof(T)) Columns {
  T v[V];
};
template <class T, int V>
__device__ Columns<T, V> load(const T* x) {
  return *reinterpret_cast<const Columns<T, V>*>(x);
}

// This lane's part of a . b.
template <int V, class T>
__device__ T part_of_dot(const T* a, const T* b, int64_t n, int lane) {
  T sum = 0;
  for (int64_t c = lane * V; c < n; c += kWarp * V) {
    const Columns<T, V> x = load<T, V>(a + c), y = load<T, V>(b + c);
#pragma unroll
    for (int v = 0; v < V; ++v) sum += x.v[v] * y.v[v];
  }
  return sum;
}

// to = factor times the sum over j of weight[j] times row rows[j] of x; rows of weight 0 are not read.
template <int V, class T>
__device__ void weighted_sum(T* to, const T* weight, const int32_t* rows, int64_t count, const T* x,
                             int64_t n, T factor, int lane) {
  for (int64_t c = lane * V; c < n; c += kWarp * V) {
    Columns<T, V> sum{};
#pragma unroll 4
    for (int64_t j = 0; j < count; ++j) {
      const T w = weight[j];
      if (w == T(0)) continue;
      const Columns<T, V> row = load<T, V>(x + rows[j] * n + c);
#pragma unroll
      for (int v = 0; v < V; ++v) sum.v[v] += w * row.v[v];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) sum.v[v] *= factor;
    *reinterpret_cast<Columns<T, V>*>(to + c) = sum;
  }
}

template <class T>
struct Sizes {
  int64_t n, m, d, e, count;  // queries, rows, of a key, of a value, of a list
  T scale;
  bool gate_keys;
};

// score, of n times count, is scratch.
template <class T, int V>
__global__ void __launch_bounds__(kWarps* kWarp)
    forward_kernel(T* o, T* lse, T* score, const T* __restrict__ q, const T* __restrict__ k,
                   const T* __restrict__ v, const T* __restrict__ gate, const int32_t* __restrict__ index,
                   Sizes<T> s) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const T never = -INFINITY;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; i < s.n;
       i += int64_t{gridDim.x} * kWarps) {
    const T* g = gate + i * s.count;
    const int32_t* rows = index + i * s.count;
    T* own = score + i * s.count;
    T top = never;
    for (int64_t j = 0; j < s.count; j += kAbreast) {
      T on[kAbreast], dot[kAbreast];
#pragma unroll
      for (int u = 0; u < kAbreast; ++u) {
        on[u] = j + u < s.count ? g[j + u] : T(0);
        REQUIRE_ON_DEVICE(on[u] == T(0) || (rows[j + u] >= 0 && rows[j + u] < s.m));
        dot[u] = on[u] == T(0) ? T(0) : part_of_dot<V>(q + i * s.d, k + rows[j + u] * s.d, s.d, lane);
      }
#pragma unroll
      for (int u = 0; u < kAbreast; ++u) dot[u] = warp_sum(dot[u]);
#pragma unroll
      for (int u = 0; u < kAbreast; ++u) {
        if (j + u >= s.count) continue;
        const T value = on[u] == T(0) ? never : s.scale * (s.gate_keys ? on[u] : T(1)) * dot[u];
        top = value > top ? value : top;
        if (lane == u) own[j + u] = value;
      }
    }
    __syncwarp();
    T sum = 0;
    if (top > never)
      for (int64_t j = lane; j < s.count; j += kWarp) {
        const T p = g[j] == T(0) ? T(0) : exp(own[j] - top);
        sum += p;
        own[j] = p * g[j];
      }
    sum = warp_sum(sum);
    __syncwarp();
    // No row is read where there is none.
    weighted_sum<V>(o + i * s.e, own, rows, top > never ? s.count : 0, v, s.e,
                    top > never ? T(1) / sum : T(0), lane);
    if (lane == 0) lse[i] = top > never ? top + log(sum) : never;
  }
}

// Of each query dq and dgate, and of each of its rows what dk takes of q and dv of dO.
template <class T, int V>
__global__ void __launch_bounds__(kWarps* kWarp)
    queries_kernel(T* dq, T* d_gate, T* on_key, T* on_value, const T* __restrict__ q, const T* __restrict__ k,
                   const T* __restrict__ v, const T* __restrict__ gate, const int32_t* __restrict__ index,
                   const T* __restrict__ o, const T* __restrict__ lse, const T* __restrict__ d_o,
                   const T* __restrict__ d_lse, Sizes<T> s) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  for (int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; i < s.n;
       i += int64_t{gridDim.x} * kWarps) {
    const int64_t first = i * s.count;
    const int32_t* rows = index + first;
    const T whole = lse[i];
    const bool any = whole != T(-INFINITY);
    const T delta = warp_sum(part_of_dot<V>(d_o + i * s.e, o + i * s.e, s.e, lane)) - d_lse[i];
    for (int64_t j = 0; j < s.count; j += kAbreast) {
      T g[kAbreast], product[kAbreast], a[kAbreast];
#pragma unroll
      for (int u = 0; u < kAbreast; ++u) {
        g[u] = any && j + u < s.count ? gate[first + j + u] : T(0);
        product[u] = a[u] = 0;
        if (g[u] == T(0)) continue;
        product[u] = part_of_dot<V>(q + i * s.d, k + rows[j + u] * s.d, s.d, lane);
        a[u] = part_of_dot<V>(d_o + i * s.e, v + rows[j + u] * s.e, s.e, lane);
      }
#pragma unroll
      for (int u = 0; u < kAbreast; ++u) {
        product[u] = s.scale * warp_sum(product[u]);
        a[u] = warp_sum(a[u]);
      }
#pragma unroll
      for (int u = 0; u < kAbreast; ++u) {
        if (j + u >= s.count || lane != u) continue;
        const int64_t at = first + j + u;
        const T key_gate = s.gate_keys ? g[u] : T(1);
        const T p = g[u] == T(0) ? T(0) : exp(key_gate * product[u] - whole);
        const T ds = p * (g[u] * a[u] - delta);
        const bool none = g[u] == T(0);
        d_gate[at] = none ? T(0) : p * a[u] + (s.gate_keys ? ds * product[u] : T(0));
        on_key[at] = none ? T(0) : s.scale * key_gate * ds;
        on_value[at] = none ? T(0) : p * g[u];
      }
    }
    __syncwarp();
    weighted_sum<V>(dq + i * s.d, on_key + first, rows, s.count, k, s.d, T(1), lane);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kWarps* kWarp)
    rows_kernel(T* dk, T* dv, const T* __restrict__ on_key, const T* __restrict__ on_value,
                const T* __restrict__ q, const T* __restrict__ d_o, const int32_t* __restrict__ index,
                Sizes<T> s, int64_t groups) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t rows = s.m / groups, entries = s.n / groups * s.count;
  const int64_t widest = s.d > s.e ? s.d : s.e;
  for (int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp; r < s.m;
       r += int64_t{gridDim.x} * kWarps) {
    const int64_t begin = r / rows * entries, end = begin + entries;
    for (int64_t tile = 0; tile < widest; tile += kWarp * V) {
      const int64_t c = tile + lane * V;
      Columns<T, V> key{}, value{};
      for (int64_t at = begin; at < end; at += kWarp) {
        const int64_t mine = at + lane;
        unsigned found = __ballot_sync(0xffffffffu, mine < end && index[mine] == r);
        for (; found != 0; found &= found - 1) {
          const int64_t entry = at + __ffs(static_cast<int>(found)) - 1, i = entry / s.count;
          const T for_key = on_key[entry], for_value = on_value[entry];
          if (for_key != T(0) && c < s.d) {
            const Columns<T, V> x = load<T, V>(q + i * s.d + c);
#pragma unroll
            for (int j = 0; j < V; ++j) key.v[j] += for_key * x.v[j];
          }
          if (for_value != T(0) && c < s.e) {
            const Columns<T, V> x = load<T, V>(d_o + i * s.e + c);
#pragma unroll
            for (int j = 0; j < V; ++j) value.v[j] += for_value * x.v[j];
          }
        }
      }
      if (c < s.d) *reinterpret_cast<Columns<T, V>*>(dk + r * s.d + c) = key;
      if (c < s.e) *reinterpret_cast<Columns<T, V>*>(dv + r * s.e + c) = value;
    }
  }
}

// f.operator()<T, V>() with V numbers an access, one where rows do not start on so many.
template <class F>
void with_pack(const Tensor& q, const Tensor& v, std::initializer_list<Tensor> tensors, F f) {
  const auto choose = [&]<class T>() {
    constexpr int kSize = Pack<T>::kSize;
    bool wide = q.dim(1) % kSize == 0 && v.dim(1) % kSize == 0;
    for (const Tensor& x : tensors) wide = wide && aligned(x.raw());
    if (wide)
      f.template operator()<T, kSize>();
    else
      f.template operator()<T, 1>();
  };
  with_wide(q.dtype(), choose);
}

template <class T>
Sizes<T> sizes_of(const Tensor& q, const Tensor& v, const Tensor& gate, const SelectedOptions& options) {
  return {q.dim(0),         v.dim(0), q.dim(1), v.dim(1), gate.dim(1), static_cast<T>(options.scale),
          options.gate_keys};
}

}  // namespace

void selected_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                      const Tensor& gate, const Tensor& index, const SelectedOptions& options) {
  if (q.dim(0) == 0) return;
  const Tensor score = empty_like(gate);
  with_pack(q, v, {o, q, k, v}, [&]<class T, int V>() {
    forward_kernel<T, V><<<blocks_for(q.dim(0), kWarps), kWarps * kWarp, 0, stream()>>>(
        data<T>(o), data<T>(lse), data<T>(score), data<const T>(q), data<const T>(k), data<const T>(v),
        data<const T>(gate), data<const int32_t>(index), sizes_of<T>(q, v, gate, options));
  });
  check_launch("selected_attention");
}

void selected_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& d_gate,
                       const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gate,
                       const Tensor& index, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                       const Tensor& d_lse, const SelectedOptions& options) {
  if (q.dim(0) == 0) {
    dk.zero();
    return dv.zero();
  }
  const Tensor on_key = empty_like(gate), on_value = empty_like(gate);
  with_pack(q, v, {dq, dk, dv, q, k, v, o, d_o}, [&]<class T, int V>() {
    const Sizes<T> sizes = sizes_of<T>(q, v, gate, options);
    queries_kernel<T, V><<<blocks_for(q.dim(0), kWarps), kWarps * kWarp, 0, stream()>>>(
        data<T>(dq), data<T>(d_gate), data<T>(on_key), data<T>(on_value), data<const T>(q), data<const T>(k),
        data<const T>(v), data<const T>(gate), data<const int32_t>(index), data<const T>(o),
        data<const T>(lse), data<const T>(d_o), data<const T>(d_lse), sizes);
    if (k.dim(0) == 0) return;
    rows_kernel<T, V><<<blocks_for(k.dim(0), kWarps), kWarps * kWarp, 0, stream()>>>(
        data<T>(dk), data<T>(dv), data<const T>(on_key), data<const T>(on_value), data<const T>(q),
        data<const T>(d_o), data<const int32_t>(index), sizes, options.groups);
  });
  check_launch("selected_attention_backward");
}

}  // namespace weft::cuda
