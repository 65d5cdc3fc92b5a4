// Forward on Hopper. While the weights of one tile of keys are worked out, the products of the tile before
// with its values run, and so do those of the other warpgroup, which the two take in turns (as in Shah et al.
// 2024, FlashAttention-3).

#include "attention/flash_attention_hopper.cuh"

#include <algorithm>

namespace weft::cuda {
namespace {

struct ForwardMaps {
  CUtensorMap q, k, v;
};

// A row's part of the running softmax: rows g and g + 8 of a thread.
struct RunningSoftmax {
  float peak[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // sum: this thread's columns only

  // s: from products to weights e^(scale s - peak). Returns by what earlier sums and outputs shrink.
  template <int N>
  __device__ float2 weigh(Accumulator<N>& s, float log2_scale) {
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = peak[r];
#pragma unroll
      for (int n = 0; n < N / 8; ++n) top = fmaxf(top, fmaxf(s.x[n][2 * r], s.x[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float shift = top == -INFINITY ? 0.f : top * log2_scale;
      shrink[r] = exp2_fast(peak[r] * log2_scale - shift);
      peak[r] = top;
      float even = 0, odd = 0;
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
        even += s.x[n][2 * r] = exp2_fast(s.x[n][2 * r] * log2_scale - shift);
        odd += s.x[n][2 * r + 1] = exp2_fast(s.x[n][2 * r + 1] * log2_scale - shift);
      }
      sum[r] = sum[r] * shrink[r] + (even + odd);
    }
    return {shrink[0], shrink[1]};
  }
};

template <int D>
__global__ void __launch_bounds__(kHopperThreads, 1)
    forward_kernel(const __grid_constant__ HopperAttention f, const __grid_constant__ ForwardMaps maps,
                   bf16* o, float* lse) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = WarpgroupProducts;
  extern __shared__ __align__(1024) char raw[];
  SharedPlaces places{shared_address(raw)};
  const Tile<kHopperRows, D> q{places.take(q.bytes)};
  const KeyStream<D> stream(places);
  constexpr int keys = KeyStream<D>::keys;
  const Barrier q_full{places.take(8)};
  if (threadIdx.x == 0) {
    stream.init();
    q_full.init(1);
    publish_barriers();
  }
  __syncthreads();
  const auto [turn, head] = f.work(f.queries.tiles, f.heads, f.section);
  const int tile = f.queries.tiles - 1 - turn;  // late tiles see more: they come first
  const int warpgroup = own_warpgroup();

  if (warpgroup == 2) {
    give_registers<kLoaderRegisters>();
    if (threadIdx.x >= 2 * 128 + 32) return;
    if (threadIdx.x % kWarp == 0) {
      q_full.arrive_and_expect(q.bytes);
      copy_tile(q, &maps.q, head, int64_t{tile} * kHopperRows, q_full);
    }
    stream.load(f, &maps.k, &maps.v, tile, head / f.group);
  } else {
    take_registers<kComputeRegisters>();
    const float log2_scale = f.scale * kLog2e;
    const TileRows<kHopperRows, D> rows(q, warpgroup);
    const TokenAt* own = f.queries.at + int64_t{tile} * kHopperRows + 64 * warpgroup;
    const auto hide_from = [&](Accumulator<keys>& s, int notice) {
      if (notice % 2 == 0) hide<true>(s, f.visibility, own, f.keys.at + int64_t{notice / 2} * keys);
    };
    RunningSoftmax softmax;
    Accumulator<D> out;
    out.fill(0);
    q_full.wait(0);
    int now = stream.wait(0);
    if (now >= 0) {
      Accumulator<keys> s;
      Products::start(s);
      Products::a_bt(s, rows, stream.k(0), false);
      Products::commit();
      Products::wait<0>();
      Products::settle(s);
      stream.k_empty(0).arrive_warp();
      hide_from(s, now);
      softmax.weigh(s, log2_scale);
      Operand<keys> p = operand_of(s);
      int n = 1;
      if (warpgroup == 1) arrive_threads(3, 256);  // the first turn is the other one's
      while (true) {
        now = stream.wait(n);
        if (now < 0) break;
        stream.wait_values(n - 1);
        sync_threads(3 + warpgroup, 256);
        Products::start(s);
        Products::start(out);
        Products::a_bt(s, rows, stream.k(n), false);
        Products::commit();
        Products::add_a_b(out, p, stream.v(n - 1));
        Products::commit();
        arrive_threads(4 - warpgroup, 256);
        Products::wait<1>();
        Products::settle(s);
        stream.k_empty(n).arrive_warp();
        hide_from(s, now);
        const float2 shrink = softmax.weigh(s, log2_scale);
        hold(s, softmax.sum[0] < 0 || softmax.sum[1] < 0);
        Products::wait<0>();
        Products::settle(out);
        stream.v_empty(n - 1).arrive_warp();
        out.scale(shrink.x, shrink.y);
        p = operand_of(s);
        ++n;
      }
      stream.wait_values(n - 1);
      Products::start(out);
      Products::add_a_b(out, p, stream.v(n - 1));
      Products::commit();
      Products::wait<0>();
      Products::settle(out);
    }
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = softmax.sum[r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      factor[r] = sum > 0 ? 1 / sum : 0;
      const Lane lane;
      const int64_t row = int64_t{tile} * kHopperRows + 64 * warpgroup + lane.row() + 8 * r;
      if (lane.t == 0 && row < f.n)
        lse[row * f.heads + head] = sum > 0 ? softmax.peak[r] * f.scale + logf(sum) : -INFINITY;
    }
    out.scale(factor[0], factor[1]);
    store_rows(q, warpgroup, out, o + head * f.e, int64_t{f.heads} * f.e, f.e, int64_t{tile} * kHopperRows,
               f.n);
  }
#endif
}

template <int D>
void forward(const HopperAttention& f, const ForwardMaps& maps, const Tensor& o, const Tensor& lse) {
  launch_hopper<forward_kernel<D>>("attention forward (hopper)", int64_t{f.queries.tiles} * f.heads,
                                   Tile<kHopperRows, D>::bytes + KeyStream<D>::bytes + 8, f, maps,
                                   data<bf16>(o), data<float>(lse));
}

}  // namespace

HopperAttention hopper_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const TokenTileBuffers& queries, const TokenTileBuffers& keys,
                                 const AttentionOptions& options) {
  HopperAttention f{queries.view(),
                    keys.view(),
                    Visibility(options),
                    static_cast<float>(options.scale),
                    q.dim(0),
                    k.dim(0),
                    static_cast<int>(q.dim(1)),
                    static_cast<int>(q.dim(1) / k.dim(1)),
                    static_cast<int>(q.dim(2)),
                    static_cast<int>(v.dim(2)),
                    0};
  constexpr int64_t kResident = int64_t{20} << 20;  // bytes of keys and values
  const int64_t of_a_head = k.dim(0) * (f.d + f.e) * 2;
  f.section = static_cast<int>(std::clamp<int64_t>(kResident / of_a_head, 1, k.dim(1))) * f.group;
  return f;
}

bool hopper_attention_serves(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionTokens& tokens,
                             const Tensor& bias, const AttentionOptions& options) {
  static const bool hopper = [] {
    int device = 0, major = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    if (major != 9) return false;
    cudaFuncAttributes kernel;  // empty, and so without registers, unless compiled for sm_90a
    CUDA_CHECK(cudaFuncGetAttributes(&kernel, forward_kernel<64>));
    return kernel.numRegs > 64;
  }();
  const auto width = [](const Tensor& x) { return x.dim(2) > 0 && x.dim(2) <= 128 && x.dim(2) % 8 == 0; };
  return hopper && q.dtype() == Dtype::bf16 && q.numel() > 0 && k.numel() > 0 && width(k) && width(v) &&
         aligned(q.raw()) && aligned(k.raw()) && aligned(v.raw()) && !bias.defined() &&
         !tokens.active.defined() && options.weighting == Weighting::softmax && !options.alibi &&
         options.scale > 0;
}

void hopper_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                              const Tensor& v, const AttentionTokens& t, const AttentionOptions& options) {
  const HopperTiles tiles(t);
  const HopperAttention f = hopper_attention(q, k, v, tiles.queries, tiles.keys, options);
  const ForwardMaps maps{map_of(q, kHopperRows), map_of(k, kHopperRows), map_of(v, kHopperRows)};
  if (std::max(f.d, f.e) > 64)
    forward<128>(f, maps, o, lse);
  else
    forward<64>(f, maps, o, lse);
}

}  // namespace weft::cuda
