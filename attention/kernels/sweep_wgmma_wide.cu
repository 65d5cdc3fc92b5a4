// The sweep on Hopper between widths of 256: a block has 128 columns of c. A warpgroup holds the state of 64
// of them, transposed, in registers, and rounded there it is the left side of a product, without ever lying
// in shared memory:
//
//   out^T = S^T A^T + C^T P^T        (64 columns of c, 64 tokens)
//
// Tiles and decays travel in rings of places, each given back as soon as its readers are done with it:
//   loader    fetches a, b and c of the next chunks
//   decays    sums the log decays of a chunk, and fetches its dot
//   scores    a warpgroup, P for both
//   columns   two warpgroups, which never wait for each other
//   storers   send the outputs, one of each

#include "attention/kernels/chunk.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/shared_memory.cuh"
#include "attention/kernels/sweep_maps.cuh"

namespace weft::cuda {

namespace {

template <bool Exact_>
struct WideShape {
  static constexpr bool Exact = Exact_;
  static constexpr int D_a = 256, D_c = 128, groups = 2, threads = (groups + 2) * 128;  // scores, movers
  static constexpr int a_places = 2, b_places = Exact ? 2 : 3, c_places = 2, p_places = 2;
  static constexpr int ab_bytes = chunk * D_a * 2, c_bytes = chunk * D_c * 2, p_bytes = chunk * chunk * 2;
};

// Unless Exact: as long as they have not come to this (log2), the state is not multiplied by decays. What it
// counts for is, and what is added is divided by them, so that `total` is 1 and most chunks are spared a pass
// over the state.
constexpr float least_passed = -20;

struct WideDecays : Decays {
  float rise[chunk];  // what the state counts for at token i, times the scale

  // By a warp, behind Decays' own.
  __device__ void set_rise(float log2_more) {
    __syncwarp();
    for (int i = threadIdx.x % 32; i < chunk; i += 32) rise[i] = exp2_fast(level[i] + shift + log2_more);
  }
  // The same; `passed` has the decays that the state has yet to be multiplied by.
  __device__ void pass(float& passed, float over_chunk, float log2_scale, bool last) {
    const float before = passed;
    passed += over_chunk;
    const bool now = last || passed < least_passed;
    const float later = now ? 1 : exp2_fast(-passed);
    set_rise(log2_scale + before);
    for (int i = threadIdx.x % 32; i < chunk; i += 32) weight[i] *= later;
    if (threadIdx.x % 32 == 0) total = now ? exp2_fast(passed) : 1;
    if (now) passed = 0;
  }
};

// A block's shared memory. Tiles begin at multiples of 1024 bytes.
template <class H>
struct WideShared {
  char a[H::a_places][H::ab_bytes], b[H::b_places][H::ab_bytes], c[H::c_places][H::c_bytes];
  char p[H::p_places][H::p_bytes], out[H::groups][1][H::p_bytes], dot[1][H::Exact ? H::c_bytes : 16];
  float dots[2][H::groups][4][H::Exact ? chunk : 1];  // of two chunks, the sums over a warp's rows
  WideDecays decays[H::c_places];
  struct {
    uint64_t a[H::a_places], b[H::b_places], c[H::c_places], p[H::p_places];
    uint64_t out[H::groups][1], dot[1], decays[H::c_places];
  } full, empty;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Places that chunks pass through in turn, each with a barrier that says it is full and one that says it is
// empty.
template <class T, int places>
struct Ring {
  uint32_t tiles, full, empty;
  template <class Bytes>
  __device__ Ring(const Bytes (&tiles)[places], const uint64_t (&full)[places],
                  const uint64_t (&empty)[places])
      : tiles(shared_address(tiles)), full(shared_address(full)), empty(shared_address(empty)) {}
  __device__ void init(int writers, int readers) const {
    for (int n = 0; n < places; ++n) is_full(n).init(writers), is_empty(n).init(readers);
  }
  __device__ T tile(int n) const { return {tiles + n % places * T::bytes}; }
  __device__ Barrier is_full(int n) const { return {full + n % places * 8}; }
  __device__ Barrier is_empty(int n) const { return {empty + n % places * 8}; }
  // For readers and writers of chunk n, each a warp: first wait, then say.
  __device__ void wait(int n) const { is_full(n).wait(n / places % 2); }
  __device__ void read(int n) const { is_empty(n).arrive_warp(); }
  __device__ void wait_room(int n) const { is_empty(n).wait((n / places % 2) ^ 1); }
  __device__ void written(int n) const { is_full(n).arrive_warp(); }
};

// tile = p
__device__ inline void store(Tile<64, chunk> tile, const Operand<chunk>& p) {
  const Lane lane;
#pragma unroll
  for (int n = 0; n < chunk / 8; ++n) {
    const uint32_t to = tile.at(lane.row(), n) + 4 * lane.t;
    store_shared(to, p.x[n / 2][n % 2 * 2]);
    store_shared(to + 1024, p.x[n / 2][n % 2 * 2 + 1]);
  }
}

// Where this lane's row of four 8 x 8 matrices lies in a tile (tokens, columns of c) that is read or written
// transposed: of tokens 8 n .. 8 n + 15, the 16 columns that its warp has.
__device__ inline uint32_t transposed_row(Tile<chunk, 64> tile, int n) {
  const int l = threadIdx.x % 32;
  return tile.at(8 * (n + l / 16) + l % 8, 2 * Lane().warp + l / 8 % 2);
}

// tile = a^T, rounded.
__device__ inline void store_transposed(Tile<chunk, 64> tile, const Accumulator<chunk>& a) {
#pragma unroll
  for (int n = 0; n < chunk / 8; n += 2)
    store_matrices_transposed(transposed_row(tile, n),
                              {pack(a.x[n][0], a.x[n][1]), pack(a.x[n][2], a.x[n][3]),
                               pack(a.x[n + 1][0], a.x[n + 1][1]), pack(a.x[n + 1][2], a.x[n + 1][3])});
}

// The sums of tile^T * a over the warp's rows, of columns 2 lane and 2 lane + 1.
__device__ inline float2 column_dots(Tile<chunk, 64> tile, const Accumulator<chunk>& a) {
  float2 sums[chunk / 8];
#pragma unroll
  for (int n = 0; n < chunk / 8; n += 2) {
    uint32_t x[4];
    load_matrices_transposed(x, transposed_row(tile, n));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 low = unpack(x[2 * i]), high = unpack(x[2 * i + 1]);
      const auto& of = a.x[n + i];
      sums[n + i] = {low.x * of[0] + high.x * of[2], low.y * of[1] + high.y * of[3]};
    }
  }
  // Of the eight lanes that share columns, lane g adds up and keeps n = g.
#pragma unroll
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = threadIdx.x % 32 / 4 & half;
#pragma unroll
    for (int n = 0; n < half; ++n) {
      const float2 keep = upper ? sums[n + half] : sums[n], give = upper ? sums[n] : sums[n + half];
      sums[n].x = keep.x + __shfl_xor_sync(~0u, give.x, 4 * half);
      sums[n].y = keep.y + __shfl_xor_sync(~0u, give.y, 4 * half);
    }
  }
  return sums[0];
}

template <bool Exact>
using WideState = StatePart<WarpgroupProducts, 256, 1, Exact>;

// Begins out = state a^T, sixteen columns of the state after the other: they are rounded while the products
// of the two before run, of pairs of bf16 while that of the one before does. There are no registers for more.
template <bool Exact>
__device__ inline void start_apply(Accumulator<chunk>& out, const WideState<Exact>& state,
                                   Tile<chunk, 256> a) {
  using Products = WarpgroupProducts;
  Products::settle(out);
#pragma unroll
  for (int k = 0; k < 256 / 16; ++k) {
    uint32_t high[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = 2 * k + i / 2;
      const float* const pair = state.state[0][n / 16].x[n % 16] + i % 2 * 2;
      if constexpr (Exact) {
        const Split split(pair[0], pair[1]);
        high[i] = split.high, rest[i] = split.rest;
      } else {
        high[i] = pack(pair[0], pair[1]);
      }
    }
    Products::fence();
    Products::a_bt(out, high, a, k, k > 0);
    if constexpr (Exact) Products::a_bt(out, rest, a, k, true);
    Products::commit();
    Products::wait<Exact ? 1 : 2>();
  }
}

// Begins state += (weight_j C)^T B, of one half of the chunk's tokens.
template <int half, bool Exact>
__device__ inline void start_update(WideState<Exact>& state, const Weighted<chunk / 2>& weighted,
                                    Tile<chunk, 256> b) {
  using Products = WarpgroupProducts;
  constexpr int steps = chunk / 2 / 16;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    auto& columns = state.state[0][n];
    const Tile<chunk, 128> right = b.part<128>(n);
    if constexpr (half == 0) Products::settle(columns);
    Products::fence();
#pragma unroll
    for (int k = 0; k < steps; ++k) {
      Products::add_a_b(columns, weighted.high.x[k], right, half * steps + k);
      if constexpr (Exact) Products::add_a_b(columns, weighted.rest.x[k], right, half * steps + k);
    }
  }
  Products::commit();
}

#endif

// kernels

template <class H>
__global__ void __launch_bounds__(H::threads, 1)
    sweep_wide_kernel(const __grid_constant__ Sweeps s, const __grid_constant__ SweepMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = WarpgroupProducts;
  // Registers a thread, out of the even shares that a block starts with.
  constexpr int column_registers = 208, score_registers = 72, mover_registers = 24;
  const int which = blockIdx.x % s.count, part = blockIdx.x / s.count, splits = s.d_c / H::D_c;
  const Place at{s, s.sweep[which], part / splits / s.heads, part / splits % s.heads, part % splits * H::D_c};
  const auto& map = maps.sweep[which];
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;
  auto first_token = [&](int n) { return range.x + (at.sweep.reverse ? chunks - 1 - n : n) * chunk; };
  auto valid_tokens = [&](int n) { return min(chunk, range.x + range.y - first_token(n)); };
  const bool has_dot = H::Exact && at.sweep.dot_sums;
  // Known to be the same for all of a warp, so that what depends on it takes no registers of threads.
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;

  extern __shared__ __align__(1024) char raw[];
  auto& shared = *reinterpret_cast<WideShared<H>*>(raw);
  auto& full = shared.full;
  auto& empty = shared.empty;
  const Ring<Tile<chunk, H::D_a>, H::a_places> a(shared.a, full.a, empty.a);
  const Ring<Tile<chunk, H::D_a>, H::b_places> b(shared.b, full.b, empty.b);
  const Ring<Tile<chunk, H::D_c>, H::c_places> c(shared.c, full.c, empty.c);
  const Ring<Tile<chunk, chunk>, H::p_places> p(shared.p, full.p, empty.p);
  const Ring<Tile<chunk, H::D_c>, 1> dot(shared.dot, full.dot, empty.dot);
  auto out = [&](int g) { return Ring<Tile<chunk, 64>, 1>(shared.out[g], full.out[g], empty.out[g]); };
  const Ring<WideDecays, H::c_places> decays(shared.decays, full.decays, empty.decays);
  auto decays_of = [&](int n) -> WideDecays& { return shared.decays[n % H::c_places]; };
  if (threadIdx.x == 0) {
    constexpr int columns = 4 * H::groups, all = columns + 4;  // warps
    a.init(1, all), b.init(1, all), c.init(1, columns), p.init(4, columns);
    dot.init(1, columns), decays.init(1, all);
    for (int g = 0; g < H::groups; ++g) out(g).init(4, 1);
    publish_barriers();
  }
  __syncthreads();

  if (group == H::groups + 1) {  // movers
    give_registers<mover_registers>();
    auto load = [&](const auto& ring, const CUtensorMap& from, int column, int columns, int n) {
      ring.wait_room(n);
      ring.is_full(n).arrive_and_expect(chunk * columns * 2);
      for (int d = 0; d < columns; d += 64)
        copy_in(ring.tile(n).address + d * chunk * 2, &from, column + d, at.head, first_token(n),
                ring.is_full(n));
    };
    if (warp == 0 && lane == 0) {  // loader
      for (int n = 0; n < chunks; ++n) {
        load(a, map.a, 0, H::D_a, n);
        load(b, map.b, 0, H::D_a, n);
        load(c, map.c, at.column0, H::D_c, n);
      }
    } else if (warp == 1) {  // decays
      float passed = 0;
      for (int n = 0; n < chunks; ++n) {
        DecayLane mine;
        mine.fetch(s, first_token(n), valid_tokens(n), at.head);
        decays.wait_room(n);
        WideDecays& to = decays_of(n);
        mine.write(to, at.sweep.reverse, valid_tokens(n));
        if constexpr (H::Exact)
          to.set_rise(s.log2_scale);
        else
          to.pass(passed, mine.levels().total, s.log2_scale, n + 1 == chunks);
        decays.written(n);
        if (has_dot && lane == 0) load(dot, map.dot, at.column0, H::D_c, n);
      }
    } else if (warp > 1) {  // storers
      const auto ring = out(warp - 2);
      const int column = at.column0 + 64 * (warp - 2);
      for (int n = 0; n < chunks; ++n) {
        const int token = first_token(n), valid = valid_tokens(n);
        const Tile<chunk, 64> tile = ring.tile(n);
        ring.wait(n);
        if (valid == chunk) {
          if (lane == 0) {
            copy_out(tile.address, &map.out, column, at.head, token);
            copy_out_wait();
          }
        } else {  // the rows behind belong to another document
          auto* const to = static_cast<__nv_bfloat16*>(at.sweep.out.data) + token * at.sweep.out.pitch +
                           int64_t(at.head) * s.d_c + column;
#pragma unroll 1
          for (int i = lane; i < valid * 8; i += 32)
            *reinterpret_cast<uint4*>(to + i / 8 * at.sweep.out.pitch + i % 8 * 8) =
                load_shared(tile.at(i / 8, i % 8));
        }
        ring.read(n);
      }
      if (lane == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
  } else if (group == H::groups) {  // scores
    give_registers<score_registers>();
    Accumulator<chunk> scores;
    for (int n = 0; n < chunks; ++n) {
      a.wait(n);
      b.wait(n);
      Products::start(scores);
      Products::a_bt(scores, TileRows<chunk, H::D_a>(a.tile(n), 0), b.tile(n), false);
      Products::commit();
      Products::wait<0>();
      Products::settle(scores);
      a.read(n);
      b.read(n);
      decays.wait(n);
      const Operand<chunk> weighed = weigh(scores, decays_of(n), at.sweep.reverse, s.log2_scale);
      decays.read(n);
      p.wait_room(n);
      store(p.tile(n), weighed);
      publish_shared();
      p.written(n);
    }
  } else {  // columns
    take_registers<column_registers>();
    const Place own{s, at.sweep, at.document, at.head, at.column0 + 64 * group};
    const auto to = out(group);
    WideState<H::Exact> state;
    Accumulator<chunk> output;
    state.load(own);
    for (int n = 0; n < chunks; ++n) {
      const Tile<chunk, 64> mine = c.tile(n).template part<64>(group);
      const WideDecays& d = decays_of(n);
      const auto weighted = [&](int half) {
        return load_transposed<H::Exact>(Tile<chunk / 2, 64>{mine.address + half * (chunk / 2) * 128},
                                         d.weight + half * (chunk / 2));
      };
      const auto scale_state = [&] {
        for (auto& columns : state.state[0]) columns.scale(d.total, d.total);
      };
      a.wait(n);
      start_apply(output, state, a.tile(n));
      // Rows are weighted and barriers asked beside products, unless pairs of bf16 leave no registers.
      Weighted<chunk / 2> half;
      if constexpr (!H::Exact) {
        decays.wait(n);
        c.wait(n);
        b.wait(n);
        half = weighted(0);
      }
      Products::wait<0>();
      Products::settle(output);
      a.read(n);
      if constexpr (H::Exact) decays.wait(n);
      if (!H::Exact && d.total != 1) scale_state();
#pragma unroll
      for (int i = 0; i < chunk / 8; ++i) {
        const float2 rise = *reinterpret_cast<const float2*>(d.rise + 8 * i + 2 * (lane % 4));
        float(&x)[4] = output.x[i];
        x[0] *= rise.x, x[1] *= rise.y, x[2] *= rise.x, x[3] *= rise.y;
      }
      if constexpr (H::Exact) c.wait(n);
      p.wait(n);
      Products::start(output);
      Products::add_at_bt(output, mine, p.tile(n));
      Products::commit();
      if constexpr (H::Exact) {
        scale_state();
        b.wait(n);
        half = weighted(0);
      }
      start_update<0>(state, half, b.tile(n));
      if constexpr (!H::Exact) half = weighted(1);
      Products::wait<1>();
      Products::settle(output);
      p.read(n);
      // The output leaves beside the update.
      if constexpr (!H::Exact) start_update<1>(state, half, b.tile(n));
      if (has_dot) {
        dot.wait(n);
        const float2 sums = column_dots(dot.tile(n).template part<64>(group), output);
        dot.read(n);
        auto& of_warps = shared.dots[n % 2][group];
        *reinterpret_cast<float2*>(&of_warps[warp][2 * lane]) = sums;
        sync_threads(1 + group, 128);
        const int token = threadIdx.x % 128;
        if (token < valid_tokens(n))
          at.sweep.dot_sums[(own.column0 / 64 * s.tokens + first_token(n) + token) * s.heads + at.head] =
              of_warps[0][token] + of_warps[1][token] + of_warps[2][token] + of_warps[3][token];
      }
      to.wait_room(n);
      store_transposed(to.tile(n), output);
      publish_shared();
      to.written(n);
      if constexpr (H::Exact) start_update<1>(state, weighted(1), b.tile(n));
      decays.read(n);
      state.wait();
      b.read(n);
      c.read(n);
    }
    state.finish(own);
  }
#endif
}

// launchers

template <class H>
void launch_wide(const Sweeps& s, cudaStream_t stream) {
  const SweepMaps maps = sweep_maps(s);
  constexpr int bytes = sizeof(WideShared<H>);
  static_assert(bytes <= 227 * 1024);
  constexpr auto kernel = sweep_wide_kernel<H>;
  allow_shared<kernel, bytes>("linear attention (wgmma, wide)");
  kernel<<<s.documents * s.heads*(s.d_c / H::D_c) * s.count, H::threads, bytes, stream>>>(s, maps);
  check_cuda(cudaGetLastError(), "linear attention (wgmma, wide)");
}

}  // namespace

void sweep_wide(const Sweeps& s, cudaStream_t stream) {
  exact(s) ? launch_wide<WideShape<true>>(s, stream) : launch_wide<WideShape<false>>(s, stream);
}

}  // namespace weft::cuda
