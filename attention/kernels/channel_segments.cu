// The state that each segment leaves behind it (segments.h), with a gate for each channel of the keys.

#include <type_traits>

#include "attention/kernels/channel_tiles.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/segments.h"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

namespace {

// A block has 64 columns of c to a warpgroup.
template <int D_a, int W>
struct ChannelSegmentMemory {
  static constexpr int stages = 3, threads = 128 * W;
  static constexpr int b_bytes = Tile<chunk, D_a>::bytes, c_bytes = Tile<chunk, 64 * W>::bytes;
  static constexpr int stage_bytes = b_bytes + c_bytes + Gates<D_a>::bytes;
  static constexpr int runs = threads / (D_a / 2);  // of tokens, to share a chunk's decays
  static constexpr int bytes = stages * stage_bytes + (runs + 1) * D_a * 4;
};

// kernels

template <bool Wgmma, int D_a, int W>
__global__ void __launch_bounds__(128 * W, 2 / W)
    channel_segment_states_kernel(const __grid_constant__ SegmentStates p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
  using Products = WarpProducts;
#endif
  using M = ChannelSegmentMemory<D_a, W>;
  const Sweeps& s = p.sweeps;
  const int unit = blockIdx.x, group = threadIdx.x / 128;
  const Place at{s, s.sweep[0], unit / s.heads, unit % s.heads, 64 * group};
  const bool reverse = at.sweep.reverse;
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;

  extern __shared__ __align__(1024) char raw[];
  auto* const run_decays = reinterpret_cast<float2*>(raw + M::stages * M::stage_bytes);  // (runs, D_a / 2)
  auto* const chunk_decay = run_decays + M::runs * (D_a / 2);                            // (D_a / 2)
  struct Stage {
    Tile<chunk, D_a> b;
    Tile<chunk, 64 * W> c;
    Gates<D_a> gates;
  };
  auto stage = [&](int n) {
    const uint32_t b = shared_address(raw) + n % M::stages * M::stage_bytes;
    return Stage{{b}, {b + M::b_bytes}, {b + M::b_bytes + M::c_bytes}};
  };
  auto fetch = [&](int n) {
    if (n < chunks) {
      const Stage g = stage(n);
      const int64_t token0 = range.x + int64_t(reverse ? chunks - 1 - n : n) * chunk;
      const int valid = min(chunk, int(range.x + range.y - token0));
      copy_in<M::threads>(g.b, at.sweep.b, token0, valid, int64_t(at.head) * D_a);
      copy_in<M::threads>(g.c, at.sweep.c, token0, valid, int64_t(at.head) * s.d_c);
      copy_in<M::threads>(g.gates, s.log_decay, int64_t(s.heads) * D_a, token0, valid,
                          int64_t(at.head) * D_a);
    }
    commit_copies();
  };

  // This thread's share of the decays: two channels of a run of tokens.
  constexpr int tokens = chunk / M::runs;
  const int pair = threadIdx.x % (D_a / 2), run = threadIdx.x / (D_a / 2), token0 = run * tokens;

  StatePart<Products, D_a, 1, false> part;
  part.load(at);
  auto& state = part.state[0][0];
  float2 total{1, 1};  // of the pair's channels, since the segment's start
  for (int n = 0; n < M::stages - 1; ++n) fetch(n);
  for (int n = 0; n < chunks; ++n) {
    const Stage g = stage(n);
    wait_copies<M::stages - 2>();
    __syncthreads();
    fetch(n + M::stages - 1);
    float2 own[tokens], way{1, 1};
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      const float2 gate = load_shared_pair(g.gates.at(token0 + i, 2 * pair));
      own[i] = {decay_of(gate.x), decay_of(gate.y)};
      way = multiply(way, own[i]);
    }
    run_decays[run * (D_a / 2) + pair] = way;
    __syncthreads();
    way = {1, 1};
    float2 all{1, 1};  // of the chunk
#pragma unroll
    for (int r = 0; r < M::runs; ++r) {
      const float2 of = run_decays[r * (D_a / 2) + pair];
      all = multiply(all, of);
      if (reverse ? r < run : r > run) way = multiply(way, of);
    }
    total = multiply(total, all);
    if (run == 0) chunk_decay[pair] = all;
      // b carried to the chunk's far border: backward that is its start, and a token's own gate is on its way
#pragma unroll
    for (int k = 0; k < tokens; ++k) {
      const int i = reverse ? k : tokens - 1 - k;
      const uint32_t place = g.b.at(token0 + i, pair / 4) + pair % 4 * 4;
      const float2 step = reverse ? own[k] : own[tokens - 1 - k];
      if (reverse) way = multiply(way, step);
      store_shared(place, weighted(load_shared_word(place), way));
      if (!reverse) way = multiply(way, step);
    }
    const Operand<chunk> c = load_turned(g.c.template part<64>(group));
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if (Wgmma) publish_shared();
#endif
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D_a / 8; ++i) {
      const float2 by = chunk_decay[4 * i + Lane().t];
      state.x[i][0] *= by.x, state.x[i][1] *= by.y, state.x[i][2] *= by.x, state.x[i][3] *= by.y;
    }
    Products::start(state);
    Products::add_a_b(state, c, g.b);
    Products::commit();
    Products::template wait<0>();
    Products::settle(state);
  }
  part.finish(at);
  if (run == 0) reinterpret_cast<float2*>(p.decay)[int64_t(unit) * (D_a / 2) + pair] = total;
}

// launchers

template <bool Wgmma, int D_a, int W>
void launch(const SegmentStates& p, cudaStream_t stream) {
  constexpr auto kernel = channel_segment_states_kernel<Wgmma, D_a, W>;
  using M = ChannelSegmentMemory<D_a, W>;
  allow_shared<kernel, M::bytes>("linear attention (segment states)");
  const Sweeps& s = p.sweeps;
  kernel<<<s.documents * s.heads, M::threads, M::bytes, stream>>>(p);
  check_cuda(cudaGetLastError(), "linear attention (segment states)");
}

template <bool Wgmma>
void launch(const SegmentStates& p, cudaStream_t stream) {
  if (p.sweeps.d_a == 64)
    p.sweeps.d_c == 64 ? launch<Wgmma, 64, 1>(p, stream) : launch<Wgmma, 64, 2>(p, stream);
  else
    p.sweeps.d_c == 64 ? launch<Wgmma, 128, 1>(p, stream) : launch<Wgmma, 128, 2>(p, stream);
}

}  // namespace

void channel_segment_states(const SegmentStates& p, bool wgmma, cudaStream_t stream) {
  wgmma ? launch<true>(p, stream) : launch<false>(p, stream);
}

}  // namespace weft::cuda
