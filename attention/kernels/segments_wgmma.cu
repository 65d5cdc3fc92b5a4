// The state that each segment leaves behind it (segments.h), on Hopper: a warp loads tiles, one sums decays,
// and warpgroups of 64 columns of c each add B^T (weight_j C).
//
// It walks from the border that the state is wanted at towards the other one, so that a row is carried all
// the way by one weight and the state is never scaled. Where the weights of all rows that are left are 0 in
// f32 (below 2^-126) it ends, with the very bits that going on would give.

#include "attention/kernels/chunk.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/segments.h"
#include "attention/kernels/shared_memory.cuh"
#include "attention/kernels/tensor_map.h"

namespace weft::cuda {

namespace {

struct Weights {  // of a chunk's rows, in shared memory
  float weight[chunk];
  int last;  // no row behind this chunk has a weight
  int unused[3];
};

// How widths map to a block: D_a columns of b, 64 W of c, and as many stages as a multiprocessor has room
// for. Exact: weighted rows keep 16 bits.
template <int D_a_, int W_>
struct Shape {
  static constexpr int D_a = D_a_, W = W_, D_c = 64 * W, threads = 128 * (W + 1);
  static constexpr int blocks = W == 1 && D_a <= 128 ? 2 : 1;  // on a multiprocessor
  static constexpr int b_bytes = Tile<chunk, D_a>::bytes, c_bytes = Tile<chunk, D_c>::bytes;
  static constexpr int stage_bytes = b_bytes + c_bytes, stages = (192 << 10) / blocks / stage_bytes;
  static constexpr int bytes = stages * (stage_bytes + int(sizeof(Weights)) + 2 * 8);
};

struct Maps {
  CUtensorMap b, c;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr float no_weight = -127;  // exp2_fast of less is 0

// Of decays that are the same for all tokens: no sum over lanes, which a chunk would wait for.
__device__ inline DecayLane::Levels fixed_levels(float log2_decay, int valid) {
  const auto up_to = [&](int tokens) { return log2_decay * static_cast<float>(min(tokens, valid)); };
  const int token = 2 * (threadIdx.x % 32);
  return {{up_to(token + 1), up_to(token + 2)}, up_to(chunk)};
}

template <class H>
struct Stage {
  Tile<chunk, H::D_a> b;
  Tile<chunk, H::D_c> c;
  Weights& weights;
  Barrier full, empty;
};

#endif

// kernels

// Exact: weighted rows keep 16 bits, which the gradient of a gate and gradients in f32 need.
template <class H, bool Exact>
__global__ void __launch_bounds__(H::threads, H::blocks)
    segment_states_kernel(const __grid_constant__ SegmentStates p, const __grid_constant__ Maps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const Sweeps& s = p.sweeps;
  const int splits = s.d_c / H::D_c, part = blockIdx.x / splits, group = threadIdx.x / 128;
  const int segment = part / s.heads, head = part % s.heads, column0 = blockIdx.x % splits * H::D_c;
  const bool reverse = s.sweep[0].reverse;
  const int2 range = document_range(s, segment);
  const int chunks = (range.y + chunk - 1) / chunk;
  if (chunks == 0 || p.unwanted(segment)) return;
  auto first_token = [&](int n) { return range.x + (reverse ? n : chunks - 1 - n) * chunk; };
  auto valid_tokens = [&](int n) { return min(chunk, range.x + range.y - first_token(n)); };

  extern __shared__ __align__(1024) char raw[];
  auto* const weights = reinterpret_cast<Weights*>(raw + H::stages * H::stage_bytes);
  const uint32_t tiles = shared_address(raw), barriers = shared_address(weights + H::stages);
  auto stage = [&](int n) {
    const int i = n % H::stages;
    const uint32_t b = tiles + i * H::stage_bytes, barrier = barriers + 16 * i;
    return Stage<H>{{b}, {b + H::b_bytes}, weights[i], {barrier}, {barrier + 8}};
  };
  if (threadIdx.x == 0) {
    for (int n = 0; n < H::stages; ++n) stage(n).full.init(2), stage(n).empty.init(4 * H::W);
    publish_barriers();
  }
  __syncthreads();

  if (group == H::W) {  // a warp that loads tiles, and one that weights rows
    if constexpr (H::W == 2) give_registers<40>();
    const int warp = threadIdx.x / 32 - 4 * H::W, lane = threadIdx.x % 32;
    if (warp > 1) return;
    constexpr int ahead = 4;  // chunks whose gates are fetched together
    const float fixed = s.gated ? 0 : log2_decay(s, 0, head);
    float passed = 0;  // log2 of the decay from the state's border to the chunk; both find the same end
    for (int n0 = 0; n0 < chunks && passed >= no_weight; n0 += ahead) {
      DecayLane decays[ahead];
      if (s.gated) {
#pragma unroll
        for (int i = 0; i < ahead; ++i)
          if (n0 + i < chunks) decays[i].fetch(s, first_token(n0 + i), valid_tokens(n0 + i), head);
      }
#pragma unroll
      for (int i = 0; i < ahead; ++i) {
        const int n = n0 + i;
        if (n == chunks || passed < no_weight) break;
        const Stage<H> g = stage(n);
        const int valid = valid_tokens(n);
        const DecayLane::Levels levels = s.gated ? decays[i].levels() : fixed_levels(fixed, valid);
        g.empty.wait((n / H::stages % 2) ^ 1);
        if (warp == 0) {
          if (lane == 0) {
            g.full.arrive_and_expect(H::stage_bytes);
            for (int d = 0; d < H::D_a / 64; ++d)
              copy_in(g.b.template part<64>(d).address, &maps.b, d * 64, head, first_token(n), g.full);
            for (int d = 0; d < H::W; ++d)
              copy_in(g.c.template part<64>(d).address, &maps.c, column0 + d * 64, head, first_token(n),
                      g.full);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float own = reverse ? levels.up[j] : fminf(levels.total - levels.up[j], 0.f);
            g.weights.weight[2 * lane + j] = 2 * lane + j < valid ? exp2_fast(passed + own) : 0;
          }
          if (lane == 0) g.weights.last = n + 1 == chunks || passed + levels.total < no_weight;
          g.full.arrive_warp();
        }
        passed += levels.total;
      }
    }
    if (warp == 1 && lane == 0 && column0 == 0)
      p.decay[int64_t(segment) * s.heads + head] = exp2_fast(passed);
  } else {
    if constexpr (H::W == 2) take_registers<232>();
    StatePart<WarpgroupProducts, H::D_a, 1, Exact> state;
    for (auto& columns : state.state[0]) columns.fill(0);
    const auto weighted = [&](const Stage<H>& g) {
      return weighted_rows(g.c.template part<64>(group), g.weights.weight);
    };
    stage(0).full.wait(0);
    WeightedRows<chunk> rows = weighted(stage(0));
    // The next chunk's rows are weighted beside this one's products. Behind the last chunk they are what lies
    // there: a branch around them would serialise the products.
    for (int n = 0, last = 0; !last; ++n) {
      const Stage<H> g = stage(n), next = stage(n + 1);
      last = g.weights.last;
      state.start(g.b, rounded<Exact>(rows));
      if (!last) next.full.wait((n + 1) / H::stages % 2);
      rows = weighted(next);
      state.wait();
      g.empty.arrive_warp();
    }
    state.finish({s, s.sweep[0], segment, head, column0 + 64 * group});
  }
#endif
}

// launchers

template <class H, bool Exact>
void launch(const SegmentStates& p, cudaStream_t stream) {
  const Sweeps& s = p.sweeps;
  const auto map = [&](const Rows& rows, int width) {
    return tensor_map(rows.data, rows.pitch, width, s.heads, s.tokens, chunk);
  };
  const Maps maps{map(s.sweep[0].b, s.d_a), map(s.sweep[0].c, s.d_c)};
  constexpr auto kernel = segment_states_kernel<H, Exact>;
  allow_shared<kernel, H::bytes>("linear attention (segment states)");
  kernel<<<s.documents * s.heads*(s.d_c / H::D_c), H::threads, H::bytes, stream>>>(p, maps);
  check_cuda(cudaGetLastError(), "linear attention (segment states)");
}

template <int D_a, int W>
void launch(const SegmentStates& p, cudaStream_t stream) {
  p.sweeps.gated || p.sweeps.pairs ? launch<Shape<D_a, W>, true>(p, stream)
                                   : launch<Shape<D_a, W>, false>(p, stream);
}

}  // namespace

void segment_states_wgmma(const SegmentStates& p, cudaStream_t stream) {
  with_state_shape(p.sweeps, [&]<int D_a, int W>() { launch<D_a, W>(p, stream); });
}

}  // namespace weft::cuda
