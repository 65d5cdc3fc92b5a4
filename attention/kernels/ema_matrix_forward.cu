// Outputs of the damped moving average on tensor cores (moving_average.md, "Matrices").

#include "attention/kernels/ema_matrix.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int kOfForwardWarp = 2, kForwardWarps = kEmaWidth / kOfForwardWarp;  // channels
constexpr int kChunks = kEmaTokens / kEmaChunk / 8;                            // of a thread

// The tiles of a span, in order: none reaches over two documents.
struct ForwardSteps {
  const int* offsets;
  int begin, document, stop, last;  // tokens: of the tile, behind the document's part, behind the span

  __device__ ForwardSteps(const int* all, int first, int from, int to)
      : offsets(all), begin(from), document(first), stop(min(all[first + 1], to)), last(to) {}
  __device__ bool done() const { return begin >= last; }
  __device__ int end() const { return min(begin + kEmaTokens, stop); }
  // Whether the next one starts a document.
  __device__ bool advance() {
    begin += kEmaTokens;
    if (begin < stop) return false;
    begin = stop;
    if (begin < last) stop = min(offsets[++document + 1], last);
    return true;
  }
};

// A channel: its tables, and its state.
struct ForwardChannel {
  int channel;
  EmaTable inside, in, out;
  EmaScan<kChunks, false> scan;
  float carry[4] = {};

  __device__ ForwardChannel(const Ema& e, int c) : ForwardChannel(EmaChannel(e, c), c) {}
  __device__ ForwardChannel(const EmaChannel& of, int c) : ForwardChannel(of, of.response(), c) {}
  __device__ ForwardChannel(const EmaChannel& of, float response, int c)
      : channel(c),
        inside([&](int j, int i) {
          const float lagged = __shfl_sync(~0u, response, (i - j) & 31);
          return i >= j ? lagged : 0.f;
        }),
        in([&](int j, int n) { return small_power(of.decay(n), kEmaChunk - 1 - j); }),
        out([&](int n, int i) { return of.weight(n) * small_power(of.decay(n), i + 1); }),
        scan(of) {}

  // A tile: y takes the place of x. Summary: only the state.
  template <bool Summary>
  __device__ void step(uint32_t own) {
    uint32_t tokens[2][4];
    float left[2][2][4] = {};
#pragma unroll
    for (int f = 0; f < 2; ++f) load_matrices(tokens[f], own ^ 64 * f);
#pragma unroll
    for (int f = 0; f < 2; ++f) add_high(left[f], tokens[f], in);
#pragma unroll
    for (int f = 0; f < 2; ++f) add_rest(left[f], tokens[f], in);
    // What the k-th of this thread's chunks leaves of state i.
    const auto u = [&](int k, int i) { return left[k / 2][i / 2][(i & 1) + 2 * (k & 1)]; };
    float h[kChunks][4], sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[i] = u(0, i);
#pragma unroll
      for (int k = 1; k < kChunks; ++k) sums[i] = fmaf(scan.chunk[i], sums[i], u(k, i));
    }
    scan.before(h[0], sums, carry);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 1; k < kChunks; ++k) h[k][i] = fmaf(scan.chunk[i], h[k - 1][i], u(k - 1, i));
      carry[i] = fmaf(scan.chunk[i], h[kChunks - 1][i], u(kChunks - 1, i));
    }
    if constexpr (Summary) return;

    float sum[2][2][4] = {};
    uint32_t rest[2][4];
#pragma unroll
    for (int f = 0; f < 2; ++f) add_high(sum[f], tokens[f], inside), add_rest(sum[f], tokens[f], inside);
#pragma unroll
    for (int f = 0; f < 2; ++f) {
      const auto &one = h[2 * f], &two = h[2 * f + 1];
      const Split a(one[0], one[1]), b(two[0], two[1]), c(one[2], one[3]), d(two[2], two[3]);
      const uint32_t high[4] = {a.high, b.high, c.high, d.high};
      rest[f][0] = a.rest, rest[f][1] = b.rest, rest[f][2] = c.rest, rest[f][3] = d.rest;
      add_high(sum[f], high, out), add_rest(sum[f], high, out);
    }
#pragma unroll
    for (int f = 0; f < 2; ++f) add_high(sum[f], rest[f], out);
#pragma unroll
    for (int f = 0; f < 2; ++f)
      store_matrices(own ^ 64 * f, {pack(sum[f][0][0], sum[f][0][1]), pack(sum[f][0][2], sum[f][0][3]),
                                    pack(sum[f][1][0], sum[f][1][1]), pack(sum[f][1][2], sum[f][1][3])});
  }
};

// states (spans, size, channels): behind each span, of s = h / in. Summary: only these, and only where a
// document goes on.
template <bool Summary>
__global__ void __launch_bounds__(32 * kForwardWarps, 1)
    matrix_forward_kernel(const Ema e, const EmaRows<const bf16> x, const EmaRows<bf16> y, float* states) {
  extern __shared__ __align__(128) char shared[];
  const EmaMatrixPlace place(e);
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int end = place.spans[place.span + 1];
  int begin = place.spans[place.span], document = place.first_document[place.span];
  if constexpr (Summary) {
    if (place.span + 1 == e.spans || !place.continues(place.span + 1)) return;
    document = place.first_document[place.span + 1];
    begin = max(begin, place.offsets[document]);
  }

  const uint32_t tiles = (shared_address(shared) + 127) & ~127u;
  const EmaMatrixSource<kForwardWarps, false> source(x, place.channel, tiles + 3 * kEmaMatrixBytes);
  ForwardSteps now(place.offsets, document, begin, end), ahead = now;
  int stage = 0;  // of the tile that is put next
  uint32_t turned = tiles + ema_channels<kForwardWarps>(), mine[kOfForwardWarp];
  keep_value(turned);
  constexpr int pieces = EmaMatrixSource<kForwardWarps, false>::kPieces;
  const auto fetched = [&] {
    if (!ahead.done()) ahead.advance();
    commit_copies();
    stage = stage == kEmaForwardStages - 1 ? 0 : stage + 1;
  };
#pragma unroll 1
  for (int k = 0; k < kEmaForwardStages; ++k) {
#pragma unroll
    for (int i = 0; i < pieces; ++i)
      if (!ahead.done()) source.fetch(stage, i, ahead.begin, ahead.end());
    fetched();
  }

  ForwardChannel channels[kOfForwardWarp] = {ForwardChannel(e, place.channel + warp),
                                             ForwardChannel(e, place.channel + warp + kForwardWarps)};
  const auto state_at = [&](int span, int i, int channel) {
    return int64_t{span} * ema_row(e) + int64_t{8 * (i / 2) + 2 * t + (i & 1)} * e.channels + channel;
  };
  const auto exists = [&](int i, int channel) {
    return channel < e.channels && 8 * (i / 2) + 2 * t + (i & 1) < e.size;
  };
  const bool arrives = !Summary && place.continues(place.span);  // from the span before
#pragma unroll
  for (int k = 0; k < kOfForwardWarp; ++k) {
    ForwardChannel& c = channels[k];
    mine[k] = tiles + ema_chunks<kChunks>(warp + k * kForwardWarps);
    keep_value(mine[k]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (arrives && exists(i, c.channel)) c.carry[i] = states[state_at(place.span - 1, i, c.channel)];
  }

  uint32_t before = 2 * kEmaMatrixBytes, work = 0, next = kEmaMatrixBytes;  // tiles
  int sent_begin = 0, sent_end = 0;
  wait_copies<kEmaForwardStages - 1>();
#pragma unroll
  for (int i = 0; i < pieces; ++i) {
    source.put(stage, i, turned + work);
    if (!ahead.done()) source.fetch(stage, i, ahead.begin, ahead.end());
  }
  fetched();
#pragma unroll 1
  while (!now.done()) {
    wait_copies<kEmaForwardStages - 1>();
    __syncthreads();
    // What is moved is spread over the products: all at once it would keep all warps waiting.
    const bool more = !ahead.done();
#pragma unroll
    for (int k = 0; k < kOfForwardWarp; ++k) {
#pragma unroll
      for (int j = 0; j < pieces / kOfForwardWarp; ++j) {
        const int i = k * (pieces / kOfForwardWarp) + j;
        if constexpr (!Summary)
          if (sent_end > sent_begin)
            send_matrix<kForwardWarps>(y, place.channel, turned + before, i, sent_begin, sent_end);
        source.put(stage, i, turned + next);
        if (more) source.fetch(stage, i, ahead.begin, ahead.end());
      }
      channels[k].step<Summary>(mine[k] + work);
    }
    fetched();
    if constexpr (!Summary) sent_begin = now.begin, sent_end = now.end();
    if (now.advance() && !now.done())
#pragma unroll
      for (int i = 0; i < 4 * kOfForwardWarp; ++i) channels[i / 4].carry[i % 4] = 0;
    const uint32_t free = before;
    before = work, work = next, next = free;
  }
  if constexpr (Summary) {
#pragma unroll
    for (int i = 0; i < 4 * kOfForwardWarp; ++i) {
      const ForwardChannel& c = channels[i / 4];
      if (exists(i % 4, c.channel) && g == 7) states[state_at(place.span, i % 4, c.channel)] = c.carry[i % 4];
    }
  } else {
    __syncthreads();
    if (sent_end > sent_begin)
#pragma unroll
      for (int i = 0; i < pieces; ++i)
        send_matrix<kForwardWarps>(y, place.channel, turned + before, i, sent_begin, sent_end);
  }
}

}  // namespace

// launchers

void ema_matrix_states(const Ema& e, const EmaRows<const bf16>& x, float* states, cudaStream_t stream) {
  launch_matrices<matrix_forward_kernel<true>, 32 * kForwardWarps, kEmaForwardBytes>(e, stream, e, x,
                                                                                     EmaRows<bf16>{}, states);
}

void ema_matrix_forward(const Ema& e, const EmaRows<const bf16>& x, const EmaRows<bf16>& y, float* states,
                        cudaStream_t stream) {
  launch_matrices<matrix_forward_kernel<false>, 32 * kForwardWarps, kEmaForwardBytes>(e, stream, e, x, y,
                                                                                      states);
}

}  // namespace weft::cuda
