#pragma once
// The sweeps of delta_sweep.cu by two warpgroups that share 64 columns of v. One carries the state. The other
// fetches all of the next chunk's tiles, writes what the backward pass wants, and forward makes the output,
// from the state's shadow of the chunk before and from U as soon as it is there.

#include <utility>

#include "attention/kernels/delta_sweep.cuh"

namespace weft::cuda {

template <int D_k>
struct ApartMemory {
  Tile<64, D_k> q, k;
  SquareTile v, inverse, scores;  // v or do
  SquareTile between, result;     // what lies between two products; o, or R
  float *level, *beta, *weight, *second_weight;
  uint32_t shadows;

  static constexpr int fetched_bytes = 2 * Tile<64, D_k>::bytes + 3 * SquareTile::bytes;
  static constexpr int bytes =
      2 * (fetched_bytes + Tile<64, D_k>::bytes + SquareTile::bytes) + (2 * 128 + 2 * 64) * 4;

  __device__ ApartMemory(char* raw, int chunk) {
    uint32_t next = shared_address(raw) + chunk % 2 * fetched_bytes;
    auto take = [&](int size) { return std::exchange(next, next + size); };
    q.address = take(q.bytes), k.address = take(k.bytes);
    v.address = take(v.bytes), inverse.address = take(v.bytes), scores.address = take(v.bytes);
    next = shared_address(raw) + 2 * fetched_bytes;
    shadows = take(2 * k.bytes);
    between.address = take(v.bytes), result.address = take(v.bytes);
    auto* const numbers = reinterpret_cast<float*>(raw + (next - shared_address(raw)));
    level = numbers + chunk % 2 * 128, beta = level + 64;
    weight = numbers + 256, second_weight = numbers + 320;
  }
  __device__ Tile<64, D_k> shadow(int chunk) const { return {shadows + chunk % 2 * q.bytes}; }

  // v: v or do
  __device__ void fetch(const DeltaStages& s, const Part& at, int n, const Rows& q_rows, const Rows& k_rows,
                        const Rows& v_rows) const {
    const int64_t column_k = int64_t(at.head) * D_k;
    fetch_rows(k, k_rows, at.token0(n), at.valid(n), column_k, at.crew());
    fetch_rows(v, v_rows, at.token0(n), at.valid(n), at.column, at.crew());
    fetch_rows(q, q_rows, at.token0(n), at.valid(n), column_k, at.crew());
    fetch_tile(inverse, s.inverse, at.unit(s, n), at.crew());
    fetch_tile(scores, s.scores, at.unit(s, n), at.crew());
    fetch_gates(s, level, at.unit(s, n), at.crew());
  }
};
constexpr int handed_over = 3;  // barrier of both: U, or R, is there

template <class Products, int D_k>
__device__ void forward_apart(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& v,
                              const float* state_in, const MutableRows& o, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  const Part at(s, 1, 0);
  const int row = Lane().row();
  const bool of_state = threadIdx.x < 128;
  Accumulator<D_k> state;
  state.fill(0);
  if (of_state) {
    if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = state_in[i]; });
    store(ApartMemory<D_k>(raw, 0).shadow(0), 0, state);
  }
  if (!of_state && at.chunks > 0) ApartMemory<D_k>(raw, 0).fetch(s, at, 0, q, k, v);
  for (int n = 0; n < at.chunks; ++n) {
    const ApartMemory<D_k> m(raw, n);
    wait_fetched();
    publish_tiles<Products>();
    if (!of_state && n + 1 < at.chunks) ApartMemory<D_k>(raw, n + 1).fetch(s, at, n + 1, q, k, v);
    const float total = exp2_fast(m.level[63]);
    Accumulator<64> x;
    if (of_state) {
      if (threadIdx.x < 64) m.weight[threadIdx.x] = exp2_fast(m.level[63] - m.level[threadIdx.x]);
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
      arrive_threads(handed_over, 256);

      const Operand<64> weighted = cuda::load_transposed<false>(m.v, m.weight).high;
      state.scale(total, total);
      Products::start(state);
      Products::add_a_b(state, weighted, m.k);
      finish<Products>(state);
      store(m.shadow(n + 1), 0, state);
    } else {
      Products::start(x);
      Products::a_bt(x, TileRows<64, D_k>(m.q, 0), m.shadow(n), false);
      Products::commit();
      if (s.states) store_tile(s.states, at.split_unit(s, n), m.shadow(n), at.crew());
      Products::template wait<0>();
      Products::settle(x);
      x.scale(s.scale * exp2_fast(m.level[row]), s.scale * exp2_fast(m.level[row + 8]));
      sync_threads(handed_over, 256);
      Products::start(x);
      Products::add_a_b(x, load(m.scores), m.v);
      Products::commit();
      if (s.writes) store_tile(s.writes, at.split_unit(s, n), m.v, at.crew());
      Products::template wait<0>();
      Products::settle(x);
      store(m.result, 0, x);
      publish_tiles<Products>(false);
      store_rows(o, at.token0(n), at.valid(n), at.column, m.result, at.crew());
    }
  }
  if (of_state && state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = x; });
}

template <class Products, int D_k>
__device__ void reverse_apart(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& d_o,
                              const float* state_in, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  const Part at(s, 1, 0);
  const int row = Lane().row();
  const bool of_state = threadIdx.x < 128;
  const float inverse_scale = 1 / s.scale;
  auto fetch = [&](int n) { ApartMemory<D_k>(raw, n).fetch(s, at, n, q, k, d_o); };
  Accumulator<D_k> state;
  state.fill(0);
  if (of_state && state_in) each(state, s, at, [&](float& x, int64_t i) { x = inverse_scale * state_in[i]; });
  if (!of_state && at.chunks > 0) fetch(at.chunks - 1);
  for (int n = at.chunks - 1; n >= 0; --n) {
    const ApartMemory<D_k> m(raw, n);
    if (of_state) store(m.shadow(n), 0, state);
    wait_fetched();
    publish_tiles<Products>();
    if (of_state) {
      const float end = m.level[63], total = exp2_fast(end);
      if (threadIdx.x < 64) {
        const float decay = exp2_fast(m.level[threadIdx.x]);
        m.weight[threadIdx.x] = decay;
        m.second_weight[threadIdx.x] = -inverse_scale * decay * m.beta[threadIdx.x];
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
      arrive_threads(handed_over, 256);

      const Operand<64> second = cuda::load_transposed<false>(m.result, m.second_weight).high;
      Products::start(state);
      Products::add_a_b(state, second, m.k);
      finish<Products>(state);
    } else {
      if (n > 0) fetch(n - 1);
      store_tile(s.d_states, at.split_unit(s, n), m.shadow(n), at.crew());
      sync_threads(handed_over, 256);
      store_tile(s.d_rhs, at.split_unit(s, n), m.result, at.crew());
    }
  }
  if (of_state && state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = s.scale * x; });
}

}  // namespace weft::cuda
