#pragma once
// Hopper: wgmma products over the tiles of tile.cuh, bulk tensor copies (TMA), barriers in shared memory.
// Compiled into something only for sm_90a.

#include <cuda.h>

#include <type_traits>

#include "attention/kernels/tile.cuh"

namespace weft::cuda {

#define WEFT_ACC4(a, n) "+f"(a[n][0]), "+f"(a[n][1]), "+f"(a[n][2]), "+f"(a[n][3])
#define WEFT_ACC32(a, n)                                                                               \
  WEFT_ACC4(a, n), WEFT_ACC4(a, n + 1), WEFT_ACC4(a, n + 2), WEFT_ACC4(a, n + 3), WEFT_ACC4(a, n + 4), \
      WEFT_ACC4(a, n + 5), WEFT_ACC4(a, n + 6), WEFT_ACC4(a, n + 7)

// d (64, N) {+}= a b over 16 of K. BRows: b lies in shared memory as (K, N) rather than (N, K).
template <bool BRows>
__device__ inline void wgmma(Accumulator<64>& d, const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %38, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, %37;}"
      : WEFT_ACC32(d.x, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(BRows ? 1 : 0), "r"(int(accumulate)));
}
template <bool BRows>
__device__ inline void wgmma(Accumulator<128>& d, const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %70, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, "
      "%39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
      "%58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, %69;}"
      : WEFT_ACC32(d.x, 0), WEFT_ACC32(d.x, 8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(BRows ? 1 : 0), "r"(int(accumulate)));
}

// The same with a in shared memory, both sides summed over their columns.
__device__ inline void wgmma(Accumulator<64>& d, uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;}"
      : WEFT_ACC32(d.x, 0)
      : "l"(a), "l"(b), "r"(int(accumulate)));
}
__device__ inline void wgmma(Accumulator<128>& d, uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, "
      "%39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
      "%58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, 0, 0;}"
      : WEFT_ACC32(d.x, 0), WEFT_ACC32(d.x, 8)
      : "l"(a), "l"(b), "r"(int(accumulate)));
}

// The same with a in shared memory as (K, M): its sixteen rows are summed over.
__device__ inline void wgmma_transposed(Accumulator<64>& d, uint64_t a, uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, 1, 0;}"
      : WEFT_ACC32(d.x, 0)
      : "l"(a), "l"(b), "r"(int(accumulate)));
}

// Products by wgmma. They run on after they return: start before the first, commit after the last of a batch,
// wait for all but the last `Pending` batches, then settle what was accumulated.
struct WarpgroupProducts {
  template <int N>
  __device__ static void start(Accumulator<N>& d) {
    settle(d);
    fence();
  }
  // Before products that go on with an accumulator, but read registers written since.
  __device__ static void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
  __device__ static void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
  template <int Pending>
  __device__ static void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
  }
  // Keeps the compiler from moving uses of d across this point.
  template <int N>
  __device__ static void settle(Accumulator<N>& d) {
#pragma unroll
    for (int n = 0; n < N / 8; ++n) asm volatile("" : WEFT_ACC4(d.x, n)::"memory");
  }

  // d {+}= a b^T
  template <int N, int K>
  __device__ static void a_bt(Accumulator<N>& d, const Operand<K>& a, Tile<N, K> b, bool add) {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) wgmma<false>(d, a.x[k], along_columns(b, k), add || k > 0);
  }
  template <int N, int K, int R>
  __device__ static void a_bt(Accumulator<N>& d, TileRows<R, K> a, Tile<N, K> b, bool add) {
#pragma unroll
    for (int k = 0; k < K / 16; ++k)
      wgmma(d, along_columns(Tile<R, K>{a.address}, k), along_columns(b, k), add || k > 0);
  }
  // Sixteen columns of that, from 16 k on.
  template <int N, int K>
  __device__ static void a_bt(Accumulator<N>& d, const uint32_t (&a)[4], Tile<N, K> b, int k, bool add) {
    wgmma<false>(d, a, along_columns(b, k), add);
  }
  // d += a^T b^T
  template <int N, int K>
  __device__ static void add_at_bt(Accumulator<N>& d, Tile<K, 64> a, Tile<N, K> b) {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) wgmma_transposed(d, along_rows(a, k), along_columns(b, k), true);
  }
  // d += a b
  template <int N, int K>
  __device__ static void add_a_b(Accumulator<N>& d, const Operand<K>& a, Tile<K, N> b) {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) wgmma<true>(d, a.x[k], along_rows(b, k), true);
  }
  // Sixteen rows of that, from 16 k on.
  template <int N, int K>
  __device__ static void add_a_b(Accumulator<N>& d, const uint32_t (&a)[4], Tile<K, N> b, int k) {
    wgmma<true>(d, a, along_rows(b, k), true);
  }

 private:
  // Matrix descriptors, 128-byte swizzle: address, bytes between 64-column blocks, bytes between groups of 8
  // rows. A step away from the tile's address is one addition.
  __device__ static uint64_t descriptor(uint32_t address, uint32_t block_bytes, uint32_t step) {
    const uint32_t low = (((block_bytes >> 4) << 16) | ((address & 0x3ffff) >> 4)) + (step >> 4);
    return (uint64_t((1u << 30) | (1024 >> 4)) << 32) | low;
  }
  // Sixteen columns from 16 k on, summed over: the tile is (M or N, K).
  template <int N, int K>
  __device__ static uint64_t along_columns(Tile<N, K> tile, int k) {
    return descriptor(tile.address, 16, (k / 4) * (N * 128) + (k % 4) * 32);
  }
  // Sixteen rows from 16 k on, summed over: the tile is (K, N).
  template <int K, int N>
  __device__ static uint64_t along_rows(Tile<K, N> tile, int k) {
    return descriptor(tile.address, K * 128, k * 2048);
  }
};

// The products of kernels that are written once for both. Those by wgmma also copy by TMA.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <bool Wgmma>
using ProductsOf = std::conditional_t<Wgmma, WarpgroupProducts, WarpProducts>;
#else
template <bool Wgmma>
using ProductsOf = WarpProducts;
#endif
template <class Products>
constexpr bool by_tma = std::is_same_v<Products, WarpgroupProducts>;

// Ordinary writes to shared memory before this are seen by wgmma and TMA after the next barrier.
__device__ inline void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same in kernels that are written once for both kinds of products.
template <class Products>
__device__ void publish() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (by_tma<Products>) publish_shared();
#endif
}

// An mbarrier; waits alternate between phase 0 and 1.
struct Barrier {
  uint32_t address;
  __device__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals));
  }
  __device__ void arrive() const {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
  }
  __device__ void arrive_and_expect(int bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes)
                 : "memory");
  }
  __device__ void wait(int phase) const {
    asm volatile(
        "{.reg .pred p;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra done;\n"
        "bra again;\n"
        "done:}" ::"r"(address),
        "r"(phase)
        : "memory");
  }
  // One arrival for the warp, after all its lanes.
  __device__ void arrive_warp() const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive();
  }
};

// After init, before __syncthreads: TMA sees the barriers.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// (columns, heads, tokens) boxes of (64, 1, rows) between global memory and a tile's 64-column blocks.
__device__ inline void copy_in(uint32_t shared, const CUtensorMap* map, int column, int head, int token,
                               Barrier full) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(shared),
      "l"(map), "r"(column), "r"(head), "r"(token), "r"(full.address)
      : "memory");
}
// Bytes as they lie, a multiple of 16, both sides aligned to 16.
__device__ inline void copy_in(uint32_t shared, const void* from, int bytes, Barrier full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
      "l"(from), "r"(bytes), "r"(full.address)
      : "memory");
}
__device__ inline void copy_out(uint32_t shared, const CUtensorMap* map, int column, int head, int token) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(map),
               "r"(column), "r"(head), "r"(token), "r"(shared)
               : "memory");
}
// Bytes as they lie, as copy_in.
__device__ inline void copy_out(uint32_t shared, void* to, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared),
               "r"(bytes)
               : "memory");
}
// All that a thread has copied out since its last group are a group.
__device__ inline void commit_copies_out() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until shared memory may be written again, but for what at most `Left` of this thread's groups read.
template <int Left>
__device__ void wait_copies_out() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Left) : "memory");
}
__device__ inline void copy_out_wait() { commit_copies_out(), wait_copies_out<0>(); }

// Barriers 1 to 15 of a block by number; barrier 0 is that of __syncthreads.
__device__ inline void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void arrive_threads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

template <int Registers>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace weft::cuda
