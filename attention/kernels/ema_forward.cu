// Outputs of the damped moving average, and the states behind the documents
// (moving_average.md).

#include "attention/kernels/ema_matrix.cuh"
#include "attention/kernels/ema_pipe.cuh"
#include "attention/kernels/tensor_map.h"

namespace weft::cuda {

// kernels

namespace {

constexpr int kTogether = 4;  // tokens of a phase

struct Forward {
  Ema shape;
  const float* start;
  float *end, *states;  // states (spans, size, channels): behind each span
};

// A thread is a channel of a span. Unit: without a start, states are kept as s = h / in, so that a token
// costs two multiply-adds a state. Summary: only the state behind the span, and only where a document goes
// on.
template <class T, int N, bool Unit, bool Summary, bool Bulk>
__global__ void __launch_bounds__(kEmaThreads)
    forward_kernel(const Forward f, const EmaRows<const T> x, const EmaRows<T> y,
                   const __grid_constant__ EmaMaps maps) {
  extern __shared__ __align__(128) char shared[];
  const Ema& e = f.shape;
  const EmaPlace place(e);
  if (place.channel >= e.channels) return;
  const int lane = threadIdx.x % 32, channel = place.channel + lane, end = place.end;
  int begin = place.begin, document = place.first_document[place.span];
  if constexpr (Summary) {
    if (place.span + 1 == e.spans || !place.continues(place.span + 1)) return;
    document = place.first_document[place.span + 1];
    begin = max(begin, place.offsets[document]);
  }
  int next = place.offsets[document + 1];

  float q[N], u[N], v[N], h[N];
  load(q, e.decay, channel, e);
  load(u, e.in, channel, e);
  load(v, e.out, channel, e);
  if constexpr (Unit) {
#pragma unroll
    for (int n = 0; n < N; ++n) v[n] *= u[n];
  }
  const auto enter = [&] {
    if constexpr (Unit)
      clear(h);
    else
      load(h, f.start + place.rows[document] * ema_row(e), channel, e);
  };
  const auto leave = [&] {
    if constexpr (Summary) return;
    if (f.end == nullptr || channel >= e.channels) return;
    float* to = f.end + place.rows[document] * ema_row(e) + int64_t{channel} * e.size;
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (n < e.size) to[n] = Unit ? e.in[int64_t{channel} * e.size + n] * h[n] : h[n];
  };
  // A scheduler reads one register of even and one of odd number a cycle, so a product of three new registers
  // takes two. Kept apart by a branch, one phase shares the token and the other the factor between
  // neighbours, and both run at nearly a product a cycle.
  const auto step = [&]<int K>(const float(&in)[K], float(&out)[K]) {
    float now[K][N];
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
      for (int n = 0; n < N; ++n) h[n] = now[k][n] = fmaf(q[n], h[n], Unit ? in[k] : __fmul_rn(u[n], in[k]));
    if constexpr (!Summary) {
#pragma unroll
      for (int k = 0; k < K; ++k) out[k] = __fmul_rn(v[0], now[k][0]);
      if (e.size > 0) {  // always
#pragma unroll
        for (int n = 1; n < N; ++n)
#pragma unroll
          for (int k = 0; k < K; ++k) out[k] = fmaf(v[n], now[k][n], out[k]);
      }
    }
  };

  if (begin == place.offsets[document])
    enter();
  else if constexpr (Summary)
    clear(h);
  else
    load_scratch(h, f.states + (place.span - 1) * ema_row(e), channel, e);

  constexpr int size = kEmaTile<T>, row = kEmaRow<T>;
  EmaPipe<T, Bulk> pipe(shared, maps, x, y, place.channel, begin, end);
  for (int low = begin; low < end; low += size) {
    uint32_t own = pipe.next() + lane * static_cast<int>(sizeof(T));  // this channel, token by token
    const int stop = min(low + size, end);
    for (int token = low; token < stop;) {
      if (token == next) next = place.offsets[++document + 1], enter();
      const int until = min(next, stop);
      uint32_t ahead[kEmaUnroll];  // bits are taken a round before they are needed
      const auto look = [&](uint32_t at) {
#pragma unroll
        for (int j = 0; j < kEmaUnroll; ++j) ahead[j] = take<T>(at + j * row);
      };
      if (token + kEmaUnroll <= until) look(own);
#pragma unroll 1
      for (; token + kEmaUnroll <= until; token += kEmaUnroll, own += kEmaUnroll * row) {
        float in[kEmaUnroll];
#pragma unroll
        for (int j = 0; j < kEmaUnroll; ++j) in[j] = number<T>(ahead[j]);
        look(token + 2 * kEmaUnroll <= until ? own + kEmaUnroll * row : own);
#pragma unroll
        for (int j = 0; j < kEmaUnroll; j += kTogether) {
          float some[kTogether], out[kTogether];
#pragma unroll
          for (int k = 0; k < kTogether; ++k) some[k] = in[j + k];
          step(some, out);
          if constexpr (!Summary) {
#pragma unroll
            for (int k = 0; k < kTogether; k += 2) put_pair<T>(own + (j + k) * row, row, out[k], out[k + 1]);
          }
        }
      }
#pragma unroll 1
      for (; token < until; ++token, own += row) {
        const float one[1] = {number<T>(take<T>(own))};
        float out[1];
        step(one, out);
        if constexpr (!Summary) put<T>(own, out[0]);
      }
      if (until == next) leave();
    }
    if constexpr (Summary)
      pipe.drop();
    else
      pipe.send();
  }
  pipe.finish();
  if constexpr (Summary) store_scratch(f.states + place.span * ema_row(e), h, channel, e);
}

// States behind spans, of what lies in them alone -> of all before.
__global__ void __launch_bounds__(256) fold_kernel(const Forward f) {
  const Ema& e = f.shape;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;  // (size, channels)
  if (i >= ema_row(e)) return;
  const int *spans = e.plan + 2 * e.documents + 1, *first_document = spans + e.spans + 1;
  const float q = e.decay[i % e.channels * e.size + i / e.channels];
  float state = 0, factor = 0;
  int length = -1;
  for (int p = 0; p + 1 < e.spans; ++p) {
    const int begin = e.plan[first_document[p + 1]], end = spans[p + 1];
    if (begin == end) continue;
    float* at = f.states + p * ema_row(e) + i;
    float local = *at;
    if (begin < spans[p]) {  // the document began before this span
      if (end - spans[p] != length) factor = static_cast<float>(power(q, length = end - spans[p]));
      local = fmaf(factor, state, local);
    }
    state = local;
    *at = state;
  }
}

template <class T, int N, bool Unit, bool Bulk>
void forward_as(const Forward& f, const EmaRows<const T>& x, const EmaRows<T>& y, const EmaMaps& maps,
                cudaStream_t stream) {
  const Ema& e = f.shape;
  constexpr int bytes = EmaPipe<T, Bulk>::kBytes;
  if (e.cut) {
    launch<forward_kernel<T, N, Unit, true, Bulk>, bytes>(e, stream, f, x, y, maps);
    fold_kernel<<<static_cast<unsigned>((ema_row(e) + 255) / 256), 256, 0, stream>>>(f);
  }
  launch<forward_kernel<T, N, Unit, false, Bulk>, bytes>(e, stream, f, x, y, maps);
  check_cuda(cudaGetLastError(), "moving average");
}

void forward_by_matrices(const Forward& f, const EmaRows<const bf16>& x, const EmaRows<bf16>& y,
                         cudaStream_t stream) {
  const Ema& e = f.shape;
  if (e.cut) {
    ema_matrix_states(e, x, f.states, stream);
    fold_kernel<<<static_cast<unsigned>((ema_row(e) + 255) / 256), 256, 0, stream>>>(f);
  }
  ema_matrix_forward(e, x, y, f.states, stream);
}

template <class T, int N, bool Unit>
void forward_as(const Forward& f, Rows x, void* y, cudaStream_t stream) {
  const EmaRows<const T> from = ema_rows(f.shape, static_cast<const T*>(x.data), x.pitch);
  const EmaRows<T> to = ema_rows(f.shape, static_cast<T*>(y), f.shape.channels);
  if constexpr (sizeof(T) == 2 && N == 16 && Unit)
    if (by_matrices(f.shape, kEmaForwardBytes) && f.end == nullptr && from.packed && to.packed)
      return forward_by_matrices(f, from, to, stream);
  if (!from.packed || !to.packed || device_attribute(cudaDevAttrComputeCapabilityMajor) != 9)
    return forward_as<T, N, Unit, false>(f, from, to, {}, stream);
  // Only tiles of tokens that there are get moved by the maps, which need not know how many.
  const auto map = [&](const void* data, int64_t pitch) {
    return tensor_map(data, pitch, f.shape.channels, 1, INT32_MAX, kEmaTile<T>,
                      TensorBox{sizeof(T) == 2 ? Dtype::bf16 : Dtype::f32, 32, false});
  };
  forward_as<T, N, Unit, true>(f, from, to, {map(from.data, from.pitch), map(to.data, to.pitch)}, stream);
}

}  // namespace

// launchers

void ema_forward(const Ema& e, Rows x, const float* start, void* y, float* end, float* workspace,
                 cudaStream_t stream) {
  if (e.spans == 0 || e.channels == 0) return;
  const Forward f{e, start, end, workspace};
  with_ema_shape(e, [&]<class T, int N>() {
    start == nullptr ? forward_as<T, N, true>(f, x, y, stream) : forward_as<T, N, false>(f, x, y, stream);
  });
}

}  // namespace weft::cuda
