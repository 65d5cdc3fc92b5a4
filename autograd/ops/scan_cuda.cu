// Columns are independent and rows run in order: a thread takes a pack of columns of one group along its
// rows. A decay's gradient sums a row of products, so it waits until all gradients of states are there.

#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/scan.h"

namespace weft::cuda {
namespace {

template <class T, int V>
struct alignas(V * sizeof(T)) Columns {
  T v[V];
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    states_kernel(int64_t tasks, T* __restrict__ before, T* __restrict__ total, const T* __restrict__ a,
                  const T* __restrict__ s, const int32_t* __restrict__ first, int64_t decays, int64_t width) {
  using P = Columns<T, V>;
  const int64_t packs = width / V, per = width / decays, stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t task = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; task < tasks; task += stride) {
    int64_t pack = task;
    const int64_t g = divide(pack, packs), column = pack * V, h = column / per;
    P state;
#pragma unroll
    for (int j = 0; j < V; ++j) state.v[j] = T(0.0f);
#pragma unroll 4
    for (int64_t i = first[g]; i < first[g + 1]; ++i) {
      const Acc<T> decay = a[i * decays + h];
      const P in = *reinterpret_cast<const P*>(s + i * width + column);
      *reinterpret_cast<P*>(before + i * width + column) = state;
#pragma unroll
      for (int j = 0; j < V; ++j) state.v[j] = static_cast<T>(decay * Acc<T>(state.v[j]) + Acc<T>(in.v[j]));
    }
    *reinterpret_cast<P*>(total + g * width + column) = state;
  }
}

// ds of row i: the gradient of the state behind it.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    states_backward_kernel(int64_t tasks, T* __restrict__ ds, const T* __restrict__ a,
                           const T* __restrict__ g_before, const T* __restrict__ g_total,
                           const int32_t* __restrict__ first, int64_t decays, int64_t width) {
  using P = Columns<T, V>;
  const int64_t packs = width / V, per = width / decays, stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t task = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; task < tasks; task += stride) {
    int64_t pack = task;
    const int64_t g = divide(pack, packs), column = pack * V, h = column / per;
    const P end = *reinterpret_cast<const P*>(g_total + g * width + column);
    Acc<T> d[V];
#pragma unroll
    for (int j = 0; j < V; ++j) d[j] = Acc<T>(end.v[j]);
#pragma unroll 4
    for (int64_t i = int64_t{first[g + 1]} - 1; i >= first[g]; --i) {
      const Acc<T> decay = a[i * decays + h];
      const P in = *reinterpret_cast<const P*>(g_before + i * width + column);
      P out;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        out.v[j] = static_cast<T>(d[j]);
        d[j] = decay * d[j] + Acc<T>(in.v[j]);
      }
      *reinterpret_cast<P*>(ds + i * width + column) = out;
    }
  }
}

template <class T>
void products_forward(const Tensor& a_before, const Tensor& a_total, const Tensor& a, const Tensor& first) {
  const int64_t decays = a.row_size();
  T *before = data<T>(a_before), *total = data<T>(a_total);
  const T* decay = data<T>(a);
  const int32_t* f = data<int32_t>(first);
  each(a_total.numel(), [=] __device__(int64_t task) {
    int64_t h = task;
    const int64_t g = divide(h, decays);
    Acc<T> product = 1;
    for (int64_t i = f[g]; i < f[g + 1]; ++i) {
      before[i * decays + h] = static_cast<T>(product);
      product *= Acc<T>(decay[i * decays + h]);
    }
    total[task] = static_cast<T>(product);
  });
}

// What the products alone give each decay.
template <class T>
void products_backward(const Tensor& sum, const Tensor& a, const Tensor& a_before, const Tensor& first,
                       const Tensor& g_before, const Tensor& g_total) {
  const int64_t decays = a.row_size();
  auto* to = data<Acc<T>>(sum);
  const T *decay = data<T>(a), *before = data<T>(a_before), *g = data<T>(g_before), *end = data<T>(g_total);
  const int32_t* f = data<int32_t>(first);
  each(g_total.numel(), [=] __device__(int64_t task) {
    int64_t h = task;
    const int64_t group = divide(h, decays);
    Acc<T> d = Acc<T>(end[task]);
    for (int64_t i = int64_t{f[group + 1]} - 1; i >= f[group]; --i) {
      const int64_t at = i * decays + h;
      to[at] = d * Acc<T>(before[at]);
      d = d * Acc<T>(decay[at]) + Acc<T>(g[at]);
    }
  });
}

// da[r] = from[r] + sum of ds s over the `per` elements of row r, by kLanes threads a row.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads)
    decays_kernel(int64_t rows, int64_t per, T* __restrict__ da, const Acc<T>* __restrict__ from,
                  const T* __restrict__ ds, const T* __restrict__ s) {
  constexpr int kRows = kThreads / kLanes;
  const int64_t lane = threadIdx.x % kLanes;
  for (int64_t begin = int64_t{blockIdx.x} * kRows; begin < rows; begin += int64_t{gridDim.x} * kRows) {
    const int64_t row = begin + threadIdx.x / kLanes;
    Acc<T> sum = 0;
    if (row < rows) {
#pragma unroll 4
      for (int64_t e = lane; e < per; e += kLanes)
        sum += Acc<T>(ds[row * per + e]) * Acc<T>(s[row * per + e]);
    }
    if constexpr (kLanes == kThreads)
      sum = block_sum(sum);
    else if constexpr (kLanes == kWarp)
      sum = warp_sum(sum);
    if (row < rows && lane == 0) da[row] = static_cast<T>(from[row] + sum);
  }
}

// Widest access that every row of these starts on.
template <class T, class F>
void with_columns(int64_t per, std::initializer_list<const Tensor*> tensors, F f) {
  bool wide = per % Pack<T>::kSize == 0;
  for (const Tensor* x : tensors) wide = wide && aligned(x->raw());
  if (wide)
    f.template operator()<Pack<T>::kSize>();
  else
    f.template operator()<1>();
}

template <class T>
void forward_as(const Tensor& s_before, const Tensor& s_total, const Tensor& a, const Tensor& s,
                const Tensor& first) {
  const int64_t decays = a.row_size(), width = s.row_size();
  with_columns<T>(width / decays, {&s_before, &s_total, &s}, [&]<int V>() {
    const int64_t tasks = s_total.numel() / V;
    states_kernel<T, V><<<blocks_for(tasks), kThreads, 0, stream()>>>(
        tasks, data<T>(s_before), data<T>(s_total), data<const T>(a), data<const T>(s),
        data<const int32_t>(first), decays, width);
  });
  check_launch("decay_scan");
}

template <class T>
void backward_as(const Tensor& ds, const Tensor& a, const Tensor& first, const Tensor& g_s_before,
                 const Tensor& g_s_total) {
  const int64_t decays = a.row_size(), width = ds.row_size();
  with_columns<T>(width / decays, {&ds, &g_s_before, &g_s_total}, [&]<int V>() {
    const int64_t tasks = g_s_total.numel() / V;
    states_backward_kernel<T, V><<<blocks_for(tasks), kThreads, 0, stream()>>>(
        tasks, data<T>(ds), data<const T>(a), data<const T>(g_s_before), data<const T>(g_s_total),
        data<const int32_t>(first), decays, width);
  });
  check_launch("decay_scan_backward");
}

template <class T>
void decays_as(const Tensor& da, const Tensor& from, const Tensor& ds, const Tensor& s) {
  const int64_t rows = da.numel(), per = ds.numel() / rows;
  const auto launch = [&]<int kLanes>() {
    const unsigned blocks = blocks_for(rows, kThreads / kLanes);
    decays_kernel<T, kLanes><<<blocks, kThreads, 0, stream()>>>(
        rows, per, data<T>(da), data<const Acc<T>>(from), data<const T>(ds), data<const T>(s));
  };
  if (per >= 2048)
    launch.template operator()<kThreads>();
  else if (per >= 8)
    launch.template operator()<static_cast<int>(kWarp)>();
  else
    launch.template operator()<1>();
  check_launch("decay_scan decays");
}

}  // namespace

void decay_scan_forward(const Tensor& a_before, const Tensor& s_before, const Tensor& a_total,
                        const Tensor& s_total, const Tensor& a, const Tensor& s, const Tensor& first) {
  with_float(a.dtype(), [&]<class T>() {
    products_forward<T>(a_before, a_total, a, first);
    if (s_total.numel() > 0) forward_as<T>(s_before, s_total, a, s, first);
  });
}

void decay_scan_backward(const Tensor& da, const Tensor& ds, const Tensor& a, const Tensor& a_before,
                         const Tensor& s_before, const Tensor& first, const Tensor& g_a_before,
                         const Tensor& g_s_before, const Tensor& g_a_total, const Tensor& g_s_total) {
  if (da.numel() == 0) return;
  const Tensor sum = empty(da.shape(), wide_of(da.dtype()), da.device());
  with_float(a.dtype(), [&]<class T>() {
    products_backward<T>(sum, a, a_before, first, g_a_before, g_a_total);
    if (g_s_total.numel() > 0) backward_as<T>(ds, a, first, g_s_before, g_s_total);
    decays_as<T>(da, sum, ds, s_before);
  });
}

}  // namespace weft::cuda
