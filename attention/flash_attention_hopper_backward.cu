// Backward on Hopper, two kernels so that every number has one writer and sums one order: dk and dv over
// tiles of keys, dq over tiles of queries. With P = e^(scale S - lse) and dS = P (dO V^T - delta), all left
// sides of products that depend on P come from registers: the first kernel works out transposed scores.

#include "attention/flash_attention_hopper.cuh"

namespace weft::cuda {
namespace {

struct BackwardMaps {
  CUtensorMap q, k, v, d_o;
};

// `lanes` threads a row of a list and head, a power of two, that share its features by eights; rows of nobody
// see nothing.
__global__ void __launch_bounds__(kThreads)
    row_numbers_kernel(float* log2_sum, float* delta, const bf16* o, const bf16* d_o, const float* lse,
                       const float* d_lse, const TokenTiles queries, int64_t padded, int heads, int width,
                       int lanes) {
  int64_t head = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int64_t row = divide(head, heads);
  const int64_t token =
      row < padded ? queries.token[queries.tile(static_cast<int>(head), 0) * queries.size + row] : -1;
  const int64_t i = token * heads + head;
  float sum = 0;
  for (int j = 8 * lane; token >= 0 && j < width; j += 8 * lanes) {
    const uint4 a = *reinterpret_cast<const uint4*>(o + i * width + j);
    const uint4 b = *reinterpret_cast<const uint4*>(d_o + i * width + j);
    const auto dot = [](uint32_t x, uint32_t y) {
      const float2 p = unpack(x), q = unpack(y);
      return p.x * q.x + p.y * q.y;
    };
    sum += (dot(a.x, b.x) + dot(a.y, b.y)) + (dot(a.z, b.z) + dot(a.w, b.w));
  }
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane != 0 || row >= padded) return;
  const int64_t to = head * padded + row;
  const float l = token >= 0 ? lse[i] : -INFINITY;
  log2_sum[to] = l == -INFINITY ? INFINITY : l * kLog2e;
  delta[to] = token >= 0 ? sum - d_lse[i] : 0.f;
}

// dk, dv: 128 keys of a key head a piece, tiles of 64 queries.

template <int D>
struct KeyShape {
  static constexpr int queries = 64, stages = D == 128 ? 3 : 4;
  using K = Tile<kHopperRows, D>;
  using Q = Tile<queries, D>;
  static constexpr int numbers = 2 * queries * 4;  // bytes
  static constexpr int loader_registers = D == 128 ? 24 : kLoaderRegisters;
  static constexpr int compute_registers = D == 128 ? 240 : kComputeRegisters;
  static constexpr int pieces = 2;
  static constexpr int bytes =
      pieces * 2 * K::bytes + stages * (2 * Q::bytes + numbers + 2 * 8 + 4) + Pieces<pieces>::bytes;
};

template <int D>
__global__ void __launch_bounds__(kHopperThreads, 1)
    key_gradient_kernel(const __grid_constant__ HopperAttention f, const __grid_constant__ BackwardMaps maps,
                        const RowNumbers rows, const HopperRowsTo dk, const HopperRowsTo dv) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shape = KeyShape<D>;
  using Products = WarpgroupProducts;
  constexpr int stages = Shape::stages, queries = Shape::queries;
  extern __shared__ __align__(1024) char raw[];
  SharedPlaces places{shared_address(raw)};
  const uint32_t keys = places.take(Shape::pieces * 2 * Shape::K::bytes);
  const uint32_t first = places.take(stages * 2 * Shape::Q::bytes);
  const uint32_t numbers = places.take(stages * Shape::numbers);
  const uint32_t barriers = places.take(2 * 8 * stages);
  const Pieces<Shape::pieces> pieces(places);
  const uint32_t notices = places.take(4 * stages);
  const auto k_tile = [&](int i) { return typename Shape::K{keys + pieces.slot(i) * 2 * Shape::K::bytes}; };
  const auto v_tile = [&](int i) { return typename Shape::K{k_tile(i).address + Shape::K::bytes}; };
  const auto stage = [](int n) { return n % stages; };
  const auto phase = [](int n) { return n / stages % 2; };
  const auto q_tile = [&](int n) { return typename Shape::Q{first + stage(n) * 2 * Shape::Q::bytes}; };
  const auto g_tile = [&](int n) { return typename Shape::Q{first + (stage(n) * 2 + 1) * Shape::Q::bytes}; };
  const auto full = [&](int n) { return Barrier{barriers + 8 * stage(n)}; };
  const auto empty = [&](int n) { return Barrier{barriers + 8 * (stages + stage(n))}; };
  if (threadIdx.x == 0) {
    for (int n = 0; n < stages; ++n) full(n).init(1), empty(n).init(kHopperWarps);
    pieces.init();
    publish_barriers();
  }
  __syncthreads();
  const int kv_heads = f.heads / f.group, warpgroup = own_warpgroup();

  if (warpgroup == 2) {
    give_registers<Shape::loader_registers>();
    if (threadIdx.x >= 2 * 128 + 32) return;
    const bool leader = threadIdx.x % 32 == 0;
    int n = 0;
    const auto send = [&](int head, int i, Sighting now) {
      if (leader) {
        const int64_t row = int64_t{i} * queries;
        const uint32_t to = numbers + stage(n) * Shape::numbers;
        empty(n).wait(phase(n) ^ 1);
        store_shared(notices + 4 * stage(n), static_cast<uint32_t>(now.word));
        full(n).arrive_and_expect(2 * Shape::Q::bytes + Shape::numbers);
        copy_tile(q_tile(n), &maps.q, head, row, full(n));
        copy_in(to, rows.log2_sum + head * rows.padded + row, queries * 4, full(n));
        copy_tile(g_tile(n), &maps.d_o, head, row, full(n));
        copy_in(to + queries * 4, rows.delta + head * rows.padded + row, queries * 4, full(n));
      }
      __syncwarp();
      ++n;
    };
    for (int i = 0;; ++i) {
      const int piece = f.take(f.keys.tiles * kv_heads);
      const auto [tile, kv] = f.work(max(piece, 0), f.keys.tiles, kv_heads, f.section / f.group);
      if (leader) {
        pieces.open(i, {piece < 0 ? -1 : tile, kv}, piece < 0 ? 0 : 2 * Shape::K::bytes);
        if (piece >= 0) {
          copy_tile(k_tile(i), &maps.k, kv, int64_t{tile} * kHopperRows, pieces.full(i));
          copy_tile(v_tile(i), &maps.v, kv, int64_t{tile} * kHopperRows, pieces.full(i));
        }
      }
      __syncwarp();
      if (piece < 0) return;
      const TileSpan& own = f.keys.span[tile];
      for (int head = kv * f.group; head < (kv + 1) * f.group; ++head) {
        const auto first_tile = static_cast<int>(f.queries.tile(head, 0));
        TileWalk<false> walk(f.visibility, own, f.queries.span + first_tile, f.queries.tiles);
        for (int j; (j = walk.next()) >= 0;) {
          const TileSpan& other = f.queries.span[first_tile + j];
          Sighting now(first_tile + j, 0);
          if (walk.all)
            now = Sighting(0, Sighting::everybody);
          else if (f.visibility.by_order(other, own))
            now = Sighting(other.first_low - own.first_low, Sighting::by_order);
          send(head, j, now);
        }
      }
      if (leader) {
        empty(n).wait(phase(n) ^ 1);
        store_shared(notices + 4 * stage(n), static_cast<uint32_t>(Sighting().word));
        full(n).arrive();
      }
      __syncwarp();
      ++n;
    }
  } else {
    take_registers<Shape::compute_registers>();
    const float log2_scale = f.scale * kLog2e;
    const Lane lane;
    Accumulator<D> dk_sum, dv_sum;
    int n = 0, i = 0;
    HopperAttention::Work work = pieces.wait(0);
    if (work.tile >= 0) dk_sum.fill(0), dv_sum.fill(0);
    while (work.tile >= 0) {
      const TileRows<kHopperRows, D> k_rows(k_tile(i), warpgroup), v_rows(v_tile(i), warpgroup);
      full(n).wait(phase(n));
      Sighting now;
      now.word = static_cast<int>(load_shared_word(notices + 4 * stage(n)));
      if (now.ends()) {
        const OwnTokens tokens(f.keys.token + int64_t{work.tile} * kHopperRows, warpgroup);
        empty(n++).arrive_warp();
        dk_sum.scale(f.scale, f.scale);
        store_rows(k_tile(i), warpgroup, dk_sum, dk.data + work.head * f.d, dk.pitch, f.d, tokens);
        store_rows(v_tile(i), warpgroup, dv_sum, dv.data + work.head * f.e, dv.pitch, f.e, tokens);
        pieces.release(i++);
        dk_sum.fill(0), dv_sum.fill(0);
        work = pieces.wait(i);
        continue;
      }
      Accumulator<queries> s, ds;  // rows are keys
      Products::start(s);
      Products::start(ds);
      Products::a_bt(s, k_rows, q_tile(n), false);
      Products::commit();
      Products::a_bt(ds, v_rows, g_tile(n), false);
      Products::commit();
      Products::wait<1>();
      Products::settle(s);
      if (now.is(Sighting::by_order))
        hide_by_order<false>(s, now.tile(), warpgroup);
      else if (!now.is(Sighting::everybody))
        hide<false>(s, f.visibility, f.keys.at + int64_t{work.tile} * kHopperRows + 64 * warpgroup,
                    f.queries.at + int64_t{now.tile()} * queries);
      const auto* of_queries = reinterpret_cast<const float*>(raw + (numbers - shared_address(raw))) +
                               stage(n) * 2 * queries + 2 * lane.t;
#pragma unroll
      for (int c = 0; c < queries / 8; ++c) {
        const float2 l = *reinterpret_cast<const float2*>(of_queries + 8 * c);
#pragma unroll
        for (int i = 0; i < 4; ++i) s.x[c][i] = exp2_fast(s.x[c][i] * log2_scale - (i % 2 == 0 ? l.x : l.y));
      }
      const Operand<queries> p = operand_of(s);
      Products::start(dv_sum);
      Products::add_a_b(dv_sum, p, g_tile(n));
      Products::commit();
      Products::wait<1>();
      Products::settle(ds);
#pragma unroll
      for (int c = 0; c < queries / 8; ++c) {
        const float2 delta = *reinterpret_cast<const float2*>(of_queries + queries + 8 * c);
#pragma unroll
        for (int i = 0; i < 4; ++i) ds.x[c][i] = s.x[c][i] * (ds.x[c][i] - (i % 2 == 0 ? delta.x : delta.y));
      }
      const Operand<queries> left = operand_of(ds);
      Products::start(dk_sum);
      Products::add_a_b(dk_sum, left, q_tile(n));
      Products::commit();
      Products::wait<0>();
      Products::settle(dv_sum);
      Products::settle(dk_sum);
      empty(n++).arrive_warp();
    }
  }
#endif
}

// dq: 128 queries of a head a piece, tiles of 128 keys.

template <int D>
struct QueryShape {
  static constexpr int pieces = D == 128 ? 1 : 2;
  using Q = Tile<kHopperRows, D>;
  static constexpr int bytes = pieces * 2 * Q::bytes + KeyStream<D>::bytes + Pieces<pieces>::bytes;
};

template <int D>
__global__ void __launch_bounds__(kHopperThreads, 1)
    query_gradient_kernel(const __grid_constant__ HopperAttention f,
                          const __grid_constant__ BackwardMaps maps, const RowNumbers rows,
                          const HopperRowsTo dq) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = WarpgroupProducts;
  using Shape = QueryShape<D>;
  using Q = typename Shape::Q;
  extern __shared__ __align__(1024) char raw[];
  SharedPlaces places{shared_address(raw)};
  const uint32_t q_tiles = places.take(Shape::pieces * 2 * Q::bytes);
  const KeyStream<D> stream(places);
  const Pieces<Shape::pieces> pieces(places);
  constexpr int keys = KeyStream<D>::keys;
  const auto q_tile = [&](int i) { return Q{q_tiles + pieces.slot(i) * 2 * Q::bytes}; };
  const auto g_tile = [&](int i) { return Q{q_tile(i).address + Q::bytes}; };
  if (threadIdx.x == 0) {
    stream.init();
    pieces.init();
    publish_barriers();
  }
  __syncthreads();
  const int warpgroup = own_warpgroup();

  if (warpgroup == 2) {
    give_registers<kLoaderRegisters>();
    if (threadIdx.x >= 2 * 128 + 32) return;
    int n = 0;
    for (int i = 0;; ++i) {
      const auto work = f.take_queries();
      if (threadIdx.x % kWarp == 0) {
        pieces.open(i, work, work.tile < 0 ? 0 : 2 * Q::bytes);
        if (work.tile >= 0) {
          copy_tile(q_tile(i), &maps.q, work.head, int64_t{work.tile} * kHopperRows, pieces.full(i));
          copy_tile(g_tile(i), &maps.d_o, work.head, int64_t{work.tile} * kHopperRows, pieces.full(i));
        }
      }
      __syncwarp();
      if (work.tile < 0) return;
      n = meet_keys(f, f.queries.tile(work.head, work.tile), n, [&](int n, int word, int tile) {
        stream.load(n, word, tile, &maps.k, &maps.v, work.head / f.group);
      });
    }
  } else {
    take_registers<kComputeRegisters>();
    const float log2_scale = f.scale * kLog2e;
    const int own = 64 * warpgroup + Lane().row();
    int n = 0;
    for (int i = 0;; ++i) {
      const auto work = pieces.wait(i);
      if (work.tile < 0) break;
      const int64_t of_all = f.queries.tile(work.head, work.tile);
      const TileRows<kHopperRows, D> q_rows(q_tile(i), warpgroup), g_rows(g_tile(i), warpgroup);
      const int64_t row = work.head * rows.padded + int64_t{work.tile} * kHopperRows + own;
      const float log2_sum[2] = {rows.log2_sum[row], rows.log2_sum[row + 8]};
      const float delta[2] = {rows.delta[row], rows.delta[row + 8]};
      const OwnTokens tokens(f.queries.token + of_all * kHopperRows, warpgroup);
      Accumulator<D> dq_sum;
      dq_sum.fill(0);
      for (bool last = false; !last; ++n) {
        const Sighting now = stream.wait(n);
        last = now.is(Sighting::last);
        Accumulator<keys> s, ds;
        Products::start(s);
        Products::a_bt(s, q_rows, stream.k(n), false);
        Products::commit();
        stream.wait_values(n);
        Products::start(ds);
        Products::a_bt(ds, g_rows, stream.v(n), false);
        Products::commit();
        Products::wait<1>();
        Products::settle(s);
        stream.hide_from(s, now, f, f.queries.at + of_all * kHopperRows + 64 * warpgroup, warpgroup);
#pragma unroll
        for (int c = 0; c < keys / 8; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i) s.x[c][i] = exp2_fast(s.x[c][i] * log2_scale - log2_sum[i / 2]);
        hold(s, never(s));
        Products::wait<0>();
        Products::settle(ds);
        stream.v_empty(n).arrive_warp();
#pragma unroll
        for (int c = 0; c < keys / 8; ++c)
#pragma unroll
          for (int i = 0; i < 4; ++i) ds.x[c][i] = s.x[c][i] * (ds.x[c][i] - delta[i / 2]);
        const Operand<keys> left = operand_of(ds);
        Products::start(dq_sum);
        Products::add_a_b(dq_sum, left, stream.k(n));
        Products::commit();
        Products::wait<0>();
        Products::settle(dq_sum);
        stream.k_empty(n).arrive_warp();
      }
      dq_sum.scale(f.scale, f.scale);
      store_rows(q_tile(i), warpgroup, dq_sum, dq.data + work.head * f.d, dq.pitch, f.d, tokens);
      pieces.release(i);
    }
  }
#endif
}

}  // namespace

void hopper_attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                               const Tensor& q, const Tensor& k, const Tensor& v, const AttentionTokens& t,
                               const Tensor& bias, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                               const Tensor& d_lse, const AttentionOptions& options) {
  const int64_t heads = q.dim(1);
  const HopperTiles tiles(t, heads);
  const HopperAttention by_query = hopper_attention(q, k, v, bias, tiles.queries, tiles.keys, options);
  const int64_t padded = int64_t{by_query.queries.tiles} * kHopperRows;
  const Tensor log2_sum = empty({heads, padded}, Dtype::f32, Device::cuda), delta = empty_like(log2_sum);
  const int lanes = by_query.e > 64 ? 16 : 8;
  const int64_t blocks = (heads * padded * lanes + kThreads - 1) / kThreads;
  row_numbers_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream()>>>(
      data<float>(log2_sum), data<float>(delta), data<const bf16>(o), data<const bf16>(d_o),
      data<const float>(lse), data<const float>(d_lse), by_query.queries, padded, static_cast<int>(heads),
      by_query.e, lanes);
  check_launch("attention row numbers");
  const RowNumbers rows{data<const float>(log2_sum), data<const float>(delta), padded};
  const Tensor q_rows = tiles.rows(q), g_rows = tiles.rows(d_o);
  if (is_wide(by_query))
    return wide_attention_backward(by_query, dq, dk, dv, dbias, q_rows, k, v, g_rows, rows);
  const TokenTileBuffers few_queries = token_tiles(t.q_position, t.q_document, t.active, heads, 64);
  const HopperAttention by_key = hopper_attention(q, k, v, bias, few_queries, tiles.keys, options);
  const CUtensorMap of_keys = map_of(k, kHopperRows), of_values = map_of(v, kHopperRows);
  const BackwardMaps by_key_maps{map_of(q_rows, 64), of_keys, of_values, map_of(g_rows, 64)};
  const BackwardMaps by_query_maps{map_of(q_rows, kHopperRows), of_keys, of_values,
                                   map_of(g_rows, kHopperRows)};
  const auto run = [&]<int D>() {
    launch_hopper<key_gradient_kernel<D>>("attention dk dv (hopper)",
                                          pieces_blocks(by_key.keys.tiles, k.dim(1)), KeyShape<D>::bytes,
                                          by_key, by_key_maps, rows, HopperRowsTo(dk), HopperRowsTo(dv));
    launch_hopper<query_gradient_kernel<D>>(
        "attention dq (hopper)", pieces_blocks(by_query.queries.tiles, heads), QueryShape<D>::bytes, by_query,
        by_query_maps, rows, HopperRowsTo(dq));
  };
  if (std::max(by_query.d, by_query.e) > 64)
    run.template operator()<128>();
  else
    run.template operator()<64>();
}

}  // namespace weft::cuda
