// Gradients of the damped moving average, in one sweep from the last token to the first
// (moving_average.md, "Backward").

#include "attention/kernels/ema_matrix.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int kBytes = 2 * kEmaStages * kEmaTileBytes;  // of shared memory, a warp

// Tokens of a phase: as many as registers hold.
template <int N, bool Unit>
constexpr int kTogether = N > 16 ? 1
                          : Unit ? 4
                                 : 2;

struct Backward {
  Ema shape;
  const float *start, *d_end;
  float* d_start;
  float* sums;    // (spans, 3, size, channels): d_in, d_out, d_decay of each span
  float* states;  // (spans, 3, size, channels): what arrives before each span's first token
};

// A thread is a channel of a span. It keeps r, the adjoint of h / out without a gradient of the end, and
//   Unit (neither start nor d_end):  rho, the derivative of r by the decay
//   else:                            a, the adjoint of h, one step on; b, its derivative by the decay
template <class T, int N, bool Unit, bool Summary>
__global__ void __launch_bounds__(kEmaThreads)
    backward_kernel(const Backward g, const EmaRows<const T> x, const EmaRows<const T> dy,
                    const EmaRows<T> dx) {
  extern __shared__ uint4 shared[];
  const Ema& e = g.shape;
  const EmaPlace place(e);
  if (place.channel >= e.channels) return;
  const int lane = threadIdx.x % 32, channel = place.channel + lane, begin = place.begin;
  const bool live = channel < e.channels;
  int end = place.end;
  if constexpr (Summary) {
    if (!place.continues(place.span)) return;
    end = min(end, place.offsets[place.first_document[place.span] + 1]);
  }
  // The document of token end - 1.
  int document = place.first_document[place.span];
  if constexpr (!Summary) {
    document = place.span + 1 == e.spans ? e.documents - 1 : place.first_document[place.span + 1];
    if (place.offsets[document] == end) --document;
  }
  int start = place.offsets[document];

  constexpr int general = Unit ? 1 : N;
  float q[N], v[N], r[N], b[N], d_in[N], d_decay[N];
  float u[general] = {}, a[general] = {}, d_out[general];
  load(q, e.decay, channel, e);
  load(v, e.out, channel, e);
  clear(d_in), clear(d_decay), clear(d_out);
  if constexpr (Unit) {
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] *= live && n < e.size ? e.in[int64_t{channel} * e.size + n] : 0;
  } else {
    load(u, e.in, channel, e);
  }
  const auto enter = [&] {  // at a document's end
    clear(r), clear(b);
    if constexpr (!Unit) {
      if (g.d_end != nullptr)
        load(a, g.d_end + place.rows[document] * ema_row(e), channel, e);
      else
        clear(a);
    }
  };
  const auto leave = [&] {  // at its start
    if constexpr (!Unit && !Summary) {
      const int64_t at = place.rows[document] * ema_row(e) + int64_t{channel} * e.size;
      if (!live || g.start == nullptr) return;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (n >= e.size) continue;
        const float before = g.start[at + n];
        d_out[n] = fmaf(before, q[n] * r[n], d_out[n]);
        d_decay[n] = fmaf(before, b[n], d_decay[n]);
        if (g.d_start != nullptr) g.d_start[at + n] = a[n];
      }
    }
  };
  const auto entered = [&](int n, float in) { return Unit ? in : __fmul_rn(u[Unit ? 0 : n], in); };
  // The later token first; in phases, see ema_forward.cu.
  const auto step = [&]<int K>(const float(&in)[K], const float(&grad)[K], float(&out)[K]) {
    float adjoint[K][N], slope[K][N];  // of h / out and its derivative if Unit, else of h and its
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if constexpr (Unit) {
          slope[k][n] = b[n] = fmaf(q[n], b[n], r[n]);
          adjoint[k][n] = r[n] = fmaf(q[n], r[n], grad[k]);
        } else {
          const float l = adjoint[k][n] = fmaf(v[n], grad[k], a[n]);
          slope[k][n] = b[n];
          r[n] = fmaf(q[n], r[n], grad[k]);
          if constexpr (!Summary) d_out[n] = fmaf(entered(n, in[k]), r[n], d_out[n]);
          b[n] = fmaf(q[n], b[n], l);
          a[n] = __fmul_rn(q[n], l);
        }
      }
    if constexpr (!Summary) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int n = 0; n < N; ++n) d_in[n] = fmaf(in[k], adjoint[k][n], d_in[n]);
#pragma unroll
        for (int n = 0; n < N; ++n) d_decay[n] = fmaf(entered(n, in[k]), slope[k][n], d_decay[n]);
      }
#pragma unroll
      for (int k = 0; k < K; ++k) out[k] = __fmul_rn(Unit ? v[0] : u[0], adjoint[k][0]);
      if (N > 16 || e.size > 0) {  // always
#pragma unroll
        for (int n = 1; n < N; ++n)
#pragma unroll
          for (int k = 0; k < K; ++k) out[k] = fmaf(Unit ? v[n] : u[Unit ? 0 : n], adjoint[k][n], out[k]);
      }
    }
  };

  if (place.offsets[document + 1] == end) {
    enter();
  } else if constexpr (Summary) {
    clear(r), clear(a), clear(b);
  } else {
    const float* from = g.states + 3 * (place.span + 1) * ema_row(e);
    load_scratch(r, from, channel, e);
    load_scratch(b, from + ema_row(e), channel, e);
    if constexpr (!Unit) load_scratch(a, from + 2 * ema_row(e), channel, e);
  }

  // Tiles are counted from the end; the last one may reach below `begin`. Those of dy lie behind those of x.
  constexpr int together = kTogether<N, Unit>;
  constexpr int size = kEmaTile<T>, row = kEmaRow<T>, apart = kEmaStages * kEmaTileBytes;
  const uint32_t tiles = ema_shared(shared, kBytes);
  EmaMover<const T, -1> x_source(x, place.channel, end - size, begin, end);
  EmaMover<const T, -1> dy_source(dy, place.channel, end - size, begin, end);
  EmaMover<T, -1> sink(dx, place.channel, end - size, begin, end);
  uint32_t now = tiles, free = tiles + (kEmaStages - 1) * kEmaTileBytes;  // in work, and to be fetched into
  const auto advance = [&](uint32_t& tile) {
    tile = tile == tiles + (kEmaStages - 1) * kEmaTileBytes ? tiles : tile + kEmaTileBytes;
  };
  const auto fetch = [&](uint32_t tile) {
    if constexpr (!Summary) x_source.fetch(tile);
    dy_source.fetch(tile + apart);
  };
#pragma unroll
  for (int i = 0; i < kEmaStages - 1; ++i) fetch(tiles + i * kEmaTileBytes);
  for (int high = end; high > begin; high -= size) {
    fetch(free);
    advance(free);
    arrived<(Summary ? 1 : 2) * (kEmaStages - 1)>();
    uint32_t own = now + (size - 1) * row + lane * static_cast<int>(sizeof(T));  // this channel's next x
    const int stop = max(high - size, begin);
    for (int token = high; token > stop;) {  // the one before it is next
      if (token == start) start = place.offsets[--document], enter();
      const int until = max(start, stop);
      uint32_t x_ahead[kEmaUnroll], dy_ahead[kEmaUnroll];
      const auto look = [&](uint32_t at) {
#pragma unroll
        for (int j = 0; j < kEmaUnroll; ++j) {
          x_ahead[j] = Summary ? 0 : take<T>(at - j * row);
          dy_ahead[j] = take<T>(at + apart - j * row);
        }
      };
      if (token - kEmaUnroll >= until) look(own);
#pragma unroll 1
      for (; token - kEmaUnroll >= until; token -= kEmaUnroll, own -= kEmaUnroll * row) {
        float in[kEmaUnroll], grad[kEmaUnroll];
#pragma unroll
        for (int j = 0; j < kEmaUnroll; ++j) {
          in[j] = number<T>(x_ahead[j]);
          grad[j] = number<T>(dy_ahead[j]);
        }
        look(token - 2 * kEmaUnroll >= until ? own - kEmaUnroll * row : own);
#pragma unroll
        for (int j = 0; j < kEmaUnroll; j += together) {
          float ins[together], grads[together], out[together];
#pragma unroll
          for (int k = 0; k < together; ++k) ins[k] = in[j + k], grads[k] = grad[j + k];
          step(ins, grads, out);
          if constexpr (!Summary) {
            if constexpr (together == 1) put<T>(own + apart - j * row, out[0]);
#pragma unroll
            for (int k = 0; k + 1 < together; k += 2)
              put_pair<T>(own + apart - (j + k) * row, -row, out[k], out[k + 1]);
          }
        }
      }
#pragma unroll 1
      for (; token > until; --token, own -= row) {
        const float ins[1] = {Summary ? 0.f : number<T>(take<T>(own))},
                    grads[1] = {number<T>(take<T>(own + apart))};
        float out[1];
        step(ins, grads, out);
        if constexpr (!Summary) put<T>(own + apart, out[0]);
      }
      if (until == start) leave();
    }
    if constexpr (Summary)
      __syncwarp();
    else
      sink.send(now + apart);
    advance(now);
  }

  if constexpr (Summary) {
    float* to = g.states + 3 * place.span * ema_row(e);
    store_scratch(to, r, channel, e);
    store_scratch(to + ema_row(e), b, channel, e);
    if constexpr (!Unit) store_scratch(to + 2 * ema_row(e), a, channel, e);
  } else {
    float* to = g.sums + 3 * place.span * ema_row(e);
    if constexpr (Unit) {
      float w[N];
      load(w, e.in, channel, e);
#pragma unroll
      for (int n = 0; n < N; ++n) w[n] *= d_in[n];
      store_scratch(to + ema_row(e), w, channel, e);
      load(w, e.out, channel, e);
#pragma unroll
      for (int n = 0; n < N; ++n) d_in[n] *= w[n], d_decay[n] *= v[n];
    } else {
      store_scratch(to + ema_row(e), d_out, channel, e);
    }
    store_scratch(to, d_in, channel, e);
    store_scratch(to + 2 * ema_row(e), d_decay, channel, e);
  }
}

// What arrives before spans, from what lies in them alone -> from all behind. Matrices: of b decay / 16 times
// as much.
template <bool Unit, bool Matrices>
__global__ void __launch_bounds__(256) fold_kernel(const Backward g) {
  const Ema& e = g.shape;
  const int64_t row = ema_row(e), i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= row) return;
  const int *spans = e.plan + 2 * e.documents + 1, *first_document = spans + e.spans + 1;
  const double q = e.decay[i % e.channels * e.size + i / e.channels];
  float r = 0, a = 0, b = 0, factor = 0, slope = 0;  // decay^length and its derivative
  int length = -1;
  for (int p = e.spans - 1; p > 0; --p) {
    const int document = first_document[p];
    if (e.plan[document] == spans[p]) continue;
    float* at = g.states + 3 * p * row + i;
    float own_r = at[0], own_b = at[row], own_a = Unit ? 0 : at[2 * row];
    if (e.plan[document + 1] > spans[p + 1]) {  // the document goes on behind this span
      if (spans[p + 1] - spans[p] != length) {
        length = spans[p + 1] - spans[p];
        const double last = power(q, length - 1);
        factor = static_cast<float>(q * last);
        slope = static_cast<float>(length * last * (Matrices ? q / 16 : 1));
      }
      own_b = fmaf(factor, b, fmaf(slope, Unit ? r : a, own_b));
      own_r = fmaf(factor, r, own_r);
      own_a = fmaf(factor, a, own_a);
    }
    at[0] = r = own_r;
    at[row] = b = own_b;
    if constexpr (!Unit) at[2 * row] = a = own_a;
  }
}

// Over the spans, in their order: (spans, 3, size, channels) -> three of (channels, size).
__global__ void __launch_bounds__(256) sum_kernel(const Ema e, const float* sums, const EmaGradients d) {
  const int64_t row = ema_row(e), i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= row) return;
  float* const to[3] = {d.in, d.out, d.decay};
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < e.spans; ++p) sum += sums[(3 * p + k) * row + i];
    to[k][i % e.channels * e.size + i / e.channels] = sum;
  }
}

unsigned blocks_of_row(const Ema& e) { return static_cast<unsigned>((ema_row(e) + 255) / 256); }

template <class T, int N, bool Unit>
void backward_as(const Backward& g, Rows x, Rows dy, void* dx, cudaStream_t stream) {
  const Ema& e = g.shape;
  const EmaRows<const T> from = ema_rows(e, static_cast<const T*>(x.data), x.pitch),
                         grad = ema_rows(e, static_cast<const T*>(dy.data), dy.pitch);
  const EmaRows<T> to = ema_rows(e, static_cast<T*>(dx), e.channels);
  if constexpr (sizeof(T) == 2 && N == 16 && Unit)
    if (by_matrices(e, kEmaBackwardBytes) && from.packed && grad.packed && to.packed) {
      if (e.cut) {
        ema_matrix_adjoints(e, grad, g.states, stream);
        fold_kernel<true, true><<<blocks_of_row(e), 256, 0, stream>>>(g);
      }
      return ema_matrix_backward(e, from, grad, to, g.sums, g.states, stream);
    }
  if (e.cut) {
    launch<backward_kernel<T, N, Unit, true>, kBytes>(e, stream, g, from, grad, to);
    fold_kernel<Unit, false><<<blocks_of_row(e), 256, 0, stream>>>(g);
  }
  launch<backward_kernel<T, N, Unit, false>, kBytes>(e, stream, g, from, grad, to);
}

}  // namespace

// launchers

void ema_backward(const Ema& e, Rows x, Rows dy, const float* start, const float* d_end,
                  const EmaGradients& d, float* workspace, cudaStream_t stream) {
  if (e.channels == 0) return;
  const Backward g{e, start, d_end, d.start, workspace, workspace + 3 * e.spans * ema_row(e)};
  if (e.spans > 0)
    with_ema_shape(e, [&]<class T, int N>() {
      start == nullptr&& d_end == nullptr ? backward_as<T, N, true>(g, x, dy, d.x, stream)
                                          : backward_as<T, N, false>(g, x, dy, d.x, stream);
    });
  sum_kernel<<<blocks_of_row(e), 256, 0, stream>>>(e, workspace, d);
  check_cuda(cudaGetLastError(), "moving average, backward");
}

}  // namespace weft::cuda
