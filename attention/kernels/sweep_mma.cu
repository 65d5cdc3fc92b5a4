// The sweep on mma.sync: any GPU from compute capability 8.0. One warpgroup a block, chunks of 64 tokens, no
// overlap of copies and products.

#include <utility>

#include "attention/kernels/chunk.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

// kernels

namespace {

template <int D_a, bool Exact>
struct Memory {
  using TileA = Tile<chunk, D_a>;
  using TileC = Tile<chunk, 64>;
  using TileS = Tile<64, D_a>;
  static constexpr int bytes =
      2 * TileA::bytes + (Exact ? 2 : 1) * (TileC::bytes + TileS::bytes) + sizeof(Decays);
};

struct NoSync {  // the tiles are all there
  __device__ void wait_shadow() const {}
  __device__ void wait_decays() const {}
  __device__ void wait_c() const {}
  __device__ void shadow_read() const {}
};

template <int D_a, bool Exact>
__global__ void __launch_bounds__(128) sweep_mma_kernel(const __grid_constant__ Sweeps s) {
  using M = Memory<D_a, Exact>;
  const int splits = s.d_c / 64;
  const Place at{s, s.sweep[blockIdx.y], int(blockIdx.x) / splits / s.heads,
                 int(blockIdx.x) / splits % s.heads, int(blockIdx.x) % splits * 64};
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;

  extern __shared__ __align__(1024) char raw[];
  uint32_t next = shared_address(raw);
  auto take = [&](int bytes) { return std::exchange(next, next + bytes); };
  const typename M::TileA a{take(M::TileA::bytes)}, b{take(M::TileA::bytes)};
  const typename M::TileC c{take(M::TileC::bytes)}, dot{Exact ? take(M::TileC::bytes) : 0};
  const Shadow<D_a, 1> shadow{{take(M::TileS::bytes)}, {Exact ? take(M::TileS::bytes) : 0}};
  auto& decays = *reinterpret_cast<Decays*>(raw + (next - shared_address(raw)));

  StatePart<WarpProducts, D_a, 1, Exact> state;
  state.load(at);
  for (int n = 0; n < chunks; ++n) {
    const int which = at.sweep.reverse ? chunks - 1 - n : n;
    const int64_t token0 = range.x + int64_t(which) * chunk;
    const int valid = min(chunk, range.y - which * chunk);
    const int64_t column_c = int64_t(at.head) * s.d_c + at.column0;
    copy_in(a, at.sweep.a, token0, valid, int64_t(at.head) * D_a);
    copy_in(b, at.sweep.b, token0, valid, int64_t(at.head) * D_a);
    copy_in(c, at.sweep.c, token0, valid, column_c);
    if (Exact && at.sweep.dot_sums) copy_in(dot, at.sweep.dot, token0, valid, column_c);
    if (threadIdx.x < 32) {
      DecayLane lane;
      lane.fetch(s, token0, valid, at.head);
      lane.write(decays, at.sweep.reverse, valid);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    state.store_shadow(shadow);
    __syncthreads();
    OutputPart<WarpProducts, D_a, 1, Exact> output;
    output.begin(a, b);
    output.compute(at, c, shadow, decays, NoSync{});
    if (Exact && at.sweep.dot_sums) output.store_dots(at, token0, valid, dot);
    const bool wide = Exact && at.sweep.wide;
    if (wide)
      output.store_wide(at, token0, valid);
    else
      output.store_rounded({a.address});
    state.update(b, c, decays);
    __syncthreads();
    auto* out = static_cast<__nv_bfloat16*>(at.sweep.out.data) + token0 * at.sweep.out.pitch + column_c;
    for (int i = threadIdx.x; !wide && i < valid * 8; i += blockDim.x)
      *reinterpret_cast<uint4*>(out + i / 8 * at.sweep.out.pitch + i % 8 * 8) =
          load_shared(a.at(i / 8, i % 8));
    __syncthreads();
  }
  state.finish(at);
}

// launchers

template <int D_a, bool Exact>
void launch(const Sweeps& s, cudaStream_t stream) {
  constexpr auto kernel = sweep_mma_kernel<D_a, Exact>;
  constexpr int bytes = Memory<D_a, Exact>::bytes;
  allow_shared<kernel, bytes>("linear attention (mma)");
  kernel<<<dim3(s.documents * s.heads * (s.d_c / 64), s.count), 128, bytes, stream>>>(s);
  check_cuda(cudaGetLastError(), "linear attention (mma)");
}

template <bool Exact>
void launch(const Sweeps& s, cudaStream_t stream) {
  switch (s.d_a) {
    case 64: return launch<64, Exact>(s, stream);
    case 128: return launch<128, Exact>(s, stream);
    case 256: return launch<256, Exact>(s, stream);
  }
  throw Error(Exit::internal, text("linear attention (mma): width ", s.d_a, " is not 64, 128 or 256"));
}

}  // namespace

int mma_end_parts(int d_c) { return d_c / 64 * 4; }

void sweep_mma(const Sweeps& s, cudaStream_t stream) {
  if (exact(s))
    launch<true>(s, stream);
  else
    launch<false>(s, stream);
}

}  // namespace weft::cuda
