// The last stage of the chunked delta rule's backward pass: every gradient of a chunk's tokens from what the
// sweeps kept (delta_rule.md). A block has a chunk and a head, and three warpgroups:
//   reader     dq: tokens as they read the memory at their query
//   corrector  dk, first part, and dbeta: as they read it at their key
//   writer     dk, second part: as they write at their key
// A block goes through many chunks, and fetches the tiles of the next one as places fall free: states a chunk
// ahead, values when the first products are done, keys when the last are.

#include <algorithm>

#include "attention/kernels/delta_chunk.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int threads = 3 * 128;
constexpr int values_read = 5, keys_read = 8, exchanged = 9;  // barriers, the first of them one for each role

template <int D_k, int D_v>
struct Memory {
  using Keys = Tile<64, D_k>;
  using Values = Tile<64, D_v>;
  using States = Tile<D_v, D_k>;  // transposed, in parts of 64 columns of v that lie one after another
  // dk's first part in f32, dq and dk lie over the states of this chunk, if these are large enough.
  static constexpr int exchange_bytes = 64 * D_k * 4, results_bytes = exchange_bytes + 2 * Keys::bytes;
  static constexpr bool over_states = results_bytes <= 2 * States::bytes;
  static constexpr int bytes = 2 * Keys::bytes + 4 * Values::bytes + 4 * States::bytes +
                               (over_states ? 0 : results_bytes) + (4 * 64 + 5 * 64 + threads / 32) * 4 +
                               4 * 8;

  Keys q, k, dq, dk;
  Values v, d_o, writes, d_rhs;
  States state, d_state;
  float* exchange;
  float *level, *beta;
  float *of_q, *of_k, *of_write, *of_end, *d_beta;  // row sums, one a token
  float* of_state;                                  // one a warp
  Barrier states_full, values_full, keys_full;      // what TMA fetches is there

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
    const uint32_t barriers = next + (576 + threads / 32) * 4;
    states_full.address = barriers + turn * 8, values_full.address = barriers + 16,
    keys_full.address = barriers + 24;
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

// out = left * states, scores = left * right^T, both under way: two batches.
template <class Products, int D_k, int D_v>
__device__ void read_states(Accumulator<D_k>& out, Accumulator<64>& scores, Tile<64, D_v> left,
                            Tile<64, D_v> right, typename Memory<D_k, D_v>::States states) {
  out.fill(0);
  Products::start(out), Products::start(scores);
  Products::a_bt(scores, TileRows<64, D_v>(left, 0), right, false);
  Products::commit();
#pragma unroll
  for (int split = 0; split < D_v / 64; ++split)
    Products::add_a_b(out, load(left.template part<64>(split)), Memory<D_k, D_v>::part_of(states, split));
  Products::commit();
}

// Each of the three calls meanwhile() beside its first products, pass() when it has read the states and the
// values (v, dO, U, R) and before it reads the keys, and done() when it has read these.

template <class Products, int D_k, int D_v, class Meanwhile, class Pass, class Done>
__device__ void reader(Accumulator<D_k>& out, const Memory<D_k, D_v>& m, float scale, Meanwhile meanwhile,
                       Pass pass, Done done) {
  const int row = Lane().row();
  Accumulator<64> scores;
  read_states<Products>(out, scores, m.d_o, m.writes, m.state);
  meanwhile();
  await<Products>(out, scores);
  pass();
  const Operand<64> p = weigh<false, false>(scores, m.level, scale);
  out.scale(scale * exp2_fast(m.level[row]), scale * exp2_fast(m.level[row + 8]));
  Products::start(out);
  Products::add_a_b(out, p, m.k);
  finish<Products>(out);
  write_rows(m.of_q, whole_row_dots(m.q, out));
  done();
}

template <class Products, int D_k, int D_v, class Meanwhile, class Pass, class Done>
__device__ void corrector(Accumulator<D_k>& out, const Memory<D_k, D_v>& m, Meanwhile meanwhile, Pass pass,
                          Done done) {
  const int row = Lane().row();
  Accumulator<64> scores;
  read_states<Products>(out, scores, m.d_rhs, m.writes, m.state);
  meanwhile();
  const float2 of_v = row_dots(m.d_rhs, m.v);
  await<Products>(out, scores);
  pass();
  const Operand<64> p = weigh<false, true>(scores, m.level, -1, m.beta);
  const float2 by{divisible(m.beta[row]), divisible(m.beta[row + 8])};
  out.scale(-by.x * exp2_fast(m.level[row]), -by.y * exp2_fast(m.level[row + 8]));
  Products::start(out);
  Products::add_a_b(out, p, m.k);
  finish<Products>(out);
  const float2 of_k = whole_row_dots(m.k, out);
  write_rows(m.d_beta, {of_k.x / by.x + of_v.x, of_k.y / by.y + of_v.y});
  write_rows(m.of_k, of_k);
  done();
}

template <class Products, int D_k, int D_v, class Meanwhile, class Pass, class Done>
__device__ void writer(Accumulator<D_k>& out, const Memory<D_k, D_v>& m, float scale, Meanwhile meanwhile,
                       Pass pass, Done done) {
  const int row = Lane().row();
  const float end = m.level[63];
  Accumulator<64> scores;
  read_states<Products>(out, scores, m.writes, m.d_o, m.d_state);
  meanwhile();
  Products::template wait<1>();
  Products::settle(scores);
  const Operand<64> p = weigh<true, false>(scores, m.level, scale);
  Products::start(scores);
  Products::a_bt(scores, TileRows<64, D_v>(m.writes, 0), m.d_rhs, false);
  finish<Products>(out, scores);
  pass();
  const Operand<64> met = weigh<true, true>(scores, m.level, -1, m.beta);
  out.scale(scale * exp2_fast(end - m.level[row]), scale * exp2_fast(end - m.level[row + 8]));
  write_rows(m.of_end, whole_row_dots(m.k, out));
  Products::start(out);
  Products::add_a_b(out, p, m.q);
  Products::add_a_b(out, met, m.k);
  finish<Products>(out);
  write_rows(m.of_write, whole_row_dots(m.k, out));
  done();
}

// One warp: the decay's gradient, two tokens a lane.
template <int D_k, int D_v>
__device__ void store_numbers(const DeltaStages& s, const DeltaChunk& at, int head, const Memory<D_k, D_v>& m,
                              float* d_beta, float* d_log_decay) {
  const int lane = threadIdx.x % 32, token = 2 * lane;
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
#pragma unroll 2
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
#pragma unroll 1
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

struct Operands {
  MappedRows q, k, v, d_o;
  Mapped<MutableRows> d_q, d_k;
};

template <bool Wgmma, int D_k, int D_v>
__global__ void __launch_bounds__(threads)
    delta_gradient_kernel(const __grid_constant__ DeltaStages s, const __grid_constant__ Operands of,
                          const __grid_constant__ DeltaRuleGradients d, int units) {
  using Products = ProductsOf<Wgmma>;
  using M = Memory<D_k, D_v>;
  constexpr bool tma = by_tma<Products>;
  extern __shared__ __align__(1024) char raw[];
  const int role = warpgroup();
  const Crew crew{int(threadIdx.x % 128), 128};
  auto head_of = [&](int unit) { return unit % s.heads; };
  // The next chunk and head of this block, from `unit` on, that hold tokens.
  auto find = [&](int unit, DeltaChunk& at) {
    for (; unit < units; unit += gridDim.x) {
      at = chunk_of(s, unit / s.heads);
      if (at.valid > 0) break;
    }
    return unit;
  };
  // By TMA one thread fetches; else the reader dO and U, the corrector what is left of values, and keys, and
  // all of the block the states.
  auto fetch_states = [&](int unit, int turn) {
    if (unit < units) {
      const M m(raw, turn);
      if constexpr (tma) {
        if (threadIdx.x == 0) {
          m.states_full.arrive_and_expect(2 * m.state.bytes + gates_bytes);
          copy_gates_in(s, m.level, unit, m.states_full);
          copy_tile_in(m.state, s.states, unit, m.states_full);
        }
      } else {
        fetch_tile(m.state, s.states, unit);
        fetch_tile(m.d_state, s.d_states, unit);
        fetch_gates(s, m.level, unit);
      }
    }
    commit_copies();
  };
  auto fetch_d_states = [&](int unit, int turn) {  // the rest of states_full
    if constexpr (tma) {
      const M m(raw, turn);
      if (threadIdx.x == 0 && unit < units) copy_tile_in(m.d_state, s.d_states, unit, m.states_full);
    }
  };
  auto fetch_values = [&](int unit, const DeltaChunk& at) {
    if (unit < units) {
      const M m(raw, 0);
      const int head = head_of(unit);
      const bool rows = !tma || at.valid < delta_tokens;
      if constexpr (tma) {
        if (threadIdx.x == 0) {
          m.values_full.arrive_and_expect((rows ? 2 : 4) * m.writes.bytes);
          if (!rows) copy_rows_in(m.d_o, of.d_o.map, 0, head, at.token0, m.values_full);
          copy_tile_in(m.writes, s.writes, unit, m.values_full);
          copy_tile_in(m.d_rhs, s.d_rhs, unit, m.values_full);
          if (!rows) copy_rows_in(m.v, of.v.map, 0, head, at.token0, m.values_full);
        }
      } else if (role == 0) {
        fetch_tile(m.writes, s.writes, unit, crew);
      } else if (role == 1) {
        fetch_tile(m.d_rhs, s.d_rhs, unit, crew);
      }
      const int64_t column = int64_t(head) * D_v;
      if (rows && role == 0) fetch_rows(m.d_o, of.d_o.rows, at.token0, at.valid, column, crew);
      if (rows && role == 1) fetch_rows(m.v, of.v.rows, at.token0, at.valid, column, crew);
    }
    commit_copies();
  };
  auto fetch_keys = [&](int unit, const DeltaChunk& at) {
    if (unit < units && role == 1) {
      const M m(raw, 0);
      const int head = head_of(unit);
      const bool rows = !tma || at.valid < delta_tokens;
      if constexpr (tma) {
        if (crew.index == 0) {
          m.keys_full.arrive_and_expect(rows ? 0 : 2 * m.q.bytes);
          if (!rows) {
            copy_rows_in(m.k, of.k.map, 0, head, at.token0, m.keys_full);
            copy_rows_in(m.q, of.q.map, 0, head, at.token0, m.keys_full);
          }
        }
      }
      if (rows) {
        fetch_rows(m.k, of.k.rows, at.token0, at.valid, int64_t(head) * D_k, crew);
        fetch_rows(m.q, of.q.rows, at.token0, at.valid, int64_t(head) * D_k, crew);
      }
    }
    commit_copies();
  };
  // A warpgroup's result, from tile to memory.
  auto write = [&](const Mapped<MutableRows>& to, const DeltaChunk& at, int head, typename M::Keys tile) {
    publish_tiles<Products>(false);
    if (tma && at.valid == delta_tokens) {
      if constexpr (tma) {
        if (crew.index == 0) copy_rows_out(to.map, 0, head, at.token0, tile), commit_copies_out();
      }
    } else {
      store_rows(to.rows, at.token0, at.valid, int64_t(head) * D_k, tile, crew);
    }
  };

  if constexpr (tma) {
    if (threadIdx.x == 0) {
      const M m(raw, 0);
      m.states_full.init(1), M(raw, 1).states_full.init(1), m.values_full.init(1), m.keys_full.init(1);
      publish_barriers();
    }
    __syncthreads();
  }
  DeltaChunk at, next_at;
  int unit = find(blockIdx.x, at);
  fetch_states(unit, 0), fetch_d_states(unit, 0), fetch_values(unit, at), fetch_keys(unit, at);
  for (int step = 0; unit < units; ++step) {
    const M m(raw, step % 2);
    const int head = head_of(unit), next = find(unit + gridDim.x, next_at);
    wait_copies<1>();  // all but the keys
    publish_tiles<Products>();
    if constexpr (tma) m.states_full.wait(step / 2 % 2), m.values_full.wait(step % 2);
    fetch_states(next, (step + 1) % 2);

    auto meanwhile = [&] {
      multiply_states(m);
      store_d_values(d.v, at, int64_t(head) * D_v, m);
    };
    auto pass = [&] {
      wait_copies<1>();  // all but the next states
      if constexpr (tma) {
        if (crew.index == 0) wait_copies_out<0>();  // dq and dk of the last chunk, where states come now
      }
      publish<Products>();
      // Each comes from a place of its own in the code, so each waits at a barrier of its own.
      arrive_threads(values_read + (role + 1) % 3, threads),
          arrive_threads(values_read + (role + 2) % 3, threads);
      sync_threads(values_read + role, threads);
      if constexpr (tma) m.keys_full.wait(step % 2);
      fetch_d_states(next, (step + 1) % 2);
      fetch_values(next, next_at);
    };
    Accumulator<D_k> out;
    // Results lie over this chunk's states, which nobody reads any more.
    if (role == 0) {
      reader<Products>(out, m, s.scale, meanwhile, pass, [] { arrive_threads(keys_read, threads); });
      fetch_keys(next, next_at);
      store(m.dq, 0, out);
      write(of.d_q, at, head, m.dq);
    } else if (role == 1) {
      corrector<Products>(out, m, meanwhile, pass, [&] {
        float* mine = m.exchange + threadIdx.x % 128;
#pragma unroll
        for (int i = 0; i < D_k / 2; ++i) mine[i * 128] = out.x[i / 4][i % 4];
        arrive_threads(exchanged, 256);
        sync_threads(keys_read, threads);
      });
      fetch_keys(next, next_at);
      if (threadIdx.x % 128 < 32) store_numbers(s, at, head, m, d.beta, d.log_decay);
    } else {
      writer<Products>(out, m, s.scale, meanwhile, pass, [] { arrive_threads(keys_read, threads); });
      fetch_keys(next, next_at);
      sync_threads(exchanged, 256);
      const float* theirs = m.exchange + threadIdx.x % 128;
#pragma unroll
      for (int i = 0; i < D_k / 2; ++i) out.x[i / 4][i % 4] += theirs[i * 128];
      store(m.dk, 0, out);
      write(of.d_k, at, head, m.dk);
    }
    unit = next, at = next_at;
  }
  if constexpr (tma) {
    if (crew.index == 0) wait_copies_out<0>();
  }
}

// launchers

template <bool Wgmma, int D_k, int D_v>
void launch(const DeltaStages& s, const Operands& of, const DeltaRuleGradients& d, cudaStream_t stream) {
  constexpr auto kernel = delta_gradient_kernel<Wgmma, D_k, D_v>;
  constexpr int bytes = Memory<D_k, D_v>::bytes;
  allow_shared<kernel, bytes>("delta rule (gradient)");
  static const int processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const int units = static_cast<int>(delta_slots(s.tokens, s.documents) * s.heads);
  kernel<<<std::min(units, processors), threads, bytes, stream>>>(s, of, d, units);
  check_cuda(cudaGetLastError(), "delta rule (gradient)");
}

template <bool Wgmma>
void launch(const DeltaStages& s, const Operands& of, const DeltaRuleGradients& d, cudaStream_t stream) {
  if (s.d_k == 64 && s.d_v == 64)
    launch<Wgmma, 64, 64>(s, of, d, stream);
  else if (s.d_k == 64)
    launch<Wgmma, 64, 128>(s, of, d, stream);
  else if (s.d_v == 64)
    launch<Wgmma, 128, 64>(s, of, d, stream);
  else
    launch<Wgmma, 128, 128>(s, of, d, stream);
}

}  // namespace

void delta_gradient(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                    const MappedRows& v, const MappedRows& d_o, const DeltaRuleGradients& d,
                    cudaStream_t stream) {
  const Operands of{q, k, v, d_o, mapped(s, wgmma, d.q, s.d_k), mapped(s, wgmma, d.k, s.d_k)};
  if (wgmma)
    launch<true>(s, of, d, stream);
  else
    launch<false>(s, of, d, stream);
}

}  // namespace weft::cuda
