#pragma once
// The sweeps of delta_sweep.cu where heads are many: two warpgroups for each of the two halves of a block's
// 128 columns of v. One of the two carries the state. The other fetches the next chunk's tiles, writes what
// the backward pass wants, and forward makes the output, from the state's shadow of the chunk before and from
// U as soon as it is there.

#include <utility>

#include "attention/kernels/delta_sweep.cuh"

namespace weft::cuda {

// Warpgroups 0 and 1 carry the state, 2 and 3 are their partners; those of one pair have one `own`.
template <int D_k>
struct WideMemory {
  static constexpr int W = 2, threads = 512;
  Tile<64, D_k> q, k;
  SquareTile v, inverse, scores;  // v or do; it and the tiles after these are the pair's own
  SquareTile between, result;     // what lies between two products; o, or R
  float *level, *beta, *weight, *second_weight;
  uint32_t shadows;

  static constexpr int fetched_bytes = 2 * Tile<64, D_k>::bytes + (2 + W) * SquareTile::bytes;
  static constexpr int bytes =
      2 * fetched_bytes + 2 * W * (Tile<64, D_k>::bytes + SquareTile::bytes) + (2 * 128 + W * 2 * 64) * 4;

  __device__ static int own() { return warpgroup() % W; }
  __device__ static bool carries() { return warpgroup() < W; }

  __device__ WideMemory(char* raw, int chunk) {
    uint32_t next = shared_address(raw) + chunk % 2 * fetched_bytes;
    auto take = [&](int size) { return std::exchange(next, next + size); };
    q.address = take(q.bytes), k.address = take(k.bytes);
    v.address = take(W * v.bytes) + own() * v.bytes;
    inverse.address = take(v.bytes), scores.address = take(v.bytes);
    next = shared_address(raw) + 2 * fetched_bytes;
    shadows = take(2 * W * k.bytes) + own() * 2 * k.bytes;
    between.address = take(W * v.bytes) + own() * v.bytes,
    result.address = take(W * v.bytes) + own() * v.bytes;
    auto* const numbers = reinterpret_cast<float*>(raw + (next - shared_address(raw)));
    level = numbers + chunk % 2 * 128, beta = level + 64;
    weight = numbers + 256 + own() * 128, second_weight = weight + 64;
  }
  __device__ Tile<64, D_k> shadow(int chunk) const { return {shadows + chunk % 2 * q.bytes}; }

  // By all partners. v: v or do
  __device__ void fetch(const DeltaStages& s, const Part& at, int n, const Rows& q_rows, const Rows& k_rows,
                        const Rows& v_rows) const {
    const int64_t column_k = int64_t(at.head) * D_k;
    const Crew all{int(threadIdx.x) - 128 * W, 128 * W};
    fetch_rows(k, k_rows, at.token0(n), at.valid(n), column_k, all);
    fetch_rows(v, v_rows, at.token0(n), at.valid(n), at.column, at.crew());
    fetch_rows(q, q_rows, at.token0(n), at.valid(n), column_k, all);
    fetch_tile(inverse, s.inverse, at.unit(s, n), all);
    fetch_tile(scores, s.scores, at.unit(s, n), all);
    fetch_gates(s, level, at.unit(s, n), all);
  }
  // Of both of a pair: U, or R, is there.
  __device__ static void hand_over() { arrive_threads(5 + own(), 256); }
  __device__ static void receive() { sync_threads(5 + own(), 256); }
};

// A barrier of the block at a chunk's start, which its two halves reach on ways of their own.
template <class Products>
__device__ void meet() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (std::is_same_v<Products, WarpgroupProducts>) publish_shared();
#endif
  sync_threads(7, 512);
}

// Of 512 threads each has 128 registers. The state's warpgroups need more, their partners less.
template <class Products, int Registers>
__device__ void share_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (std::is_same_v<Products, WarpgroupProducts>) {
    if constexpr (Registers > 128)
      take_registers<Registers>();
    else
      give_registers<Registers>();
  }
#endif
}
constexpr int registers_of_state = 168, registers_of_partner = 88;

template <class Products, int D_k>
__device__ void forward_wide(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& v,
                             const float* state_in, const MutableRows& o, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  using Memory = WideMemory<D_k>;
  const Part at(s, 2, Memory::own());
  const int thread = threadIdx.x % 128;
  if (Memory::carries()) {
    share_registers<Products, registers_of_state>();
    Accumulator<D_k> state;
    state.fill(0);
    if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = state_in[i]; });
    store(Memory(raw, 0).shadow(0), 0, state);
    for (int n = 0; n < at.chunks; ++n) {
      const Memory m(raw, n);
      meet<Products>();
      if (thread < 64) m.weight[thread] = exp2_fast(m.level[63] - m.level[thread]);
      Accumulator<64> x;
      Products::start(x);
      Products::a_bt(x, TileRows<64, D_k>(m.k, 0), m.shadow(n), false);
      finish<Products>(x);
      correct(x, m.v, m.level, m.beta);
      store(m.between, 0, x);
      publish_tiles<Products>(false);

      x.fill(0);  // U
      Products::start(x);
      Products::add_a_b(x, load(m.inverse), m.between);
      finish<Products>(x);
      store(m.v, 0, x);  // in v's place
      publish_tiles<Products>(false);
      Memory::hand_over();

      const float total = exp2_fast(m.level[63]);
      const Operand<64> weighted = cuda::load_transposed<false>(m.v, m.weight).high;
      state.scale(total, total);
      Products::start(state);
      Products::add_a_b(state, weighted, m.k);
      finish<Products>(state);
      store(m.shadow(n + 1), 0, state);
    }
    if (state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = x; });
  } else {
    share_registers<Products, registers_of_partner>();
    if (at.chunks > 0) Memory(raw, 0).fetch(s, at, 0, q, k, v);
    for (int n = 0; n < at.chunks; ++n) {
      const Memory m(raw, n);
      wait_fetched();
      meet<Products>();
      if (n + 1 < at.chunks) Memory(raw, n + 1).fetch(s, at, n + 1, q, k, v);
      const int row = Lane().row();
      Accumulator<64> x;
      Products::start(x);
      Products::a_bt(x, TileRows<64, D_k>(m.q, 0), m.shadow(n), false);
      Products::commit();
      if (s.states) store_tile(s.states, at.split_unit(s, n), m.shadow(n), at.crew());
      await<Products>(x);
      x.scale(s.scale * exp2_fast(m.level[row]), s.scale * exp2_fast(m.level[row + 8]));
      Memory::receive();
      Products::start(x);
      Products::add_a_b(x, load(m.scores), m.v);
      Products::commit();
      if (s.writes) store_tile(s.writes, at.split_unit(s, n), m.v, at.crew());
      await<Products>(x);
      store(m.result, 0, x);
      publish_tiles<Products>(false);
      store_rows(o, at.token0(n), at.valid(n), at.column, m.result, at.crew());
    }
  }
}

template <class Products, int D_k>
__device__ void reverse_wide(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& d_o,
                             const float* state_in, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  using Memory = WideMemory<D_k>;
  const Part at(s, 2, Memory::own());
  const int thread = threadIdx.x % 128;
  if (Memory::carries()) {
    share_registers<Products, registers_of_state>();
    const int row = Lane().row();
    const float inverse_scale = 1 / s.scale;
    Accumulator<D_k> state;
    state.fill(0);
    if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = inverse_scale * state_in[i]; });
    for (int n = at.chunks - 1; n >= 0; --n) {
      const Memory m(raw, n);
      store(m.shadow(n), 0, state);
      meet<Products>();
      const float end = m.level[63], total = exp2_fast(end);
      if (thread < 64) {
        const float decay = exp2_fast(m.level[thread]);
        m.weight[thread] = decay;
        m.second_weight[thread] = -inverse_scale * decay * m.beta[thread];
      }
      Accumulator<64> x;  // dU
      Products::start(x);
      Products::a_bt(x, TileRows<64, D_k>(m.k, 0), m.shadow(n), false);
      finish<Products>(x);
      x.scale(s.scale * exp2_fast(end - m.level[row]), s.scale * exp2_fast(end - m.level[row + 8]));
      Products::start(x);
      Products::add_a_b(x, load_transposed(m.scores), m.v);
      finish<Products>(x);
      store(m.between, 0, x);
      publish_tiles<Products>(false);  // of the weights, too

      state.scale(total, total);
      const Operand<64> weighted = cuda::load_transposed<false>(m.v, m.weight).high;
      x.fill(0);  // R
      Products::start(state), Products::start(x);
      Products::add_a_b(x, load_transposed(m.inverse), m.between);
      Products::add_a_b(state, weighted, m.q);
      finish<Products>(state, x);
      store(m.result, 0, x);
      publish_tiles<Products>(false);
      Memory::hand_over();

      const Operand<64> second = cuda::load_transposed<false>(m.result, m.second_weight).high;
      Products::start(state);
      Products::add_a_b(state, second, m.k);
      finish<Products>(state);
    }
    if (state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = s.scale * x; });
  } else {
    share_registers<Products, registers_of_partner>();
    auto fetch = [&](int n) { Memory(raw, n).fetch(s, at, n, q, k, d_o); };
    if (at.chunks > 0) fetch(at.chunks - 1);
    for (int n = at.chunks - 1; n >= 0; --n) {
      const Memory m(raw, n);
      wait_fetched();
      meet<Products>();
      if (n > 0) fetch(n - 1);
      store_tile(s.d_states, at.split_unit(s, n), m.shadow(n), at.crew());
      Memory::receive();
      store_tile(s.d_rhs, at.split_unit(s, n), m.result, at.crew());
    }
  }
}

}  // namespace weft::cuda
