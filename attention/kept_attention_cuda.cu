// A block takes a tile of rows and a head, and attends to the candidates that are kept at any of its rows,
// all of them in tiles too: they are hardly more than those kept at one. Gradients of keys, values and scores
// come as one part a tile of rows; a second kernel adds up the parts of each candidate in order.

#include "attention/kept_attention.cuh"

#include <algorithm>
#include <cmath>

#include "attention/flash_attention_plain.cuh"

namespace weft::cuda {
namespace {

template <class T>
struct Inputs {
  const T *q, *k, *v, *u, *tau;
  KeptTiles t;
  T scale;
  bool gate_keys;
  int heads, groups, d, e;

  __device__ TokenRows<T> keys(int head, const int32_t* token) const {
    return {k + head / (heads / groups) * d, int64_t{groups} * d, d, token};
  }
  __device__ TokenRows<T> values(int head, const int32_t* token) const {
    return {v + head / (heads / groups) * e, int64_t{groups} * e, e, token};
  }
};

// Rows and candidates of the squares at hand; q_token and k_token are in PlainShared.
template <class T>
struct Square {
  T tau[kPlainTile], u[kPlainTile];
  int32_t leave[kPlainTile];

  __device__ void fetch_rows(const Inputs<T>& f, int64_t tile, int head, PlainShared<T>& m) {
    const int i = threadIdx.x;
    if (i >= kPlainTile) return;
    const int32_t row = f.t.tiles[3 * tile] + i;
    const bool there = row < f.t.tiles[3 * tile + 1];
    m.q_token[i] = there ? row : -1;
    tau[i] = there ? f.tau[int64_t{row} * f.heads + head] : T(0);
  }
  // Whoever reads them passes a barrier before, as whoever read the last ones has.
  __device__ void fetch_candidates(const Inputs<T>& f, int64_t tile, int head, int from, int count,
                                   PlainShared<T>& m) {
    const int i = threadIdx.x;
    if (i >= kPlainTile) return;
    const int32_t j = from + i < count ? f.t.listed(tile, head)[from + i] : -1;
    m.k_token[i] = j;
    u[i] = j < 0 ? -T(INFINITY) : f.u[int64_t{j} * f.heads + head];
    leave[i] = j < 0 ? 0 : f.t.leave[head * f.t.n + j];
  }
  // u - tau, of which the gate is what lies in 0 ... 1; -infinity where the candidate is not kept.
  __device__ T above(int row, int candidate, const PlainShared<T>& m) const {
    const int32_t t = m.q_token[row], j = m.k_token[candidate];
    return j >= 0 && j <= t && leave[candidate] > t ? u[candidate] - tau[row] : -T(INFINITY);
  }
};
template <class T>
__device__ T gate_of(T above) {
  return above < T(1) ? (above > T(0) ? above : T(0)) : T(1);
}

template <class T, int C>
__global__ void __launch_bounds__(kPlainThreads) forward_kernel(const Inputs<T> f, T* o, T* lse) {
  __shared__ Square<T> square;
  PlainShared<T>& m = plain_shared<T>();
  const int64_t tile = blockIdx.x;
  const int head = blockIdx.y, column0 = blockIdx.z * C, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int count = f.t.count[tile * f.heads + head];
  square.fetch_rows(f, tile, head, m);
  const TokenRows<T> q{f.q + head * f.d, int64_t{f.heads} * f.d, f.d, m.q_token};
  const TokenRows<T> k = f.keys(head, m.k_token), v = f.values(head, m.k_token);
  const T never = -T(INFINITY);
  PlainOutput<T, C> out;
  out.clear();
  T peak[4] = {never, never, never, never}, sum[4] = {};
  for (int from = 0; from < count; from += kPlainTile) {
    __syncthreads();
    square.fetch_candidates(f, tile, head, from, count, m);
    T s[4][4], gate[4][4];
    row_products(s, q, k, m);
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      T top = peak[a], total = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const T g = gate[a][b] = gate_of(square.above(4 * ty + a, 4 * tx + b, m));
        s[a][b] = g == T(0) ? never : f.scale * (f.gate_keys ? g : T(1)) * s[a][b];
        top = s[a][b] > top ? s[a][b] : top;
      }
      top = row_max_of(top);
      const T shift = top == never ? T(0) : top, shrink = std::exp(peak[a] - shift);
      peak[a] = top;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const T p = std::exp(s[a][b] - shift);
        total += p;
        s[a][b] = p * gate[a][b];
      }
      sum[a] = sum[a] * shrink + row_sum_of(total);
      out.scale(a, shrink);
    }
#pragma unroll
    for (int b = 0; b < 4; ++b)
      *reinterpret_cast<Four<T>*>(&m.p[4 * tx + b][4 * ty]) = {s[0][b], s[1][b], s[2][b], s[3][b]};
    out.add(v, column0, m);
  }
  __syncthreads();
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    const int64_t token = m.q_token[4 * ty + a];
    if (token < 0) continue;
    const int64_t row = token * f.heads + head;
    out.store_row(a, o + row * f.e, column0, f.e, sum[a] > 0 ? T(1) / sum[a] : T(0));
    if (column0 == 0 && tx == 0) lse[row] = sum[a] > 0 ? peak[a] + std::log(sum[a]) : never;
  }
}

// What comes of a tile of rows: for each candidate of its list (B, heads here, width, ...), and for each row.
template <class T>
struct Parts {
  T *dk, *dv, *du;
  T* rows;  // (N, H): the sum of dp over the kept ones with 0 < p < 1
  int head0, heads;
};

template <class T, int C>
__global__ void __launch_bounds__(kPlainThreads)
    rows_kernel(const Inputs<T> f, const T* __restrict__ o, const T* __restrict__ lse,
                const T* __restrict__ d_o, const T* __restrict__ d_lse, T* dq, Parts<T> parts) {
  __shared__ Square<T> square;
  __shared__ T columns[16][kPlainTile];
  PlainShared<T>& m = plain_shared<T>();
  const int64_t tile = blockIdx.x;
  const int head = parts.head0 + blockIdx.y, column0 = blockIdx.z * C;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int count = f.t.count[tile * f.heads + head];
  square.fetch_rows(f, tile, head, m);
  __syncthreads();
  // Four threads a row.
  {
    const int i = threadIdx.x / 4;
    const int64_t token = m.q_token[i], row = token * f.heads + head;
    T delta = 0;
    if (token >= 0)
      for (int c = threadIdx.x % 4; c < f.e; c += 4) delta += d_o[row * f.e + c] * o[row * f.e + c];
    delta += __shfl_xor_sync(~0u, delta, 1);
    delta += __shfl_xor_sync(~0u, delta, 2);
    if (threadIdx.x % 4 == 0) {
      const T whole = token < 0 ? -T(INFINITY) : lse[row];
      m.shift[i] = whole == -T(INFINITY) ? T(INFINITY) : whole;  // exp(s - infinity) = 0
      m.delta[i] = token < 0 ? T(0) : delta - d_lse[row];
    }
  }
  const TokenRows<T> q{f.q + head * f.d, int64_t{f.heads} * f.d, f.d, m.q_token};
  const TokenRows<T> g_o{d_o + head * f.e, int64_t{f.heads} * f.e, f.e, m.q_token};
  const TokenRows<T> k = f.keys(head, m.k_token), v = f.values(head, m.k_token);
  const int64_t base = (tile * parts.heads + blockIdx.y) * f.t.width;
  PlainOutput<T, C> out;
  out.clear();
  T of_row[4] = {};
  for (int from = 0; from < count; from += kPlainTile) {
    __syncthreads();
    square.fetch_candidates(f, tile, head, from, count, m);
    T p[4][4], ds[4][4], of_candidate[4] = {};
    row_products(p, q, k, m);
    row_products(ds, g_o, v, m);
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      const T shift = m.shift[4 * ty + a], delta = m.delta[4 * ty + a];
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const T above = square.above(4 * ty + a, 4 * tx + b, m), gate = gate_of(above);
        const T on_key = f.gate_keys ? gate : T(1), product = f.scale * p[a][b], answer = ds[a][b];
        const T weight = gate == T(0) ? T(0) : std::exp(on_key * product - shift);
        const T slope = weight * (gate * answer - delta);
        if (above > T(0) && above < T(1)) {
          const T d_gate = weight * answer + (f.gate_keys ? slope * product : T(0));
          of_row[a] += d_gate;
          of_candidate[b] += d_gate;
        }
        ds[a][b] = f.scale * on_key * slope;
        p[a][b] = weight * gate;
      }
    }
    const auto to_part = [&](T* to, const TokenRows<T>& rows, const T(&x)[4][4], int width) {
      PlainOutput<T, C> part;
      part.clear();
      __syncthreads();
#pragma unroll
      for (int a = 0; a < 4; ++a)
        *reinterpret_cast<Four<T>*>(&m.p[4 * ty + a][4 * tx]) = {x[a][0], x[a][1], x[a][2], x[a][3]};
      part.add(rows, column0, m);
#pragma unroll
      for (int a = 0; a < 4; ++a) {
        const int i = from + 4 * ty + a;
        if (i < count) part.store_row(a, to + (base + i) * width, column0, width, T(1));
      }
    };
    to_part(parts.dv, g_o, p, f.e);
    to_part(parts.dk, q, ds, f.d);
    __syncthreads();
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      *reinterpret_cast<Four<T>*>(&m.p[4 * tx + b][4 * ty]) = {ds[0][b], ds[1][b], ds[2][b], ds[3][b]};
      columns[ty][4 * tx + b] = of_candidate[b];
    }
    out.add(k, column0, m);  // barriers inside
    if (column0 == 0 && threadIdx.x < kPlainTile && from + static_cast<int>(threadIdx.x) < count) {
      T total = 0;
      for (int y = 0; y < 16; ++y) total += columns[y][threadIdx.x];
      parts.du[base + from + threadIdx.x] = total;
    }
  }
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    const int64_t token = m.q_token[4 * ty + a];
    const T total = row_sum_of(of_row[a]);
    if (token < 0) continue;
    const int64_t row = token * f.heads + head;
    out.store_row(a, dq + row * f.d, column0, f.d, T(1));
    if (column0 == 0 && tx == 0) parts.rows[row] = total;
  }
}

constexpr int kHeld = 4;  // columns of a lane at once

// A warp takes a candidate of a key head, and adds what the tiles of rows give that it was kept in.
template <class T>
__global__ void __launch_bounds__(kThreads)
    candidates_kernel(const Inputs<T> f, Parts<T> parts, const int32_t* __restrict__ of_support,
                      const int32_t* __restrict__ between, T* dk, T* dv, T* du) {
  const int lane = static_cast<int>(threadIdx.x % kWarp), share = f.heads / f.groups;
  const int own_groups = parts.heads / share, group0 = parts.head0 / share;
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarp);
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp; i < f.t.n * own_groups;
       i += warps) {
    int64_t local = i;
    const int64_t j = divide(local, own_groups), group = group0 + local;
    // f(part) for each part of head that is j's, in order; all lanes together.
    const auto for_each_part = [&](int head, auto g) {
      const int32_t leave = f.t.leave[head * f.t.n + j];
      if (leave <= j) return;
      const int first = f.t.tile[j], last = f.t.tile[leave - 1];
      for (int from = first; from <= last; from += kWarp) {
        const int64_t tile = from + lane;
        int64_t at = -1;
        if (tile <= last) {
          const int32_t* list = f.t.listed(tile, head);
          int low = 0, high = f.t.count[tile * f.heads + head];
          while (low < high) {
            const int middle = (low + high) / 2;
            if (list[middle] < j)
              low = middle + 1;
            else
              high = middle;
          }
          at = (tile * parts.heads + head - parts.head0) * f.t.width + low;
        }
        for (int w = 0; w < min(static_cast<int>(kWarp), last - from + 1); ++w) g(__shfl_sync(~0u, at, w));
      }
    };
    const auto add_up = [&](T* to, const T* from, int width) {
      for (int c0 = 0; c0 < width; c0 += kHeld * kWarp) {
        T sum[kHeld] = {};
        for (int head = static_cast<int>(group) * share; head < (group + 1) * share; ++head)
          for_each_part(head, [&](int64_t at) {
#pragma unroll
            for (int x = 0; x < kHeld; ++x) {
              const int c = c0 + lane + x * static_cast<int>(kWarp);
              if (c < width) sum[x] += from[at * width + c];
            }
          });
#pragma unroll
        for (int x = 0; x < kHeld; ++x) {
          const int c = c0 + lane + x * static_cast<int>(kWarp);
          if (c < width) to[(j * f.groups + group) * width + c] = sum[x];
        }
      }
    };
    add_up(dk, parts.dk, f.d);
    add_up(dv, parts.dv, f.e);
    for (int head = static_cast<int>(group) * share; head < (group + 1) * share; ++head) {
      double total = 0;
      for_each_part(head, [&](int64_t at) { total += static_cast<double>(parts.du[at]); });
      // Less the mean, wherever it is one of those between 0 and 1.
      const T score = f.u[j * f.heads + head];
      double less = 0;
      for (int64_t t = j + lane; t < of_support[head * f.t.n + j]; t += kWarp) {
        const int64_t row = t * f.heads + head;
        const T above = score - f.tau[row];
        if (above > T(0) && above < T(1) && between[row] > 0)
          less += static_cast<double>(parts.rows[row]) / between[row];
      }
      less = warp_sum(less);
      if (lane == 0) du[j * f.heads + head] = static_cast<T>(total - less);
    }
  }
}

template <class T>
Inputs<T> inputs_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& u, const Tensor& tau,
                    const KeptTiles& tiles, const KeptOptions& o) {
  return {data<const T>(q),           data<const T>(k),
          data<const T>(v),           data<const T>(u),
          data<const T>(tau),         tiles,
          static_cast<T>(o.scale),    o.gate_keys,
          static_cast<int>(q.dim(1)), static_cast<int>(k.dim(1)),
          static_cast<int>(q.dim(2)), static_cast<int>(v.dim(2))};
}

unsigned parts_of(int64_t width, int columns) {
  return static_cast<unsigned>((width + columns - 1) / columns);
}

// Bytes of the parts that are there at once, if one key head needs no more.
constexpr int64_t kPartBytes = int64_t{1} << 29;

template <class T>
void backward_as(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& du, const Inputs<T>& f,
                 const KeptPairs& pairs, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                 const Tensor& d_lse, int64_t tiles) {
  const int64_t share = f.heads / f.groups, width = f.t.width;
  const int64_t bytes = tiles * share * width * (f.d + f.e + 1) * static_cast<int64_t>(sizeof(T));
  const int64_t at_once = std::clamp<int64_t>(kPartBytes / bytes, 1, f.groups);
  const Tensor rows = empty_like(lse);
  for (int64_t g = 0; g < f.groups; g += at_once) {
    const int64_t heads = std::min(at_once, f.groups - g) * share;
    const Tensor part_k = empty({tiles, heads, width, f.d}, dk.dtype(), dk.device()),
                 part_v = empty({tiles, heads, width, f.e}, dk.dtype(), dk.device()),
                 part_u = empty({tiles, heads, width}, dk.dtype(), dk.device());
    const Parts<T> parts{
        data<T>(part_k),        data<T>(part_v), data<T>(part_u), data<T>(rows), static_cast<int>(g * share),
        static_cast<int>(heads)};
    const auto launch = [&]<int C>() {
      launch_plain<T>(
          "kept_attention backward", rows_kernel<T, C>,
          dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(heads), parts_of(std::max(f.d, f.e), C)),
          f, data<const T>(o), data<const T>(lse), data<const T>(d_o), data<const T>(d_lse), data<T>(dq),
          parts);
    };
    if (std::max(f.d, f.e) > 64)
      launch.template operator()<128>();
    else
      launch.template operator()<64>();
    candidates_kernel<T>
        <<<blocks_for(f.t.n * (heads / share), kThreads / static_cast<int>(kWarp)), kThreads, 0, stream()>>>(
            f, parts, data<const int32_t>(pairs.leave) + f.heads * f.t.n, data<const int32_t>(pairs.between),
            data<T>(dk), data<T>(dv), data<T>(du));
    check_launch("kept_attention candidates");
  }
}

}  // namespace

void kept_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& u, const KeptPairs& pairs, const KeptRows& rows, const KeptOptions& options) {
  const KeptLists lists = kept_lists(pairs, rows, 0, options.kept);
  with_wide(q.dtype(), [&]<class T>() {
    const Inputs<T> f = inputs_of<T>(q, k, v, u, pairs.tau, lists.view, options);
    const auto launch = [&]<int C>() {
      launch_plain<T>(
          "kept_attention", forward_kernel<T, C>,
          dim3(static_cast<unsigned>(rows.tiles.dim(0)), static_cast<unsigned>(f.heads), parts_of(f.e, C)), f,
          data<T>(o), data<T>(lse));
    };
    if (f.e > 64)
      launch.template operator()<128>();
    else
      launch.template operator()<64>();
  });
}

void kept_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& du, const Tensor& q,
                   const Tensor& k, const Tensor& v, const Tensor& u, const KeptPairs& pairs,
                   const KeptRows& rows, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                   const Tensor& d_lse, const KeptOptions& options) {
  const KeptLists lists = kept_lists(pairs, rows, 0, options.kept);
  with_wide(q.dtype(), [&]<class T>() {
    backward_as<T>(dq, dk, dv, du, inputs_of<T>(q, k, v, u, pairs.tau, lists.view, options), pairs, o, lse,
                   d_o, d_lse, rows.tiles.dim(0));
  });
}

}  // namespace weft::cuda
