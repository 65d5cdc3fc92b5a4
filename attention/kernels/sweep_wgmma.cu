// The sweep on Hopper: wgmma products, TMA copies, specialised warps. Stages of tiles travel between
//   loader   fetches a, b and c of the next chunks, another one dot
//   decays   sums the log decays of a chunk
//   state    a warpgroup, StatePart (chunk.cuh), which hands its shadow on to
//   output   a warpgroup, OutputPart
//   storer   sends the output, which lies in a's place, and hands that place back to the loader
// through barriers in shared memory.

#include <cstdlib>
#include <string_view>

#include "attention/kernels/chunk.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/shared_memory.cuh"
#include "attention/kernels/sweep_maps.cuh"

namespace weft::cuda {

namespace {

// How widths map to a block: D_a columns of a and b, 64 W of c; how many stages of tiles and shadows, how
// many blocks an SM holds.
template <int D_a_, int W_, bool Exact_, int stages_, int shadows_, int blocks_ = 1>
struct Shape {
  static constexpr int D_a = D_a_, W = W_, D_c = 64 * W, stages = stages_, shadows = shadows_;
  static constexpr int blocks = blocks_, threads = 3 * 128;  // state, output, movers
  static constexpr bool Exact = Exact_;
  static constexpr int a_bytes = chunk * D_a * 2, c_bytes = chunk * D_c * 2, shadow_bytes = D_a * D_c * 2;
  static constexpr int stage_bytes = 2 * a_bytes + c_bytes;
  static constexpr int shadow_stage_bytes = (Exact ? 2 : 1) * shadow_bytes, dot_bytes = Exact ? c_bytes : 0;
  static constexpr int bytes = stages * (stage_bytes + int(sizeof(Decays)) + 6 * 8) +
                               shadows * (shadow_stage_bytes + 2 * 8) + dot_bytes + 2 * 8;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The tiles of a stage lie one after another at `tiles`, its barriers at `barriers`.
template <class H>
struct Stage {
  Tile<chunk, H::D_a> a, b;
  Tile<chunk, H::D_c> c;
  Barrier ab_full, c_full, decays_full, a_empty, bc_empty, out_full;

  __device__ Stage(uint32_t tiles, uint32_t barriers)
      : a{tiles},
        b{tiles + a.bytes},
        c{tiles + 2 * a.bytes},
        ab_full{barriers},
        c_full{barriers + 8},
        decays_full{barriers + 16},
        a_empty{barriers + 24},
        bc_empty{barriers + 32},
        out_full{barriers + 40} {}
};

template <class H>
struct ShadowStage {
  Shadow<H::D_a, H::W> shadow;
  Barrier full, empty;

  __device__ ShadowStage(uint32_t tiles, uint32_t barriers)
      : shadow{{tiles}, {tiles + H::shadow_bytes}}, full{barriers}, empty{barriers + 8} {}
};

// What the output's warpgroup waits for and says.
template <class H>
struct OutputSync {
  const Stage<H>& stage;
  const ShadowStage<H>& shadow;
  int phase, shadow_phase;
  __device__ void wait_shadow() const { shadow.full.wait(shadow_phase); }
  __device__ void wait_decays() const { stage.decays_full.wait(phase); }
  __device__ void wait_c() const { stage.c_full.wait(phase); }
  __device__ void shadow_read() const { shadow.empty.arrive_warp(); }
};

#endif

// kernels

template <class H>
__global__ void __launch_bounds__(H::threads, H::blocks)
    sweep_wgmma_kernel(const __grid_constant__ Sweeps s, const __grid_constant__ SweepMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int stages = H::stages, shadows = H::shadows;
  // Registers a thread, out of the even shares that a block starts with.
  constexpr bool two_blocks = H::blocks == 2;
  constexpr int state_registers = two_blocks ? 80 : 232, output_registers = two_blocks ? 136 : 232;
  constexpr int mover_registers = two_blocks ? 24 : 40;
  const int which = blockIdx.x % s.count, part = blockIdx.x / s.count, splits = s.d_c / H::D_c;
  const Place at{s, s.sweep[which], part / splits / s.heads, part / splits % s.heads, part % splits * H::D_c};
  const auto& map = maps.sweep[which];
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;
  auto first_token = [&](int n) { return range.x + (at.sweep.reverse ? chunks - 1 - n : n) * chunk; };
  auto valid_tokens = [&](int n) { return min(chunk, range.x + range.y - first_token(n)); };
  const bool has_dot = H::Exact && at.sweep.dot_sums;

  extern __shared__ __align__(1024) char raw[];
  const uint32_t tiles = shared_address(raw);
  const uint32_t shadow_tiles = tiles + stages * H::stage_bytes;
  const Tile<chunk, H::D_c> dot{shadow_tiles + shadows * H::shadow_stage_bytes};
  const uint32_t decays_address = dot.address + H::dot_bytes;
  const uint32_t barriers = decays_address + stages * sizeof(Decays);
  auto* decays = reinterpret_cast<Decays*>(raw + (decays_address - tiles));
  auto stage = [&](int n) {
    return Stage<H>(tiles + n % stages * H::stage_bytes, barriers + n % stages * 48);
  };
  auto shadow_stage = [&](int n) {
    return ShadowStage<H>(shadow_tiles + n % shadows * H::shadow_stage_bytes,
                          barriers + stages * 48 + n % shadows * 16);
  };
  const uint32_t last_barriers = barriers + stages * 48 + shadows * 16;
  const Barrier dot_full{last_barriers}, dot_empty{last_barriers + 8};
  if (threadIdx.x == 0) {
    for (int n = 0; n < stages; ++n) {
      const Stage<H> g = stage(n);
      g.ab_full.init(1), g.c_full.init(1), g.decays_full.init(1), g.a_empty.init(1);
      g.bc_empty.init(8), g.out_full.init(4);
    }
    for (int n = 0; n < shadows; ++n) shadow_stage(n).full.init(4), shadow_stage(n).empty.init(4);
    dot_full.init(1), dot_empty.init(4);
    publish_barriers();
  }
  __syncthreads();

  if (threadIdx.x >= H::threads - 128) {  // movers
    give_registers<mover_registers>();
    const int warp = threadIdx.x / 32 - (H::threads / 32 - 4), lane = threadIdx.x % 32;
    if (warp == 0 && lane == 0) {  // loader
      for (int n = 0; n < chunks; ++n) {
        const Stage<H> g = stage(n);
        const int phase = n / stages % 2, token = first_token(n);
        g.a_empty.wait(phase ^ 1);
        g.bc_empty.wait(phase ^ 1);
        g.ab_full.arrive_and_expect(2 * H::a_bytes);
        for (int d = 0; d < H::D_a / 64; ++d) {
          copy_in(g.a.template part<64>(d).address, &map.a, d * 64, at.head, token, g.ab_full);
          copy_in(g.b.template part<64>(d).address, &map.b, d * 64, at.head, token, g.ab_full);
        }
        g.c_full.arrive_and_expect(H::c_bytes);
        for (int d = 0; d < H::W; ++d)
          copy_in(g.c.template part<64>(d).address, &map.c, at.column0 + d * 64, at.head, token, g.c_full);
      }
    } else if (warp == 3 && lane == 0 && has_dot) {  // loader of dot, which has one place only
      for (int n = 0; n < chunks; ++n) {
        dot_empty.wait((n % 2) ^ 1);
        dot_full.arrive_and_expect(H::dot_bytes);
        for (int d = 0; d < H::W; ++d)
          copy_in(dot.template part<64>(d).address, &map.dot, at.column0 + d * 64, at.head, first_token(n),
                  dot_full);
      }
    } else if (warp == 1) {  // storer
      for (int n = 0; n < chunks; ++n) {
        const Stage<H> g = stage(n);
        const int token = first_token(n), valid = valid_tokens(n);
        g.out_full.wait(n / stages % 2);
        if (valid == chunk) {
          if (lane == 0) {
            for (int d = 0; d < H::W; ++d)
              copy_out(g.a.template part<64>(d).address, &map.out, at.column0 + d * 64, at.head, token);
            copy_out_wait();
          }
        } else {  // the rows behind belong to another document
          constexpr int units = H::D_c / 8;
          auto* out = static_cast<__nv_bfloat16*>(at.sweep.out.data) + token * at.sweep.out.pitch +
                      int64_t(at.head) * s.d_c + at.column0;
          for (int i = lane; i < valid * units; i += 32)
            *reinterpret_cast<uint4*>(out + i / units * at.sweep.out.pitch + i % units * 8) =
                load_shared(g.a.at(i / units, i % units));
        }
        g.a_empty.arrive_warp();
      }
      if (lane == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    } else if (warp == 2) {  // decays
      for (int n = 0; n < chunks; ++n) {
        const Stage<H> g = stage(n);
        DecayLane mine;
        mine.fetch(s, first_token(n), valid_tokens(n), at.head);
        g.bc_empty.wait((n / stages % 2) ^ 1);
        mine.write(decays[n % stages], at.sweep.reverse, valid_tokens(n));
        g.decays_full.arrive_warp();
      }
    }
  } else if (threadIdx.x < 128) {  // state
    take_registers<state_registers>();
    StatePart<WarpgroupProducts, H::D_a, H::W, H::Exact> state;
    state.load(at);
    for (int n = 0; n < chunks; ++n) {
      const Stage<H> g = stage(n);
      const ShadowStage<H> to = shadow_stage(n);
      to.empty.wait((n / shadows % 2) ^ 1);
      state.store_shadow(to.shadow);
      publish_shared();
      to.full.arrive_warp();
      const int phase = n / stages % 2;
      g.ab_full.wait(phase);
      g.decays_full.wait(phase);
      g.c_full.wait(phase);
      state.update(g.b, g.c, decays[n % stages]);
      g.bc_empty.arrive_warp();
    }
    state.finish(at);
  } else {  // output
    take_registers<output_registers>();
    OutputPart<WarpgroupProducts, H::D_a, H::W, H::Exact> output;
    if (chunks > 0) stage(0).ab_full.wait(0);
    output.begin(stage(0).a, stage(0).b);
    output.wait_scores();
    for (int n = 0; n < chunks; ++n) {
      const Stage<H> g = stage(n), next = stage(n + 1);
      const ShadowStage<H> from = shadow_stage(n);
      output.compute(at, g.c, from.shadow, decays[n % stages],
                     OutputSync<H>{g, from, n / stages % 2, n / shadows % 2});
      // Early: the next chunk's scores run beside this one's stores, at the price of holding its stage
      // longer. After the last chunk they begin on whatever lies there: a branch around wgmma would serialise
      // it.
      constexpr bool early = stages > 2;
      auto begin_next = [&] {
        if (n + 1 < chunks) next.ab_full.wait((n + 1) / stages % 2);
        output.begin(next.a, next.b);
      };
      if constexpr (early) begin_next();
      output.template finish<early ? 1 : 0>();
      g.bc_empty.arrive_warp();
      if (has_dot) {
        dot_full.wait(n % 2);
        output.store_dots(at, first_token(n), valid_tokens(n), dot);
        dot_empty.arrive_warp();
      }
      output.store_rounded({g.a.address});
      publish_shared();
      g.out_full.arrive_warp();
      if constexpr (!early) begin_next();
      output.wait_scores();
    }
  }
#endif
}

// launchers

template <class H>
void launch(const Sweeps& s, cudaStream_t stream) {
  const SweepMaps maps = sweep_maps(s);
  constexpr auto kernel = sweep_wgmma_kernel<H>;
  allow_shared<kernel, H::bytes>("linear attention (wgmma)");
  kernel<<<s.documents * s.heads*(s.d_c / H::D_c) * s.count, H::threads, H::bytes, stream>>>(s, maps);
  check_cuda(cudaGetLastError(), "linear attention (wgmma)");
}

}  // namespace

bool hopper() {
  static const bool compiled = [] {
    if (device_attribute(cudaDevAttrComputeCapabilityMajor) != 9) return false;
    cudaFuncAttributes kernel;  // empty, and so without registers, unless compiled for sm_90a
    const auto small = sweep_wgmma_kernel<Shape<64, 1, false, 3, 2, 2>>;
    if (cudaFuncGetAttributes(&kernel, small) == cudaSuccess) return kernel.numRegs > 48;
    cudaGetLastError();  // without a GPU only plans are made
    return true;
  }();
  const char* const wanted = std::getenv("WEFT_KERNELS");
  return compiled && (wanted == nullptr || std::string_view(wanted) != "mma");
}

int wgmma_end_parts(int d_a, int d_c) { return d_c / (d_a == 128 && d_c >= 128 ? 128 : 64) * 4; }

void sweep_wgmma(const Sweeps& s, cudaStream_t stream) {
  const bool wide = s.d_c >= 128;
  if (s.d_a == 256 && wide) return sweep_wide(s, stream);
  if (exact(s)) {
    if (s.d_a == 64) return launch<Shape<64, 1, true, 3, 2, 2>>(s, stream);
    if (s.d_a == 128 && wide) return launch<Shape<128, 2, true, 3, 1>>(s, stream);
    if (s.d_a == 128) return launch<Shape<128, 1, true, 4, 1>>(s, stream);
    if (s.d_a == 256) return launch<Shape<256, 1, true, 2, 1>>(s, stream);
  } else {
    if (s.d_a == 64) return launch<Shape<64, 1, false, 3, 2, 2>>(s, stream);
    if (s.d_a == 128 && wide) return launch<Shape<128, 2, false, 3, 2>>(s, stream);
    if (s.d_a == 128) return launch<Shape<128, 1, false, 4, 2>>(s, stream);
    if (s.d_a == 256) return launch<Shape<256, 1, false, 2, 2>>(s, stream);
  }
  throw Error(Exit::internal, text("linear attention (wgmma): width ", s.d_a, " is not 64, 128 or 256"));
}

}  // namespace weft::cuda
