#include "attention/flash_attention_plain.cuh"

namespace weft::cuda {
namespace {

template <class T, int C>
__global__ void __launch_bounds__(kPlainThreads)
    forward_kernel(const PlainAttention<T> f, T* o, Acc<T>* lse) {
  using W = Acc<T>;
  PlainShared<W>& m = plain_shared<W>();
  const int head = blockIdx.y, column0 = blockIdx.z * C, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  // Late tiles see more: they come first.
  const int64_t tile = f.queries.tile(head, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (f.queries.token[tile * kPlainTile] < 0) return;
  fetch_tile(m.q_at, m.q_token, f.queries, tile);
  const TokenRows<T> q{f.q + head * f.d, f.q_pitch, f.d, m.q_token};
  const int kv = head / f.group;
  const TokenRows<T> k{f.k + kv * f.d, f.k_pitch, f.d, m.k_token};
  const TokenRows<T> v{f.v + kv * f.e, f.v_pitch, f.e, m.k_token};
  const W slope = f.bias.slope(head);
  const W never = -W(INFINITY);
  PlainOutput<W, C> out;
  out.clear();
  W peak[4] = {never, never, never, never}, sum[4] = {};
  TileWalk<true> walk(f.visibility, f.queries.span[tile], f.keys.span, f.keys.tiles);
  for (int j; (j = walk.next()) >= 0;) {
    fetch_tile(m.k_at, m.k_token, f.keys, j);
    W s[4][4];
    row_products(s, q, k, m);
#pragma unroll
    for (int a = 0; a < 4; ++a) {
      W top = peak[a], total = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        s[a][b] = f.score(s[a][b], head, slope, m.q_at[4 * ty + a], m.k_at[4 * tx + b], walk.all);
        top = s[a][b] > top ? s[a][b] : top;
      }
      if (f.weighting == Weighting::softmax) {
        top = row_max_of(top);
        const W shift = top == never ? W(0) : top, shrink = std::exp(peak[a] - shift);
        peak[a] = top;
#pragma unroll
        for (int b = 0; b < 4; ++b) total += s[a][b] = std::exp(s[a][b] - shift);
        sum[a] = sum[a] * shrink + row_sum_of(total);
        out.scale(a, shrink);
      } else {
        peak[a] = 0;
#pragma unroll
        for (int b = 0; b < 4; ++b) {
          total += s[a][b] == never ? W(0) : W(1);  // keys seen
          s[a][b] = f.weight(s[a][b]);
        }
        sum[a] += row_sum_of(total);
      }
    }
#pragma unroll
    for (int b = 0; b < 4; ++b)
      *reinterpret_cast<Four<W>*>(&m.p[4 * tx + b][4 * ty]) = {s[0][b], s[1][b], s[2][b], s[3][b]};
    out.add(v, column0, m);
  }
  __syncthreads();  // no key may have been seen, and so no barrier passed
#pragma unroll
  for (int a = 0; a < 4; ++a) {
    const int64_t token = m.q_token[4 * ty + a];
    if (token < 0) continue;
    const int64_t row = token * f.heads + head;
    out.store_row(a, o + row * f.e, column0, f.e, sum[a] > 0 ? W(1) / sum[a] : W(0));
    if (column0 == 0 && tx == 0) lse[row] = sum[a] > 0 ? peak[a] + std::log(sum[a]) : never;
  }
}

template <class T>
void forward(const Tensor& o, const Tensor& lse, const PlainAttention<T>& f) {
  const auto grid = [&](int columns) {
    return dim3(static_cast<unsigned>(f.queries.tiles), static_cast<unsigned>(f.heads),
                static_cast<unsigned>((f.e + columns - 1) / columns));
  };
  T* to = data<T>(o);
  auto* l = data<Acc<T>>(lse);
  if (f.e > 64)
    launch_plain<Acc<T>>("attention forward", forward_kernel<T, 128>, grid(128), f, to, l);
  else
    launch_plain<Acc<T>>("attention forward", forward_kernel<T, 64>, grid(64), f, to, l);
}

}  // namespace

void plain_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const AttentionTokens& t, const Tensor& bias,
                             const AttentionOptions& options) {
  const TokenTileBuffers queries = token_tiles(t.q_position, t.q_document, t.active, q.dim(1), kPlainTile);
  const TokenTileBuffers keys = token_tiles(t.k_position, t.k_document, {}, q.dim(1), kPlainTile);
  with_float(q.dtype(), [&]<class T>() {
    forward<T>(o, lse, plain_attention<T>(q, k, v, bias, queries, keys, options));
  });
}

}  // namespace weft::cuda
