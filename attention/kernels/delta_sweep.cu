// The two stages of the chunked delta rule that go chunk by chunk (README, "The delta rule"). A block, one
// warpgroup, has one document, one head and 64 columns of v; the state lies transposed in its registers, in
// f32, and products read a bf16 shadow of it in shared memory. Blocks of an SM overlap one another.

#include <utility>

#include "attention/kernels/delta_chunk.cuh"

namespace weft::cuda {

// kernels

namespace {

// Whose document, head and columns of v a block has.
struct Part {
  int document, head, column0;
  int64_t column;  // of v's rows
  int first, length, chunks;
  int64_t slot0;

  __device__ explicit Part(const DeltaStages& s) {
    const int splits = s.d_v / 64, of = blockIdx.x / splits;
    document = of / s.heads, head = of % s.heads;
    column0 = blockIdx.x % splits * 64, column = int64_t(head) * s.d_v + column0;
    const int2 range = document_range(s, document);
    first = range.x, length = range.y, chunks = (length + delta_tokens - 1) / delta_tokens;
    slot0 = slot_of(first, document, 0);
  }
  __device__ int64_t token0(int chunk) const { return first + int64_t(chunk) * delta_tokens; }
  __device__ int valid(int chunk) const { return min(delta_tokens, length - chunk * delta_tokens); }
  // Of a chunk's part of what stages keep.
  __device__ int64_t unit(const DeltaStages& s, int chunk) const { return (slot0 + chunk) * s.heads + head; }
  __device__ int64_t split_unit(const DeltaStages& s, int chunk) const {
    return unit(s, chunk) * (s.d_v / 64) + column0 / 64;
  }
};

template <int D_k>
struct Memory {
  Tile<64, D_k> q, k, shadow;
  SquareTile v, inverse, between;  // v: or do. `between` products
  float *level, *beta, *total, *weight, *second_weight;

  static constexpr int bytes = 3 * Tile<64, D_k>::bytes + 3 * SquareTile::bytes + 4 * 64 * 4;

  __device__ explicit Memory(char* raw) {
    uint32_t next = shared_address(raw);
    auto take = [&](int size) { return std::exchange(next, next + size); };
    q.address = take(q.bytes), k.address = take(k.bytes), shadow.address = take(k.bytes);
    v.address = take(v.bytes), inverse.address = take(v.bytes), between.address = take(v.bytes);
    level = reinterpret_cast<float*>(raw + (next - shared_address(raw)));
    beta = level + 64, weight = level + 128, second_weight = level + 192;
    total = level + 63;
  }
  // Everything a chunk needs.
  __device__ void fetch(const DeltaStages& s, const Part& at, int chunk, const Rows& q_rows,
                        const Rows& k_rows, const Rows& v_rows) const {
    const int64_t token0 = at.token0(chunk), unit = at.unit(s, chunk);
    const int valid = at.valid(chunk);
    fetch_rows(k, k_rows, token0, valid, int64_t(at.head) * D_k);
    fetch_rows(v, v_rows, token0, valid, at.column);
    fetch_rows(q, q_rows, token0, valid, int64_t(at.head) * D_k);
    fetch_image(inverse.address, s.inverse + unit * inverse.bytes, inverse.bytes);
    fetch_image(shared_address(level), s.gates + unit * 128, 128 * 4);
  }
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

// mid = beta_i (v_i - exp(c_i) answer_i): what a chunk would write if its keys were strangers.
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

template <class Products, int D_k>
__device__ void forward(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& v,
                        const float* state_in, const MutableRows& o, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  const Memory<D_k> m(raw);
  const Part at(s);
  const int row = Lane().row();
  Accumulator<D_k> state;
  state.fill(0);
  if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = state_in[i]; });
  if (at.chunks > 0) m.fetch(s, at, 0, q, k, v);
  for (int n = 0; n < at.chunks; ++n) {
    store(m.shadow, 0, state);
    wait_fetched();
    publish_tiles<Products>();
    if (threadIdx.x < 64) m.weight[threadIdx.x] = exp2_fast(*m.total - m.level[threadIdx.x]);
    if (s.states)
      store_image(s.states + at.split_unit(s, n) * m.shadow.bytes, m.shadow.address, m.shadow.bytes);

    Accumulator<64> out;
    Operand<64> p;
    {
      Accumulator<64> mid;
      Operand<D_k> left = load(m.k);
      Products::start(mid);
      Products::a_bt(mid, left, m.shadow, false);
      finish<Products>(mid);
      correct(mid, m.v, m.level, m.beta);
      store(m.between, 0, mid);

      left = load(m.q);
      Products::start(mid), Products::start(out);
      Products::a_bt(mid, left, m.k, false);
      Products::a_bt(out, left, m.shadow, false);
      finish<Products>(mid, out);
      out.scale(s.scale * exp2_fast(m.level[row]), s.scale * exp2_fast(m.level[row + 8]));
      p = weigh<false, false>(mid, m.level, s.scale);
    }
    publish_tiles<Products>();

    Accumulator<64> writes;
    writes.fill(0);
    Products::start(writes);
    Products::add_a_b(writes, load(m.inverse), m.between);
    finish<Products>(writes);
    store(m.v, 0, writes);  // in v's place
    publish_tiles<Products>();

    Products::start(out);
    Products::add_a_b(out, p, m.v);
    Products::commit();
    const Operand<64> weighted = cuda::load_transposed<false>(m.v, m.weight).high;
    const float total = exp2_fast(*m.total);
    state.scale(total, total);
    Products::start(state);
    Products::add_a_b(state, weighted, m.k);
    finish<Products>(state, out);
    if (s.writes) store_image(s.writes + at.split_unit(s, n) * m.v.bytes, m.v.address, m.v.bytes);
    store(m.between, 0, out);
    __syncthreads();
    if (n + 1 < at.chunks) m.fetch(s, at, n + 1, q, k, v);
    store_rows(o, at.token0(n), at.valid(n), at.column, m.between);
  }
  if (state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = x; });
}

// The state is dS^T / scale.
template <class Products, int D_k>
__device__ void reverse(const DeltaStages& s, const Rows& q, const Rows& k, const Rows& d_o,
                        const float* state_in, float* state_out) {
  extern __shared__ __align__(1024) char raw[];
  const Memory<D_k> m(raw);
  const Part at(s);
  const int row = Lane().row();
  const float inverse_scale = 1 / s.scale;
  Accumulator<D_k> state;
  state.fill(0);
  if (state_in) each(state, s, at, [&](float& x, int64_t i) { x = inverse_scale * state_in[i]; });
  if (at.chunks > 0) m.fetch(s, at, at.chunks - 1, q, k, d_o);
  for (int n = at.chunks - 1; n >= 0; --n) {
    store(m.shadow, 0, state);
    wait_fetched();
    publish_tiles<Products>();
    if (threadIdx.x < 64) {
      const float decay = exp2_fast(m.level[threadIdx.x]);
      m.weight[threadIdx.x] = decay;
      m.second_weight[threadIdx.x] = -inverse_scale * decay * m.beta[threadIdx.x];
    }
    store_image(s.d_states + at.split_unit(s, n) * m.shadow.bytes, m.shadow.address, m.shadow.bytes);

    Accumulator<64> out;  // dU
    {
      Accumulator<64> scores;
      const Operand<D_k> left = load(m.k);
      Products::start(scores), Products::start(out);
      Products::a_bt(scores, left, m.q, false);
      Products::a_bt(out, left, m.shadow, false);
      finish<Products>(scores, out);
      out.scale(s.scale * exp2_fast(*m.total - m.level[row]),
                s.scale * exp2_fast(*m.total - m.level[row + 8]));
      const Operand<64> p = weigh<true, false>(scores, m.level, s.scale);
      Products::start(out);
      Products::add_a_b(out, p, m.v);
      finish<Products>(out);
    }
    const Operand<64> inverse = load_transposed(m.inverse);
    store(m.between, 0, out);
    publish_tiles<Products>();

    out.fill(0);  // R
    Products::start(out);
    Products::add_a_b(out, inverse, m.between);
    finish<Products>(out);
    store(m.inverse, 0, out);  // in its place
    publish_tiles<Products>();

    const float total = exp2_fast(*m.total);
    state.scale(total, total);
    Products::start(state);
    Products::add_a_b(state, cuda::load_transposed<false>(m.v, m.weight).high, m.q);
    Products::add_a_b(state, cuda::load_transposed<false>(m.inverse, m.second_weight).high, m.k);
    finish<Products>(state);
    store_image(s.d_rhs + at.split_unit(s, n) * m.v.bytes, m.inverse.address, m.v.bytes);
    __syncthreads();
    if (n > 0) m.fetch(s, at, n - 1, q, k, d_o);
  }
  if (state_out) each(state, s, at, [&](float& x, int64_t i) { state_out[i] = s.scale * x; });
}

template <bool Wgmma, int D_k>
__global__ void __launch_bounds__(128, 3)
    delta_forward_kernel(const __grid_constant__ DeltaStages s, Rows q, Rows k, Rows v, const float* state_in,
                         MutableRows o, float* state_out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
  using Products = WarpProducts;
#endif
  forward<Products, D_k>(s, q, k, v, state_in, o, state_out);
}
template <bool Wgmma, int D_k>
__global__ void __launch_bounds__(128, 3)
    delta_reverse_kernel(const __grid_constant__ DeltaStages s, Rows q, Rows k, Rows d_o,
                         const float* state_in, float* state_out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
  using Products = WarpProducts;
#endif
  reverse<Products, D_k>(s, q, k, d_o, state_in, state_out);
}

// launchers

template <int D_k, class Kernel, class... Arguments>
void launch(Kernel kernel, const DeltaStages& s, cudaStream_t stream, Arguments... arguments) {
  constexpr int bytes = Memory<D_k>::bytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "delta rule (sweep)");
  kernel<<<s.documents * s.heads*(s.d_v / 64), 128, bytes, stream>>>(s, arguments...);
  check_cuda(cudaGetLastError(), "delta rule (sweep)");
}

}  // namespace

void delta_forward(const DeltaStages& s, bool wgmma, Rows q, Rows k, Rows v, const float* state_in,
                   MutableRows o, float* state_out, cudaStream_t stream) {
  auto run = [&](auto narrow, auto wide) {
    if (s.d_k == 64)
      launch<64>(narrow, s, stream, q, k, v, state_in, o, state_out);
    else
      launch<128>(wide, s, stream, q, k, v, state_in, o, state_out);
  };
  if (wgmma)
    run(delta_forward_kernel<true, 64>, delta_forward_kernel<true, 128>);
  else
    run(delta_forward_kernel<false, 64>, delta_forward_kernel<false, 128>);
}

void delta_reverse(const DeltaStages& s, bool wgmma, Rows q, Rows k, Rows d_o, const float* d_state_in,
                   float* d_state_out, cudaStream_t stream) {
  auto run = [&](auto narrow, auto wide) {
    if (s.d_k == 64)
      launch<64>(narrow, s, stream, q, k, d_o, d_state_in, d_state_out);
    else
      launch<128>(wide, s, stream, q, k, d_o, d_state_in, d_state_out);
  };
  if (wgmma)
    run(delta_reverse_kernel<true, 64>, delta_reverse_kernel<true, 128>);
  else
    run(delta_reverse_kernel<false, 64>, delta_reverse_kernel<false, 128>);
}

}  // namespace weft::cuda
