#pragma once
// What the kernels for Hopper share: attention of bf16 by wgmma and TMA. A block has two warpgroups
// that compute, 64 rows each, and a third of which one warp loads tiles.

#include "attention/flash_attention.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/tensor_map.h"

namespace weft::cuda {

constexpr int kHopperRows = 128, kHopperThreads = 3 * 128, kHopperWarps = 8;  // warps that compute
constexpr int kLoaderRegisters = 40, kComputeRegisters = 232;  // a thread; together what a block starts with
constexpr float kLog2e = 1.44269504f;

struct HopperAttention {
  TokenTiles queries, keys;
  Visibility visibility;
  Weighting weighting;
  DistanceBias<float> bias;
  float scale;
  int heads, group, d, e;
  int section;  // heads whose blocks run side by side, so that their keys and values stay in L2

  // Blocks in order: sections of heads, in each the tiles one after another, of each tile the heads.
  struct Work {
    int tile, head;
  };
  __device__ Work work(int tiles, int of_heads, int of_section) const {
    const int a_section = tiles * of_section, first = static_cast<int>(blockIdx.x) / a_section;
    const int rest = static_cast<int>(blockIdx.x) - first * a_section;
    const int side_by_side = min(of_section, of_heads - first * of_section);
    return {rest / side_by_side, first * of_section + rest % side_by_side};
  }
};

// The same in all threads of a warp, which the compiler does not see in threadIdx.
__device__ inline int own_warpgroup() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0); }

// A tile of rows [row, row + R) of one head, zero beyond what there is.
template <int R, int C>
__device__ void copy_tile(Tile<R, C> to, const CUtensorMap* map, int head, int64_t row, Barrier full) {
#pragma unroll
  for (int i = 0; i < C / 64; ++i)
    copy_in(to.template part<64>(i).address, map, 64 * i, head, static_cast<int>(row), full);
}

template <int N>
__device__ Operand<N> operand_of(const Accumulator<N>& a) {
  Operand<N> p;
#pragma unroll
  for (int k = 0; k < N / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p.x[k][i] = pack(a.x[2 * k + i / 2][2 * (i % 2)], a.x[2 * k + i / 2][2 * (i % 2) + 1]);
  return p;
}

// Here a has its value, beside products that still run: left alone the compiler waits for these first. A
// branch that it cannot see through is what stops it. never: false, and it depends on all of a.
template <int N>
__device__ void hold(Accumulator<N>& a, bool never) {
  WarpgroupProducts::settle(a);
  if (never) __trap();
}
// For hold, of exponentials. The only number with just these bits is negative.
template <int N>
__device__ bool never(const Accumulator<N>& a) {
  uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < N / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= __float_as_uint(a.x[n][i]);
  return bits == 0x80000001u;
}

// Scores of those that do not see each other become -infinity. rows: the 64 of this warpgroup.
template <bool rows_are_queries, int N>
__device__ void hide(Accumulator<N>& s, const Visibility& visibility, const TokenAt* rows,
                     const TokenAt* columns) {
  const Lane lane;
  const Visibility::Range seen[2] = {visibility.range(rows[lane.row()], rows_are_queries),
                                     visibility.range(rows[lane.row() + 8], rows_are_queries)};
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const int4 pair = *reinterpret_cast<const int4*>(columns + 8 * n + 2 * lane.t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const TokenAt other = i % 2 == 0 ? TokenAt{pair.x, pair.y} : TokenAt{pair.z, pair.w};
      if (!seen[i / 2].has(other)) s.x[n][i] = -INFINITY;
    }
  }
}

// The rows of a warpgroup, rounded, through its rows of a tile that nobody reads any more, to
// out[token[row] * pitch]; a token of -1 is nobody.
template <int R, int C>
__device__ void store_rows(Tile<R, C> tile, int warpgroup, const Accumulator<C>& a, bf16* out, int64_t pitch,
                           int width, const int32_t* token) {
  const Lane lane;
  const int own = 64 * warpgroup + 16 * lane.warp, l = threadIdx.x % 32;
  sync_threads(1 + warpgroup, 128);
  store(tile, 64 * warpgroup, a);
  __syncwarp();
#pragma unroll 4
  for (int i = l; i < 16 * (C / 8); i += 32) {
    const int row = own + i / (C / 8), unit = i % (C / 8), to = token[row];
    if (to >= 0 && 8 * unit < width)
      *reinterpret_cast<uint4*>(out + to * pitch + 8 * unit) = load_shared(tile.at(row, unit));
  }
}

// Places in shared memory, one after another.
struct SharedPlaces {
  uint32_t next;
  __device__ uint32_t take(int bytes) {
    const uint32_t here = next;
    next += bytes;
    return here;
  }
};

// What the loader tells with a tile: which, and whether everybody in it sees everybody. -1: no more.
__device__ inline int notice(int tile, bool all) { return 2 * tile + (all ? 1 : 0); }

// Tiles of keys and values on their way from the loader to the computing warpgroups, which give each back.
template <int D>
struct KeyStream {
  static constexpr int keys = 128, stages = D == 128 ? 2 : 4;
  using K = Tile<keys, D>;
  static constexpr int bytes = stages * (2 * K::bytes + 4 * 8 + 4);
  uint32_t tiles, barriers, notices;

  __device__ explicit KeyStream(SharedPlaces& places)
      : tiles(places.take(2 * stages * K::bytes)),
        barriers(places.take(32 * stages)),
        notices(places.take(4 * stages)) {}

  __device__ static int stage(int n) { return n % stages; }
  __device__ static int phase(int n) { return n / stages % 2; }
  __device__ K k(int n) const { return {tiles + 2 * stage(n) * K::bytes}; }
  __device__ K v(int n) const { return {tiles + (2 * stage(n) + 1) * K::bytes}; }
  __device__ Barrier barrier(int which, int n) const { return {barriers + 8 * (which * stages + stage(n))}; }
  __device__ Barrier k_full(int n) const { return barrier(0, n); }
  __device__ Barrier k_empty(int n) const { return barrier(1, n); }
  __device__ Barrier v_full(int n) const { return barrier(2, n); }
  __device__ Barrier v_empty(int n) const { return barrier(3, n); }

  __device__ void init() const {
    for (int n = 0; n < stages; ++n) {
      k_full(n).init(1), v_full(n).init(1);
      k_empty(n).init(kHopperWarps), v_empty(n).init(kHopperWarps);
    }
  }
  // By one warp: all tiles that a tile of queries, counted over all lists, meets.
  __device__ void load(const HopperAttention& f, const CUtensorMap* k_map, const CUtensorMap* v_map,
                       int64_t query_tile, int kv_head) const {
    TileWalk<true> walk(f.visibility, f.queries.span[query_tile], f.keys.span, f.keys.tiles);
    for (int n = 0, j = 0; j >= 0; ++n) {
      j = walk.next();
      if (threadIdx.x % kWarp == 0) {
        const int64_t row = int64_t{j} * keys;
        k_empty(n).wait(phase(n) ^ 1);
        store_shared(notices + 4 * stage(n), static_cast<uint32_t>(j < 0 ? -1 : notice(j, walk.all)));
        if (j < 0) {
          k_full(n).arrive();
        } else {
          k_full(n).arrive_and_expect(K::bytes);
          copy_tile(k(n), k_map, kv_head, row, k_full(n));
          v_empty(n).wait(phase(n) ^ 1);
          v_full(n).arrive_and_expect(K::bytes);
          copy_tile(v(n), v_map, kv_head, row, v_full(n));
        }
      }
      __syncwarp();
    }
  }
  // Waits for the keys of step n: their notice.
  __device__ int wait(int n) const {
    k_full(n).wait(phase(n));
    return static_cast<int>(load_shared_word(notices + 4 * stage(n)));
  }
  __device__ void wait_values(int n) const { v_full(n).wait(phase(n)); }
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

template <auto kernel, class... A>
void launch_hopper(const char* name, int64_t blocks, int bytes, const A&... arguments) {
  static const bool ready = [=] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    return true;
  }();
  static_cast<void>(ready);
  kernel<<<static_cast<unsigned>(blocks), kHopperThreads, bytes, stream()>>>(arguments...);
  check_launch(name);
}

// Of x (N, H, D), in boxes of rows.
inline CUtensorMap map_of(const Tensor& x, int rows) {
  return tensor_map(x.raw(), x.row_size(), x.dim(2), x.dim(1), x.dim(0), rows);
}

// Tiles of 128 of the queries and of the keys, which are often the same tokens.
struct HopperTiles {
  TokenTileBuffers queries, keys;
  bool by_list;  // heads have queries of their own
  HopperTiles(const AttentionTokens& t, int64_t heads)
      : queries(token_tiles(t.q_position, t.q_document, t.active, heads, kHopperRows)),
        keys(!t.active.defined() && t.q_position.raw() == t.k_position.raw() &&
                     t.q_document.raw() == t.k_document.raw() && t.q_position.dim(0) == t.k_position.dim(0)
                 ? queries
                 : token_tiles(t.k_position, t.k_document, {}, 1, kHopperRows)),
        by_list(t.active.defined()) {}

  // TMA takes rows that lie together: x (N, H, D) of queries by the lists of its heads, (rows of a list, H,
  // D), or x itself where every head has all. Behind the end of a list a tile is filled up with zeros.
  Tensor rows(const Tensor& x) const;
};

HopperAttention hopper_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                 const TokenTileBuffers& queries, const TokenTileBuffers& keys,
                                 const AttentionOptions& options);

// Of rows by list: lse in base 2 (infinity where no key was seen, so that P = 0) and delta, (H, padded) each.
struct RowNumbers {
  const float *log2_sum, *delta;
  int64_t padded;
};

inline bool plain_softmax(const HopperAttention& f) {
  return f.weighting == Weighting::softmax && f.bias.table == nullptr && !f.bias.alibi;
}
// By pieces of 64 columns: heads of more than 128 features, other weights or biases.
inline bool is_wide(const HopperAttention& f) { return std::max(f.d, f.e) > 128 || !plain_softmax(f); }
void wide_attention_forward(const HopperAttention& f, const Tensor& o, const Tensor& lse, const Tensor& q,
                            const Tensor& k, const Tensor& v);
void wide_attention_backward(const HopperAttention& f, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                             const Tensor& dbias, const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& d_o, const RowNumbers& rows);

}  // namespace weft::cuda
