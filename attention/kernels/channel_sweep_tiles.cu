// Sweeps with a gate for each channel (channel_sweep.h) on tensor cores. A block of threads has one document
// and head and 64 columns of c to a warpgroup, whose state it holds transposed, and takes chunks of 64 tokens
// in two stages: most of them whole, those of far decays in blocks of 16 tokens.

#include "attention/kernels/channel_chunk.cuh"
#include "attention/kernels/channel_maps.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

// kernels

namespace {

template <bool Wgmma, GateOf gate, bool Reverse, int D_a, int W>
__global__ void __launch_bounds__(128 * W, 1)
    channel_sweep_kernel(const __grid_constant__ Sweeps s, const __grid_constant__ ChannelMaps maps) {
  using Products = ProductsOf<Wgmma>;
  constexpr bool tma = by_tma<Products>;
  constexpr int threads = 128 * W, D_c = 64 * W;
  using M = ChannelMemory<gate, D_a, D_c>;
  const int splits = s.d_c / D_c, warp = threadIdx.x / 32, unit = int(blockIdx.x) / splits;
  const int column0 = int(blockIdx.x) % splits * D_c;  // the block's; `at` is of the warpgroup
  const Place at{s, s.sweep[0], unit / s.heads, unit % s.heads, column0 + int(threadIdx.x) / 128 * 64};
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;
  auto first_token = [&](int n) { return int64_t(range.x) + (Reverse ? chunks - 1 - n : n) * chunk; };
  auto valid_tokens = [&](int n) { return min(chunk, int(range.x + range.y - first_token(n))); };
  // Such chunks travel by TMA; what is left of a document is copied by its threads.
  auto whole = [&](int n) { return tma && valid_tokens(n) == chunk; };

  extern __shared__ __align__(1024) char raw[];
  const M memory{shared_address(raw)};
  const int64_t column_a = int64_t(at.head) * D_a, column_c = int64_t(at.head) * s.d_c + column0;
  // The gate's gradient: wanted from this sweep, and summed up in the gates' place.
  const bool wanted = gate == GateOf::c && at.sweep.gate_gradient, sums = Reverse && wanted;

  // One thread's: a chunk on its way into its stage, first what no output lies in the place of.
  auto load = [&](auto tile, const CUtensorMap& map, int column, int n, int barrier) {
    if constexpr (tma)
      load_parts(tile, map, column, at.head, first_token(n), Barrier{memory.barrier(barrier)});
  };
  auto load_gates = [&](int n) {
    load(memory.stage(n).gates, maps.gates, gate == GateOf::a ? 0 : column0, n, n % 2);
  };
  auto load_first = [&](int n) {
    if constexpr (tma) {
      const typename M::Stage g = memory.stage(n);
      Barrier{memory.barrier(n % 2)}.arrive_and_expect(M::stage_bytes);
      load(g.a, maps.a, 0, n, n % 2), load(g.b, maps.b, 0, n, n % 2);
      if (!sums) load_gates(n);
    }
  };
  auto load_rest = [&](int n) {
    if (sums) load_gates(n);
    load(memory.stage(n).c, maps.c, column0, n, n % 2);
  };
  // All threads'.
  auto fetch = [&](int n) {
    if (n < chunks) {
      const typename M::Stage g = memory.stage(n);
      const int64_t token0 = first_token(n);
      const int valid = valid_tokens(n);
      copy_in<threads>(g.a, at.sweep.a, token0, valid, column_a);
      copy_in<threads>(g.b, at.sweep.b, token0, valid, column_a);
      copy_in<threads>(g.c, at.sweep.c, token0, valid, column_c);
      copy_in<threads>(g.gates, s.log_decay, int64_t(s.heads) * (gate == GateOf::a ? D_a : s.d_c), token0,
                       valid, gate == GateOf::a ? column_a : column_c);
    }
    commit_copies();
  };
  // What the gate's gradient needs at a chunk's end.
  auto ask_for_dot = [&](int n) {
    if constexpr (gate == GateOf::c) {
      if (!whole(n))
        copy_in<threads>(memory.dot(), at.sweep.dot, first_token(n), valid_tokens(n), column_c);
      else if (threadIdx.x == 0)
        load(memory.dot(), maps.dot, column0, n, 2);
    }
  };
  auto ask_for_forward = [&](int n) {
    if constexpr (gate == GateOf::c) {
      if (!whole(n)) {
        const int64_t token0 = first_token(n);
        const int valid = valid_tokens(n);
        copy_in<threads>(memory.forward_out(), at.sweep.forward_out, token0, valid, column_c);
#pragma unroll
        for (int i = 0; i < W; ++i)
          copy_in<threads>(memory.lost().template part<64>(i), lost_rows(s, at.sweep), token0, valid,
                           2 * (column_c + 64 * i));
      } else if (threadIdx.x == 0) {
        if constexpr (tma) Barrier{memory.barrier(2)}.arrive_and_expect(3 * M::c_bytes);
        load(memory.forward_out(), maps.forward_out, column0, n, 2);
#pragma unroll
        for (int i = 0; i < W; ++i)
          load(memory.lost().template part<64>(i), maps.lost, 2 * (column0 + 64 * i), n, 2);
      }
      if (!M::late_dot) ask_for_dot(n);
      commit_copies();
    }
  };
  uint32_t phases = 0;  // of the barriers, a bit each
  auto arrived = [&](int barrier) {
    if constexpr (tma) Barrier{memory.barrier(barrier)}.wait(phases >> barrier & 1);
    phases ^= 1u << barrier;
  };
  // Of a whole chunk, one thread's.
  auto store = [&](const typename M::Stage& g, int token) {
    if constexpr (tma) {
#pragma unroll
      for (int i = 0; i < W; ++i) {
        copy_out(g.c.part_address(i), &maps.out, column0 + 64 * i, at.head, token);
        if constexpr (gate == GateOf::c && !Reverse)
          if (wanted)
            copy_out(memory.lost().part_address(i), &maps.lost, 2 * (column0 + 64 * i), at.head, token);
      }
      if constexpr (gate == GateOf::c && Reverse) {
#pragma unroll
        for (int i = 0; i < 2 * W; ++i)
          if (wanted) copy_out(g.gates.part_address(i), &maps.gradient, column0 + 32 * i, at.head, token);
      }
    }
  };

  if constexpr (tma) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < 3; ++i) Barrier{memory.barrier(i)}.init(1);
      publish_barriers();
    }
    __syncthreads();
  }
  for (int n = 0; n < 2; ++n) {
    if (n >= chunks || !whole(n))
      fetch(n);
    else if (threadIdx.x == 0)
      load_first(n), load_rest(n);
  }
  StatePart<Products, D_a, 1, false> part;
  part.load(at);
  Accumulator<D_a>& state = part.state[0][0];
  float2 owed{1, 1};
  GateGradientLane gradient;
  if (Reverse && gate == GateOf::c && at.sweep.end_sums) gradient.start(at, 16 * (warp % 4));
  for (int n = 0; n < chunks; ++n) {
    const typename M::Stage g = memory.stage(n);
    const int64_t token0 = first_token(n);
    const int valid = valid_tokens(n);
    if (whole(n)) {
      arrived(n % 2);
    } else {
      wait_copies<tma ? 0 : 1>();
      publish<Products>();
      __syncthreads();
    }
    if (sums) ask_for_forward(n);
    // The rest of the next chunk, to where the last one's output has left.
    auto load_next = [&] {
      if constexpr (tma)
        if (n > 0 && threadIdx.x == 0) {
          copy_out_wait();
          if (n + 1 < chunks && whole(n + 1)) load_rest(n + 1);
        }
    };
    if constexpr (gate == GateOf::a)
      take_a<Products, Reverse, W>(state, owed, at, memory, g, load_next);
    else
      take_c<Products, Reverse, W>(
          state, owed, gradient, at, memory, g, load_next,
          [&] {
            if (!sums || !M::late_dot) return;
            publish<Products>();
            __syncthreads();
            ask_for_dot(n);
            commit_copies();
          },
          [&] {
            if (whole(n)) return arrived(2);
            wait_copies<0>();
            publish<Products>();
            __syncthreads();
          });
    if (!whole(n)) {
      __syncwarp();
      store_columns(
          static_cast<__nv_bfloat16*>(at.sweep.out.data) + token0 * at.sweep.out.pitch + column_c + 16 * warp,
          at.sweep.out.pitch, g.c, 16 * warp, valid);
      if constexpr (gate == GateOf::c)
        if (wanted) {
          if constexpr (Reverse) {
            GateGradientLane::store(at, g.gates, column0, token0, valid);
          } else {
            const Rows lost = lost_rows(s, at.sweep);
            store_columns(reinterpret_cast<__nv_bfloat16*>(at.sweep.gate_gradient) + token0 * lost.pitch +
                              2 * (column_c + warp / 4 * 64) + warp % 4 * 16,
                          lost.pitch, memory.lost(), 16 * warp, valid);
          }
        }
    }
    Products::template wait<0>();
    Products::settle(state);
    publish<Products>();
    __syncthreads();
    if (tma && threadIdx.x == 0) {
      if (whole(n)) store(g, int(token0));
      if (n + 2 < chunks && whole(n + 2)) load_first(n + 2);
    }
    if (!tma || (n + 2 < chunks && !whole(n + 2))) {
      if constexpr (tma) {
        if (threadIdx.x == 0) copy_out_wait();
        __syncthreads();
      }
      fetch(n + 2);
    }
  }
  if constexpr (tma)
    if (threadIdx.x == 0) copy_out_wait();
  if constexpr (gate == GateOf::a) {
    using Rows = AnchoredRows<Reverse, threads, D_a>;
    if (Rows::run() == 0) store_shared_pair(memory.total(0, Rows::channel()), owed);
    __syncthreads();
    scale_channels(state, memory.total(0, 0));
  } else {
    state.scale(owed.x, owed.y);
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
  ChannelMaps maps{};
  if (Wgmma) maps = channel_maps(s, gate);
  kernel<<<s.documents * s.heads*(s.d_c / (64 * W)), 128 * W, bytes, stream>>>(s, maps);
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
