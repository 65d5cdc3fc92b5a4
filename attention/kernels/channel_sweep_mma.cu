// Sweeps with a gate for each channel (channel_sweep.h) on mma.sync. A block of threads has 16 columns of c
// to a pair of warps, and chunks of 64 tokens in two stages.

#include "attention/kernels/channel_anchored.cuh"
#include "attention/kernels/channel_of_a.cuh"
#include "attention/kernels/channel_of_c.cuh"

namespace weft::cuda {

// kernels

namespace {

template <GateOf gate, bool Reverse, int D_a, int D_c>
__global__ void __launch_bounds__(4 * D_c) channel_sweep_mma_kernel(const __grid_constant__ Sweeps s) {
  using M = ChannelMemory<gate, D_a, D_c>;
  constexpr int warps = D_c / 8, threads = 32 * warps;
  const int splits = s.d_c / D_c, warp = threadIdx.x / 32, pair = warp / 2, share = warp % 2;
  const int column0 = int(blockIdx.x) % splits * D_c;
  const Place at{s, s.sweep[0], int(blockIdx.x) / splits / s.heads, int(blockIdx.x) / splits % s.heads,
                 column0 + 16 * pair};
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
      if constexpr (gate == GateOf::a)
        copy_in<threads>(g.gates, s.log_decay, int64_t(s.heads) * D_a, token0, valid, column_a);
      else
        copy_in<threads>(g.gates, s.log_decay, int64_t(s.heads) * s.d_c, token0, valid, column_c);
    }
    commit_copies();
  };

  WarpState<D_a> state;
  state.load(at, share);
  GateGradientLane<Reverse> gradient;
  if (Reverse && gate == GateOf::c && at.sweep.end_sums) gradient.start(at, share);
  fetch(0);
  fetch(1);
  for (int n = 0; n < chunks; ++n) {
    const typename M::Stage g = memory.stage(n);
    const int64_t token0 = first_token(n);
    const int valid = valid_tokens(n);
    wait_copies<1>();
    __syncthreads();
    bool far;  // for one anchor
    AnchoredRows<Reverse, threads, M::D_gate> rows;
    AnchoredColumns<Reverse> columns;
    if constexpr (gate == GateOf::a) {
      rows.start(g, memory.scores().address);
      diagonal_part<warps, D_a>(memory, g, warp);
      __syncthreads();
      far = rows.meet(memory.scores().address, memory.total(0, 0));
    } else {
      if (at.sweep.gate_gradient) gradient.start_chunk(at, share, token0);
      far = columns.start(g, pair, share);
    }
    if (__syncthreads_or(far)) {
      if constexpr (gate == GateOf::a) {
        for (int task = warp; task < blocks * M::parts; task += warps)
          prepare_a<Reverse>(memory, g, task / M::parts, task % M::parts);
        __syncthreads();
        if (warp < blocks) sum_scores(memory, warp);
      } else {
        if (warp < blocks) prepare_c<Reverse, D_a>(memory, g, warp);
      }
      __syncthreads();
      for (int i = 0; i < blocks; ++i) {
        const int of = Reverse ? blocks - 1 - i : i;
        if constexpr (gate == GateOf::a)
          step_a<Reverse>(state, at, memory, g, of, pair, share);
        else
          step_c<Reverse>(state, gradient, at, memory, g, valid, of, pair, share);
      }
    } else {
      if constexpr (gate == GateOf::a) {
        rows.carry(g);
        __syncthreads();
      } else {
        columns.carry(memory, g, pair, share);
      }
      for (int task = warp; task < score_blocks; task += warps)
        anchored_scores<Reverse, D_a, gate == GateOf::a ? warps / blocks : 0>(memory, g, task);
      __syncthreads();
      if constexpr (gate == GateOf::a)
        step_anchored_a<Reverse>(state, at, memory, g, pair, share);
      else
        step_anchored_c<Reverse>(state, gradient, at, memory, g, valid, pair, share);
    }
    sync_pair(pair);
    auto* out = static_cast<__nv_bfloat16*>(at.sweep.out.data) + token0 * at.sweep.out.pitch +
                int64_t(at.head) * s.d_c + at.column0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = (share * 2 + i) * block + threadIdx.x % 32 / 2, unit = threadIdx.x % 2;
      if (row < valid)
        *reinterpret_cast<uint4*>(out + row * at.sweep.out.pitch + unit * 8) =
            load_shared(g.c.at(row, 2 * pair + unit));
    }
    __syncthreads();
    fetch(n + 2);
  }
  state.finish(at, share);
  if (gate == GateOf::c && !Reverse && at.sweep.end_dot)
    state.store_end_sums(at, share, pair, memory.exchange(pair, 0));
}

// launchers

template <GateOf gate, bool Reverse, int D_a, int D_c>
void launch(const Sweeps& s, cudaStream_t stream) {
  const auto kernel = channel_sweep_mma_kernel<gate, Reverse, D_a, D_c>;
  constexpr int bytes = ChannelMemory<gate, D_a, D_c>::bytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "channel gate");
  kernel<<<s.documents * s.heads*(s.d_c / D_c), 4 * D_c, bytes, stream>>>(s);
  check_cuda(cudaGetLastError(), "channel gate");
}

// f.operator()<D_a, D_c>() of these widths.
template <class F>
auto with_widths(int d_a, int d_c, F f) {
  if (d_a == 64) return d_c == 64 ? f.template operator()<64, 64>() : f.template operator()<64, 128>();
  return d_c == 64 ? f.template operator()<128, 64>() : f.template operator()<128, 128>();
}

template <GateOf gate, bool Reverse>
void launch(const Sweeps& s, cudaStream_t stream) {
  // Few heads leave multiprocessors idle, and what a warp does for its own columns may be spread over them.
  // What all columns need is done twice then: too much where the gate is of a.
  const bool few = 2 * s.documents * s.heads <= device_attribute(cudaDevAttrMultiProcessorCount);
  with_widths(s.d_a, gate == GateOf::c && few ? 64 : s.d_c,
              [&]<int D_a, int D_c>() { launch<gate, Reverse, D_a, D_c>(s, stream); });
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

int channel_sweep_bytes(int d_k, int d_v) {
  const int of_a =
      with_widths(d_k, d_v, [&]<int D_a, int D_c>() { return ChannelMemory<GateOf::a, D_a, D_c>::bytes; });
  const int of_c =
      with_widths(d_v, d_k, [&]<int D_a, int D_c>() { return ChannelMemory<GateOf::c, D_a, D_c>::bytes; });
  return std::max(of_a, of_c);
}

}  // namespace weft::cuda
