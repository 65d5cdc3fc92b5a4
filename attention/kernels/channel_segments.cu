// The state that each segment leaves behind it (segments.h), with a gate for each channel of the keys.

#include "attention/kernels/channel_maps.cuh"
#include "attention/kernels/segments.h"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

namespace {

// A block has D of the channels of b and 64 columns of c to a warpgroup.
template <int D, int W>
struct ChannelSegmentMemory {
  static constexpr int stages = 3, threads = 128 * W;
  static constexpr int b_bytes = Tile<chunk, D>::bytes, c_bytes = Tile<chunk, 64 * W>::bytes;
  static constexpr int stage_bytes = b_bytes + c_bytes + Gates<D>::bytes;
  static constexpr int runs = threads / (D / 2);  // of tokens, to share a chunk's decays
  static constexpr int barriers_at = stages * stage_bytes + runs * D * 4;
  static constexpr int bytes = barriers_at + stages * 8;
};

struct ChannelSegmentMaps {
  CUtensorMap b, c, gates;
};

// kernels

// From the border that the state is wanted at to the other one: a row is carried all the way by one weight,
// the state is never scaled, and where no channel has any weight left it ends.
template <bool Wgmma, int D, int W>
__global__ void __launch_bounds__(128 * W, 1)
    channel_segment_states_kernel(const __grid_constant__ SegmentStates p,
                                  const __grid_constant__ ChannelSegmentMaps maps) {
  using Products = ProductsOf<Wgmma>;
  constexpr bool tma = by_tma<Products>;
  using M = ChannelSegmentMemory<D, W>;
  const Sweeps& s = p.sweeps;
  const int splits = s.d_a / D, unit = int(blockIdx.x) / splits, group = threadIdx.x / 128;
  const int channel0 = int(blockIdx.x) % splits * D;
  const Place at{s, s.sweep[0], unit / s.heads, unit % s.heads, 64 * group};
  if (p.unwanted(at.document)) return;
  const bool reverse = at.sweep.reverse;
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;
  const int64_t column_b = int64_t(at.head) * s.d_a + channel0;

  extern __shared__ __align__(1024) char raw[];
  auto* const run_decays = reinterpret_cast<float2*>(raw + M::stages * M::stage_bytes);  // (runs, D / 2)
  struct Stage {
    Tile<chunk, D> b;
    Tile<chunk, 64 * W> c;
    Gates<D> gates;
  };
  auto stage = [&](int n) {
    const uint32_t b = shared_address(raw) + n % M::stages * M::stage_bytes;
    return Stage{{b}, {b + M::b_bytes}, {b + M::b_bytes + M::c_bytes}};
  };
  auto first_token = [&](int n) { return range.x + int64_t(reverse ? n : chunks - 1 - n) * chunk; };
  auto valid_tokens = [&](int n) { return min(chunk, int(range.x + range.y - first_token(n))); };
  // Such chunks travel by TMA; what is left of a segment is copied by its threads.
  auto whole = [&](int n) { return tma && valid_tokens(n) == chunk; };
  auto barrier = [&](int n) { return Barrier{shared_address(raw) + M::barriers_at + n % M::stages * 8}; };
  auto fetch = [&](int n) {
    if (n < chunks) {
      const Stage g = stage(n);
      const int64_t token0 = first_token(n);
      if (!whole(n)) {
        const int valid = valid_tokens(n);
        copy_in<M::threads>(g.b, at.sweep.b, token0, valid, column_b);
        copy_in<M::threads>(g.c, at.sweep.c, token0, valid, int64_t(at.head) * s.d_c);
        copy_in<M::threads>(g.gates, s.log_decay, int64_t(s.heads) * s.d_a, token0, valid, column_b);
      } else if constexpr (tma) {
        if (threadIdx.x == 0) {
          barrier(n).arrive_and_expect(M::stage_bytes);
          load_parts(g.b, maps.b, channel0, at.head, token0, barrier(n));
          load_parts(g.c, maps.c, 0, at.head, token0, barrier(n));
          load_parts(g.gates, maps.gates, channel0, at.head, token0, barrier(n));
        }
      }
    }
    commit_copies();
  };
  uint32_t phases = 0;  // of the barriers, a bit each
  auto wait = [&](int n) {
    if (whole(n)) {
      if constexpr (tma) barrier(n).wait(phases >> n % M::stages & 1);
      phases ^= 1u << n % M::stages;
    } else {
      wait_copies<tma ? 0 : M::stages - 2>();
    }
  };

  // This thread's share of the decays: two channels of a run of tokens.
  constexpr int tokens = chunk / M::runs;
  const int pair = threadIdx.x % (D / 2), run = threadIdx.x / (D / 2), token0 = run * tokens;
  // Smaller weights than this are none.
  auto clear = [](float& x) { x = x < 0x1p-126f ? 0 : x; };

  StatePart<Products, D, 1, false> part;
  auto& state = part.state[0][0];
  state.fill(0);
  float2 total{1, 1};  // the pair's decay from the border to this chunk
  if constexpr (tma) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < M::stages; ++i) barrier(i).init(1);
      publish_barriers();
    }
    __syncthreads();
  }
  for (int n = 0; n < M::stages - 1; ++n) fetch(n);
  for (int n = 0; n < chunks; ++n) {
    const Stage g = stage(n);
    wait(n);
    if (!__syncthreads_or(total.x != 0 || total.y != 0)) {
      if (n + 1 < chunks) wait(n + 1);  // has been asked for
      break;
    }
    float2 own[tokens], way{1, 1};
#pragma unroll
    for (int i = 0; i < tokens; ++i) {
      const float2 gate = load_shared_pair(g.gates.at(token0 + i, 2 * pair));
      own[i] = {decay_of(gate.x), decay_of(gate.y)};
      way = multiply(way, own[i]);
    }
    run_decays[run * (D / 2) + pair] = way;
    __syncthreads();
    fetch(n + M::stages - 1);  // to the place that the last chunk's products have left
    way = total;
#pragma unroll
    for (int r = 0; r < M::runs; ++r) {
      const float2 of = run_decays[r * (D / 2) + pair];
      total = multiply(total, of);
      if (reverse ? r < run : r > run) way = multiply(way, of);
    }
    clear(total.x), clear(total.y);
    // Backward a token's own gate is on its way.
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
    publish<Products>();
    __syncthreads();
    Products::start(state);
    Products::add_a_b(state, c, g.b);
    Products::commit();
    Products::template wait<0>();
    Products::settle(state);
  }
  wait_copies<0>();
  const int64_t first = int64_t(channel0) * (at.sweep.transposed ? 1 : s.d_c);
  part.each(at, [&](float& x, int64_t i) { at.sweep.state_out[first + i] = x; });
  if (run == 0) reinterpret_cast<float2*>(p.decay)[(int64_t(unit) * s.d_a + channel0) / 2 + pair] = total;
}

// launchers

template <bool Wgmma, int D, int W>
void launch(const SegmentStates& p, cudaStream_t stream) {
  constexpr auto kernel = channel_segment_states_kernel<Wgmma, D, W>;
  using M = ChannelSegmentMemory<D, W>;
  allow_shared<kernel, M::bytes>("linear attention (segment states)");
  const Sweeps& s = p.sweeps;
  ChannelSegmentMaps maps{};
  if (Wgmma) {
    const Sweep& sweep = s.sweep[0];
    maps = {rows_map(s, sweep.b, s.d_a), rows_map(s, sweep.c, s.d_c), gates_map(s, s.log_decay, s.d_a)};
  }
  kernel<<<s.documents * s.heads*(s.d_a / D), M::threads, M::bytes, stream>>>(p, maps);
  check_cuda(cudaGetLastError(), "linear attention (segment states)");
}

template <bool Wgmma>
void launch(const SegmentStates& p, cudaStream_t stream) {
  // Few segments are spread over more multiprocessors, half of their channels to each.
  const int wanted = (p.sweeps.documents - (p.end_wanted ? 0 : p.documents)) * p.sweeps.heads;
  if (p.sweeps.d_a == 64 || 2 * wanted <= device_attribute(cudaDevAttrMultiProcessorCount))
    p.sweeps.d_c == 64 ? launch<Wgmma, 64, 1>(p, stream) : launch<Wgmma, 64, 2>(p, stream);
  else
    p.sweeps.d_c == 64 ? launch<Wgmma, 128, 1>(p, stream) : launch<Wgmma, 128, 2>(p, stream);
}

}  // namespace

void channel_segment_states(const SegmentStates& p, bool wgmma, cudaStream_t stream) {
  wgmma ? launch<true>(p, stream) : launch<false>(p, stream);
}

}  // namespace weft::cuda
