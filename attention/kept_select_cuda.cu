// Who is kept, when, and the thresholds of the gates.

#include <cmath>

#include "attention/kept_attention.cuh"
#include "autograd/ops/sparsek_threshold.cuh"

namespace weft::cuda {
namespace {

constexpr int kSelectThreads = 1024;
constexpr int kArrivals = 1024;  // candidates that meet the list at once

// The support of one document and head, highest score first; a candidate's rank is its place.
template <class T>
struct Ranked {
  T* score;
  int32_t* row;
};

// A block a document and head. A candidate's rank grows by one with every better one that arrives, and it
// leaves when its rank does. Ranks are all different, so behind a chunk of arrivals they say where each goes.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(int32_t* leave, T* scores, int32_t* rows, const T* __restrict__ u,
                  const int32_t* __restrict__ first, int64_t n, int heads, int kept, int support) {
  __shared__ alignas(16) T arrival[kArrivals];
  const int head = blockIdx.y, document = blockIdx.x, tid = threadIdx.x;
  const int64_t own = (int64_t{document} * heads + head) * 2 * support;
  Ranked<T> now{scores + own, rows + own}, then{scores + own + support, rows + own + support};
  int32_t *of_kept = leave + head * n, *of_support = leave + (heads + head) * n;
  const int32_t begin = first[document], end = first[document + 1];
  int size = 0;
  for (int32_t at = begin; at < end; at += kArrivals) {
    const int count = min(kArrivals, end - at);
    for (int c = tid; c < count; c += kSelectThreads) {
      const T z = u[int64_t{at + c} * heads + head];
      arrival[c] = z > -T(INFINITY) ? z : -T(INFINITY);  // NaN: none
    }
    __syncthreads();
    // The rank behind the arrivals [from, count), and who leaves at which.
    const auto advance = [&](T z, int32_t row, int rank, int from) {
      for (int c = from; c < count; ++c) {
        if (!(arrival[c] > z)) continue;
        ++rank;
        if (rank == kept) of_kept[row] = at + c;
        if (rank == support) {
          of_support[row] = at + c;
          return;
        }
      }
      then.score[rank] = z;
      then.row[rank] = row;
    };
    int arrived = 0;
    for (int c = tid; c < count; c += kSelectThreads) {
      const T z = arrival[c];
      const int32_t row = at + c;
      if (z == -T(INFINITY)) {
        of_kept[row] = of_support[row] = row;
        continue;
      }
      ++arrived;
      int low = 0, high = size;  // earlier ones that are as good or better
      while (low < high) {
        const int middle = (low + high) / 2;
        if (now.score[middle] >= z)
          low = middle + 1;
        else
          high = middle;
      }
      int rank = low;
      for (int j = 0; j < c; ++j) rank += arrival[j] >= z;
      of_kept[row] = rank < kept ? end : row;
      of_support[row] = rank < support ? end : row;
      if (rank < support) advance(z, row, rank, c + 1);
    }
    for (int i = tid; i < size; i += kSelectThreads) advance(now.score[i], now.row[i], i, 0);
    arrived = block_sum(arrived);
    size = min(size + arrived, support);
    const Ranked<T> other = now;
    now = then;
    then = other;
    __syncthreads();
  }
}

// A block a tile and head: those of the document so far that have not left where the tile begins.
__global__ void __launch_bounds__(kThreads)
    list_kernel(int32_t* list, int32_t* count, const int32_t* __restrict__ tiles,
                const int32_t* __restrict__ leave, int64_t n, int heads, int width) {
  __shared__ int found[kThreads / kWarp];
  const int64_t tile = blockIdx.x;
  const int head = blockIdx.y, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t begin = tiles[3 * tile], end = tiles[3 * tile + 1], start = tiles[3 * tile + 2];
  int32_t* to = list + (tile * heads + head) * width;
  const int32_t* of_head = leave + head * n;
  int before = 0;
  for (int32_t at = start; at < end; at += kThreads) {
    const int32_t j = at + static_cast<int32_t>(threadIdx.x);
    const bool in = j < end && of_head[j] > begin && of_head[j] > j;
    const unsigned warp_in = __ballot_sync(0xffffffffu, in);
    __syncthreads();
    if (lane == 0) found[warp] = __popc(warp_in);
    __syncthreads();
    int place = before + __popc(warp_in & ((1u << lane) - 1));
    for (int w = 0; w < kThreads / static_cast<int>(kWarp); ++w) {
      if (w < warp) place += found[w];
      before += found[w];
    }
    REQUIRE_ON_DEVICE(!in || place < width);
    if (in) to[place] = j;
  }
  if (threadIdx.x == 0) count[tile * heads + head] = before;
}

// The scores of a list at a row, some a lane.
template <class T>
struct Listed {
  const T* z;
  const int32_t *row, *leave;
  int count, lane;
  int32_t at;

  template <class F>
  __device__ void for_each(F f) const {
    for (int i = lane; i < count; i += kWarp)
      f(i, row[i] <= at && leave[i] > at ? static_cast<double>(z[i]) : -INFINITY);
  }
};

// A block a tile and head, a warp some rows one after another: a threshold is near the one before it.
template <class T>
__global__ void __launch_bounds__(kThreads)
    threshold_kernel(T* tau, int32_t* between, const T* __restrict__ u, KeptTiles t, int kept) {
  extern __shared__ __align__(16) char raw[];
  T* z = reinterpret_cast<T*>(raw);
  auto *row = reinterpret_cast<int32_t*>(z + t.width), *leave = row + t.width;
  const int64_t tile = blockIdx.x;
  const int head = blockIdx.y, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int32_t begin = t.tiles[3 * tile], end = t.tiles[3 * tile + 1];
  const int count = t.count[tile * t.heads + head];
  for (int i = threadIdx.x; i < count; i += kThreads) {
    row[i] = t.listed(tile, head)[i];
    z[i] = u[int64_t{row[i]} * t.heads + head];
    leave[i] = t.leave[head * t.n + row[i]];
  }
  __syncthreads();
  constexpr int kRows = kKeptTile / (kThreads / kWarp);
  double last = 0;
  bool any = false;
  for (int32_t at = begin + warp * kRows; at < min(end, begin + (warp + 1) * kRows); ++at) {
    const Listed<T> all{z, row, leave, count, lane, at};
    int there = 0;
    double top = -INFINITY, lowest = INFINITY;
    all.for_each([&](int, double value) {
      if (!(value > -INFINITY)) return;
      ++there;
      top = value > top ? value : top;
      lowest = value < lowest ? value : lowest;
    });
    there = static_cast<int>(__reduce_add_sync(0xffffffffu, there));
    top = warp_max(top);
    lowest = -warp_max(-lowest);
    T result = -T(INFINITY);
    int part = 0;
    if (there > kept) {
      double first = any ? last - top : -1;
      if (!(first > lowest - top - 1 && first < 0)) first = -1;
      last = top + sparsek_threshold(all, top, lowest, kept, first);
      any = true;
      result = static_cast<T>(last);
      for (int i = lane; i < count; i += kWarp) {
        const T above = z[i] - result;
        part += row[i] <= at && leave[i] > at && above > 0 && above < 1;
      }
      part = static_cast<int>(__reduce_add_sync(0xffffffffu, part));
    }
    if (lane == 0) {
      tau[int64_t{at} * t.heads + head] = result;
      between[int64_t{at} * t.heads + head] = part;
    }
  }
}

template <class T>
void select_as(const KeptPairs& pairs, const Tensor& u, const KeptRows& rows, const KeptOptions& o) {
  const int64_t n = u.dim(0), heads = u.dim(1), documents = rows.first.numel() - 1;
  {
    const Tensor scores = empty({documents, heads, 2, o.support}, u.dtype(), u.device());
    const Tensor places = empty(scores.shape(), Dtype::i32, u.device());
    const dim3 grid(static_cast<unsigned>(documents), static_cast<unsigned>(heads));
    select_kernel<T><<<grid, kSelectThreads, 0, stream()>>>(
        data<int32_t>(pairs.leave), data<T>(scores), data<int32_t>(places), data<const T>(u),
        data<const int32_t>(rows.first), n, static_cast<int>(heads), static_cast<int>(o.kept),
        static_cast<int>(o.support));
    check_launch("kept_select");
  }
  const KeptLists support = kept_lists(pairs, rows, 1, o.support);
  const size_t bytes = static_cast<size_t>(support.view.width) * (sizeof(T) + 2 * sizeof(int32_t));
  CHECK(fits_shared<threshold_kernel<T>>(bytes), "kept attention: a support of ", o.support,
        " is too long for this GPU");
  const dim3 grid(static_cast<unsigned>(rows.tiles.dim(0)), static_cast<unsigned>(heads));
  threshold_kernel<T><<<grid, kThreads, bytes, stream()>>>(data<T>(pairs.tau), data<int32_t>(pairs.between),
                                                           data<const T>(u), support.view,
                                                           static_cast<int>(o.kept));
  check_launch("kept_thresholds");
}

}  // namespace

KeptLists kept_lists(const KeptPairs& pairs, const KeptRows& rows, int which, int64_t most) {
  const int64_t heads = pairs.leave.dim(1), n = pairs.leave.dim(2), tiles = rows.tiles.dim(0);
  const int64_t width = most + kKeptTile;  // those there where the tile begins, and one more a row
  KeptLists lists{empty({tiles, heads, width}, Dtype::i32, Device::cuda),
                  empty({tiles, heads}, Dtype::i32, Device::cuda),
                  {}};
  const int32_t* leave = data<const int32_t>(pairs.leave) + which * heads * n;
  lists.view = {data<const int32_t>(rows.tiles), data<const int32_t>(rows.tile),   leave,
                data<const int32_t>(lists.list), data<const int32_t>(lists.count), n,
                static_cast<int>(heads),         static_cast<int>(width)};
  list_kernel<<<dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads)), kThreads, 0, stream()>>>(
      data<int32_t>(lists.list), data<int32_t>(lists.count), lists.view.tiles, leave, n,
      static_cast<int>(heads), static_cast<int>(width));
  check_launch("kept_lists");
  return lists;
}

void kept_select(const KeptPairs& pairs, const Tensor& u, const KeptRows& rows, const KeptOptions& options) {
  with_wide(u.dtype(), [&]<class T>() { select_as<T>(pairs, u, rows, options); });
}

}  // namespace weft::cuda
