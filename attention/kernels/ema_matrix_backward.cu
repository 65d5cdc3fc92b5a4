// Gradients of the damped moving average on tensor cores (moving_average.md, "Matrices").

#include "attention/kernels/ema_matrix.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int kOfWarp = 2, kBackWarps = kEmaWidth / kOfWarp;  // channels

// The tiles of a span from its end, none over two documents. They are counted from where a document's part
// begins.
struct BackSteps {
  const int* offsets;
  int begin, document, first, stop, low;  // tokens: of the tile; of the document's part; of the span

  __device__ BackSteps(const int* all, int last, int from, int to) : offsets(all), document(last), low(from) {
    enter(to);
  }
  __device__ bool done() const { return stop <= low; }
  __device__ int end() const { return min(begin + kEmaTokens, stop); }
  // Whether the next one ends a document.
  __device__ bool advance() {
    if (begin > first) {
      begin -= kEmaTokens;
      return false;
    }
    --document;
    enter(first);
    return true;
  }

 private:
  __device__ void enter(int to) {
    stop = to;
    if (done()) return;
    first = max(offsets[document], low);
    begin = first + (stop - first - 1) / kEmaTokens * kEmaTokens;
  }
};

// A channel: its tables, and what is summed over a span.
struct BackChannel {
  int channel;
  EmaTable inside, out;
  // What a token of dy adds to r at its chunk's start, and, its tokens turned round, one of x to s at its
  // chunk's end; and how it changes, q d/dq, a sixteenth of it.
  EmaTable in, slope;
  EmaScan<2, true> scan;
  float r_carry[4] = {}, b_carry[4] = {};             // of r; and of its change
  float d[4] = {}, d_slope[4] = {}, lags[2][4] = {};  // sums of r u; of their change; of products of tokens

  __device__ BackChannel(const Ema& e, int c) : BackChannel(EmaChannel(e, c), c) {}
  __device__ BackChannel(const EmaChannel& of, int c) : BackChannel(of, of.response(), c) {}
  __device__ BackChannel(const EmaChannel& of, float response, int c)
      : channel(c),
        inside([&](int i, int j) {
          const float lagged = __shfl_sync(~0u, response, (i - j) & 31);
          return i >= j ? lagged : 0.f;
        }),
        out([&](int n, int j) { return of.weight(n) * small_power(of.decay(n), kEmaChunk - j); }),
        in([&](int i, int n) { return small_power(of.decay(n), i); }),
        slope([&](int i, int n) { return i * (1.f / kEmaChunk) * small_power(of.decay(n), i); }),
        scan(of) {}

  // Of the chunks 2g (0, 1) and 2g + 1 (2, 3): what they leave -> what arrives behind each.
  __device__ void arrive(float (&x)[2][4], float (&carry)[4]) const {
    float sums[4], arriving[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = fmaf(scan.chunk[i], x[i / 2][2 + (i & 1)], x[i / 2][i & 1]);
    scan.before(arriving, sums, carry);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float &low = x[i / 2][i & 1], &high = x[i / 2][2 + (i & 1)];
      const float between = fmaf(scan.chunk[i], arriving[i], high);
      carry[i] = fmaf(scan.chunk[i], between, low);
      low = between, high = arriving[i];
    }
  }
  // Half a tile: dy and x at these places; dx takes the place of dy. Summary: only what is carried on.
  template <bool Summary>
  __device__ void step(uint32_t dy, uint32_t x) {
    uint32_t grad[4];
    load_matrices(grad, dy);
    float r[2][4] = {}, b[2][4] = {};
    add_high(r, grad, in), add_high(b, grad, slope), add_rest(r, grad, in), add_rest(b, grad, slope);
    arrive(r, r_carry);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      b[i / 4][i % 4] = fmaf(scan.chunk[i / 4 * 2 + (i & 1)], r[i / 4][i % 4], b[i / 4][i % 4]);
    arrive(b, b_carry);
    if constexpr (Summary) return;

    uint32_t tokens[4], by_token[4];
    load_matrices(tokens, x);
    float u[2][4] = {}, u_slope[2][4] = {};
    add_high(u, tokens, in), add_high(u_slope, tokens, slope);
    add_rest(u, tokens, in), add_rest(u_slope, tokens, slope);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int n = c / 4, i = 2 * n + (c & 1);
      d[i] = fmaf(r[n][c % 4], u[n][c % 4], d[i]);
      d_slope[i] = fmaf(b[n][c % 4], u[n][c % 4], d_slope[i]);
      d_slope[i] = fmaf(r[n][c % 4], u_slope[n][c % 4], d_slope[i]);
    }
    load_matrices_transposed(tokens, x);
    load_matrices_transposed(by_token, dy);
#pragma unroll
    for (int n = 0; n < 2; ++n)
      WarpProducts::mma(lags[n], {by_token[0], by_token[2], by_token[1], by_token[3]}, tokens[2 * n],
                        tokens[2 * n + 1]);

    const Split r0(r[0][0], r[0][1]), r1(r[0][2], r[0][3]), r2(r[1][0], r[1][1]), r3(r[1][2], r[1][3]);
    const uint32_t high[4] = {r0.high, r1.high, r2.high, r3.high},
                   rest[4] = {r0.rest, r1.rest, r2.rest, r3.rest};
    float sum[2][4] = {};
    add_high(sum, grad, inside), add_rest(sum, grad, inside);
    add_high(sum, high, out), add_rest(sum, high, out), add_high(sum, rest, out);
    store_matrices(dy, {pack(sum[0][0], sum[0][1]), pack(sum[0][2], sum[0][3]), pack(sum[1][0], sum[1][1]),
                        pack(sum[1][2], sum[1][3])});
  }
  // The gradients, to sums of a span; `own`: 304 floats of this warp's shared memory.
  __device__ void finish(const Ema& e, float* own, float* sums) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    // Lags within chunks: row i and column j of `lags` are tokens i and 15 - j.
    constexpr int pitch = kEmaChunk + 1;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) own[(g + 8 * (c / 2)) * pitch + 8 * n + 2 * t + (c & 1)] = lags[n][c];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int by = 4; by < 32; by *= 2) {
        d[i] += __shfl_xor_sync(~0u, d[i], by);
        d_slope[i] += __shfl_xor_sync(~0u, d_slope[i], by);
      }
      if (g == 0) {
        const int n = 8 * (i / 2) + 2 * t + (i & 1);
        own[pitch * kEmaChunk + n] = d[i], own[(pitch + 1) * kEmaChunk + n] = d_slope[i];
      }
    }
    __syncwarp();
    float lag = 0;
    if (lane < kEmaChunk)
      for (int i = lane; i < kEmaChunk; ++i) lag += own[i * pitch + kEmaChunk - 1 - (i - lane)];
    const EmaChannel of(e, channel);
    float value = 0, derivative = 0;  // of the lags' polynomial
#pragma unroll
    for (int l = kEmaChunk - 1; l >= 0; --l) {
      derivative = fmaf(derivative, of.q, value);
      value = fmaf(value, of.q, __shfl_sync(~0u, lag, l));
    }
    const int n = lane % kEmaChunk;
    const float crossing = own[pitch * kEmaChunk + n], crossing_slope = own[(pitch + 1) * kEmaChunk + n];
    value = fmaf(of.q, crossing, value);
    derivative += fmaf(kEmaChunk, crossing_slope, crossing);
    if (lane < e.size && channel < e.channels) {
      const int64_t from = int64_t{channel} * e.size + lane;
      float* to = sums + int64_t{lane} * e.channels + channel;
      to[0] = e.out[from] * value, to[ema_row(e)] = e.in[from] * value;
      to[2 * ema_row(e)] = of.w * derivative;
    }
  }
};

// sums (spans, 3, size, channels): d_in, d_out, d_decay of each span. states, the same: what arrives before
// each span's first token, r and q / 16 times its derivative by the decay. Summary: only these, and only
// where a document goes on.
template <bool Summary>
__global__ void __launch_bounds__(32 * kBackWarps, 1)
    matrix_backward_kernel(const Ema e, const EmaRows<const bf16> x, const EmaRows<const bf16> dy,
                           const EmaRows<bf16> dx, float* sums, float* states) {
  extern __shared__ __align__(128) char shared[];
  const EmaMatrixPlace place(e);
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int begin = place.spans[place.span];
  int end = place.spans[place.span + 1], document = place.first_document[place.span];
  if constexpr (Summary) {
    if (!place.continues(place.span)) return;
    end = min(end, place.offsets[document + 1]);
  } else {
    document = place.span + 1 == e.spans ? e.documents - 1 : place.first_document[place.span + 1];
    if (place.offsets[document] == end) --document;
  }

  const uint32_t tiles = (shared_address(shared) + 127) & ~127u;
  const uint32_t stages = tiles + 5 * kEmaMatrixBytes;
  const EmaMatrixSource<kBackWarps, false> dy_source(dy, place.channel, stages);
  const EmaMatrixSource<kBackWarps, true> x_source(x, place.channel,
                                                   stages + kEmaBackwardStages * kEmaMatrixBytes);
  BackSteps now(place.offsets, document, begin, end), ahead = now;
  int stage = 0;
  uint32_t turned = tiles + ema_channels<kBackWarps>(), mine[kOfWarp];
  keep_value(turned);
  constexpr int pieces = EmaMatrixSource<kBackWarps, false>::kPieces;
  const auto fetch = [&](int i) {
    dy_source.fetch(stage, i, ahead.begin, ahead.end());
    if constexpr (!Summary) x_source.fetch(stage, i, ahead.begin, ahead.end());
  };
  const auto put = [&](int i, uint32_t dy_tile, uint32_t x_tile) {
    dy_source.put(stage, i, turned + dy_tile);
    if constexpr (!Summary) x_source.put(stage, i, turned + x_tile);
  };
  const auto fetched = [&] {
    if (!ahead.done()) ahead.advance();
    commit_copies();
    stage = stage == kEmaBackwardStages - 1 ? 0 : stage + 1;
  };
#pragma unroll 1
  for (int k = 0; k < kEmaBackwardStages; ++k) {
#pragma unroll
    for (int i = 0; i < pieces; ++i)
      if (!ahead.done()) fetch(i);
    fetched();
  }

  BackChannel channels[kOfWarp] = {BackChannel(e, place.channel + warp),
                                   BackChannel(e, place.channel + warp + kBackWarps)};
  const auto state_at = [&](int span, int i, int channel) {
    return int64_t{3} * span * ema_row(e) + int64_t{8 * (i / 2) + 2 * t + (i & 1)} * e.channels + channel;
  };
  const auto exists = [&](int i, int channel) {
    return channel < e.channels && 8 * (i / 2) + 2 * t + (i & 1) < e.size;
  };
  const bool arrives = !Summary && place.offsets[document + 1] > end;  // from the next span
#pragma unroll
  for (int k = 0; k < kOfWarp; ++k) {
    BackChannel& c = channels[k];
    mine[k] = tiles + ema_chunks<2>(warp + k * kBackWarps);
    keep_value(mine[k]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (arrives && exists(i, c.channel)) {
        c.r_carry[i] = states[state_at(place.span + 1, i, c.channel)];
        c.b_carry[i] = states[state_at(place.span + 1, i, c.channel) + ema_row(e)];
      }
  }

  uint32_t before = 2 * kEmaMatrixBytes, work = 0, next = kEmaMatrixBytes;
  uint32_t x_work = 3 * kEmaMatrixBytes, x_next = 4 * kEmaMatrixBytes;
  int sent_begin = 0, sent_end = 0;
  wait_copies<kEmaBackwardStages - 1>();
#pragma unroll
  for (int i = 0; i < pieces; ++i) {
    put(i, work, x_work);
    if (!ahead.done()) fetch(i);
  }
  fetched();
#pragma unroll 1
  while (!now.done()) {
    wait_copies<kEmaBackwardStages - 1>();
    __syncthreads();
    // Half a tile at a time, the later one first if there is one. What is moved is spread over the products:
    // all at once it would keep all warps waiting.
    const bool both = now.end() - now.begin > kEmaTokens / 2, more = !ahead.done();
#pragma unroll 1
    for (int half = 1; half >= 0; --half)
#pragma unroll
      for (int k = 0; k < kOfWarp; ++k) {
#pragma unroll
        for (int j = 0; j < pieces / 2 / kOfWarp; ++j) {
          const int i = ((1 - half) * kOfWarp + k) * (pieces / 2 / kOfWarp) + j;
          if constexpr (!Summary)
            if (sent_end > sent_begin)
              send_matrix<kBackWarps>(dx, place.channel, turned + before, i, sent_begin, sent_end);
          put(i, next, x_next);
          if (more) fetch(i);
        }
        const uint32_t own = mine[k] + work, own_x = mine[k] + x_work;
        if (both || half == 0)
          channels[k].step<Summary>(half ? (own ^ 64) + 512 : own, half ? (own_x ^ 64) + 512 : own_x);
      }
    fetched();
    if constexpr (!Summary) sent_begin = now.begin, sent_end = now.end();
    if (now.advance() && !now.done())
#pragma unroll
      for (int i = 0; i < 4 * kOfWarp; ++i)
        channels[i / 4].r_carry[i % 4] = channels[i / 4].b_carry[i % 4] = 0;
    const uint32_t free = before, x_free = x_work;
    before = work, work = next, next = free;
    x_work = x_next, x_next = x_free;
  }

  if constexpr (Summary) {
#pragma unroll
    for (int i = 0; i < 4 * kOfWarp; ++i) {
      const BackChannel& c = channels[i / 4];
      if (exists(i % 4, c.channel) && g == 0) {
        float* to = states + state_at(place.span, i % 4, c.channel);
        to[0] = c.r_carry[i % 4], to[ema_row(e)] = c.b_carry[i % 4];
      }
    }
  } else {
    __syncthreads();
    if (sent_end > sent_begin)
#pragma unroll
      for (int i = 0; i < pieces; ++i)
        send_matrix<kBackWarps>(dx, place.channel, turned + before, i, sent_begin, sent_end);
    // Nothing is under way any more.
    float* const own = reinterpret_cast<float*>(shared + (stages - shared_address(shared))) + warp * 384;
#pragma unroll
    for (int k = 0; k < kOfWarp; ++k) channels[k].finish(e, own, sums + 3 * place.span * ema_row(e));
  }
}

}  // namespace

// launchers

void ema_matrix_adjoints(const Ema& e, const EmaRows<const bf16>& dy, float* states, cudaStream_t stream) {
  launch_matrices<matrix_backward_kernel<true>, 32 * kBackWarps, kEmaBackwardBytes>(
      e, stream, e, EmaRows<const bf16>{}, dy, EmaRows<bf16>{}, nullptr, states);
}

void ema_matrix_backward(const Ema& e, const EmaRows<const bf16>& x, const EmaRows<const bf16>& dy,
                         const EmaRows<bf16>& dx, float* sums, float* states, cudaStream_t stream) {
  launch_matrices<matrix_backward_kernel<false>, 32 * kBackWarps, kEmaBackwardBytes>(e, stream, e, x, dy, dx,
                                                                                     sums, states);
}

}  // namespace weft::cuda
