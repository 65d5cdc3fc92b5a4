// Sweeps with a gate for each channel (channel_sweep.h) on mma.sync, over the pieces of channel_tiles.cuh. A
// block of threads has 16 columns of c to a warp, and chunks of 64 tokens in two stages.

#include <utility>

#include "attention/kernels/channel_tiles.cuh"

namespace weft::cuda {

// kernels

namespace {

template <GateOf gate, int D_a, int D_c>
struct Memory {
  static constexpr int D_gate = gate == GateOf::a ? D_a : D_c, parts = D_a / 64;
  struct Stage {
    Tile<chunk, D_a> a, b;
    Tile<chunk, D_c> c;
    Gates<D_gate> gates;
  };
  static constexpr int stage_bytes =
      2 * Tile<chunk, D_a>::bytes + Tile<chunk, D_c>::bytes + Gates<D_gate>::bytes;
  static constexpr int totals_bytes = gate == GateOf::a ? blocks * D_a * 4 : 0;
  static constexpr int bytes = 2 * stage_bytes + ScoreParts<parts>::bytes + totals_bytes;

  uint32_t address;
  __device__ Stage stage(int n) const {
    const uint32_t a = address + n % 2 * stage_bytes, b = a + Tile<chunk, D_a>::bytes,
                   c = b + Tile<chunk, D_a>::bytes;
    return {{a}, {b}, {c}, {c + Tile<chunk, D_c>::bytes}};
  }
  __device__ ScoreParts<parts> scores() const { return {address + 2 * stage_bytes}; }
  // of_a: the decay over a block, f32 (blocks, D_a)
  __device__ uint32_t total(int n, int channel) const {
    return scores().address + ScoreParts<parts>::bytes + (n * D_a + channel) * 4;
  }
};

__device__ inline uint32_t weighted(uint32_t pair, float2 weight) {
  const float2 v = unpack(pair);
  return pack(v.x * weight.x, v.y * weight.y);
}
__device__ inline float2 exp2_between(float2 near, float2 far) {
  return {exp2_fast(near.x - far.x), exp2_fast(near.y - far.y)};
}
// The decay from one to the other if it goes there, else something finite.
__device__ inline float decay_between(float near, float far) { return exp2_fast(fminf(near - far, 0.f)); }

// ---- The gate of a's channels.

// One warp, for block n and the channels [64 part, 64 part + 64): its part of the scores; a and b carried to
// the block's borders, in place; the decay over the block. Two channels a lane.
template <bool Reverse, class M>
__device__ void prepare_a(const M& memory, const typename M::Stage& g, int n, int part) {
  const int l = threadIdx.x % 32, row0 = n * block, channel = 64 * part + 2 * l;
  float2 level[block], sum{0, 0};  // the sum of gates from the block's start
  uint32_t a[block], b[block];
  auto place = [&](const auto& tile, int i) { return tile.at(row0 + i, channel / 8) + channel % 8 * 2; };
#pragma unroll
  for (int i = 0; i < block; ++i) {
    const float2 gate = load_shared_pair(g.gates.at(row0 + i, channel));
    sum.x += to_log2(gate.x), sum.y += to_log2(gate.y);
    level[i] = sum;
    a[i] = load_shared_word(place(g.a, i)), b[i] = load_shared_word(place(g.b, i));
  }

  Scores raw, scores;
  raw.clear();
  raw.add_products(g.a, g.b, row0, part);
#pragma unroll
  for (int c = 0; c < 2; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores.x[c][i] = Scores::row(i) == Scores::column(c, i) ? raw.x[c][i] : 0;

  __syncwarp();  // the gates have been read: their place is free
#pragma unroll
  for (int half = block / 2; half >= 1; half /= 2) {
    // One side's tokens have the rows of a, the other's those of b.
    const Tile<block, 64> sides{g.gates.block_of(part, n) +
                                (half == 8 || half == 2 ? 0 : Tile<block, 64>::bytes)};
#pragma unroll
    for (int i = 0; i < block; ++i) {
      const bool second = i & half;
      const float2 at = level[border(i, half)];
      const float2 f = second ? exp2_between(level[i], at) : exp2_between(at, level[i]);
      store_shared(sides.at(i, l / 4) + l % 4 * 4, weighted(second != Reverse ? a[i] : b[i], f));
    }
    __syncwarp();
    Scores products;
    products.clear();
    products.add_products(sides, sides, 0, 0);
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (meets<Reverse>(Scores::row(i), Scores::column(c, i), half)) scores.x[c][i] = products.x[c][i];
  }
  memory.scores().store(n, part, scores);

#pragma unroll
  for (int i = 0; i < block; ++i) {
    const float2 up = exp2_between(level[i], {0, 0}), down = exp2_between(sum, level[i]);
    store_shared(place(g.a, i), weighted(a[i], Reverse ? down : up));
    store_shared(place(g.b, i), weighted(b[i], Reverse ? up : down));
  }
  store_shared_pair(memory.total(n, channel), exp2_between(sum, {0, 0}));
}

// One warp: block n of its columns.
template <bool Reverse, int D_a, class M>
__device__ void step_a(WarpState<D_a>& state, const Place& at, const M& memory, const typename M::Stage& g,
                       int n, int warp) {
  const Lane lane;
  const int l = threadIdx.x % 32, row0 = n * block;
  uint32_t c[4], p[4];
  load_columns(c, g.c, row0, warp);
  memory.scores().load(n).masked(p, [](int, int) { return true; });
  Scores out, even;
  out.clear(), even.clear();
  WarpProducts::mma(out.x[0], p, c[0], c[2]);
  WarpProducts::mma(out.x[1], p, c[1], c[3]);
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t a[4];
    load_matrices(a, g.a.at(row0 + l % 16, 2 * k + l / 16));
    const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
    Scores& to = k % 2 ? out : even;
    WarpProducts::mma(to.x[0], a, pack(s0[0], s0[1]), pack(s1[0], s1[1]));
    WarpProducts::mma(to.x[1], a, pack(s0[2], s0[3]), pack(s1[2], s1[3]));
  }
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t b[4];
    load_matrices_transposed(b, g.b.at(row0 + l % 16, 2 * k + l / 16));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto& s = state.x[2 * k + half];
      const float2 total = load_shared_pair(memory.total(n, 16 * k + 8 * half + 2 * lane.t));
      s[0] *= total.x, s[1] *= total.y, s[2] *= total.x, s[3] *= total.y;
      WarpProducts::mma(s, c, b[2 * half], b[2 * half + 1]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto &x = out.x[half], &y = even.x[half];
    const uint32_t to = g.c.at(row0 + lane.g, 2 * warp + half) + 4 * lane.t;
    const float scale = at.s.scale;
    store_shared(to, pack(scale * (x[0] + y[0]), scale * (x[1] + y[1])));
    store_shared(to + 1024, pack(scale * (x[2] + y[2]), scale * (x[3] + y[3])));
  }
}

// ---- The gate of c's channels.

// One warp, for block n and the channels [64 part, 64 part + 64) of a and b: its part of the scores.
template <class M>
__device__ void prepare_scores(const M& memory, const typename M::Stage& g, int n, int part) {
  Scores scores;
  scores.clear();
  scores.add_products(g.a, g.b, n * block, part);
  memory.scores().store(n, part, scores);
}
// One warp, for its 16 channels: gates become their sum from the block's start, in log2.
template <class M>
__device__ void sum_gates(const typename M::Stage& g, int warp) {
  const int l = threadIdx.x % 32, row0 = l / 8 * block, channel = 16 * warp + l % 8 * 2;
  float2 sum{0, 0};
#pragma unroll
  for (int i = 0; i < block; ++i) {
    const uint32_t place = g.gates.at(row0 + i, channel);
    const float2 gate = load_shared_pair(place);
    sum.x += to_log2(gate.x), sum.y += to_log2(gate.y);
    store_shared_pair(place, sum);
  }
}

// A bf16 operand and what was cut from it.
struct Pair {
  uint32_t high[4], rest[4];
  __device__ void set(int i, uint32_t value, float2 weight) {
    const float2 v = unpack(value);
    const Split split(v.x * weight.x, v.y * weight.y);
    high[i] = split.high, rest[i] = split.rest;
  }
};

// The sums over later tokens of the gate's gradient, for a lane's four channels.
struct Later {
  double x[2][2] = {};
};

// One warp: block n of its columns. State, and the rows of c that meet a's, are read as pairs of bf16
// (README, "The gradient of the gate").
template <bool Reverse, int D_a, class M>
__device__ void step_c(WarpState<D_a>& state, Later& later, const Place& at, const M& memory,
                       const typename M::Stage& g, int64_t token0, int valid, int n, int warp) {
  const Lane lane;
  const int l = threadIdx.x % 32, row0 = n * block, channel0 = 16 * warp;

  // An accumulator's columns are 8 i + 2 t and the next, its rows g and g + 8.
  const int64_t width = int64_t(at.s.heads) * at.s.d_c,
                column = int64_t(at.head) * at.s.d_c + at.column0 + 2 * lane.t;
  uint32_t dot[2][2] = {};
  float2 gradient[2][2] = {};
  if (at.sweep.gate_gradient)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (const int row = row0 + lane.g + 8 * half; row < valid)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const auto* rows = static_cast<const __nv_bfloat16*>(at.sweep.dot.data);
          dot[i][half] =
              *reinterpret_cast<const uint32_t*>(rows + (token0 + row) * at.sweep.dot.pitch + column + 8 * i);
          if (Reverse)
            gradient[i][half] = *reinterpret_cast<const float2*>(at.sweep.gate_gradient +
                                                                 (token0 + row) * width + column + 8 * i);
        }

  uint32_t c[4];  // tokens 2t, 2t + 1 (and 8 on: 2, 3) of channels g (and 8 on: 1, 3)
  load_columns(c, g.c, row0, warp);
  float2 level_in[4], level_out[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = row0 + 2 * lane.t + i / 2 * 8, channel = channel0 + lane.g + i % 2 * 8;
    level_in[i] = {load_shared_float(g.gates.at(token, channel)),
                   load_shared_float(g.gates.at(token + 1, channel))};
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      level_out[i][half] =
          load_shared_pair(g.gates.at(row0 + lane.g + 8 * half, channel0 + 8 * i + 2 * lane.t));

  const Scores scores = memory.scores().load(n);
  Scores out;
  out.clear();
  uint32_t p[4];
  scores.masked(p, [](int row, int column) { return row == column; });
  WarpProducts::mma(out.x[0], p, c[0], c[2]);
  WarpProducts::mma(out.x[1], p, c[1], c[3]);
#pragma unroll
  for (int half = block / 2; half >= 1; half /= 2) {
    Pair to_border;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = row0 + border(2 * lane.t + i / 2 * 8, half);
      const float at_border = load_shared_float(g.gates.at(token, channel0 + lane.g + i % 2 * 8));
      const float2 own = level_in[i];
      const float2 weight = Reverse
                                ? float2{decay_between(own.x, at_border), decay_between(own.y, at_border)}
                                : float2{decay_between(at_border, own.x), decay_between(at_border, own.y)};
      to_border.set(i, c[i], weight);
    }
    scores.masked(p, [&](int row, int column) { return meets<Reverse>(row, column, half); });
    Scores y;
    y.clear();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      WarpProducts::mma(y.x[i], p, to_border.high[i], to_border.high[i + 2]);
      WarpProducts::mma(y.x[i], p, to_border.rest[i], to_border.rest[i + 2]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 own = level_out[i][r];
        const float2 at_border =
            load_shared_pair(g.gates.at(row0 + border(lane.g + 8 * r, half), channel0 + 8 * i + 2 * lane.t));
        out.x[i][2 * r] +=
            y.x[i][2 * r] * (Reverse ? decay_between(at_border.x, own.x) : decay_between(own.x, at_border.x));
        out.x[i][2 * r + 1] += y.x[i][2 * r + 1] * (Reverse ? decay_between(at_border.y, own.y)
                                                            : decay_between(own.y, at_border.y));
      }
    }
  }

  Scores past, past_rest;
  past.clear(), past_rest.clear();
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t a[4];
    load_matrices(a, g.a.at(row0 + l % 16, 2 * k + l / 16));
    const auto &s0 = state.x[2 * k], &s1 = state.x[2 * k + 1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Split low(s0[2 * i], s0[2 * i + 1]), high(s1[2 * i], s1[2 * i + 1]);
      WarpProducts::mma(past.x[i], a, low.high, high.high);
      WarpProducts::mma(past_rest.x[i], a, low.rest, high.rest);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 end = load_shared_pair(g.gates.at(row0 + block - 1, channel0 + 8 * i + 2 * lane.t));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 own = level_out[i][j / 2];
      const float from = j % 2 ? own.y : own.x, whole = j % 2 ? end.y : end.x;
      out.x[i][j] += exp2_fast(Reverse ? whole - from : from) * (past.x[i][j] + past_rest.x[i][j]);
      out.x[i][j] *= at.s.scale;
    }
  }

  Pair write;
  float total[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float whole = load_shared_float(g.gates.at(row0 + block - 1, channel0 + lane.g + i % 2 * 8));
    const float2 own = level_in[i];
    write.set(i, c[i], Reverse ? exp2_between(own, {0, 0}) : exp2_between({whole, whole}, own));
    total[i % 2] = exp2_fast(whole);
  }
#pragma unroll
  for (int k = 0; k < D_a / 16; ++k) {
    uint32_t b[4];
    load_matrices_transposed(b, g.b.at(row0 + l % 16, 2 * k + l / 16));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto& s = state.x[2 * k + half];
      s[0] *= total[0], s[1] *= total[0], s[2] *= total[1], s[3] *= total[1];
      WarpProducts::mma(s, write.high, b[2 * half], b[2 * half + 1]);
      WarpProducts::mma(s, write.rest, b[2 * half], b[2 * half + 1]);
    }
  }

  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t to = g.c.at(row0 + lane.g, 2 * warp + i) + 4 * lane.t;
    store_shared(to, pack(out.x[i][0], out.x[i][1]));
    store_shared(to + 1024, pack(out.x[i][2], out.x[i][3]));
  }
  if (!at.sweep.gate_gradient) return;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float x[4];  // the sums over this block's later tokens, in reverse
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 of = unpack(dot[i][j / 2]), before = gradient[i][j / 2];
      const float product = out.x[i][j] * (j % 2 ? of.y : of.x);
      x[j] = Reverse ? (j % 2 ? before.y : before.x) - product : product;
      if (Reverse)
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          const float other = __shfl_down_sync(~0u, x[j], step);
          if (l + step < 32) x[j] += other;
        }
    }
    if (Reverse)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float first = __shfl_sync(~0u, x[j], lane.t), second = __shfl_sync(~0u, x[j + 2], lane.t);
        const double behind = later.x[i][j];
        x[j] = static_cast<float>(behind + (second + x[j]));
        x[j + 2] = static_cast<float>(behind + x[j + 2]);
        later.x[i][j] = behind + (first + second);
      }
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (const int row = row0 + lane.g + 8 * half; row < valid)
        *reinterpret_cast<float2*>(at.sweep.gate_gradient + (token0 + row) * width + column + 8 * i) = {
            x[2 * half], x[2 * half + 1]};
  }
}

template <GateOf gate, bool Reverse, int D_a, int D_c>
__global__ void __launch_bounds__(2 * D_c) channel_sweep_mma_kernel(const __grid_constant__ Sweeps s) {
  using M = Memory<gate, D_a, D_c>;
  constexpr int warps = D_c / 16;
  const int splits = s.d_c / D_c, warp = threadIdx.x / 32;
  const int column0 = int(blockIdx.x) % splits * D_c;
  const Place at{s, s.sweep[blockIdx.y], int(blockIdx.x) / splits / s.heads,
                 int(blockIdx.x) / splits % s.heads, column0 + 16 * warp};
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
      copy_in(g.a, at.sweep.a, token0, valid, column_a);
      copy_in(g.b, at.sweep.b, token0, valid, column_a);
      copy_in(g.c, at.sweep.c, token0, valid, column_c);
      if constexpr (gate == GateOf::a)
        copy_in(g.gates, s.log_decay, int64_t(s.heads) * D_a, token0, valid, column_a);
      else
        copy_in(g.gates, s.log_decay, int64_t(s.heads) * s.d_c, token0, valid, column_c);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  WarpState<D_a> state;
  state.load(at);
  Later later;
  if (Reverse && gate == GateOf::c && at.sweep.end_sums)
    for (int i = 0; i < 4; ++i)
      later.x[i / 2][i % 2] = at.sweep.end_sums[(int64_t(at.document) * s.heads + at.head) * s.d_c +
                                                at.column0 + i / 2 * 8 + Lane().t * 2 + i % 2];
  fetch(0);
  fetch(1);
  for (int n = 0; n < chunks; ++n) {
    const typename M::Stage g = memory.stage(n);
    const int64_t token0 = first_token(n);
    const int valid = valid_tokens(n);
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    if constexpr (gate == GateOf::c) sum_gates<M>(g, warp);
    for (int task = warp; task < blocks * M::parts; task += warps)
      if constexpr (gate == GateOf::a)
        prepare_a<Reverse>(memory, g, task / M::parts, task % M::parts);
      else
        prepare_scores(memory, g, task / M::parts, task % M::parts);
    __syncthreads();
    for (int i = 0; i < blocks; ++i) {
      const int of = Reverse ? blocks - 1 - i : i;
      if constexpr (gate == GateOf::a)
        step_a<Reverse>(state, at, memory, g, of, warp);
      else
        step_c<Reverse>(state, later, at, memory, g, token0, valid, of, warp);
    }
    __syncwarp();
    auto* out = static_cast<__nv_bfloat16*>(at.sweep.out.data) + token0 * at.sweep.out.pitch +
                int64_t(at.head) * s.d_c + at.column0;
    for (int i = threadIdx.x % 32; i < 2 * valid; i += 32)
      *reinterpret_cast<uint4*>(out + i / 2 * at.sweep.out.pitch + i % 2 * 8) =
          load_shared(g.c.at(i / 2, 2 * warp + i % 2));
    __syncthreads();
    fetch(n + 2);
  }
  state.finish(at);
  if (gate == GateOf::c && !Reverse && at.sweep.end_dot) state.store_end_sums(at);
}

// launchers

template <GateOf gate, bool Reverse, int D_a, int D_c>
void launch(const Sweeps& s, cudaStream_t stream) {
  const auto kernel = channel_sweep_mma_kernel<gate, Reverse, D_a, D_c>;
  constexpr int bytes = Memory<gate, D_a, D_c>::bytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "channel gate");
  kernel<<<dim3(s.documents * s.heads * (s.d_c / D_c), s.count), 2 * D_c, bytes, stream>>>(s);
  check_cuda(cudaGetLastError(), "channel gate");
}

template <GateOf gate, bool Reverse>
void launch(const Sweeps& s, cudaStream_t stream) {
  if (s.d_a == 64)
    return s.d_c == 64 ? launch<gate, Reverse, 64, 64>(s, stream) : launch<gate, Reverse, 64, 128>(s, stream);
  return s.d_c == 64 ? launch<gate, Reverse, 128, 64>(s, stream) : launch<gate, Reverse, 128, 128>(s, stream);
}

}  // namespace

void channel_sweep_mma(const Sweeps& s, GateOf gate, cudaStream_t stream) {
  CHECK((s.d_a == 64 || s.d_a == 128) && (s.d_c == 64 || s.d_c == 128), "channel gate: widths ", s.d_a, ", ",
        s.d_c);
  const bool reverse = s.sweep[0].reverse;
  if (gate == GateOf::a)
    reverse ? launch<GateOf::a, true>(s, stream) : launch<GateOf::a, false>(s, stream);
  else
    reverse ? launch<GateOf::c, true>(s, stream) : launch<GateOf::c, false>(s, stream);
}

}  // namespace weft::cuda
