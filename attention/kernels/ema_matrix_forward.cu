// Outputs of the damped moving average on tensor cores (README, "Matrices").

#include "attention/kernels/ema_matrix.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int kForwardWarps = kEmaWidth;             // a channel each
constexpr int kChunks = kEmaTokens / kEmaChunk / 8;  // of a thread

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

// states (spans, size, channels): behind each span, of s = h / in. Summary: only these, and only where a
// document goes on.
template <bool Summary>
__global__ void __launch_bounds__(32 * kForwardWarps, 1)
    matrix_forward_kernel(const Ema e, const EmaRows<const bf16> x, const EmaRows<bf16> y, float* states) {
  extern __shared__ __align__(128) char shared[];
  const EmaMatrixPlace place(e);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, channel = place.channel + threadIdx.x / 32;
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
  const auto fetch = [&](int to) {
    if (!ahead.done()) {
      source.fetch(to, ahead.begin, ahead.end());
      ahead.advance();
    }
    close_group();
  };
  uint32_t turned = tiles + ema_channels<kForwardWarps>(),
           mine = tiles + ema_chunks<kChunks>(threadIdx.x / 32);
  keep_value(turned), keep_value(mine);
  const auto put = [&](uint32_t tile) {
    groups_left<kEmaForwardStages - 1>();
    source.put(stage, turned + tile);
    fetch(stage);
    stage = stage == kEmaForwardStages - 1 ? 0 : stage + 1;
  };
#pragma unroll
  for (int i = 0; i < kEmaForwardStages; ++i) fetch(i);

  const EmaChannel coefficients(e, channel);
  const float response = coefficients.response();
  const EmaTable inside([&](int j, int i) {
    const float lagged = __shfl_sync(~0u, response, (i - j) & 31);
    return i >= j ? lagged : 0.f;
  });
  const EmaTable in([&](int j, int n) { return small_power(coefficients.decay(n), kEmaChunk - 1 - j); });
  const EmaTable out(
      [&](int n, int i) { return coefficients.weight(n) * small_power(coefficients.decay(n), i + 1); });
  const EmaScan<kChunks, false> scan(coefficients);
  const auto state_at = [&](int span, int i) {
    return int64_t{span} * ema_row(e) + int64_t{8 * (i / 2) + 2 * t + (i & 1)} * e.channels + channel;
  };
  const auto exists = [&](int i) { return channel < e.channels && 8 * (i / 2) + 2 * t + (i & 1) < e.size; };

  float carry[4] = {};
  if constexpr (!Summary)
    if (place.continues(place.span))
      for (int i = 0; i < 4; ++i)
        if (exists(i)) carry[i] = states[state_at(place.span - 1, i)];

  uint32_t before = 2 * kEmaMatrixBytes, work = 0, next = kEmaMatrixBytes;  // tiles
  int sent_begin = 0, sent_end = 0;
  put(work);
#pragma unroll 1
  while (!now.done()) {
    __syncthreads();
    if constexpr (!Summary)
      if (sent_end > sent_begin)
        send_matrix<kForwardWarps>(y, place.channel, turned + before, sent_begin, sent_end);
    put(next);

    const uint32_t own = mine + work;
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
    if constexpr (!Summary) {
      float sum[2][2][4] = {};
      uint32_t rest[2][4];
#pragma unroll
      for (int f = 0; f < 2; ++f) {
        add_high(sum[f], tokens[f], inside);
        add_rest(sum[f], tokens[f], inside);
      }
#pragma unroll
      for (int f = 0; f < 2; ++f) {
        const auto &one = h[2 * f], &two = h[2 * f + 1];
        const Split a(one[0], one[1]), b(two[0], two[1]), c(one[2], one[3]), d(two[2], two[3]);
        const uint32_t high[4] = {a.high, b.high, c.high, d.high};
        rest[f][0] = a.rest, rest[f][1] = b.rest, rest[f][2] = c.rest, rest[f][3] = d.rest;
        add_high(sum[f], high, out);
        add_rest(sum[f], high, out);
      }
#pragma unroll
      for (int f = 0; f < 2; ++f) add_high(sum[f], rest[f], out);
#pragma unroll
      for (int f = 0; f < 2; ++f)
        store_matrices(own ^ 64 * f, {pack(sum[f][0][0], sum[f][0][1]), pack(sum[f][0][2], sum[f][0][3]),
                                      pack(sum[f][1][0], sum[f][1][1]), pack(sum[f][1][2], sum[f][1][3])});
      sent_begin = now.begin, sent_end = now.end();
    } else if (now.end() == end) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (exists(i) && g == 7) states[state_at(place.span, i)] = carry[i];
    }
    if (now.advance())
#pragma unroll
      for (int i = 0; i < 4; ++i) carry[i] = 0;
    const uint32_t free = before;
    before = work, work = next, next = free;
  }
  __syncthreads();
  if constexpr (!Summary)
    if (sent_end > sent_begin)
      send_matrix<kForwardWarps>(y, place.channel, turned + before, sent_begin, sent_end);
}

}  // namespace

// launchers

void ema_matrix_states(const Ema& e, const EmaRows<const bf16>& x, float* states, cudaStream_t stream) {
  launch_matrices(matrix_forward_kernel<true>, e, 32 * kForwardWarps, kEmaForwardBytes, stream, e, x,
                  EmaRows<bf16>{}, states);
}

void ema_matrix_forward(const Ema& e, const EmaRows<const bf16>& x, const EmaRows<bf16>& y, float* states,
                        cudaStream_t stream) {
  launch_matrices(matrix_forward_kernel<false>, e, 32 * kForwardWarps, kEmaForwardBytes, stream, e, x, y,
                  states);
}

}  // namespace weft::cuda
