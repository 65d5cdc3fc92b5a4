// A thread takes a pack of channels along a run of tokens, with the rows that its filter reads in registers:
// each row is read once a run, and W - 1 more at its ends.

#include "autograd/cuda/kernel.cuh"
#include "autograd/ops/rows.h"
#include "autograd/ops/short_conv.h"

namespace weft::cuda {
namespace {

constexpr int kMostTaps = 8;
constexpr int64_t kRun = 32;  // tokens of a thread on the way forward
constexpr int kParts = 8;     // of a row block, on the way back, each a warp's

template <class T, int V>
struct alignas(V * sizeof(T)) Channels {
  T v[V];
};

// What both ways read. front: the W - 1 rows before row 0, or null for zeros.
template <class T>
struct Line {
  const T* x;
  int64_t pitch;
  const T* front;
  const Acc<T>* weight;
  const int32_t* place;
  int64_t tokens, channels;
  int width;
};

// Row i of x, i from -(W - 1); zeros in front of the line where nothing is.
template <class T, int V>
__device__ Channels<T, V> row_at(const Line<T>& l, int64_t i, int64_t c) {
  Channels<T, V> out;
  if (i >= 0) return *reinterpret_cast<const Channels<T, V>*>(l.x + i * l.pitch + c);
  if (l.front != nullptr && i >= 1 - l.width)
    return *reinterpret_cast<const Channels<T, V>*>(l.front + (l.width - 1 + i) * l.channels + c);
#pragma unroll
  for (int v = 0; v < V; ++v) out.v[v] = T(0.0f);
  return out;
}

// weight[j] of the row j tokens back; zeros behind the filter's width.
template <class T, int V, int kTaps>
__device__ void load_taps(Acc<T> (&w)[kTaps][V], const Line<T>& l, int64_t c) {
#pragma unroll
  for (int j = 0; j < kTaps; ++j)
#pragma unroll
    for (int v = 0; v < V; ++v)
      w[j][v] = j < l.width ? l.weight[(c + v) * l.width + l.width - 1 - j] : Acc<T>(0);
}

template <class T, int V, int kTaps>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(T* y, int64_t y_pitch, const Acc<T>* bias, Line<T> l, int64_t tasks) {
  using A = Acc<T>;
  const int64_t packs = l.channels / V, stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t task = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; task < tasks; task += stride) {
    int64_t c = task;
    const int64_t begin = divide(c, packs) * kRun;
    const int64_t end = begin + kRun < l.tokens ? begin + kRun : l.tokens;
    c *= V;
    A w[kTaps][V], shift[V];
    load_taps<T, V, kTaps>(w, l, c);
#pragma unroll
    for (int v = 0; v < V; ++v) shift[v] = bias != nullptr ? bias[c + v] : A(0);
    Channels<T, V> back[kTaps];  // [j]: j tokens back
#pragma unroll
    for (int j = 1; j < kTaps; ++j) back[j - 1] = row_at<T, V>(l, begin - j, c);
    for (int64_t i = begin; i < end; ++i) {
#pragma unroll
      for (int j = kTaps - 1; j > 0; --j) back[j] = back[j - 1];
      back[0] = row_at<T, V>(l, i, c);
      const int place = l.place[i];
      A sum[V];
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = shift[v];
#pragma unroll
      for (int j = kTaps - 1; j >= 0; --j)
        if (j < l.width && j <= place)
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += w[j][v] * A(back[j].v[v]);
      Channels<T, V> out;
#pragma unroll
      for (int v = 0; v < V; ++v) out.v[v] = static_cast<T>(sum[v]);
      *reinterpret_cast<Channels<T, V>*>(y + i * y_pitch + c) = out;
    }
  }
}

// A block takes 32 packs of channels of one row block, cut into kParts; their sums meet in order.
template <class T, int V, int kTaps>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(T* dx, Acc<T>* dweight, Acc<T>* dbias, const T* dy, Line<T> l, int64_t block_size,
                    int64_t column_blocks, int64_t tasks) {
  using A = Acc<T>;
  __shared__ A parts[kParts][kWarp];
  const int lane = threadIdx.x % kWarp, part = threadIdx.x / kWarp;
  const int64_t part_size = (block_size + kParts - 1) / kParts;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t block = task / column_blocks, c = (task % column_blocks * kWarp + lane) * V;
    const bool active = c < l.channels;
    int64_t last = (block + 1) * block_size;
    last = last < l.tokens ? last : l.tokens;
    const int64_t begin = block * block_size + part * part_size;
    const int64_t end = begin + part_size < last ? begin + part_size : last;
    A sum[kTaps + 1][V];  // of each tap, and of the bias
#pragma unroll
    for (int j = 0; j <= kTaps; ++j)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[j][v] = 0;
    if (active && begin < end) {
      const auto gradient = [&](int64_t i) {
        Channels<T, V> out;
        if (i < l.tokens) return *reinterpret_cast<const Channels<T, V>*>(dy + i * l.channels + c);
#pragma unroll
        for (int v = 0; v < V; ++v) out.v[v] = T(0.0f);
        return out;
      };
      const auto place_of = [&](int64_t i) { return i < l.tokens ? l.place[i] : -1; };
      A w[kTaps][V];
      load_taps<T, V, kTaps>(w, l, c);
      Channels<T, V> back[kTaps], ahead[kTaps];
      int place[kTaps];
#pragma unroll
      for (int j = 1; j < kTaps; ++j) {
        back[j - 1] = row_at<T, V>(l, begin - j, c);
        ahead[j] = gradient(begin + j - 1);
        place[j] = place_of(begin + j - 1);
      }
      for (int64_t i = begin; i < end; ++i) {
#pragma unroll
        for (int j = kTaps - 1; j > 0; --j) back[j] = back[j - 1];
        back[0] = row_at<T, V>(l, i, c);
#pragma unroll
        for (int j = 0; j + 1 < kTaps; ++j) {
          ahead[j] = ahead[j + 1];
          place[j] = place[j + 1];
        }
        ahead[kTaps - 1] = gradient(i + kTaps - 1);
        place[kTaps - 1] = place_of(i + kTaps - 1);
        A d[V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          d[v] = 0;
          sum[kTaps][v] += A(ahead[0].v[v]);
        }
#pragma unroll
        for (int j = kTaps - 1; j >= 0; --j) {
          if (j < l.width && j <= place[j])
#pragma unroll
            for (int v = 0; v < V; ++v) d[v] += w[j][v] * A(ahead[j].v[v]);
          if (j < l.width && j <= place[0])
#pragma unroll
            for (int v = 0; v < V; ++v) sum[j][v] += A(ahead[0].v[v]) * A(back[j].v[v]);
        }
        Channels<T, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) out.v[v] = static_cast<T>(d[v]);
        *reinterpret_cast<Channels<T, V>*>(dx + i * l.channels + c) = out;
      }
    }
#pragma unroll
    for (int j = 0; j <= kTaps; ++j)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        __syncthreads();
        parts[part][lane] = sum[j][v];
        __syncthreads();
        if (part != 0 || !active || (j >= l.width && j < kTaps)) continue;
        A whole = 0;
        for (int p = 0; p < kParts; ++p) whole += parts[p][lane];
        if (j == kTaps)
          dbias[block * l.channels + c + v] = whole;
        else
          dweight[(block * l.channels + c + v) * l.width + l.width - 1 - j] = whole;
      }
  }
}

template <class T>
void front_backward(const Tensor& dbefore, const Tensor& dy, const Line<T>& l) {
  T* to = data<T>(dbefore);
  const T* g = data<T>(dy);
  each(dbefore.numel(), [=] __device__(int64_t task) {
    int64_t c = task;
    const int64_t row = divide(c, l.channels) - (l.width - 1);
    Acc<T> sum = 0;
    for (int j = l.width - 1; j >= -row; --j)
      if (row + j < l.tokens && j <= l.place[row + j])
        sum += l.weight[c * l.width + l.width - 1 - j] * Acc<T>(g[(row + j) * l.channels + c]);
    to[task] = static_cast<T>(sum);
  });
}

template <class T>
Line<T> line_of(const Tensor& x, const Tensor& weight, const Tensor& position, const Tensor& before) {
  return {data<const T>(x),
          x.pitch(),
          before.defined() ? data<const T>(before) : nullptr,
          data<const Acc<T>>(weight),
          data<const int32_t>(position),
          x.dim(0),
          x.dim(1),
          static_cast<int>(weight.dim(1))};
}

// f.operator()<V, kTaps>() with V channels an access, one where their rows do not start on so many.
template <int kWide, class F>
void with_pack(bool wide, int64_t taps, F f) {
  if (taps <= 4)
    wide ? f.template operator()<kWide, 4>() : f.template operator()<1, 4>();
  else
    wide ? f.template operator()<kWide / 2, kMostTaps>() : f.template operator()<1, kMostTaps>();
}

// Whether these have rows that start on packs of n elements.
bool rows_align(int64_t n, std::initializer_list<Tensor> tensors) {
  bool all = true;
  for (const Tensor& x : tensors)
    all = all && (!x.defined() || (x.dim(1) % n == 0 && x.pitch() % n == 0 && aligned(x.raw())));
  return all;
}

template <class T>
void forward_as(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                const Tensor& position, const Tensor& before) {
  constexpr int kWide = Pack<T>::kSize;
  const Line<T> l = line_of<T>(x, weight, position, before);
  with_pack<kWide>(rows_align(kWide, {y, x, before}), l.width, [&]<int V, int kTaps>() {
    const int64_t tasks = l.channels / V * ((l.tokens + kRun - 1) / kRun);
    forward_kernel<T, V, kTaps><<<blocks_for(tasks), kThreads, 0, stream()>>>(
        data<T>(y), y.pitch(), bias.defined() ? data<const Acc<T>>(bias) : nullptr, l, tasks);
  });
  check_launch("short_conv");
}

template <class T>
void backward_as(const Tensor& dx, const Tensor& dbefore, const Tensor& dweight, const Tensor& dbias,
                 const Tensor& x, const Tensor& weight, const Tensor& position, const Tensor& before,
                 const Tensor& dy) {
  constexpr int kWide = std::min(4, Pack<T>::kSize);  // more would not fit in registers
  const Line<T> l = line_of<T>(x, weight, position, before);
  if (before.defined()) front_backward<T>(dbefore, dy, l);
  const RowBlocks blocks = row_blocks(l.tokens);
  with_pack<kWide>(rows_align(kWide, {dx, x, dy, before}), l.width, [&]<int V, int kTaps>() {
    const int64_t column_blocks = (l.channels / V + kWarp - 1) / kWarp, tasks = blocks.count * column_blocks;
    if (tasks == 0) return;
    backward_kernel<T, V, kTaps><<<blocks_for(tasks, 1), kThreads, 0, stream()>>>(
        data<T>(dx), data<Acc<T>>(dweight), data<Acc<T>>(dbias), data<const T>(dy), l, blocks.size,
        column_blocks, tasks);
  });
  check_launch("short_conv_backward");
}

}  // namespace

void short_conv_forward(const Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& position, const Tensor& before) {
  if (x.numel() == 0) return;
  with_float(x.dtype(), [&]<class T>() { forward_as<T>(y, x, weight, bias, position, before); });
}

void short_conv_backward(const Tensor& dx, const Tensor& dbefore, const Tensor& dweight, const Tensor& dbias,
                         const Tensor& x, const Tensor& weight, const Tensor& position, const Tensor& before,
                         const Tensor& dy) {
  with_float(x.dtype(), [&]<class T>() {
    backward_as<T>(dx, dbefore, dweight, dbias, x, weight, position, before, dy);
  });
}

}  // namespace weft::cuda
