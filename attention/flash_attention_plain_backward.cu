// The plain kernels of attention's gradients: dq, dk and dv, and dbias, each by a kernel of its own that
// works out the scores again, so that every number has one writer.

#include "attention/flash_attention_plain.cuh"
#include "autograd/ops/matmul.h"

namespace weft::cuda {
namespace {

// What the gradients of a tile of scores are made of.
template <class T>
struct Gradients {
  using W = Acc<T>;
  const T* d_o;
  const W *lse, *delta;  // (N, H) each, delta = o . do - dlse

  // Of the tile of queries; whoever reads it passes a barrier before.
  __device__ void fetch(PlainShared<W>& m, const TokenTiles& queries, int64_t tile, int head,
                        int heads) const {
    if (threadIdx.x >= kPlainTile) return;
    const int64_t token = queries.token[tile * kPlainTile + threadIdx.x];
    const W l = token < 0 ? -W(INFINITY) : lse[token * heads + head];
    // A query that saw nothing: exp(score - infinity) = 0.
    m.shift[threadIdx.x] = l == -W(INFINITY) ? W(INFINITY) : l;
    m.delta[threadIdx.x] = token < 0 ? W(0) : delta[token * heads + head];
  }
};

// p: the weights. ds: the gradient of the scores, of the product do v^T that it comes as.
template <class T, class W = Acc<T>>
__device__ void weigh(const PlainAttention<T>& f, W (&p)[4][4], W (&ds)[4][4], int head, W slope,
                      bool everybody, const PlainShared<W>& m) {
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    const W shift = m.shift[4 * ty + a], delta = m.delta[4 * ty + a];
    const W share = f.weighting == Weighting::softmax ? W(0) : std::exp(-shift);  // 1 / keys seen
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const W s = f.score(p[a][b], head, slope, m.q_at[4 * ty + a], m.k_at[4 * tx + b], everybody);
      if (f.weighting == Weighting::softmax) {
        p[a][b] = std::exp(s - shift);
        ds[a][b] = p[a][b] * (ds[a][b] - delta);
      } else {
        p[a][b] = share * f.weight(s);
        ds[a][b] *= share * f.weight_slope(s);
      }
    }
  }
}

template <class T, int C>
__global__ void __launch_bounds__(kPlainThreads)
    query_gradient_kernel(const PlainAttention<T> f, const Gradients<T> g, T* dq, int64_t pitch) {
  using W = Acc<T>;
  PlainShared<W>& m = plain_shared<W>();
  const int head = blockIdx.y, column0 = blockIdx.z * C, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t tile = f.queries.tile(head, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (f.queries.token[tile * kPlainTile] < 0) return;
  fetch_tile(m.q_at, m.q_token, f.queries, tile);
  g.fetch(m, f.queries, tile, head, f.heads);
  const TokenRows<T> q{f.q + head * f.d, f.q_pitch, f.d, m.q_token};
  const TokenRows<T> d_o{g.d_o + head * f.e, int64_t{f.heads} * f.e, f.e, m.q_token};
  const int kv = head / f.group;
  const TokenRows<T> k{f.k + kv * f.d, f.k_pitch, f.d, m.k_token};
  const TokenRows<T> v{f.v + kv * f.e, f.v_pitch, f.e, m.k_token};
  const W slope = f.bias.slope(head);
  PlainOutput<W, C> out;
  out.clear();
  TileWalk<true> walk(f.visibility, f.queries.span[tile], f.keys.span, f.keys.tiles);
  for (int j; (j = walk.next()) >= 0;) {
    fetch_tile(m.k_at, m.k_token, f.keys, j);
    W p[4][4], ds[4][4];
    row_products(p, q, k, m);
    row_products(ds, d_o, v, m);
    weigh(f, p, ds, head, slope, walk.all, m);
#pragma unroll
    for (int b = 0; b < 4; ++b)
      *reinterpret_cast<Four<W>*>(&m.p[4 * tx + b][4 * ty]) = {ds[0][b], ds[1][b], ds[2][b], ds[3][b]};
    out.add(k, column0, m);
  }
  __syncthreads();
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    const int64_t token = m.q_token[4 * ty + a];
    if (token >= 0) out.store_row(a, dq + token * pitch + head * f.d, column0, f.d, f.scale);
  }
}

// dv, or dk, of a tile of keys of one key head. The query heads of a group come one after another.
template <class T, int C, bool of_values>
__global__ void __launch_bounds__(kPlainThreads)
    key_gradient_kernel(const PlainAttention<T> f, const Gradients<T> g, T* to, int64_t pitch) {
  using W = Acc<T>;
  PlainShared<W>& m = plain_shared<W>();
  const int kv = blockIdx.y, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int column0 = blockIdx.z * C;
  fetch_tile(m.k_at, m.k_token, f.keys, blockIdx.x);
  const TokenRows<T> k{f.k + kv * f.d, f.k_pitch, f.d, m.k_token};
  const TokenRows<T> v{f.v + kv * f.e, f.v_pitch, f.e, m.k_token};
  PlainOutput<W, C> out;
  out.clear();
  for (int head = kv * f.group; head < (kv + 1) * f.group; ++head) {
    const TokenRows<T> q{f.q + head * f.d, f.q_pitch, f.d, m.q_token};
    const TokenRows<T> d_o{g.d_o + head * f.e, int64_t{f.heads} * f.e, f.e, m.q_token};
    const W slope = f.bias.slope(head);
    const int64_t first = f.queries.tile(head, 0);
    TileWalk<false> walk(f.visibility, f.keys.span[blockIdx.x], f.queries.span + first, f.queries.tiles);
    for (int i; (i = walk.next()) >= 0;) {
      fetch_tile(m.q_at, m.q_token, f.queries, first + i);
      g.fetch(m, f.queries, first + i, head, f.heads);
      W p[4][4], ds[4][4] = {};
      row_products(p, q, k, m);
      if constexpr (!of_values) row_products(ds, d_o, v, m);
      weigh(f, p, ds, head, slope, walk.all, m);
#pragma unroll
      for (int a = 0; a < 4; ++a) {
        auto& row = *reinterpret_cast<Four<W>*>(&m.p[4 * ty + a][4 * tx]);
        if constexpr (of_values)
          row = {p[a][0], p[a][1], p[a][2], p[a][3]};
        else
          row = {ds[a][0], ds[a][1], ds[a][2], ds[a][3]};
      }
      out.add(of_values ? d_o : q, column0, m);
    }
  }
  __syncthreads();
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    const int64_t token = m.k_token[4 * ty + a];
    const int width = of_values ? f.e : f.d;
    if (token >= 0)
      out.store_row(a, to + token * pitch + kv * width, column0, width, of_values ? W(1) : f.scale);
  }
}

// partial (blocks, warps, H, R): each warp sums what its rows of the tiles of its block give.
constexpr int kBiasBlocks = 32;
template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    bias_gradient_kernel(const PlainAttention<T> f, const Gradients<T> g, Acc<T>* partial) {
  using W = Acc<T>;
  PlainShared<W>& m = plain_shared<W>();
  const int head = blockIdx.y, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const TokenRows<T> q{f.q + head * f.d, f.q_pitch, f.d, m.q_token};
  const TokenRows<T> d_o{g.d_o + head * f.e, int64_t{f.heads} * f.e, f.e, m.q_token};
  const int kv = head / f.group;
  const TokenRows<T> k{f.k + kv * f.d, f.k_pitch, f.d, m.k_token};
  const TokenRows<T> v{f.v + kv * f.e, f.v_pitch, f.e, m.k_token};
  const W slope = f.bias.slope(head);
  const int64_t own = int64_t{blockIdx.x} * (kPlainThreads / kWarp) + threadIdx.x / kWarp;
  W* sums = partial + (own * f.heads + head) * f.bias.distances;
  for (int64_t i = threadIdx.x % kWarp; i < f.bias.distances; i += kWarp) sums[i] = 0;
  __syncwarp();
  for (int i = static_cast<int>(blockIdx.x); i < f.queries.tiles; i += static_cast<int>(gridDim.x)) {
    const int64_t tile = f.queries.tile(head, i);
    TileWalk<true> walk(f.visibility, f.queries.span[tile], f.keys.span, f.keys.tiles);
    for (int j; (j = walk.next()) >= 0;) {
      __syncthreads();  // the last tile is done with
      fetch_tile(m.q_at, m.q_token, f.queries, tile);
      g.fetch(m, f.queries, tile, head, f.heads);
      fetch_tile(m.k_at, m.k_token, f.keys, j);
      W p[4][4], ds[4][4];
      row_products(p, q, k, m);
      row_products(ds, d_o, v, m);
      weigh(f, p, ds, head, slope, walk.all, m);
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          const TokenAt to = m.q_at[4 * ty + a], from = m.k_at[4 * tx + b];
          add_by_bin(sums, f.bias.bin(to.position - from.position), ds[a][b]);
        }
    }
  }
}

template <class T, int C>
void backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const PlainAttention<T>& f,
              const Gradients<T>& g) {
  const auto parts = [](int width) { return static_cast<unsigned>((width + C - 1) / C); };
  const auto tiles = [](const TokenTiles& t) { return static_cast<unsigned>(t.tiles); };
  launch_plain<Acc<T>>("attention dq", query_gradient_kernel<T, C>,
                       dim3(tiles(f.queries), static_cast<unsigned>(f.heads), parts(f.d)), f, g, data<T>(dq),
                       dq.pitch());
  const auto kv_heads = static_cast<unsigned>(f.heads / f.group);
  launch_plain<Acc<T>>("attention dv", key_gradient_kernel<T, C, true>,
                       dim3(tiles(f.keys), kv_heads, parts(f.e)), f, g, data<T>(dv), dv.pitch());
  launch_plain<Acc<T>>("attention dk", key_gradient_kernel<T, C, false>,
                       dim3(tiles(f.keys), kv_heads, parts(f.d)), f, g, data<T>(dk), dk.pitch());
}

template <class T>
void bias_backward(const Tensor& dbias, const PlainAttention<T>& f, const Gradients<T>& g) {
  const int64_t blocks = std::min(kBiasBlocks, f.queries.tiles), warps = blocks * (kPlainThreads / kWarp);
  if (blocks == 0) return;
  const Tensor partial = empty({warps, dbias.numel()}, dbias.dtype(), Device::cuda);
  launch_plain<Acc<T>>("attention dbias", bias_gradient_kernel<T>,
                       dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(f.heads)), f, g,
                       data<Acc<T>>(partial));
  sum_rows(dbias, partial, 1);
}

}  // namespace

void plain_attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                              const Tensor& q, const Tensor& k, const Tensor& v, const AttentionTokens& t,
                              const Tensor& bias, const Tensor& lse, const Tensor& delta, const Tensor& d_o,
                              const AttentionOptions& options) {
  const TokenTileBuffers queries = token_tiles(t.q_position, t.q_document, t.active, q.dim(1), kPlainTile);
  const TokenTileBuffers keys = token_tiles(t.k_position, t.k_document, {}, q.dim(1), kPlainTile);
  with_float(q.dtype(), [&]<class T>() {
    const PlainAttention<T> f = plain_attention<T>(q, k, v, bias, queries, keys, options);
    const Gradients<T> g{data<const T>(d_o), data<const Acc<T>>(lse), data<const Acc<T>>(delta)};
    if (std::max(f.d, f.e) > 64)
      backward<T, 128>(dq, dk, dv, f, g);
    else
      backward<T, 64>(dq, dk, dv, f, g);
    if (bias.defined()) bias_backward(dbias, f, g);
  });
}

}  // namespace weft::cuda
