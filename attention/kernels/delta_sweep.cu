// The two stages of the chunked delta rule that go chunk by chunk (delta_rule.md). A block has one document,
// one head and 64 columns of v, or 128 by two warpgroups for every 64 of them (delta_sweep_wide.cuh), or,
// where there are so few blocks that each has an SM for itself, 64 by two (delta_sweep_apart.cuh). Here one
// warpgroup holds the state of 64 transposed in registers, in f32, and products read a bf16 shadow of it in
// shared memory. Tiles of the next chunk are fetched as soon as this chunk is done with their place; two
// blocks of an SM overlap each other.

#include <utility>

#include "attention/kernels/delta_sweep_apart.cuh"
#include "attention/kernels/delta_sweep_wide.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

// kernels

namespace {

template <int D_k>
struct Memory {
  Tile<64, D_k> q, k, shadow;
  SquareTile v, between, inverse, scores;  // v or do; what lies between two products
  float *level, *beta, *weight, *second_weight;

  static constexpr int bytes = 3 * Tile<64, D_k>::bytes + 4 * SquareTile::bytes + 4 * 64 * 4;

  __device__ explicit Memory(char* raw) {
    uint32_t next = shared_address(raw);
    auto take = [&](int size) { return std::exchange(next, next + size); };
    q.address = take(q.bytes), k.address = take(k.bytes), shadow.address = take(k.bytes);
    v.address = take(v.bytes), between.address = take(v.bytes);
    inverse.address = take(v.bytes), scores.address = take(v.bytes);
    level = reinterpret_cast<float*>(raw + (next - shared_address(raw)));
    beta = level + 64, weight = level + 128, second_weight = level + 192;
  }
  __device__ float total() const { return level[63]; }
};

template <class Products, int D_k>
__device__ void forward(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& v,
                        const float* state_in, const MutableRows& o, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  const Memory<D_k> m(raw);
  const Part at(s, 1);
  const int row = Lane().row();
  const int64_t column_k = int64_t(at.head) * D_k;
  auto fetch_first = [&](int n) {
    fetch_rows(m.k, k, at.token0(n), at.valid(n), column_k);
    fetch_rows(m.q, q, at.token0(n), at.valid(n), column_k);
    fetch_tile(m.inverse, s.inverse, at.unit(s, n));
    fetch_gates(s, m.level, at.unit(s, n));
  };
  auto fetch_last = [&](int n) {
    fetch_rows(m.v, v, at.token0(n), at.valid(n), at.column, at.crew());
    fetch_tile(m.scores, s.scores, at.unit(s, n));
  };
  Accumulator<D_k> state;
  state.fill(0);
  if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = state_in[i]; });
  if (at.chunks > 0) fetch_first(0), fetch_last(0);
  store(m.shadow, 0, state);
  for (int n = 0; n < at.chunks; ++n) {
    wait_fetched();
    publish_tiles<Products>();
    if (threadIdx.x < 64) m.weight[threadIdx.x] = exp2_fast(m.total() - m.level[threadIdx.x]);

    Accumulator<64> x;
    Products::start(x);
    Products::a_bt(x, TileRows<64, D_k>(m.k, 0), m.shadow, false);
    finish<Products>(x);
    correct(x, m.v, m.level, m.beta);
    store(m.between, 0, x);
    if (s.states) store_tile(s.states, at.split_unit(s, n), m.shadow, at.crew());
    publish_tiles<Products>(false);

    x.fill(0);  // U
    Products::start(x);
    Products::add_a_b(x, load(m.inverse), m.between);
    finish<Products>(x);
    store(m.v, 0, x);  // in v's place
    publish_tiles<Products>(false);

    const float total = exp2_fast(m.total());
    const Operand<64> weighted = cuda::load_transposed<false>(m.v, m.weight).high;
    state.scale(total, total);
    Products::start(state);
    Products::add_a_b(state, weighted, m.k);
    Products::start(x);
    Products::a_bt(x, TileRows<64, D_k>(m.q, 0), m.shadow, false);  // o
    finish<Products>(x, state);
    x.scale(s.scale * exp2_fast(m.level[row]), s.scale * exp2_fast(m.level[row + 8]));
    __syncthreads();
    if (n + 1 < at.chunks) fetch_first(n + 1);

    Products::start(x);
    Products::add_a_b(x, load(m.scores), m.v);
    Products::commit();
    store(m.shadow, 0, state);
    if (s.writes) store_tile(s.writes, at.split_unit(s, n), m.v, at.crew());
    finish<Products>(x);
    store(m.between, 0, x);
    __syncthreads();
    if (n + 1 < at.chunks) fetch_last(n + 1);
    store_rows(o, at.token0(n), at.valid(n), at.column, m.between, at.crew());
  }
  if (state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = x; });
}

// The state is dS^T / scale.
template <class Products, int D_k>
__device__ void reverse(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& d_o,
                        const float* state_in, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  const Memory<D_k> m(raw);
  const Part at(s, 1);
  const int row = Lane().row();
  const int64_t column_k = int64_t(at.head) * D_k;
  const float inverse_scale = 1 / s.scale;
  auto fetch_first = [&](int n) {
    fetch_rows(m.q, q, at.token0(n), at.valid(n), column_k);
    fetch_rows(m.v, d_o, at.token0(n), at.valid(n), at.column, at.crew());
    fetch_tile(m.scores, s.scores, at.unit(s, n));
  };
  auto fetch_last = [&](int n) {
    fetch_rows(m.k, k, at.token0(n), at.valid(n), column_k);
    fetch_tile(m.inverse, s.inverse, at.unit(s, n));
    fetch_gates(s, m.level, at.unit(s, n));
  };
  Accumulator<D_k> state;
  state.fill(0);
  if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = inverse_scale * state_in[i]; });
  if (at.chunks > 0) fetch_first(at.chunks - 1), fetch_last(at.chunks - 1);
  for (int n = at.chunks - 1; n >= 0; --n) {
    store(m.shadow, 0, state);
    wait_fetched();
    publish_tiles<Products>();
    if (threadIdx.x < 64) {
      const float decay = exp2_fast(m.level[threadIdx.x]);
      m.weight[threadIdx.x] = decay;
      m.second_weight[threadIdx.x] = -inverse_scale * decay * m.beta[threadIdx.x];
    }
    Accumulator<64> x;  // dU
    Products::start(x);
    Products::a_bt(x, TileRows<64, D_k>(m.k, 0), m.shadow, false);
    finish<Products>(x);
    x.scale(s.scale * exp2_fast(m.total() - m.level[row]), s.scale * exp2_fast(m.total() - m.level[row + 8]));
    Products::start(x);
    Products::add_a_b(x, load_transposed(m.scores), m.v);
    Products::commit();
    store_tile(s.d_states, at.split_unit(s, n), m.shadow, at.crew());
    finish<Products>(x);
    store(m.between, 0, x);
    publish_tiles<Products>();  // of the weights, too

    const float total = exp2_fast(m.total());
    state.scale(total, total);
    const Operand<64> weighted = cuda::load_transposed<false>(m.v, m.weight).high;
    x.fill(0);  // R
    Products::start(state), Products::start(x);
    Products::add_a_b(x, load_transposed(m.inverse), m.between);
    Products::add_a_b(state, weighted, m.q);
    finish<Products>(state, x);
    __syncthreads();
    if (n > 0) fetch_first(n - 1);
    store(m.between, 0, x);
    publish_tiles<Products>(false);

    const Operand<64> second = cuda::load_transposed<false>(m.between, m.second_weight).high;
    Products::start(state);
    Products::add_a_b(state, second, m.k);
    Products::commit();
    store_tile(s.d_rhs, at.split_unit(s, n), m.between, at.crew());
    finish<Products>(state);
    __syncthreads();
    if (n > 0) fetch_last(n - 1);
  }
  if (state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = s.scale * x; });
}

// A block has 64 W columns of v.
template <int W, bool Apart>
constexpr int threads_of = Apart ? 256 * W : 128;

template <bool Wgmma, int D_k, int W, bool Apart>
__global__ void __launch_bounds__(threads_of<W, Apart>, Apart ? 1 : 2)
    delta_forward_kernel(const __grid_constant__ DeltaStages s, Rows q, Rows k, Rows v, const float* state_in,
                         MutableRows o, float* state_out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
  using Products = WarpProducts;
#endif
  if constexpr (W == 2)
    forward_wide<Products, D_k>(s, q, k, v, state_in, o, state_out);
  else if constexpr (Apart)
    forward_apart<Products, D_k>(s, q, k, v, state_in, o, state_out);
  else
    forward<Products, D_k>(s, q, k, v, state_in, o, state_out);
}
template <bool Wgmma, int D_k, int W, bool Apart>
__global__ void __launch_bounds__(threads_of<W, Apart>, Apart ? 1 : 2)
    delta_reverse_kernel(const __grid_constant__ DeltaStages s, Rows q, Rows k, Rows d_o,
                         const float* state_in, float* state_out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
  using Products = WarpProducts;
#endif
  if constexpr (W == 2)
    reverse_wide<Products, D_k>(s, q, k, d_o, state_in, state_out);
  else if constexpr (Apart)
    reverse_apart<Products, D_k>(s, q, k, d_o, state_in, state_out);
  else
    reverse<Products, D_k>(s, q, k, d_o, state_in, state_out);
}

// launchers

template <auto kernel, int D_k, int W, bool Apart, class... Arguments>
void launch(const DeltaStages& s, cudaStream_t stream, Arguments... arguments) {
  constexpr int bytes = !Apart   ? Memory<D_k>::bytes
                        : W == 2 ? WideMemory<D_k>::bytes
                                 : ApartMemory<D_k>::bytes;
  allow_shared<kernel, bytes>("delta rule (sweep)");
  kernel<<<s.documents * s.heads*(s.d_v / (64 * W)), threads_of<W, Apart>, bytes, stream>>>(s, arguments...);
  check_cuda(cudaGetLastError(), "delta rule (sweep)");
}

// f<wgmma, d_k, W, apart>(): with few heads, blocks are narrow, so that there are enough of them.
template <class F>
void with_shape(const DeltaStages& s, bool wgmma, F f) {
  constexpr int few = 100;  // blocks
  const int units = s.documents * s.heads;
  const bool wide = s.d_v == 128 && units > few,
             alone = units * (s.d_v / 64) <= device_attribute(cudaDevAttrMultiProcessorCount);
  auto with_w = [&]<bool Wgmma, int D_k>() {
    if (wide)
      f.template operator()<Wgmma, D_k, 2, true>();
    else
      alone ? f.template operator()<Wgmma, D_k, 1, true>() : f.template operator()<Wgmma, D_k, 1, false>();
  };
  auto with_d_k = [&]<bool Wgmma>() {
    s.d_k == 64 ? with_w.template operator()<Wgmma, 64>() : with_w.template operator()<Wgmma, 128>();
  };
  wgmma ? with_d_k.template operator()<true>() : with_d_k.template operator()<false>();
}

}  // namespace

void delta_forward(const DeltaStages& s, bool wgmma, Rows q, Rows k, Rows v, const float* state_in,
                   MutableRows o, float* state_out, cudaStream_t stream) {
  with_shape(s, wgmma, [&]<bool Wgmma, int D_k, int W, bool Apart>() {
    launch<delta_forward_kernel<Wgmma, D_k, W, Apart>, D_k, W, Apart>(s, stream, q, k, v, state_in, o,
                                                                      state_out);
  });
}

void delta_reverse(const DeltaStages& s, bool wgmma, Rows q, Rows k, Rows d_o, const float* d_state_in,
                   float* d_state_out, cudaStream_t stream) {
  with_shape(s, wgmma, [&]<bool Wgmma, int D_k, int W, bool Apart>() {
    launch<delta_reverse_kernel<Wgmma, D_k, W, Apart>, D_k, W, Apart>(s, stream, q, k, d_o, d_state_in,
                                                                      d_state_out);
  });
}

}  // namespace weft::cuda
