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

template <int D>
struct ForwardShape {
  static constexpr int pieces = 2;
  using Q = Tile<kHopperRows, D>;
  static constexpr int bytes =
      pieces * Q::bytes + KeyStream<D>::bytes + Errands::bytes + Pieces<pieces>::bytes;
};

// The first scores of a piece run beside the last products with values of the piece before.
template <int D>
__global__ void __launch_bounds__(kHopperThreads, 1)
    forward_kernel(const __grid_constant__ HopperAttention f, const __grid_constant__ ForwardMaps maps,
                   bf16* o, float* lse) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = WarpgroupProducts;
  using Shape = ForwardShape<D>;
  using Q = typename Shape::Q;
  extern __shared__ __align__(1024) char raw[];
  SharedPlaces places{shared_address(raw)};
  const uint32_t q_tiles = places.take(Shape::pieces * Q::bytes);
  const KeyStream<D> stream(places);
  const Errands errands(places);
  const Pieces<Shape::pieces> pieces(places);
  constexpr int keys = KeyStream<D>::keys;
  const auto q_tile = [&](int i) { return Q{q_tiles + pieces.slot(i) * Q::bytes}; };
  if (threadIdx.x == 0) {
    stream.init();
    pieces.init();
    errands.init();
    publish_barriers();
  }
  __syncthreads();
  const int warpgroup = own_warpgroup();

  if (warpgroup == 2) {
    give_registers<kLoaderRegisters>();
    if (own_warp() == kScout) {
      int n = 0;
      for (auto work = f.take_queries(); work.tile >= 0; work = f.take_queries())
        n = meet_keys(f, f.queries.tile(work.head, work.tile), n,
                      [&](int n, int word, int tile) { errands.send(n, word, tile, work); });
      if (threadIdx.x % kWarp == 0) errands.send(n, 0, 0, {-1, 0});
      return;
    }
    if (own_warp() != kLoader || threadIdx.x % kWarp != 0) return;
    int n = 0;
    for (int i = -1;; ++n) {
      const Errand e = errands.take(n);
      if (e.work.tile < 0) break;
      if ((e.word & Sighting::first) != 0) {
        pieces.open(++i, e.work, Q::bytes);
        copy_tile(q_tile(i), &maps.q, e.work.head, int64_t{e.work.tile} * kHopperRows, pieces.full(i));
      }
      stream.load(n, e.word, e.tile, &maps.k, &maps.v, e.work.head / f.group);
    }
    stream.finish(n);
  } else {
    take_registers<kComputeRegisters>();
    const float log2_scale = f.scale * kLog2e;
    RunningSoftmax softmax;
    Accumulator<D> out;
    out.fill(0);
    // The piece of which tiles come, and the one that `out` belongs to.
    int i = 0, head = 0;
    int64_t tile = 0;
    OwnTokens tokens;
    const auto begin = [&] {
      const auto work = pieces.wait(i);
      head = work.head, tile = f.queries.tile(work.head, work.tile);
    };
    const auto own_tokens = [&] { return OwnTokens(f.queries.token + tile * kHopperRows, warpgroup); };
    const auto finish = [&](int i, const RunningSoftmax& of, int head) {
      float factor[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float sum = of.whole_sum(r);
        factor[r] = sum > 0 ? 1 / sum : 0;
        const int64_t row = r == 0 ? tokens.low : tokens.high;
        if (Lane().t == 0 && row >= 0) lse[row * f.heads + head] = of.log_sum(r, sum, f.scale);
      }
      out.scale(factor[0], factor[1]);
      store_rows(q_tile(i), warpgroup, out, o + head * f.e, int64_t{f.heads} * f.e, f.e, tokens);
      pieces.release(i);
    };
    const auto hide_from = [&](Accumulator<keys>& s, Sighting now) {
      KeyStream<D>::hide_from(s, now, f, f.queries.at + tile * kHopperRows + 64 * warpgroup, warpgroup);
    };
    Sighting now = stream.wait(0);
    if (!now.ends()) {
      begin();
      tokens = own_tokens();
      Accumulator<keys> s;
      Products::start(s);
      Products::a_bt(s, TileRows<kHopperRows, D>(q_tile(0), warpgroup), stream.k(0), false);
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
        if (now.ends()) break;
        const bool first = now.is(Sighting::first);
        const int before = head;
        OwnTokens next = tokens;
        if (first) {
          ++i;
          begin();
          next = own_tokens();
        }
        stream.wait_values(n - 1);
        sync_threads(3 + warpgroup, 256);
        Products::start(s);
        Products::start(out);
        Products::a_bt(s, TileRows<kHopperRows, D>(q_tile(i), warpgroup), stream.k(n), false);
        Products::commit();
        Products::add_a_b(out, p, stream.v(n - 1));
        Products::commit();
        arrive_threads(4 - warpgroup, 256);
        Products::wait<1>();
        Products::settle(s);
        stream.k_empty(n).arrive_warp();
        hide_from(s, now);
        const RunningSoftmax done = softmax;
        if (first) softmax = RunningSoftmax();
        const float2 shrink = softmax.weigh(s, log2_scale);
        hold(s, softmax.sum[0] < 0 || softmax.sum[1] < 0);
        Products::wait<0>();
        Products::settle(out);
        stream.v_empty(n - 1).arrive_warp();
        p = operand_of(s);
        if (first) {
          finish(i - 1, done, before);
          out.fill(0);
          tokens = next;
        } else {
          out.scale(shrink.x, shrink.y);
        }
        ++n;
      }
      stream.wait_values(n - 1);
      Products::start(out);
      Products::add_a_b(out, p, stream.v(n - 1));
      Products::commit();
      Products::wait<0>();
      Products::settle(out);
      finish(i, softmax, head);
    }
  }
#endif
}

template <int D>
void forward(const HopperAttention& f, const ForwardMaps& maps, const Tensor& o, const Tensor& lse) {
  launch_hopper<forward_kernel<D>>("attention forward (hopper)", pieces_blocks(f.queries.tiles, f.heads),
                                   ForwardShape<D>::bytes, f, maps, data<bf16>(o), data<float>(lse));
}

}  // namespace

HopperAttention hopper_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                 const TokenTileBuffers& queries, const TokenTileBuffers& keys,
                                 const AttentionOptions& options) {
  HopperAttention f{queries.view(),
                    keys.view(),
                    Visibility(options),
                    options.weighting,
                    DistanceBias<float>(bias, q.dim(1), options),
                    static_cast<float>(options.scale),
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

bool hopper_attention_serves(const Tensor& q, const Tensor& k, const Tensor& v,
                             const AttentionOptions& options) {
  static const bool hopper = [] {
    if (of_device(cudaDevAttrComputeCapabilityMajor) != 9) return false;
    cudaFuncAttributes kernel;  // empty, and so without registers, unless compiled for sm_90a
    CUDA_CHECK(cudaFuncGetAttributes(&kernel, forward_kernel<64>));
    return kernel.numRegs > 64;
  }();
  const auto width = [](const Tensor& x) { return x.dim(2) > 0 && x.dim(2) % 8 == 0 && x.pitch() % 8 == 0; };
  return hopper && q.dtype() == Dtype::bf16 && q.numel() > 0 && k.numel() > 0 && width(q) && width(k) &&
         width(v) && aligned(q.raw()) && aligned(k.raw()) && aligned(v.raw()) && options.scale > 0;
}

Tensor HopperTiles::rows(const Tensor& x) const {
  if (!by_list) return x;
  const int64_t padded = int64_t{queries.tiles} * queries.size, heads = x.dim(1), units = x.dim(2) / 8;
  const Tensor y = empty({padded, heads, x.dim(2)}, x.dtype(), x.device());
  const auto* from = data<const uint4>(x);
  auto* to = data<uint4>(y);
  const int32_t* tokens = data<const int32_t>(queries.token);
  const int size = queries.size;
  const int64_t pitch = x.pitch() / 8;
  each(padded * heads * units, [=] __device__(int64_t i) {
    int64_t unit = i;
    int64_t head = divide(unit, units);
    const int64_t row = divide(head, heads);
    const int32_t* list = tokens + head * padded;
    if (list[row - row % size] < 0 && row >= size) return;  // nobody loads this tile
    const int64_t token = list[row];
    to[i] = token < 0 ? uint4{0, 0, 0, 0} : from[token * pitch + head * units + unit];
  });
  return y;
}

void hopper_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                              const Tensor& v, const AttentionTokens& t, const Tensor& bias,
                              const AttentionOptions& options) {
  const HopperTiles tiles(t, q.dim(1));
  const HopperAttention f = hopper_attention(q, k, v, bias, tiles.queries, tiles.keys, options);
  const Tensor rows = tiles.rows(q);
  if (is_wide(f)) return wide_attention_forward(f, o, lse, rows, k, v);
  const ForwardMaps maps{map_of(rows, kHopperRows), map_of(k, kHopperRows), map_of(v, kHopperRows)};
  if (std::max(f.d, f.e) > 64)
    forward<128>(f, maps, o, lse);
  else
    forward<64>(f, maps, o, lse);
}

}  // namespace weft::cuda
