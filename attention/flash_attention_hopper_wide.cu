// Attention on Hopper of heads of more than 128 features, and of other weights and biases at any size. No
// tile of a wide head fits into shared memory: both sides of a product come by in pieces of 64 columns, and a
// block makes 128 or 256 columns of one result. Each block works out the scores anew, so that every number
// has one writer and nothing is kept between blocks.

#include <algorithm>
#include <numbers>

#include "attention/flash_attention_hopper.cuh"
#include "attention/flash_attention_plain.cuh"  // constants of the weights
#include "autograd/ops/matmul.h"

namespace weft::cuda {
namespace {

// Weights that depend on their own score s alone (Weighting), and their derivatives; 0 at -infinity.
__device__ inline float own_weight(Weighting weighting, float s) {
  if (weighting == Weighting::relu2) return s > 0 ? s * s : 0.f;
  return 0.5f * erfcf((float(kLaplaceMean) - s) * float(kLaplaceRate));
}
__device__ inline float own_slope(Weighting weighting, float s) {
  if (weighting == Weighting::relu2) return s > 0 ? 2 * s : 0.f;
  const float u = (s - float(kLaplaceMean)) * float(kLaplaceRate);
  return std::numbers::sqrt2_v<float> * exp2_fast(-kLog2e * u * u);
}

// What a block makes: o of queries; dv or dk of keys, with transposed scores; dq of queries, and what they
// give to the gradient of the bias.
enum class Wide { o, dv, dk, dq, dbias };

constexpr int kPiece = 64, kColumns = 128;
constexpr bool of_queries(Wide use) { return use != Wide::dv && use != Wide::dk; }
constexpr bool from_gradient(Wide use) { return use != Wide::o && use != Wide::dv; }
// Columns of a result, by 128: as many as registers have room for.
constexpr int parts_of(Wide use, bool plain) {
  return use == Wide::dbias ? 0 : plain && !from_gradient(use) ? 2 : 1;
}
constexpr int columns_of(Wide use, bool plain) { return std::max(1, parts_of(use, plain) * kColumns); }

// Of tiles (128 rows, 64 columns): scores are own . other^T, their gradients further_own . further_other^T,
// and what is summed by them are columns of `summed`, rows of the other side.
struct WideMaps {
  CUtensorMap own, other, further_own, further_other, summed;
};

struct WideResult {
  bf16* to;
  int64_t pitch;
  int width, heads;  // of the result
  float* sums;       // lse of o; of dbias (tiles, warps, H, distances), to which is added
  int first_tile;    // of dbias
};

// Two pieces, or 128 rows of 128 columns, at a time.
struct WideStream {
  static constexpr int stages = 6, bytes_a_stage = 2 * kHopperRows * kPiece * 2;
  static constexpr int bytes = stages * (bytes_a_stage + 2 * 8 + 4);
  using Piece = Tile<kHopperRows, kPiece>;
  using Columns = Tile<kHopperRows, kColumns>;
  uint32_t tiles, barriers, notices;

  __device__ explicit WideStream(SharedPlaces& places)
      : tiles(places.take(stages * bytes_a_stage)),
        barriers(places.take(2 * 8 * stages)),
        notices(places.take(4 * stages)) {}
  __device__ static int stage(int n) { return n % stages; }
  __device__ static int phase(int n) { return n / stages % 2; }
  __device__ Columns columns(int n) const { return {tiles + stage(n) * bytes_a_stage}; }
  __device__ Piece piece(int n, int which) const { return columns(n).part<kPiece>(which); }
  __device__ Barrier full(int n) const { return {barriers + 8 * stage(n)}; }
  __device__ Barrier empty(int n) const { return {barriers + 8 * (stages + stage(n))}; }
  __device__ uint32_t notice(int n) const { return notices + 4 * stage(n); }

  __device__ void init() const {
    for (int n = 0; n < stages; ++n) full(n).init(1), empty(n).init(kHopperWarps);
  }
  // By one thread: waits for room for step n.
  __device__ void open(int n, int what, bool last) const {
    empty(n).wait(phase(n) ^ 1);
    store_shared(notice(n), static_cast<uint32_t>(what));
    if (last)
      full(n).arrive();
    else
      full(n).arrive_and_expect(bytes_a_stage);
  }
  __device__ int wait(int n) const {
    full(n).wait(phase(n));
    return static_cast<int>(load_shared_word(notice(n)));
  }
};

// s = own . other^T over `pieces` steps from n on.
__device__ inline void sum_pieces(Accumulator<kHopperRows>& s, const WideStream& stream, int& n, int pieces,
                                  int warpgroup) {
  using Products = WarpgroupProducts;
  s.fill(0);
#pragma unroll 1
  for (int c = 0; c < pieces; ++c, ++n) {
    stream.full(n).wait(WideStream::phase(n));
    const TileRows<kHopperRows, kPiece> rows(stream.piece(n, 0), warpgroup);
    Products::start(s);
    Products::a_bt(s, rows, stream.piece(n, 1), true);
    Products::commit();
    Products::wait<0>();
    Products::settle(s);
    stream.empty(n).arrive_warp();
  }
}

// From products to scores, where more than their scale makes these. rows: the 64 of this warpgroup.
template <bool rows_are_queries, int N>
__device__ void score(Accumulator<N>& s, const HopperAttention& f, int query_head, const TokenAt* rows,
                      const TokenAt* columns) {
  if (!f.bias.any()) return s.scale(f.scale, f.scale);
  const Lane lane;
  const float slope = f.bias.slope(query_head);
  const int32_t own[2] = {rows[lane.row()].position, rows[lane.row() + 8].position};
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const int4 pair = *reinterpret_cast<const int4*>(columns + 8 * n + 2 * lane.t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t distance = own[i / 2] - (i % 2 == 0 ? pair.x : pair.z);
      s.x[n][i] = f.scale * s.x[n][i] + f.bias(query_head, slope, rows_are_queries ? distance : -distance);
    }
  }
}

// to[its distance] += every one of a warp's numbers.
template <int N>
__device__ void add_by_distance(float* to, const Accumulator<N>& ds, const DistanceBias<float>& bias,
                                const TokenAt* rows, const TokenAt* columns) {
  const Lane lane;
  const int32_t own[2] = {rows[lane.row()].position, rows[lane.row() + 8].position};
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const int4 pair = *reinterpret_cast<const int4*>(columns + 8 * n + 2 * lane.t);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      add_by_bin(to, bias.bin(own[i / 2] - (i % 2 == 0 ? pair.x : pair.z)), ds.x[n][i]);
  }
}

// plain: softmax of scaled products; otherwise as the options say.
template <Wide use, bool plain>
__global__ void __launch_bounds__(kHopperThreads, 1)
    wide_kernel(const __grid_constant__ HopperAttention f, const __grid_constant__ WideMaps maps,
                const RowNumbers numbers, const WideResult result) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = WarpgroupProducts;
  constexpr bool by_query = of_queries(use), second = from_gradient(use);
  constexpr int parts = parts_of(use, plain);
  extern __shared__ __align__(1024) char raw[];
  SharedPlaces places{shared_address(raw)};
  const WideStream stream(places);
  constexpr int columns = columns_of(use, plain);
  const int slices = (result.width + columns - 1) / columns;
  const int slice = static_cast<int>(blockIdx.x) % slices, work = static_cast<int>(blockIdx.x) / slices;
  const int head = work % result.heads, turn = work / result.heads;
  // Late queries and early keys see more, or are seen by more: they come first.
  const TokenTiles& mine = by_query ? f.queries : f.keys;
  const int tile = use == Wide::dbias ? result.first_tile + turn : by_query ? mine.tiles - 1 - turn : turn;
  const int64_t of_all = mine.tile(head, tile);
  const int32_t* token = mine.token + of_all * kHopperRows;
  if (token[0] < 0) return;
  if (threadIdx.x == 0) {
    stream.init();
    publish_barriers();
  }
  __syncthreads();
  const int pieces = (f.d + kPiece - 1) / kPiece, further = second ? (f.e + kPiece - 1) / kPiece : 0;
  const int warpgroup = own_warpgroup();

  if (warpgroup == 2) {
    give_registers<kLoaderRegisters>();
    if (threadIdx.x >= 2 * 128 + 32) return;
    const bool leader = threadIdx.x % kWarp == 0;
    const int own_row = tile * kHopperRows;
    int n = 0;
    const int first_head = by_query ? head / f.group : head * f.group;
    for (int other = first_head; other < (by_query ? first_head + 1 : first_head + f.group); ++other) {
      const TokenTiles& theirs = by_query ? f.keys : f.queries;
      const auto first = static_cast<int>(theirs.tile(other, 0));
      TileWalk<by_query> walk(f.visibility, mine.span[of_all], theirs.span + first, theirs.tiles);
      for (int j; (j = walk.next()) >= 0;) {
        if (leader) {
          const int row = j * kHopperRows;
          for (int c = 0; c < pieces; ++c, ++n) {
            stream.open(n, notice(by_query ? j : other * theirs.tiles + j, walk.all), false);
            copy_in(stream.piece(n, 0).address, &maps.own, c * kPiece, head, own_row, stream.full(n));
            copy_in(stream.piece(n, 1).address, &maps.other, c * kPiece, other, row, stream.full(n));
          }
          for (int c = 0; c < further; ++c, ++n) {
            stream.open(n, 0, false);
            copy_in(stream.piece(n, 0).address, &maps.further_own, c * kPiece, head, own_row, stream.full(n));
            copy_in(stream.piece(n, 1).address, &maps.further_other, c * kPiece, other, row, stream.full(n));
          }
          for (int part = 0; part < parts; ++part, ++n) {
            stream.open(n, 0, false);
            for (int i = 0; i < 2; ++i)
              copy_in(stream.piece(n, i).address, &maps.summed,
                      (slice * parts + part) * kColumns + i * kPiece, other, row, stream.full(n));
          }
        }
        __syncwarp();
      }
    }
    if (leader) stream.open(n, -1, true);
  } else {
    take_registers<kComputeRegisters>();
    const float log2_scale = f.scale * kLog2e;
    const Lane lane;
    const TokenAt* own = mine.at + of_all * kHopperRows + 64 * warpgroup;
    const TokenAt* others = by_query ? f.keys.at : f.queries.at;
    const int64_t of_list = head * numbers.padded + int64_t{tile} * kHopperRows + 64 * warpgroup + lane.row();
    RunningSoftmax softmax;
    float log2_sum[2] = {0, 0}, delta[2] = {0, 0};
    if constexpr (by_query && second) {
      log2_sum[0] = numbers.log2_sum[of_list], log2_sum[1] = numbers.log2_sum[of_list + 8];
      delta[0] = numbers.delta[of_list], delta[1] = numbers.delta[of_list + 8];
    }
    Accumulator<kColumns> out[std::max(1, parts)];
#pragma unroll
    for (int part = 0; part < parts; ++part) out[part].fill(0);
    const bool by_row = plain || f.weighting == Weighting::softmax;
    const float exponent = plain ? log2_scale : kLog2e;  // of scores, or of products
    int n = 0;
    for (int now; (now = stream.wait(n)) >= 0;) {
      const int step = now / 2;  // of keys; of queries with their head
      const int64_t other_row = int64_t{step} * kHopperRows;
      const int64_t other_tile = !by_query && f.queries.lists == 1 ? step % f.queries.tiles : step;
      Accumulator<kHopperRows> s;
      sum_pieces(s, stream, n, pieces, warpgroup);
      const TokenAt* them = others + other_tile * kHopperRows;
      if (now % 2 == 0) hide<by_query>(s, f.visibility, own, them);
      if constexpr (!plain) score<by_query>(s, f, by_query ? head : step / f.queries.tiles, own, them);
      if constexpr (use == Wide::o) {
        if (by_row) {
          const float2 shrink = softmax.weigh(s, exponent);
#pragma unroll
          for (int part = 0; part < parts; ++part) out[part].scale(shrink.x, shrink.y);
        } else {
          softmax.peak[0] = softmax.peak[1] = 0;
#pragma unroll
          for (int c = 0; c < kHopperRows / 8; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              softmax.sum[i / 2] += s.x[c][i] == -INFINITY ? 0.f : 1.f;  // keys seen
              s.x[c][i] = own_weight(f.weighting, s.x[c][i]);
            }
        }
      } else {
#pragma unroll
        for (int c = 0; c < kHopperRows / 8; ++c) {
          float2 l{0, 0};
          if constexpr (!by_query)
            l = *reinterpret_cast<const float2*>(numbers.log2_sum + other_row + 8 * c + 2 * lane.t);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float of_row = by_query ? log2_sum[i / 2] : i % 2 == 0 ? l.x : l.y;
            if (by_row)
              s.x[c][i] = exp2_fast(s.x[c][i] * exponent - of_row);
            else
              s.x[c][i] = exp2_fast(-of_row) *
                          (second ? own_slope(f.weighting, s.x[c][i]) : own_weight(f.weighting, s.x[c][i]));
          }
        }
      }
      if constexpr (second) {
        Accumulator<kHopperRows> ds;
        sum_pieces(ds, stream, n, further, warpgroup);
#pragma unroll
        for (int c = 0; c < kHopperRows / 8; ++c) {
          float2 d{0, 0};
          if constexpr (!by_query)
            d = *reinterpret_cast<const float2*>(numbers.delta + other_row + 8 * c + 2 * lane.t);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            s.x[c][i] *= ds.x[c][i] - (!by_row ? 0.f : by_query ? delta[i / 2] : i % 2 == 0 ? d.x : d.y);
        }
      }
      if constexpr (use == Wide::dbias) {
        const int64_t own_sums = int64_t{turn} * kHopperWarps + 4 * warpgroup + lane.warp;
        add_by_distance(result.sums + (own_sums * f.heads + head) * f.bias.distances, s, f.bias, own, them);
      }
      const Operand<kHopperRows> p = operand_of(s);
#pragma unroll
      for (int part = 0; part < parts; ++part, ++n) {
        stream.full(n).wait(WideStream::phase(n));
        Products::start(out[part]);
        Products::add_a_b(out[part], p, stream.columns(n));
        Products::commit();
        Products::wait<0>();
        Products::settle(out[part]);
        stream.empty(n).arrive_warp();
      }
    }
    if constexpr (use == Wide::o) {
      float factor[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float sum = softmax.whole_sum(r);
        factor[r] = sum > 0 ? 1 / sum : 0;
        const int64_t row = token[64 * warpgroup + lane.row() + 8 * r];
        if (slice == 0 && lane.t == 0 && row >= 0)
          result.sums[row * f.heads + head] = softmax.log_sum(r, sum, plain ? f.scale : 1);
      }
#pragma unroll
      for (int part = 0; part < parts; ++part) out[part].scale(factor[0], factor[1]);
    } else if constexpr (second) {
      out[0].scale(f.scale, f.scale);
    }
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const int column = (slice * parts + part) * kColumns;
      // Step n brought no tile, so that its place is free.
      store_rows(stream.columns(n), warpgroup, out[part], result.to + head * result.width + column,
                 result.pitch, result.width - column, OwnTokens(token, warpgroup));
    }
  }
#endif
}

template <Wide use, bool plain>
void launch(const char* name, const HopperAttention& f, const WideMaps& maps, const RowNumbers& numbers,
            int64_t tiles, const WideResult& result) {
  constexpr int columns = columns_of(use, plain);
  const int64_t slices = (result.width + columns - 1) / columns;
  launch_hopper<wide_kernel<use, plain>>(name, tiles * result.heads * slices, WideStream::bytes, f, maps,
                                         numbers, result);
}

template <Wide use>
void make(const char* name, const HopperAttention& f, const WideMaps& maps, const RowNumbers& numbers,
          const Tensor& to, const Tensor& lse) {
  const WideResult result{
      data<bf16>(to),   to.pitch(), static_cast<int>(to.dim(2)), static_cast<int>(to.dim(1)),
      data<float>(lse), 0};
  const int64_t tiles = of_queries(use) ? f.queries.tiles : f.keys.tiles;
  if (plain_softmax(f))
    launch<use, true>(name, f, maps, numbers, tiles, result);
  else
    launch<use, false>(name, f, maps, numbers, tiles, result);
}

// Some tiles of queries at a time, each warp with sums of its own, which stay within bounds.
void make_dbias(const HopperAttention& f, const WideMaps& maps, const RowNumbers& numbers,
                const Tensor& dbias) {
  constexpr int kTiles = 64;
  const int side_by_side = std::min(kTiles, f.queries.tiles);
  const Tensor sums = zeros({side_by_side * kHopperWarps, dbias.numel()}, Dtype::f32, Device::cuda);
  for (int first = 0; first < f.queries.tiles; first += side_by_side)
    launch<Wide::dbias, false>("attention dbias (hopper)", f, maps, numbers,
                               std::min(side_by_side, f.queries.tiles - first),
                               {nullptr, 0, 1, f.heads, data<float>(sums), first});
  sum_rows(dbias, sums, 1);
}

}  // namespace

void wide_attention_forward(const HopperAttention& f, const Tensor& o, const Tensor& lse, const Tensor& q,
                            const Tensor& k, const Tensor& v) {
  const CUtensorMap of_q = map_of(q, kHopperRows), of_k = map_of(k, kHopperRows),
                    of_v = map_of(v, kHopperRows);
  make<Wide::o>("attention forward (hopper, wide)", f, {of_q, of_k, of_q, of_k, of_v}, {}, o, lse);
}

void wide_attention_backward(const HopperAttention& f, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                             const Tensor& dbias, const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& d_o, const RowNumbers& rows) {
  const CUtensorMap of_q = map_of(q, kHopperRows), of_k = map_of(k, kHopperRows),
                    of_v = map_of(v, kHopperRows), of_g = map_of(d_o, kHopperRows);
  make<Wide::dv>("attention dv (hopper, wide)", f, {of_k, of_q, of_v, of_g, of_g}, rows, dv, {});
  make<Wide::dk>("attention dk (hopper, wide)", f, {of_k, of_q, of_v, of_g, of_q}, rows, dk, {});
  if (f.bias.table != nullptr) make_dbias(f, {of_q, of_k, of_g, of_v, of_k}, rows, dbias);
  make<Wide::dq>("attention dq (hopper, wide)", f, {of_q, of_k, of_g, of_v, of_k}, rows, dq, {});
}

}  // namespace weft::cuda
