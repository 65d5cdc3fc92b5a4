// Sweeps with a gate for each channel (channel_sweep.h) on tensor cores. A block of threads has one document
// and head and 64 columns of c to a warpgroup, whose state it holds transposed, and takes chunks of 64 tokens
// in two stages: most of them whole, those of far decays in blocks of 16 tokens.

#include <type_traits>

#include "attention/kernels/channel_anchored.cuh"
#include "attention/kernels/channel_gate_gradient.cuh"
#include "attention/kernels/channel_of_a.cuh"
#include "attention/kernels/channel_of_c.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

// kernels

namespace {

// Behind a barrier, products may read what this thread wrote to tiles.
template <class Products>
__device__ void publish_to() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (std::is_same_v<Products, WarpgroupProducts>) publish_shared();
#endif
}

// One warpgroup's share of P's columns, as pairs of bf16: of x, which all have, what tokens see.
template <bool Reverse, int W, class M>
__device__ void keep_scores(const Accumulator<chunk>& x, const M& memory) {
  const Lane lane;
  const int group = threadIdx.x / 128;
  float diagonal[2] = {};
  if constexpr (M::diagonal_parts > 0)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < W; ++i)
        diagonal[half] += load_shared_float(memory.diagonal(i, lane.row() + 8 * half));
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n) {
    if (n * W / 8 != group) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane.row() + 8 * half;
      float p[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = 8 * n + 2 * lane.t + j;
        p[j] = (Reverse ? column >= row : row >= column) ? x.x[n][2 * half + j] : 0;
        if (M::diagonal_parts > 0 && row == column) p[j] = diagonal[half];
      }
      const Split split(p[0], p[1]);
      const uint32_t to = memory.p(0).at(row, n) + 4 * lane.t;
      store_shared(to, split.high);
      store_shared(to + Tile<chunk, chunk>::bytes, split.rest);
    }
  }
}

// Of one warp, the tokens' rows of x^T, rounded, to the place of its 16 columns of c from column0 on.
template <int D_c>
__device__ void store_turned(Tile<chunk, D_c> c, const Accumulator<chunk>& x, int column0) {
  const int l = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < chunk / 8; n += 2)
    store_matrices_transposed(c.at(8 * (n + l / 16) + l % 8, column0 / 8 + l / 8 % 2),
                              {pack(x.x[n][0], x.x[n][1]), pack(x.x[n][2], x.x[n][3]),
                               pack(x.x[n + 1][0], x.x[n + 1][1]), pack(x.x[n + 1][2], x.x[n + 1][3])});
}

// A chunk of a sweep of_a. Its output takes c's place.
template <class Products, bool Reverse, int W, int D_a, class M>
__device__ void take_a(Accumulator<D_a>& state, const Place& at, const M& memory,
                       const typename M::Stage& g) {
  const Lane lane;
  const int warp = threadIdx.x / 32;
  AnchoredRows<Reverse, 128 * W, D_a> rows;
  rows.start(g, memory.scores().address);
  diagonal_part<4 * W, D_a>(memory, g, warp);
  __syncthreads();
  if (__syncthreads_or(rows.meet(memory.scores().address, memory.total(0, 0)))) {
    for (int task = warp; task < blocks * M::parts; task += 4 * W)
      prepare_a<Reverse>(memory, g, task / M::parts, task % M::parts);
    __syncthreads();
    if (warp < blocks) sum_scores(memory, warp);
    __syncthreads();
    for (int i = 0; i < blocks; ++i)
      step_a<Reverse>(state, at, memory, g, Reverse ? blocks - 1 - i : i, 16 * warp);
    return;
  }
  rows.carry(g);
  publish_to<Products>();
  __syncthreads();

  Accumulator<chunk> x;
  Products::start(x);
  Products::a_bt(x, TileRows<chunk, D_a>(g.a, 0), g.b, false);
  Products::commit();
  const Operand<chunk> c = load_turned(g.c.template part<64>(threadIdx.x / 128));
  auto scale_state = [&] {
#pragma unroll
    for (int n = 0; n < D_a / 8; ++n) {
      const float2 by = load_shared_pair(memory.total(0, 8 * n + 2 * lane.t));
      state.x[n][0] *= by.x, state.x[n][1] *= by.y, state.x[n][2] *= by.x, state.x[n][3] *= by.y;
    }
  };
  scale_state();
  Operand<D_a> rounded;
#pragma unroll
  for (int n = 0; n < D_a / 8; ++n) {
    uint32_t* const to = rounded.x[n / 2] + n % 2 * 2;
    to[0] = pack(state.x[n][0], state.x[n][1]), to[1] = pack(state.x[n][2], state.x[n][3]);
  }
  Products::template wait<0>();
  Products::settle(x);
  keep_scores<Reverse, W>(x, memory);
  publish_to<Products>();
  __syncthreads();

  Products::start(x), Products::start(state);
  Products::a_bt(x, rounded, g.a, false);
  Products::a_bt(x, c, memory.p(0), true);
  Products::a_bt(x, c, memory.p(1), true);
  Products::add_a_b(state, c, g.b);
  Products::commit();
  Products::template wait<0>();
  Products::settle(x), Products::settle(state);
  scale_state();
  x.scale(at.s.scale, at.s.scale);
  store_turned(g.c, x, 16 * warp);
}

// A chunk of a sweep of_c, with `valid` tokens from token0 on. Its output takes c's place. State and rows of
// c are read as pairs of bf16.
template <class Products, bool Reverse, int W, int D_a, class M>
__device__ void take_c(Accumulator<D_a>& state, GateGradientLane<Reverse>& gradient, const Place& at,
                       const M& memory, const typename M::Stage& g, int64_t token0, int valid) {
  const int warp = threadIdx.x / 32, group = threadIdx.x / 128, column0 = 16 * warp;
  Accumulator<chunk> x;
  Products::start(x);
  Products::a_bt(x, TileRows<chunk, D_a>(g.a, 0), g.b, false);
  Products::commit();
  AnchoredColumns<Reverse> columns;
  const bool far = columns.start(g, column0);
  Products::template wait<0>();
  Products::settle(x);
  if (__syncthreads_or(far)) {
    if (warp < blocks) prepare_c<Reverse, D_a>(memory, g, warp);
    __syncthreads();
    for (int i = 0; i < blocks; ++i)
      step_c<Reverse>(state, at, memory, g, Reverse ? blocks - 1 - i : i, column0);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x.x[n][i] = load_shared_float(columns.place(g, column0, i / 2, i % 2) + n * 1024);
    if (at.sweep.gate_gradient) gradient.fetch(at, 16 * (warp % 4), token0, valid);
  } else {
    keep_scores<Reverse, W>(x, memory);
    Operand<chunk> high, rest;
    columns.carry(g, column0, load_turned(g.c.template part<64>(group)), high, rest);
    const float middle[2] = {exp2_fast(columns.total[0] / 2), exp2_fast(columns.total[1] / 2)};
    state.scale(middle[0], middle[1]);
    Operand<D_a> cut, cut_rest;
#pragma unroll
    for (int n = 0; n < D_a / 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Split split(state.x[n][2 * half], state.x[n][2 * half + 1]);
        cut.x[n / 2][n % 2 * 2 + half] = split.high, cut_rest.x[n / 2][n % 2 * 2 + half] = split.rest;
      }
    publish_to<Products>();
    __syncthreads();

    Products::start(x), Products::start(state);
    Products::a_bt(x, cut, g.a, false);
    Products::a_bt(x, cut_rest, g.a, true);
    Products::a_bt(x, high, memory.p(0), true);
    Products::a_bt(x, rest, memory.p(0), true);
    Products::a_bt(x, high, memory.p(1), true);
    Products::commit();
    Products::add_a_b(state, high, g.b);
    Products::add_a_b(state, rest, g.b);
    Products::commit();
    Products::template wait<1>();
    Products::settle(x);
    if (at.sweep.gate_gradient) gradient.fetch(at, 16 * (warp % 4), token0, valid);
#pragma unroll
    for (int n = 0; n < chunk / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x.x[n][i] *=
            at.s.scale * exp2_fast(load_shared_float(columns.place(g, column0, i / 2, i % 2) + n * 1024));
    Products::template wait<0>();
    Products::settle(state);
    state.scale(middle[0], middle[1]);
  }
  store_turned(g.c, x, column0);
  if (at.sweep.gate_gradient) gradient.store(x, load_turned(g.dot.template part<64>(group)), valid);
}

template <bool Wgmma, GateOf gate, bool Reverse, int D_a, int W>
__global__ void __launch_bounds__(128 * W, 1) channel_sweep_kernel(const __grid_constant__ Sweeps s) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
  using Products = WarpProducts;
#endif
  constexpr int threads = 128 * W, D_c = 64 * W;
  using M = ChannelMemory<gate, D_a, D_c>;
  const int splits = s.d_c / D_c, warp = threadIdx.x / 32, unit = int(blockIdx.x) / splits;
  const int column0 = int(blockIdx.x) % splits * D_c;  // the block's; `at` is of the warpgroup
  const Place at{s, s.sweep[0], unit / s.heads, unit % s.heads, column0 + int(threadIdx.x) / 128 * 64};
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;
  auto first_token = [&](int n) { return int64_t(range.x) + (Reverse ? chunks - 1 - n : n) * chunk; };
  auto valid_tokens = [&](int n) { return min(chunk, int(range.x + range.y - first_token(n))); };

  extern __shared__ __align__(1024) char raw[];
  const M memory{shared_address(raw)};
  auto fetch = [&](int n) {
    if (n < chunks) {
      const typename M::Stage g = memory.stage(n);
      const int64_t token0 = first_token(n), column_a = int64_t(at.head) * D_a;
      const int64_t column_c = int64_t(at.head) * s.d_c + column0;
      const int valid = valid_tokens(n);
      copy_in<threads>(g.a, at.sweep.a, token0, valid, column_a);
      copy_in<threads>(g.b, at.sweep.b, token0, valid, column_a);
      copy_in<threads>(g.c, at.sweep.c, token0, valid, column_c);
      if constexpr (gate == GateOf::a) {
        copy_in<threads>(g.gates, s.log_decay, int64_t(s.heads) * D_a, token0, valid, column_a);
      } else {
        copy_in<threads>(g.gates, s.log_decay, int64_t(s.heads) * s.d_c, token0, valid, column_c);
        if (at.sweep.gate_gradient) copy_in<threads>(g.dot, at.sweep.dot, token0, valid, column_c);
      }
    }
    commit_copies();
  };

  // What dq left of the gate's gradient, on its way to this chunk's end.
  auto ask_for_gradient = [&](int64_t token0, int valid) {
    const int token = threadIdx.x / (2 * W), line = threadIdx.x % (2 * W);
    const float* const from = at.sweep.gate_gradient + (token0 + token) * s.heads * s.d_c +
                              int64_t(at.head) * s.d_c + column0 + line * 32;
    if (token < valid) asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
  };

  StatePart<Products, D_a, 1, false> part;
  part.load(at);
  GateGradientLane<Reverse> gradient;
  if (Reverse && gate == GateOf::c && at.sweep.end_sums) gradient.start(at, 16 * (warp % 4));
  fetch(0);
  fetch(1);
  for (int n = 0; n < chunks; ++n) {
    const typename M::Stage g = memory.stage(n);
    const int64_t token0 = first_token(n);
    const int valid = valid_tokens(n);
    if (gate == GateOf::c && Reverse && at.sweep.gate_gradient) ask_for_gradient(token0, valid);
    wait_copies<1>();
    publish_to<Products>();
    __syncthreads();
    if constexpr (gate == GateOf::a)
      take_a<Products, Reverse, W>(part.state[0][0], at, memory, g);
    else
      take_c<Products, Reverse, W>(part.state[0][0], gradient, at, memory, g, token0, valid);
    __syncwarp();
    auto* out = static_cast<__nv_bfloat16*>(at.sweep.out.data) + token0 * at.sweep.out.pitch +
                int64_t(at.head) * s.d_c + column0 + 16 * warp;
#pragma unroll
    for (int i = 0; i < chunk / 16; ++i) {
      const int row = i * 16 + threadIdx.x % 32 / 2, half = threadIdx.x % 2;
      if (row < valid)
        *reinterpret_cast<uint4*>(out + row * at.sweep.out.pitch + half * 8) =
            load_shared(g.c.at(row, 2 * warp + half));
    }
    __syncthreads();
    fetch(n + 2);
  }
  part.finish(at);
  if (gate == GateOf::c && !Reverse && at.sweep.end_dot) {  // for each column of c
    const Lane lane;
    const int64_t base = (int64_t(at.document) * s.heads + at.head) * s.d_c + at.column0 + lane.row();
    float sums[2] = {};
    int i = 0;
    part.each(at, [&](float& v, int64_t from) { sums[i++ / 2 % 2] += v * at.sweep.end_dot[from]; });
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(~0u, sums[half], 1);
      sums[half] += __shfl_xor_sync(~0u, sums[half], 2);
      if (lane.t == 0) at.sweep.end_sums[base + 8 * half] = sums[half];
    }
  }
}

// launchers

template <bool Wgmma, GateOf gate, bool Reverse, int D_a, int W>
void launch(const Sweeps& s, cudaStream_t stream) {
  constexpr auto kernel = channel_sweep_kernel<Wgmma, gate, Reverse, D_a, W>;
  constexpr int bytes = ChannelMemory<gate, D_a, 64 * W>::bytes;
  allow_shared<kernel, bytes>("channel gate");
  kernel<<<s.documents * s.heads*(s.d_c / (64 * W)), 128 * W, bytes, stream>>>(s);
  check_cuda(cudaGetLastError(), "channel gate");
}

// f.operator()<D_a, W>() of these widths.
template <class F>
auto with_widths(int d_a, int d_c, F f) {
  if (d_a == 64) return d_c == 64 ? f.template operator()<64, 1>() : f.template operator()<64, 2>();
  return d_c == 64 ? f.template operator()<128, 1>() : f.template operator()<128, 2>();
}

template <bool Wgmma, GateOf gate, bool Reverse>
void launch(const Sweeps& s, cudaStream_t stream) {
  // Few heads leave multiprocessors idle, and what a warpgroup does for its own columns may be spread over
  // them. What all columns need is done twice then: too much where the gate is of a.
  const bool few = 2 * s.documents * s.heads <= device_attribute(cudaDevAttrMultiProcessorCount);
  with_widths(s.d_a, gate == GateOf::c && few ? 64 : s.d_c,
              [&]<int D_a, int W>() { launch<Wgmma, gate, Reverse, D_a, W>(s, stream); });
}

template <bool Wgmma>
void launch(const Sweeps& s, GateOf gate, cudaStream_t stream) {
  const bool reverse = s.sweep[0].reverse;
  if (gate == GateOf::a)
    reverse ? launch<Wgmma, GateOf::a, true>(s, stream) : launch<Wgmma, GateOf::a, false>(s, stream);
  else
    reverse ? launch<Wgmma, GateOf::c, true>(s, stream) : launch<Wgmma, GateOf::c, false>(s, stream);
}

}  // namespace

void channel_sweep_tiles(const Sweeps& s, GateOf gate, bool wgmma, cudaStream_t stream) {
  CHECK((s.d_a == 64 || s.d_a == 128) && (s.d_c == 64 || s.d_c == 128), "channel gate: widths ", s.d_a, ", ",
        s.d_c);
  wgmma ? launch<true>(s, gate, stream) : launch<false>(s, gate, stream);
}

int channel_sweep_bytes(int d_k, int d_v) {
  const int of_a =
      with_widths(d_k, d_v, [&]<int D_a, int W>() { return ChannelMemory<GateOf::a, D_a, 64 * W>::bytes; });
  const int of_c =
      with_widths(d_v, d_k, [&]<int D_a, int W>() { return ChannelMemory<GateOf::c, D_a, 64 * W>::bytes; });
  return std::max(of_a, of_c);
}

}  // namespace weft::cuda
