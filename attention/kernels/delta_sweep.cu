// The two stages of the chunked delta rule that go chunk by chunk (delta_rule.md). A block has one document,
// one head and 64 W columns of v, and two warpgroups for every 64 of them. One of the two carries their
// state, transposed in registers, in f32; products read a bf16 shadow of it in shared memory. The other, its
// partner, fetches the next chunk's tiles, writes what the backward pass wants, and forward makes the output,
// from the state's shadow of the chunk before and from U as soon as it is there.

#include <utility>

#include "attention/kernels/delta_chunk.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

// kernels

namespace {

// Whose document, head and columns of v a warpgroup has.
struct Part {
  int document, head, column0;
  int64_t column;  // of v's rows
  int first, length, chunks;
  int64_t slot0;

  __device__ Part(const DeltaStages& s, int W) : Part(s, W, threadIdx.x / 128) {}
  __device__ Part(const DeltaStages& s, int W, int own) {
    const int splits = s.d_v / (64 * W), of = blockIdx.x / splits;
    document = of / s.heads, head = of % s.heads;
    column0 = (blockIdx.x % splits * W + own) * 64, column = int64_t(head) * s.d_v + column0;
    const int2 range = document_range(s, document);
    first = range.x, length = range.y, chunks = (length + delta_tokens - 1) / delta_tokens;
    slot0 = slot_of(first, document, 0);
  }
  __device__ int64_t token0(int chunk) const { return first + int64_t(chunk) * delta_tokens; }
  __device__ int valid(int chunk) const { return min(delta_tokens, length - chunk * delta_tokens); }
  // Of what stages keep of a chunk: of the chunk's part, and of that part's 64 columns of v.
  __device__ int64_t unit(const DeltaStages& s, int chunk) const { return (slot0 + chunk) * s.heads + head; }
  __device__ int64_t split_unit(const DeltaStages& s, int chunk) const {
    return unit(s, chunk) * (s.d_v / 64) + column0 / 64;
  }
  __device__ Crew crew() const { return {int(threadIdx.x % 128), 128}; }  // the warpgroup
};

// f(value, offset in the states of memory) over this thread's part of a transposed state.
template <int D_k, class F>
__device__ void each(Accumulator<D_k>& state, const DeltaStages& s, const Part& at, F f) {
  const Lane lane;
  const int64_t base = (int64_t(at.document) * s.heads + at.head) * D_k * s.d_v + at.column0;
#pragma unroll
  for (int n = 0; n < D_k / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      f(state.x[n][i], base + int64_t(8 * n + 2 * lane.t + i % 2) * s.d_v + lane.row() + (i / 2) * 8);
}

// beta_i (v_i - exp(c_i) answer_i): what a chunk would write if its keys never met.
__device__ inline void correct(Accumulator<64>& answer, SquareTile v, const float* level, const float* beta) {
  const Lane lane;
  const int row = lane.row();
  const float decay[2] = {exp2_fast(level[row]), exp2_fast(level[row + 8])};
  const float b[2] = {beta[row], beta[row + 8]};
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 value = unpack(load_shared_word(v.at(row, n) + 4 * lane.t + half * 1024));
      float* x = answer.x[n] + 2 * half;
      x[0] = b[half] * (value.x - decay[half] * x[0]);
      x[1] = b[half] * (value.y - decay[half] * x[1]);
    }
}

// Forward v is v and out is o; in reverse v is do, and out unused.
struct Operands {
  MappedRows q, k, v;
  Mapped<MutableRows> out;
};

// Warpgroups 0 to W - 1 carry the state, the next W are their partners; those of one pair have one `own`.
template <class Products, int D_k, int W>
struct Memory {
  static constexpr int threads = 256 * W;
  Tile<64, D_k> q, k;
  SquareTile v, inverse, scores;  // v, and what follows the scores, are the pair's own
  SquareTile between, result;     // what lies between two products; o, or R
  float *level, *beta, *weight, *second_weight;
  uint32_t shadows;
  Barrier full;

  static constexpr int fetched_bytes = 2 * Tile<64, D_k>::bytes + (2 + W) * SquareTile::bytes;
  static constexpr int numbers_bytes = (2 * 128 + W * 2 * 64) * 4;
  static constexpr int bytes =
      2 * fetched_bytes + 2 * W * (Tile<64, D_k>::bytes + SquareTile::bytes) + numbers_bytes + 2 * 8;

  __device__ static int own() { return warpgroup() % W; }
  __device__ static bool carries() { return warpgroup() < W; }

  __device__ Memory(char* raw, int chunk) {
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
    full.address = next + numbers_bytes + chunk % 2 * 8;
  }
  __device__ Tile<64, D_k> shadow(int chunk) const { return {shadows + chunk % 2 * q.bytes}; }

  __device__ static void init(char* raw) {
    if constexpr (by_tma<Products>) {
      const Barrier first = Memory(raw, 0).full,
                    second = Memory(raw, 1).full;  // by all: own() asks all lanes
      if (threadIdx.x == 0) {
        first.init(1), second.init(1);
        publish_barriers();
      }
      __syncthreads();
    }
  }
  // By all partners.
  __device__ void fetch(const DeltaStages& s, const Part& at, int n, const Operands& x) const {
    const int64_t column_k = int64_t(at.head) * D_k;
    const Crew all{int(threadIdx.x) - 128 * W, 128 * W};
    const bool rows = !by_tma<Products> || at.valid(n) < delta_tokens;
    if constexpr (by_tma<Products>) {
      if (all.index == 0) {
        full.arrive_and_expect(rows ? 2 * v.bytes + gates_bytes : fetched_bytes + gates_bytes);
        if (!rows) {
          copy_rows_in(k, x.k.map, 0, at.head, at.token0(n), full);
          for (int w = 0; w < W; ++w)
            copy_rows_in(SquareTile{v.address + w * v.bytes}, x.v.map, at.column0 + 64 * w, at.head,
                         at.token0(n), full);
        }
        copy_gates_in(s, level, at.unit(s, n), full);
        copy_tile_in(inverse, s.inverse, at.unit(s, n), full);
        if (!rows) copy_rows_in(q, x.q.map, 0, at.head, at.token0(n), full);
        copy_tile_in(scores, s.scores, at.unit(s, n), full);
      }
    } else {
      fetch_tile(inverse, s.inverse, at.unit(s, n), all);
      fetch_tile(scores, s.scores, at.unit(s, n), all);
      fetch_gates(s, level, at.unit(s, n), all);
    }
    if (rows) {
      fetch_rows(k, x.k.rows, at.token0(n), at.valid(n), column_k, all);
      fetch_rows(v, x.v.rows, at.token0(n), at.valid(n), at.column, at.crew());
      fetch_rows(q, x.q.rows, at.token0(n), at.valid(n), column_k, all);
    }
  }
  // Of partners, before they meet the others for a chunk of `valid` tokens: its rows are there, if not by
  // TMA, and what they wrote may be written over, but for their last group's.
  template <int Left>
  __device__ static void wait_copied(int valid) {
    if (!by_tma<Products> || valid < delta_tokens) wait_fetched();
    if constexpr (by_tma<Products>) {
      if (threadIdx.x % 128 == 0) commit_copies_out(), wait_copies_out<Left>();
    }
  }
  // All of the block, at the start of its i-th chunk: first the partners come, then the others, so that
  // neither kind can come to a barrier twice before the other has left it.
  __device__ void meet(int i) const {
    constexpr int partners_came = 1 + 3 * W, all_came = 2 + 3 * W;
    publish<Products>();
    if (carries()) {
      sync_threads(partners_came, threads);
      arrive_threads(all_came, threads);
    } else {
      arrive_threads(partners_came, threads);
      sync_threads(all_came, threads);
    }
    if constexpr (by_tma<Products>) full.wait(i / 2 % 2);
  }
  // Of both of a pair: U, or R, is there.
  __device__ static void hand_over() { arrive_threads(1 + 2 * W + own(), 256); }
  __device__ static void receive() { sync_threads(1 + 2 * W + own(), 256); }

  // By a partner's warpgroup.
  template <int R, int C>
  __device__ static void write_tile(char* to, int64_t unit, Tile<R, C> tile) {
    if (!to) return;
    if constexpr (by_tma<Products>) {
      if (threadIdx.x % 128 == 0) copy_tile_out(to, unit, tile);
    } else {
      store_tile(to, unit, tile, {int(threadIdx.x % 128), 128});
    }
  }
};

// Of 512 threads each has 128 registers. The state's warpgroups need more, their partners less.
template <class Products, int W, int Registers>
__device__ void share_registers() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (W == 2 && std::is_same_v<Products, WarpgroupProducts>) {
    if constexpr (Registers > 128)
      take_registers<Registers>();
    else
      give_registers<Registers>();
  }
#endif
}
constexpr int registers_of_state = 168, registers_of_partner = 88;

template <class Products, int D_k, int W>
__device__ void forward(const DeltaStages& s, const Operands& of, const float* state_in, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  using M = Memory<Products, D_k, W>;
  const Part at(s, W, M::own());
  const int thread = threadIdx.x % 128;
  M::init(raw);
  if (M::carries()) {
    share_registers<Products, W, registers_of_state>();
    Accumulator<D_k> state;
    state.fill(0);
    if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = state_in[i]; });
    store(M(raw, 0).shadow(0), 0, state);
    for (int n = 0; n < at.chunks; ++n) {
      const M m(raw, n);
      m.meet(n);
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
      M::hand_over();

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
    share_registers<Products, W, registers_of_partner>();
    const int row = Lane().row();
    if (at.chunks > 0) M(raw, 0).fetch(s, at, 0, of);
    for (int n = 0; n < at.chunks; ++n) {
      const M m(raw, n);
      M::template wait_copied<1>(at.valid(n));  // all but o
      m.meet(n);
      if (n + 1 < at.chunks) M(raw, n + 1).fetch(s, at, n + 1, of);
      Accumulator<64> x;
      Products::start(x);
      Products::a_bt(x, TileRows<64, D_k>(m.q, 0), m.shadow(n), false);
      Products::commit();
      M::write_tile(s.states, at.split_unit(s, n), m.shadow(n));
      await<Products>(x);
      x.scale(s.scale * exp2_fast(m.level[row]), s.scale * exp2_fast(m.level[row + 8]));
      if constexpr (by_tma<Products>) {
        if (thread == 0) wait_copies_out<0>();  // the last o, so that this one may take its place
      }
      M::receive();
      Products::start(x);
      Products::add_a_b(x, load(m.scores), m.v);
      Products::commit();
      M::write_tile(s.writes, at.split_unit(s, n), m.v);
      await<Products>(x);
      store(m.result, 0, x);
      publish_tiles<Products>(false);
      if (by_tma<Products> && at.valid(n) == delta_tokens) {
        if constexpr (by_tma<Products>) {
          if (thread == 0) {
            commit_copies_out();
            copy_rows_out(of.out.map, at.column0, at.head, at.token0(n), m.result);
          }
        }
      } else {
        store_rows(of.out.rows, at.token0(n), at.valid(n), at.column, m.result, at.crew());
      }
    }
    M::template wait_copied<0>(delta_tokens);
  }
}

// The state is dS^T / scale.
template <class Products, int D_k, int W>
__device__ void reverse(const DeltaStages& s, const Operands& of, const float* state_in, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  using M = Memory<Products, D_k, W>;
  const Part at(s, W, M::own());
  const int thread = threadIdx.x % 128, last = at.chunks - 1;
  M::init(raw);
  if (M::carries()) {
    share_registers<Products, W, registers_of_state>();
    const int row = Lane().row();
    const float inverse_scale = 1 / s.scale;
    Accumulator<D_k> state;
    state.fill(0);
    if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = inverse_scale * state_in[i]; });
    for (int n = last; n >= 0; --n) {
      const M m(raw, n);
      store(m.shadow(n), 0, state);
      m.meet(last - n);
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
      M::hand_over();

      const Operand<64> second = cuda::load_transposed<false>(m.result, m.second_weight).high;
      Products::start(state);
      Products::add_a_b(state, second, m.k);
      finish<Products>(state);
    }
    if (state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = s.scale * x; });
  } else {
    share_registers<Products, W, registers_of_partner>();
    if (at.chunks > 0) M(raw, last).fetch(s, at, last, of);
    for (int n = last; n >= 0; --n) {
      const M m(raw, n);
      M::template wait_copied<0>(at.valid(n));
      m.meet(last - n);
      if (n > 0) M(raw, n - 1).fetch(s, at, n - 1, of);
      M::write_tile(s.d_states, at.split_unit(s, n), m.shadow(n));
      M::receive();
      M::write_tile(s.d_rhs, at.split_unit(s, n), m.result);
    }
    M::template wait_copied<0>(delta_tokens);
  }
}

// Two blocks of the smallest fit on a multiprocessor.
template <bool Wgmma, bool Reverse, int D_k, int W>
__global__ void __launch_bounds__(256 * W, D_k* W == 64 ? 2 : 1)
    delta_sweep_kernel(const __grid_constant__ DeltaStages s, const __grid_constant__ Operands of,
                       const float* state_in, float* state_out) {
  using Products = ProductsOf<Wgmma>;
  if constexpr (Reverse)
    reverse<Products, D_k, W>(s, of, state_in, state_out);
  else
    forward<Products, D_k, W>(s, of, state_in, state_out);
}

// launchers

template <bool Wgmma, bool Reverse, int D_k, int W>
void launch(const DeltaStages& s, const Operands& of, const float* state_in, float* state_out,
            cudaStream_t stream) {
  using M = Memory<std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>, D_k, W>;
  constexpr auto kernel = delta_sweep_kernel<Wgmma, Reverse, D_k, W>;
  allow_shared<kernel, M::bytes>("delta rule (sweep)");
  kernel<<<s.documents * s.heads*(s.d_v / (64 * W)), M::threads, M::bytes, stream>>>(s, of, state_in,
                                                                                     state_out);
  check_cuda(cudaGetLastError(), "delta rule (sweep)");
}

// Blocks are narrow where each has a multiprocessor for itself even so.
template <bool Wgmma, bool Reverse, int D_k, class... Arguments>
void launch(const DeltaStages& s, const Arguments&... arguments) {
  const int narrow = s.documents * s.heads * (s.d_v / 64);
  if (s.d_v == 64 || narrow <= device_attribute(cudaDevAttrMultiProcessorCount))
    launch<Wgmma, Reverse, D_k, 1>(s, arguments...);
  else
    launch<Wgmma, Reverse, D_k, 2>(s, arguments...);
}

template <bool Reverse>
void launch(const DeltaStages& s, bool wgmma, const Operands& of, const float* state_in, float* state_out,
            cudaStream_t stream) {
  if (wgmma)
    s.d_k == 64 ? launch<true, Reverse, 64>(s, of, state_in, state_out, stream)
                : launch<true, Reverse, 128>(s, of, state_in, state_out, stream);
  else
    s.d_k == 64 ? launch<false, Reverse, 64>(s, of, state_in, state_out, stream)
                : launch<false, Reverse, 128>(s, of, state_in, state_out, stream);
}

}  // namespace

void delta_forward(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                   const MappedRows& v, const float* state_in, MutableRows o, float* state_out,
                   cudaStream_t stream) {
  launch<false>(s, wgmma, {q, k, v, mapped(s, wgmma, o, s.d_v)}, state_in, state_out, stream);
}

void delta_reverse(const DeltaStages& s, bool wgmma, const MappedRows& q, const MappedRows& k,
                   const MappedRows& d_o, const float* d_state_in, float* d_state_out, cudaStream_t stream) {
  launch<true>(s, wgmma, {q, k, d_o, {}}, d_state_in, d_state_out, stream);
}

}  // namespace weft::cuda
