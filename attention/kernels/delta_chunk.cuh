#pragma once
// What the stages of the chunked delta rule share: where chunks are, copies, decays between tokens.

#include "attention/kernels/delta_stages.h"
#include "attention/kernels/hopper.cuh"

namespace weft::cuda {

constexpr int delta_tokens = 64;  // of a chunk
using SquareTile = Tile<64, 64>;

__device__ inline int2 document_range(const DeltaStages& s, int document) {
  if (s.offsets) return {s.offsets[document], s.offsets[document + 1] - s.offsets[document]};
  const int length = static_cast<int>(s.tokens / s.documents);
  return {document * length, length};
}

// A chunk of a document that starts at token `first`. Slots of different documents never meet, and grow with
// the document.
__device__ inline int64_t slot_of(int first, int document, int chunk) {
  return first / delta_tokens + document + chunk;
}

struct DeltaChunk {
  int document = 0, valid = 0;  // tokens; 0: an empty slot
  int64_t token0 = 0;
};
__device__ inline DeltaChunk chunk_of(const DeltaStages& s, int slot) {
  int low = 0, high = s.documents - 1;  // the last document whose first slot is not behind this one
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (slot_of(document_range(s, middle).x, middle, 0) <= slot)
      low = middle;
    else
      high = middle - 1;
  }
  const int2 range = document_range(s, low);
  const int start = (slot - static_cast<int>(slot_of(range.x, low, 0))) * delta_tokens;
  return {low, max(0, min(delta_tokens, range.y - start)), range.x + start};
}

// copies

// Those that share a copy: all threads of a block, or `count` of them.
struct Crew {
  int index = threadIdx.x, count = blockDim.x;
};

// Rows at and after `valid` become zero.
template <int C>
__device__ void fetch_rows(Tile<delta_tokens, C> tile, const Rows& rows, int64_t token0, int valid,
                           int64_t column, Crew crew = {}) {
  for (int i = crew.index; i < delta_tokens * C / 8; i += crew.count) {
    const int row = i / (C / 8), unit = i % (C / 8);
    const int64_t at = (token0 + (row < valid ? row : 0)) * rows.pitch + column + unit * 8;
    copy_async(tile.at(row, unit), static_cast<const __nv_bfloat16*>(rows.data) + at, row < valid);
  }
}
template <int C>
__device__ void store_rows(const MutableRows& rows, int64_t token0, int valid, int64_t column,
                           Tile<delta_tokens, C> tile, Crew crew = {}) {
  for (int i = crew.index; i < valid * (C / 8); i += crew.count) {
    const int row = i / (C / 8), unit = i % (C / 8);
    const int64_t at = (token0 + row) * rows.pitch + column + unit * 8;
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(rows.data) + at) = load_shared(tile.at(row, unit));
  }
}
// A tile as it lies, `unit` tiles of its size behind `from`.
template <int R, int C>
__device__ void fetch_tile(Tile<R, C> tile, const char* from, int64_t unit, Crew crew = {}) {
  from += unit * tile.bytes;
  for (int i = crew.index * 16; i < tile.bytes; i += crew.count * 16)
    copy_async(tile.address + i, from + i, true);
}
template <int R, int C>
__device__ void store_tile(char* to, int64_t unit, Tile<R, C> tile, Crew crew = {}) {
  to += unit * tile.bytes;
  for (int i = crew.index * 16; i < tile.bytes; i += crew.count * 16)
    *reinterpret_cast<uint4*>(to + i) = load_shared(tile.address + i);
}
__device__ inline void fetch_gates(const DeltaStages& s, float* gates, int64_t unit, Crew crew = {}) {
  if (crew.index < 32)
    copy_async(shared_address(gates) + crew.index * 16, s.gates + unit * 128 + crew.index * 4, true);
}
__device__ inline void wait_fetched() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Which warpgroup this is, so that the compiler sees that all of a warp are in one.
__device__ inline int warpgroup() { return __shfl_sync(~0u, threadIdx.x / 128, 0); }

// Copies by TMA leave the way to shared memory to the warps, which hundreds of cp.async block for thousands
// of cycles. It copies tiles as they lie, and rows of whole chunks; where a document ends inside a chunk, the
// functions above copy its rows.

// Each by one thread.
template <int C>
__device__ void copy_rows_in(Tile<delta_tokens, C> tile, const CUtensorMap& map, int column, int head,
                             int64_t token0, Barrier full) {
#pragma unroll
  for (int n = 0; n < C / 64; ++n)
    copy_in(tile.template part<64>(n).address, &map, column + 64 * n, head, static_cast<int>(token0), full);
}
template <int C>
__device__ void copy_rows_out(const CUtensorMap& map, int column, int head, int64_t token0,
                              Tile<delta_tokens, C> tile) {
#pragma unroll
  for (int n = 0; n < C / 64; ++n)
    copy_out(tile.template part<64>(n).address, &map, column + 64 * n, head, static_cast<int>(token0));
}
// As fetch_tile, store_tile and fetch_gates.
template <int R, int C>
__device__ void copy_tile_in(Tile<R, C> tile, const char* from, int64_t unit, Barrier full) {
  copy_in(tile.address, from + unit * tile.bytes, tile.bytes, full);
}
template <int R, int C>
__device__ void copy_tile_out(char* to, int64_t unit, Tile<R, C> tile) {
  copy_out(tile.address, to + unit * tile.bytes, tile.bytes);
}
constexpr int gates_bytes = 128 * 4;
__device__ inline void copy_gates_in(const DeltaStages& s, float* gates, int64_t unit, Barrier full) {
  copy_in(shared_address(gates), s.gates + unit * 128, gates_bytes, full);
}

// A barrier of the block, or of this warpgroup, behind which products may read what was written to tiles.
template <class Products>
__device__ void publish_tiles(bool block = true) {
  publish<Products>();
  if (block)
    __syncthreads();
  else
    sync_threads(1 + warpgroup(), 128);
}

// All batches done, and `d` final.
template <class Products, class... D>
__device__ void await(D&... d) {
  Products::template wait<0>();
  (Products::settle(d), ...);
}
// The same of what is not a batch yet, too.
template <class Products, class... D>
__device__ void finish(D&... d) {
  Products::commit();
  await<Products>(d...);
}

// The operand tile^T.
__device__ inline Operand<64> load_transposed(SquareTile tile) {
  const int l = threadIdx.x % 32, row = (l / 16) * 8 + l % 8, unit = Lane().warp * 2 + (l / 8) % 2;
  Operand<64> a;
#pragma unroll
  for (int k = 0; k < 4; ++k) load_matrices_transposed(a.x[k], tile.at(16 * k + row, unit));
  return a;
}

}  // namespace weft::cuda
