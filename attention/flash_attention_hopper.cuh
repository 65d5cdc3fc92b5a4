#pragma once
// What the kernels for Hopper share: softmax attention of bf16 with heads of up to 128, by wgmma and TMA. A
// block has two warpgroups that compute, 64 rows each, and a third of which one warp loads tiles.

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
  float scale;
  int64_t n, m;  // queries and keys
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

// Scores of those that do not see each other become -infinity. rows: the 64 of this warpgroup.
template <bool rows_are_queries, int N>
__device__ void hide(Accumulator<N>& s, const Visibility& visibility, const TokenAt* rows,
                     const TokenAt* columns) {
  const Lane lane;
  const TokenAt own[2] = {rows[lane.row()], rows[lane.row() + 8]};
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const int4 pair = *reinterpret_cast<const int4*>(columns + 8 * n + 2 * lane.t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const TokenAt other = i % 2 == 0 ? TokenAt{pair.x, pair.y} : TokenAt{pair.z, pair.w};
      const bool seen =
          rows_are_queries ? visibility.sees(own[i / 2], other) : visibility.sees(other, own[i / 2]);
      if (!seen) s.x[n][i] = -INFINITY;
    }
  }
}

// The rows of a warpgroup, rounded, through its rows of a tile that nobody reads any more, to
// out[(first + row) * pitch].
template <int R, int C>
__device__ void store_rows(Tile<R, C> tile, int warpgroup, const Accumulator<C>& a, bf16* out, int64_t pitch,
                           int width, int64_t first, int64_t count) {
  const Lane lane;
  const int own = 64 * warpgroup + 16 * lane.warp, l = threadIdx.x % 32;
  sync_threads(1 + warpgroup, 128);
  store(tile, 64 * warpgroup, a);
  __syncwarp();
#pragma unroll 4
  for (int i = l; i < 16 * (C / 8); i += 32) {
    const int row = own + i / (C / 8), unit = i % (C / 8);
    if (first + row < count && 8 * unit < width)
      *reinterpret_cast<uint4*>(out + (first + row) * pitch + 8 * unit) = load_shared(tile.at(row, unit));
  }
}

// Places in shared memory for tiles, one after another.
struct SharedPlaces {
  uint32_t next;
  __device__ uint32_t take(int bytes) {
    const uint32_t here = next;
    next += bytes;
    return here;
  }
  __device__ Barrier barrier(int i) const { return {next + 8 * i}; }
};

// What the loader tells with a tile: which, and whether everybody in it sees everybody. -1: no more.
__device__ inline int notice(int tile, bool all) { return 2 * tile + (all ? 1 : 0); }

template <class Kernel, class... A>
void launch_hopper(const char* name, Kernel kernel, int64_t blocks, int bytes, const A&... arguments) {
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  kernel<<<static_cast<unsigned>(blocks), kHopperThreads, bytes, stream()>>>(arguments...);
  check_launch(name);
}

HopperAttention hopper_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const TokenTileBuffers& queries, const TokenTileBuffers& keys,
                                 const AttentionOptions& options);

}  // namespace weft::cuda
