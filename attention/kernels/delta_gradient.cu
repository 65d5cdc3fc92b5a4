// The last stage of the chunked delta rule's backward pass: every gradient of a chunk's tokens from what the
// sweeps kept (delta_rule.md). A block has a chunk and a head, and three warpgroups:
//   reader     dq: tokens as they read the memory at their query
//   corrector  dk, first part, and dbeta: as they read it at their key
//   writer     dk, second part: as they write at their key
// A block goes through many chunks, and fetches the tiles of the next one as places fall free.

#include <algorithm>

#include "attention/kernels/delta_chunk.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int threads = 3 * 128;

template <int D_k, int D_v>
struct Memory {
  using Keys = Tile<64, D_k>;
  using Values = Tile<64, D_v>;
  using States = Tile<D_v, D_k>;  // transposed, in parts of 64 columns of v that lie one after another
  // dk's first part in f32, dq and dk lie over the states of this chunk, if these are large enough.
  static constexpr int exchange_bytes = 64 * D_k * 4, results_bytes = exchange_bytes + 2 * Keys::bytes;
  static constexpr bool over_states = results_bytes <= 2 * States::bytes;
  static constexpr int bytes = 2 * Keys::bytes + 4 * Values::bytes + 4 * States::bytes +
                               (over_states ? 0 : results_bytes) + (4 * 64 + 5 * 64 + threads / 32) * 4;

  Keys q, k, dq, dk;
  Values v, d_o, writes, d_rhs;
  States state, d_state;
  float* exchange;
  float *level, *beta;
  float *of_q, *of_k, *of_write, *of_end, *d_beta;  // row sums, one a token
  float* of_state;                                  // one a warp

  // Of two places for the states and for the gates, turn says which.
  __device__ Memory(char* raw, int turn) {
    uint32_t next = shared_address(raw);
    auto take = [&](int size) {
      const uint32_t address = next;
      next += size;
      return address;
    };
    q.address = take(q.bytes), k.address = take(k.bytes);
    v.address = take(v.bytes), d_o.address = take(v.bytes);
    writes.address = take(v.bytes), d_rhs.address = take(v.bytes);
    state.address = take(4 * state.bytes) + turn * 2 * state.bytes;
    d_state.address = state.address + state.bytes;
    const uint32_t results = over_states ? state.address : take(results_bytes);
    exchange = reinterpret_cast<float*>(raw + (results - shared_address(raw)));
    dq.address = results + exchange_bytes, dk.address = dq.address + dq.bytes;
    auto* const gates = reinterpret_cast<float*>(raw + (next - shared_address(raw)));
    level = gates + turn * 128, beta = level + 64;
    of_q = gates + 256, of_k = gates + 320, of_write = gates + 384, of_end = gates + 448,
    d_beta = gates + 512;
    of_state = gates + 576;
  }
  __device__ static Tile<64, D_k> part_of(States states, int split) {
    return {states.address + split * Tile<64, D_k>::bytes};
  }
};

// What a factor of beta is taken back out of: beta, but never zero.
__device__ float divisible(float beta) {
  constexpr float least = 0x1p-30f;
  return fabsf(beta) < least ? least : beta;
}

// scores (row, column) times factor and the decay between the two tokens, as an operand. Rows are the later
// tokens, or with Reverse the earlier ones; pairs in the wrong order become zero, and with Strict so does the
// diagonal. With `beta` the later token's divisible(beta) is a factor too. Both directions round the same
// numbers.
template <bool Reverse, bool Strict>
__device__ Operand<64> weigh(const Accumulator<64>& scores, const float* level, float factor,
                             const float* beta = nullptr) {
  const Lane lane;
  constexpr int sign = Reverse ? -1 : 1;
  const float from[2] = {level[lane.row()], level[lane.row() + 8]};
  float of_row[2] = {factor, factor};
  if (!Reverse && beta)
    of_row[0] *= divisible(beta[lane.row()]), of_row[1] *= divisible(beta[lane.row() + 8]);
  Operand<64> p;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int column = 8 * n + 2 * lane.t;
    const float2 to = *reinterpret_cast<const float2*>(level + column);
    float2 of_column{factor, factor};
    if (Reverse && beta) of_column.x *= divisible(beta[column]), of_column.y *= divisible(beta[column + 1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int distance = sign * (lane.row() + 8 * half - column);
      const float2 f = Reverse ? of_column : float2{of_row[half], of_row[half]};
      const float x = f.x * scores.x[n][2 * half] * exp2_fast(sign * (from[half] - to.x));
      const float y = f.y * scores.x[n][2 * half + 1] * exp2_fast(sign * (from[half] - to.y));
      p.x[n / 2][(n % 2) * 2 + half] =
          pack(distance >= (Strict ? 1 : 0) ? x : 0.f, distance - sign >= (Strict ? 1 : 0) ? y : 0.f);
    }
  }
  return p;
}

// Row sums of a * b, as row_dots.
template <int C>
__device__ float2 row_dots(Tile<64, C> a, Tile<64, C> b) {
  const Lane lane;
  float2 sum{0, 0};
#pragma unroll
  for (int n = 0; n < C / 8; ++n) {
    const uint32_t from = a.at(lane.row(), n) + 4 * lane.t, other = from - a.address + b.address;
    const float2 x = unpack(load_shared_word(from)), y = unpack(load_shared_word(other));
    const float2 z = unpack(load_shared_word(from + 1024)), w = unpack(load_shared_word(other + 1024));
    sum.x += x.x * y.x + x.y * y.y;
    sum.y += z.x * w.x + z.y * w.y;
  }
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, step);
    sum.y += __shfl_xor_sync(~0u, sum.y, step);
  }
  return sum;
}
// Over all columns.
template <int N>
__device__ float2 whole_row_dots(Tile<64, N> tile, const Accumulator<N>& a) {
  float2 sum{0, 0};
#pragma unroll
  for (int block = 0; block < N / 64; ++block) {
    const float2 part = row_dots(tile, a, block);
    sum.x += part.x, sum.y += part.y;
  }
  return sum;
}
__device__ inline void write_rows(float* to, float2 x) {
  const Lane lane;
  if (lane.t == 0) to[lane.row()] = x.x, to[lane.row() + 8] = x.y;
}

// out = left * states, scores = left * right^T, summed over the columns of v.
template <class Products, int D_k, int D_v>
__device__ void read_states(Accumulator<D_k>& out, Accumulator<64>& scores, Tile<64, D_v> left,
                            Tile<64, D_v> right, const Memory<D_k, D_v>& m,
                            typename Memory<D_k, D_v>::States states) {
  out.fill(0);
  Products::start(out), Products::start(scores);
#pragma unroll
  for (int split = 0; split < D_v / 64; ++split) {
    const Operand<64> a = load(left.template part<64>(split));
    Products::a_bt(scores, a, right.template part<64>(split), split > 0);
    Products::add_a_b(out, a, m.part_of(states, split));
  }
  finish<Products>(out, scores);
}

template <class Products, int D_k, int D_v>
__device__ void reader(Accumulator<D_k>& out, const Memory<D_k, D_v>& m, float scale) {
  const int row = Lane().row();
  Accumulator<64> scores;
  read_states<Products>(out, scores, m.d_o, m.writes, m, m.state);
  const Operand<64> p = weigh<false, false>(scores, m.level, scale);
  out.scale(scale * exp2_fast(m.level[row]), scale * exp2_fast(m.level[row + 8]));
  Products::start(out);
  Products::add_a_b(out, p, m.k);
  finish<Products>(out);
  write_rows(m.of_q, whole_row_dots(m.q, out));
}

template <class Products, int D_k, int D_v>
__device__ void corrector(Accumulator<D_k>& out, const Memory<D_k, D_v>& m) {
  const int row = Lane().row();
  Accumulator<64> scores;
  read_states<Products>(out, scores, m.d_rhs, m.writes, m, m.state);
  const Operand<64> p = weigh<false, true>(scores, m.level, -1, m.beta);
  const float2 by{divisible(m.beta[row]), divisible(m.beta[row + 8])};
  out.scale(-by.x * exp2_fast(m.level[row]), -by.y * exp2_fast(m.level[row + 8]));
  Products::start(out);
  Products::add_a_b(out, p, m.k);
  finish<Products>(out);
  const float2 of_k = whole_row_dots(m.k, out), of_v = row_dots(m.d_rhs, m.v);
  write_rows(m.d_beta, {of_k.x / by.x + of_v.x, of_k.y / by.y + of_v.y});
  write_rows(m.of_k, of_k);
}

template <class Products, int D_k, int D_v>
__device__ void writer(Accumulator<D_k>& out, const Memory<D_k, D_v>& m, float scale) {
  const int row = Lane().row();
  const float end = m.level[63];
  Operand<64> p, met;
  {
    Accumulator<64> scores;
    read_states<Products>(out, scores, m.writes, m.d_o, m, m.d_state);
    p = weigh<true, false>(scores, m.level, scale);
    Products::start(scores);
#pragma unroll
    for (int split = 0; split < D_v / 64; ++split)
      Products::a_bt(scores, load(m.writes.template part<64>(split)), m.d_rhs.template part<64>(split),
                     split > 0);
    finish<Products>(scores);
    met = weigh<true, true>(scores, m.level, -1, m.beta);
  }
  out.scale(scale * exp2_fast(end - m.level[row]), scale * exp2_fast(end - m.level[row + 8]));
  write_rows(m.of_end, whole_row_dots(m.k, out));
  Products::start(out);
  Products::add_a_b(out, p, m.q);
  Products::add_a_b(out, met, m.k);
  finish<Products>(out);
  write_rows(m.of_write, whole_row_dots(m.k, out));
}

// One warp: the decay's gradient, two tokens a lane.
template <int D_k, int D_v>
__device__ void store_numbers(const DeltaStages& s, const DeltaChunk& at, int head, const Memory<D_k, D_v>& m,
                              float* d_beta, float* d_log_decay) {
  const int lane = threadIdx.x, token = 2 * lane;
  float dc[2], end = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    dc[i] = m.of_q[token + i] + m.of_k[token + i] - m.of_write[token + i];
    end += m.of_end[token + i];
  }
  if (lane < threads / 32) end += s.scale * exp2_fast(m.level[63]) * m.of_state[lane];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) end += __shfl_xor_sync(~0u, end, step);
  float later = dc[0] + dc[1];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other = __shfl_down_sync(~0u, later, step);
    if (lane + step < 32) later += other;
  }
  const float dg[2] = {end + later, end + later - dc[0]};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (token + i >= at.valid) continue;
    const int64_t of = (at.token0 + token + i) * s.heads + head;
    d_beta[of] = m.d_beta[token + i];
    if (d_log_decay) d_log_decay[of] = dg[i];
  }
}

// <S, dS> / scale, a part a warp.
template <int D_k, int D_v>
__device__ void multiply_states(const Memory<D_k, D_v>& m) {
  float sum = 0;
  auto add = [&](uint32_t a, uint32_t b) {
    const float2 x = unpack(a), y = unpack(b);
    sum += x.x * y.x + x.y * y.y;
  };
  for (int i = threadIdx.x * 16; i < m.state.bytes; i += threads * 16) {
    const uint4 x = load_shared(m.state.address + i), y = load_shared(m.d_state.address + i);
    add(x.x, y.x), add(x.y, y.y), add(x.z, y.z), add(x.w, y.w);
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) m.of_state[threadIdx.x / 32] = sum;
}

// dv = beta R
template <int D_k, int D_v>
__device__ void store_d_values(const MutableRows& rows, const DeltaChunk& at, int64_t column,
                               const Memory<D_k, D_v>& m) {
  for (int i = threadIdx.x; i < at.valid * (D_v / 8); i += threads) {
    const int row = i / (D_v / 8), unit = i % (D_v / 8);
    const uint4 r = load_shared(m.d_rhs.at(row, unit));
    const float b = m.beta[row];
    auto times = [&](uint32_t pair) {
      const float2 x = unpack(pair);
      return pack(b * x.x, b * x.y);
    };
    auto* to = static_cast<__nv_bfloat16*>(rows.data) + (at.token0 + row) * rows.pitch + column + unit * 8;
    *reinterpret_cast<uint4*>(to) = {times(r.x), times(r.y), times(r.z), times(r.w)};
  }
}

template <bool Wgmma, int D_k, int D_v>
__global__ void __launch_bounds__(threads)
    delta_gradient_kernel(const __grid_constant__ DeltaStages s, Rows q, Rows k, Rows v, Rows d_o,
                          const __grid_constant__ DeltaRuleGradients d, int units) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
  using Products = WarpProducts;
#endif
  extern __shared__ __align__(1024) char raw[];
  const int role = threadIdx.x / 128;
  auto head_of = [&](int unit) { return unit % s.heads; };
  // The next chunk and head of this block, from `unit` on, that hold tokens.
  auto find = [&](int unit, DeltaChunk& at) {
    for (; unit < units; unit += gridDim.x) {
      at = chunk_of(s, unit / s.heads);
      if (at.valid > 0) break;
    }
    return unit;
  };
  auto fetch_states = [&](int unit, int turn) {
    const Memory<D_k, D_v> m(raw, turn);
    fetch_tile(m.state, s.states, unit);
    fetch_tile(m.d_state, s.d_states, unit);
    fetch_gates(s, m.level, unit);
  };
  auto fetch_tokens = [&](int unit, const DeltaChunk& at) {
    const Memory<D_k, D_v> m(raw, 0);
    const int64_t head = head_of(unit);
    fetch_rows(m.d_o, d_o, at.token0, at.valid, head * D_v);
    fetch_tile(m.writes, s.writes, unit);
    fetch_tile(m.d_rhs, s.d_rhs, unit);
    fetch_rows(m.k, k, at.token0, at.valid, head * D_k);
    fetch_rows(m.q, q, at.token0, at.valid, head * D_k);
    fetch_rows(m.v, v, at.token0, at.valid, head * D_v);
  };

  DeltaChunk at, next_at;
  int unit = find(blockIdx.x, at);
  if (unit < units) fetch_states(unit, 0), fetch_tokens(unit, at);
  for (int turn = 0; unit < units; turn ^= 1) {
    const Memory<D_k, D_v> m(raw, turn);
    const int head = head_of(unit), next = find(unit + gridDim.x, next_at);
    wait_fetched();
    publish_tiles<Products>();
    if (next < units) fetch_states(next, turn ^ 1);

    Accumulator<D_k> out;
    if (role == 0)
      reader<Products>(out, m, s.scale);
    else if (role == 1)
      corrector<Products>(out, m);
    else
      writer<Products>(out, m, s.scale);
    multiply_states(m);
    store_d_values(d.v, at, int64_t(head) * D_v, m);
    __syncthreads();
    if (next < units) fetch_tokens(next, next_at);

    if (threadIdx.x < 32) store_numbers(s, at, head, m, d.beta, d.log_decay);
    float* mine = m.exchange + threadIdx.x % 128;
    if (role == 0) store(m.dq, 0, out);
    if (role == 1) {
#pragma unroll
      for (int i = 0; i < D_k / 2; ++i) mine[i * 128] = out.x[i / 4][i % 4];
    }
    __syncthreads();
    if (role == 2) {
#pragma unroll
      for (int i = 0; i < D_k / 2; ++i) out.x[i / 4][i % 4] += mine[i * 128];
      store(m.dk, 0, out);
    }
    __syncthreads();
    store_rows(d.q, at.token0, at.valid, int64_t(head) * D_k, m.dq);
    store_rows(d.k, at.token0, at.valid, int64_t(head) * D_k, m.dk);
    unit = next, at = next_at;
  }
}

// launchers

template <bool Wgmma, int D_k, int D_v>
void launch(const DeltaStages& s, Rows q, Rows k, Rows v, Rows d_o, const DeltaRuleGradients& d,
            cudaStream_t stream) {
  constexpr auto kernel = delta_gradient_kernel<Wgmma, D_k, D_v>;
  constexpr int bytes = Memory<D_k, D_v>::bytes;
  allow_shared<kernel, bytes>("delta rule (gradient)");
  static const int processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const int units = static_cast<int>(delta_slots(s.tokens, s.documents) * s.heads);
  kernel<<<std::min(units, processors), threads, bytes, stream>>>(s, q, k, v, d_o, d, units);
  check_cuda(cudaGetLastError(), "delta rule (gradient)");
}

template <bool Wgmma>
void launch(const DeltaStages& s, Rows q, Rows k, Rows v, Rows d_o, const DeltaRuleGradients& d,
            cudaStream_t stream) {
  if (s.d_k == 64 && s.d_v == 64)
    launch<Wgmma, 64, 64>(s, q, k, v, d_o, d, stream);
  else if (s.d_k == 64)
    launch<Wgmma, 64, 128>(s, q, k, v, d_o, d, stream);
  else if (s.d_v == 64)
    launch<Wgmma, 128, 64>(s, q, k, v, d_o, d, stream);
  else
    launch<Wgmma, 128, 128>(s, q, k, v, d_o, d, stream);
}

}  // namespace

void delta_gradient(const DeltaStages& s, bool wgmma, Rows q, Rows k, Rows v, Rows d_o,
                    const DeltaRuleGradients& d, cudaStream_t stream) {
  if (wgmma)
    launch<true>(s, q, k, v, d_o, d, stream);
  else
    launch<false>(s, q, k, v, d_o, d, stream);
}

}  // namespace weft::cuda
