#include "autograd/ops/embedding.h"

#include "autograd/cuda/buckets.h"
#include "autograd/cuda/rows.cuh"

namespace weft::cuda {
namespace {

// Rows of `width` elements; what their type is plays no part.
template <class U>
void look_up(const Tensor& y, const Tensor& table, const Tensor& ids, int64_t width) {
  U* to = data<U>(y);
  const U* from = data<const U>(table);
  const int32_t* id = data<const int32_t>(ids);
  const int64_t vocabulary = table.dim(0);
  each(ids.dim(0) * width, [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = id[divide(column, width)];
    REQUIRE_ON_DEVICE(row >= 0 && row < vocabulary);  // use the tokenizer the model was made for
    to[i] = from[row * width + column];
  });
}

constexpr int kSlices = 16;
constexpr int kFew = 64;  // tokens of a bucket that one warp sums alone

// to[row] += the sum of dy over each bucket of tokens. One warp a token, in the order of their ids; that of
// the first token of a bucket of few sums the whole of it, token by token. Before these come `large` blocks:
// one for each kFew-th token, and a tile of columns; that of the first such token in a bucket of many sums
// the bucket: each slice of threads takes every kSlices-th of its tokens, then the slices are added in order.
template <class To, class T, bool whole>
__global__ void __launch_bounds__(kWarp* kSlices)
    scatter_kernel(To* to, const T* dy, const int32_t* ids, const int32_t* start, const int32_t* order,
                   int tokens, int64_t columns, int large, int tiles) {
  using A = Acc<To>;
  constexpr int V = Pack<T>::kSize;
  const int lane = static_cast<int>(threadIdx.x), slice = static_cast<int>(threadIdx.y),
            block = static_cast<int>(blockIdx.x);
  const bool few = block >= large;
  const int own = few ? (block - large) * kSlices + slice : block / tiles * kFew;
  if (own >= tokens) return;
  const int64_t row = ids[order[own]];
  if (row < 0) return;
  const int begin = start[row], end = start[row + 1];
  if ((end - begin <= kFew) != few || own - begin >= (few ? 1 : kFew)) return;
  const auto sum_up = [&](A(&sum)[V], int first, int step, int64_t j) {
#pragma unroll 4
    for (int i = first; i < end; i += step) {
      const auto g = load<whole, V>(dy + order[i] * columns + j, columns - j);
#pragma unroll
      for (int e = 0; e < V; ++e) sum[e] += static_cast<A>(Acc<T>(g.v[e]));
    }
  };
  const auto add = [&](const A(&sum)[V], int64_t j) {
    To* const target = to + row * columns + j;
#pragma unroll
    for (int e = 0; e < V; ++e)
      if (whole || j + e < columns) target[e] = static_cast<To>(A(target[e]) + sum[e]);
  };
  if (few) {
    for (int64_t j = int64_t{lane} * V; j < columns; j += int64_t{kWarp} * V) {
      A sum[V] = {};
      sum_up(sum, begin, 1, j);
      add(sum, j);
    }
    return;
  }
  __shared__ A parts[kSlices][V][kWarp];
  const int64_t j = (int64_t{block % tiles} * kWarp + lane) * V;
  A sum[V] = {};
  if (j < columns) sum_up(sum, begin + slice, kSlices, j);
#pragma unroll
  for (int e = 0; e < V; ++e) parts[slice][e][lane] = sum[e];
  __syncthreads();
  if (slice != 0 || j >= columns) return;
  for (int s = 1; s < kSlices; ++s)
#pragma unroll
    for (int e = 0; e < V; ++e) sum[e] += parts[s][e][lane];
  add(sum, j);
}

}  // namespace

void embedding_forward(const Tensor& y, const Tensor& table, const Tensor& ids) {
  const int64_t bytes = table.dim(1) * size_of(table.dtype());
  if (bytes % 16 == 0 && aligned(y.raw()) && aligned(table.raw()))
    return look_up<uint4>(y, table, ids, bytes / 16);
  switch (size_of(table.dtype())) {
    case 2: return look_up<uint16_t>(y, table, ids, table.dim(1));
    case 4: return look_up<uint32_t>(y, table, ids, table.dim(1));
    default: return look_up<uint64_t>(y, table, ids, table.dim(1));
  }
}

void embedding_backward(const Tensor& to, const Tensor& dy, const Tensor& ids, double beta) {
  if (beta == 0) to.zero();
  if (to.numel() == 0 || dy.numel() == 0) return;
  const Buckets b = buckets_of(ids, to.dim(0));
  const int64_t tokens = ids.dim(0), columns = to.dim(1);
  with_float(to.dtype(), [&]<class To>() {
    with_float(dy.dtype(), [&]<class T>() {
      const auto launch = [&](auto kernel) {
        const int64_t tile = kWarp * Pack<T>::kSize, tiles = (columns + tile - 1) / tile,
                      large = (tokens + kFew - 1) / kFew * tiles, few = (tokens + kSlices - 1) / kSlices;
        CHECK(tokens <= INT32_MAX && large + few <= INT32_MAX, "embedding: ", tokens, " tokens of ", columns);
        kernel<<<static_cast<unsigned>(large + few), dim3(kWarp, kSlices), 0, stream()>>>(
            data<To>(to), data<const T>(dy), data<const int32_t>(ids), data<const int32_t>(b.start),
            data<const int32_t>(b.order), static_cast<int>(tokens), columns, static_cast<int>(large),
            static_cast<int>(tiles));
      };
      if (columns % Pack<T>::kSize == 0 && aligned(dy.raw()))
        launch(scatter_kernel<To, T, true>);
      else
        launch(scatter_kernel<To, T, false>);
    });
  });
  check_launch("embedding_backward");
}

}  // namespace weft::cuda
