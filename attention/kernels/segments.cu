// Cutting documents into segments, the state that each leaves, and the fold along a document (segments.h).

#include "attention/kernels/segments.h"

#include "attention/kernels/chunk.cuh"
#include "attention/kernels/shared_memory.cuh"

namespace weft::cuda {

namespace {

// kernels

__global__ void cut_kernel(int64_t tokens, int documents, const int* document_offsets, Cut cut, int* offsets,
                           int* first) {
  __shared__ int start[most_cut_documents + 1], before[most_cut_documents + 1];
  const int length = static_cast<int>(cut.length), of_each = static_cast<int>(tokens / documents);
  for (int i = threadIdx.x; i <= documents; i += blockDim.x)
    start[i] = document_offsets ? document_offsets[i] : i * of_each;
  __syncthreads();
  if (threadIdx.x == 0) {
    before[0] = 0;
    for (int i = 0; i < documents; ++i)
      before[i + 1] = before[i] + (start[i + 1] - start[i] + length - 1) / length;
  }
  __syncthreads();
  for (int i = threadIdx.x; i <= documents; i += blockDim.x) {
    first[i] = before[i];
    for (int n = before[i]; i < documents && n < before[i + 1]; ++n)
      offsets[n] = start[i] + (n - before[i]) * length;
  }
  for (int n = before[documents] + threadIdx.x; n <= cut.most; n += blockDim.x) offsets[n] = start[documents];
}

// A block has 64 columns of c to a warpgroup.
template <int D_a, int W>
struct SegmentMemory {
  static constexpr int stages = 3, b_bytes = Tile<chunk, D_a>::bytes, c_bytes = Tile<chunk, 64 * W>::bytes;
  static constexpr int stage_bytes = b_bytes + c_bytes;
  static constexpr int bytes = stages * (stage_bytes + chunk * 4) + 2 * sizeof(Decays);
};

template <int D_a, int W>
__global__ void __launch_bounds__(128 * W, D_a == 256 ? 1 : 4 / W)
    segment_states_kernel(const __grid_constant__ SegmentStates p) {
  using M = SegmentMemory<D_a, W>;
  const Sweeps& s = p.sweeps;
  const int splits = s.d_c / (64 * W), unit = int(blockIdx.x) / splits;
  const int column0 = int(blockIdx.x) % splits * 64 * W, group = threadIdx.x / 128;
  const Place at{s, s.sweep[0], unit / s.heads, unit % s.heads, column0 + 64 * group};
  const int2 range = document_range(s, at.document);
  const int chunks = (range.y + chunk - 1) / chunk;
  auto first_token = [&](int n) { return range.x + (at.sweep.reverse ? chunks - 1 - n : n) * chunk; };
  auto valid_tokens = [&](int n) { return min(chunk, range.x + range.y - first_token(n)); };

  extern __shared__ __align__(1024) char raw[];
  auto* const gates = reinterpret_cast<float*>(raw + M::stages * M::stage_bytes);  // (stages, chunk)
  auto* const decays = reinterpret_cast<Decays*>(gates + M::stages * chunk);       // two
  struct Stage {
    Tile<chunk, D_a> b;
    Tile<chunk, 64 * W> c;
  };
  auto stage = [&](int n) {
    const uint32_t b = shared_address(raw) + n % M::stages * M::stage_bytes;
    return Stage{{b}, {b + M::b_bytes}};
  };
  auto fetch = [&](int n) {
    if (n < chunks) {
      const Stage g = stage(n);
      const int token0 = first_token(n), valid = valid_tokens(n);
      copy_in(g.b, at.sweep.b, token0, valid, int64_t(at.head) * D_a);
      copy_in(g.c, at.sweep.c, token0, valid, int64_t(at.head) * s.d_c + column0);
      for (int i = threadIdx.x * 2; s.gated && threadIdx.x < 32 && i < threadIdx.x * 2 + 2; ++i)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                         shared_address(gates + n % M::stages * chunk + i)),
                     "l"(s.log_decay + int64_t(token0 + (i < valid ? i : 0)) * s.heads + at.head),
                     "r"(i < valid ? 4 : 0)
                     : "memory");
    }
    commit_copies();
  };

  StatePart<WarpProducts, D_a, 1, true> state;
  state.load(at);
  float total = 1;
  const float fixed = s.gated ? 0 : log2_decay(s, 0, at.head);
  for (int n = 0; n < M::stages - 1; ++n) fetch(n);
  for (int n = 0; n < chunks; ++n) {
    wait_copies<M::stages - 2>();
    if (threadIdx.x < 32) {  // which fetched these gates itself
      const int token = 2 * threadIdx.x, valid = valid_tokens(n);
      const float* of = gates + n % M::stages * chunk;
      auto own = [&](int i) { return i >= valid ? 0 : s.gated ? to_log2(of[i]) : fixed; };
      DecayLane lane;
      lane.first = own(token), lane.both = lane.first + own(token + 1);
      lane.write(decays[n % 2], at.sweep.reverse, valid);
    }
    __syncthreads();
    fetch(n + M::stages - 1);  // to the place that all have left behind this barrier
    total *= decays[n % 2].total;
    state.update(stage(n).b, stage(n).c.template part<64>(group), decays[n % 2]);
  }
  state.finish(at);
  if (column0 == 0 && threadIdx.x == 0) p.decay[int64_t(blockIdx.y) * s.documents * s.heads + unit] = total;
}

__global__ void __launch_bounds__(256) fold_kernel(const Fold f) {
  constexpr int ahead = 8;  // loads under way
  const int head = blockIdx.y, document = blockIdx.z, units = f.d_k * f.d_v / 4;
  const int unit = blockIdx.x * 256 + threadIdx.x;
  if (unit >= units) return;
  const int first = f.first[document], count = f.first[document + 1] - first;
  const int left = f.to ? count : count - 1;  // states that anybody asks for
  const int64_t of_document = (int64_t(document) * f.heads + head) * units + unit;
  float4 state{0, 0, 0, 0};
  if (f.from) state = reinterpret_cast<const float4*>(f.from)[of_document];
  for (int n0 = 0; n0 < count; n0 += ahead) {
    float4 own[ahead], *place[ahead];
    float by[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (n0 + i >= count) continue;
      const int segment = first + (f.reverse ? count - 1 - n0 - i : n0 + i);
      place[i] = reinterpret_cast<float4*>(f.states) + (int64_t(segment) * f.heads + head) * units + unit;
      if (n0 + i >= left) continue;
      own[i] = *place[i];
      const int64_t of = int64_t(segment) * f.heads + head;
      by[i] = f.decay[f.channels ? of * f.d_k + 4 * unit / f.d_v : of];
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (n0 + i >= count) continue;
      *place[i] = state;
      if (n0 + i >= left) continue;
      state = {by[i] * state.x + f.scale * own[i].x, by[i] * state.y + f.scale * own[i].y,
               by[i] * state.z + f.scale * own[i].z, by[i] * state.w + f.scale * own[i].w};
    }
  }
  if (f.to) reinterpret_cast<float4*>(f.to)[of_document] = state;
}

// launchers

template <int D_a, int W>
void launch(const SegmentStates& p, cudaStream_t stream) {
  constexpr auto kernel = segment_states_kernel<D_a, W>;
  constexpr int bytes = SegmentMemory<D_a, W>::bytes;
  allow_shared<kernel, bytes>("linear attention (segment states)");
  const Sweeps& s = p.sweeps;
  kernel<<<s.documents * s.heads*(s.d_c / (64 * W)), 128 * W, bytes, stream>>>(p);
  check_cuda(cudaGetLastError(), "linear attention (segment states)");
}

}  // namespace

void cut_documents(const LinearAttention& p, const Cut& cut, int* offsets, int* first, cudaStream_t stream) {
  cut_kernel<<<1, 256, 0, stream>>>(p.tokens, p.documents, p.offsets, cut, offsets, first);
  check_cuda(cudaGetLastError(), "linear attention (segments)");
}

void segment_states(const SegmentStates& p, cudaStream_t stream) {
  with_state_shape(p.sweeps, [&]<int D_a, int W>() { launch<D_a, W>(p, stream); });
}

void fold_segments(const Fold& f, cudaStream_t stream) {
  const int units = f.d_k * f.d_v / 4;
  fold_kernel<<<dim3((units + 255) / 256, f.heads, f.documents), 256, 0, stream>>>(f);
  check_cuda(cudaGetLastError(), "linear attention (fold)");
}

}  // namespace weft::cuda
