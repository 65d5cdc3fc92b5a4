// The delta rule token by token in f32, as the recurrence is written: f32 and bf16, any width up to 256. With
// what every token writes, u_t = beta_t (v_t - S^T k_t), known from the forward pass, S is plain linear
// attention with values u, so that the backward pass holds no states (delta_rule.md).

#include "attention/kernels/delta_stages.h"
#include "attention/kernels/plain.cuh"

namespace weft::cuda {

// kernels

namespace {

constexpr int columns = plain_columns;
template <class T>
__device__ void write(const MutableRows& rows, int64_t token, int64_t column, float x) {
  static_cast<T*>(rows.data)[token * rows.pitch + column] = T(x);
}

// 32 columns of a document's and head's state of d_rows rows; a block of 256 threads.
struct State {
  const DeltaPlain& p;
  int rows, width, document, head, split, lane, column, first, length;
  bool inside, by_values;  // by_values: columns are v's, else the state is transposed
  float x[most_rows];

  __device__ State(const DeltaPlain& p_, bool by_values_) : p(p_), by_values(by_values_) {
    rows = by_values ? p.d_k : p.d_v, width = by_values ? p.d_v : p.d_k;
    const int splits = (width + columns - 1) / columns;
    split = blockIdx.x % splits, head = blockIdx.x / splits % p.heads;
    document = blockIdx.x / splits / p.heads;
    lane = threadIdx.x % lanes, column = split * columns + threadIdx.x / lanes, inside = column < width;
    first = p.offsets ? p.offsets[document] : document * static_cast<int>(p.tokens / p.documents);
    length = p.offsets ? p.offsets[document + 1] - first : static_cast<int>(p.tokens / p.documents);
  }
  // f(value, row)
  template <class F>
  __device__ void each(F f) {
#pragma unroll
    for (int r = 0; r < most_rows; ++r)
      if (r * lanes + lane < rows) f(x[r], r * lanes + lane);
  }
  __device__ int64_t offset(int row) const {
    const int64_t base = (int64_t(document) * p.heads + head) * p.d_k * p.d_v;
    return base + (by_values ? int64_t(row) * p.d_v + column : int64_t(column) * p.d_v + row);
  }
  __device__ void load(const float* from) {
    for (float& v : x) v = 0;
    if (from && inside) each([&](float& v, int row) { v = from[offset(row)]; });
  }
  __device__ void store(float* to, float factor) {
    if (to && inside) each([&](float& v, int row) { to[offset(row)] = factor * v; });
  }
  __device__ void scale(float factor) {
    for (float& v : x) v *= factor;
  }
  // The sum of f(row) x over the rows, in all lanes of a column.
  template <class F>
  __device__ float read(F f) {
    float sum = 0;
    each([&](float& v, int row) { sum += f(row) * v; });
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }
  template <class F>
  __device__ void add(F f, float of_column) {
    each([&](float& v, int row) { v += f(row) * of_column; });
  }
  __device__ float decay(int64_t token) const {
    return p.log_decay ? expf(p.log_decay[token * p.heads + head]) : 1.f;
  }
  __device__ float beta(int64_t token) const { return p.beta[token * p.heads + head]; }
  // Of a (tokens, heads, d) tensor
  __device__ int64_t key(int i) const { return int64_t(head) * p.d_k + i; }
  __device__ int64_t of_value(int i) const { return int64_t(head) * p.d_v + i; }
  __device__ int64_t flat_value(int64_t token, int i) const { return token * p.heads * p.d_v + of_value(i); }

  // to[split, token, head] = the sum over the block's columns of what their first lanes have.
  __device__ void sum_columns(float* to, int64_t token, float x_of_column) {
    __shared__ float sums[columns];
    __syncthreads();
    if (lane == 0) sums[threadIdx.x / lanes] = inside ? x_of_column : 0.f;
    __syncthreads();
    if (threadIdx.x != 0) return;
    float sum = 0;
    for (float v : sums) sum += v;
    to[(split * p.tokens + token) * p.heads + head] = sum;
  }
};

template <class T>
__global__ void __launch_bounds__(256) delta_plain_forward_kernel(const __grid_constant__ DeltaPlain p) {
  State s(p, true);
  s.load(p.state);
  for (int64_t t = s.first; t < s.first + s.length; ++t) {
    auto k = [&](int row) { return value<T>(p.k, t, s.key(row)); };
    s.scale(s.decay(t));
    const float error = (s.inside ? value<T>(p.v, t, s.of_value(s.column)) : 0.f) - s.read(k);
    s.add(k, s.beta(t) * error);
    const float o = p.scale * s.read([&](int row) { return value<T>(p.q, t, s.key(row)); });
    if (!s.inside || s.lane != 0) continue;
    write<T>(p.o, t, s.of_value(s.column), o);
    if (p.error) p.error[s.flat_value(t, s.column)] = error;
  }
  s.store(p.end_state, 1);
}

// dS, by columns of v: d_write = dL/du, dv, the initial state's gradient.
template <class T>
__global__ void __launch_bounds__(256) delta_plain_reverse_kernel(const __grid_constant__ DeltaPlain p) {
  State s(p, true);
  s.load(p.d_end_state);
  for (int64_t t = s.first + s.length - 1; t >= s.first; --t) {
    auto k = [&](int row) { return value<T>(p.k, t, s.key(row)); };
    s.add([&](int row) { return p.scale * value<T>(p.q, t, s.key(row)); },
          s.inside ? value<T>(p.d_o, t, s.of_value(s.column)) : 0.f);
    const float d_write = s.read(k), d_value = s.beta(t) * d_write;
    s.add(k, -d_value);
    s.scale(s.decay(t));
    if (!s.inside || s.lane != 0) continue;
    p.d_write[s.flat_value(t, s.column)] = d_write;
    write<T>(p.d.v, t, s.of_value(s.column), d_value);
  }
  s.store(p.d.initial_state, 1);
}

// dS again, by columns of k: the part of dk where a token writes.
template <class T>
__global__ void __launch_bounds__(256) delta_plain_write_kernel(const __grid_constant__ DeltaPlain p) {
  State s(p, false);
  s.load(p.d_end_state);
  for (int64_t t = s.first + s.length - 1; t >= s.first; --t) {
    const float beta = s.beta(t), k = s.inside ? value<T>(p.k, t, s.key(s.column)) : 0.f;
    s.add([&](int row) { return p.scale * value<T>(p.d_o, t, s.of_value(row)); },
          s.inside ? value<T>(p.q, t, s.key(s.column)) : 0.f);
    const float dk = s.read([&](int row) { return beta * p.error[s.flat_value(t, row)]; });
    s.add([&](int row) { return -beta * p.d_write[s.flat_value(t, row)]; }, k);
    s.scale(s.decay(t));
    if (s.inside && s.lane == 0) p.d_k_write[t * p.heads * p.d_k + s.key(s.column)] = dk;
    s.sum_columns(p.gate_k, t, k * dk);
  }
}

// S again, by columns of k: dq, and the part of dk where a token reads.
template <class T>
__global__ void __launch_bounds__(256) delta_plain_read_kernel(const __grid_constant__ DeltaPlain p) {
  State s(p, false);
  s.load(p.state);
  for (int64_t t = s.first; t < s.first + s.length; ++t) {
    const float beta = s.beta(t), k = s.inside ? value<T>(p.k, t, s.key(s.column)) : 0.f;
    s.scale(s.decay(t));
    const float dk = s.read([&](int row) { return -beta * p.d_write[s.flat_value(t, row)]; });
    s.add([&](int row) { return beta * p.error[s.flat_value(t, row)]; }, k);
    const float dq = p.scale * s.read([&](int row) { return value<T>(p.d_o, t, s.of_value(row)); });
    if (s.inside && s.lane == 0) {
      write<T>(p.d.q, t, s.key(s.column), dq);
      write<T>(p.d.k, t, s.key(s.column), dk + p.d_k_write[t * p.heads * p.d_k + s.key(s.column)]);
    }
    s.sum_columns(p.gate_q, t, s.inside ? value<T>(p.q, t, s.key(s.column)) * dq + k * dk : 0.f);
  }
  if (!p.d_end_state || !p.gate_end) return;
  float sum = 0;
  if (s.inside) s.each([&](float& x, int row) { sum += x * p.d_end_state[s.offset(row)]; });
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  const int part = s.split * 8 + threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) p.gate_end[(int64_t(part) * p.documents + s.document) * p.heads + s.head] = sum;
}

// dbeta = dL/du . error; a warp has a token and a head.
__global__ void __launch_bounds__(256) delta_plain_beta_kernel(const __grid_constant__ DeltaPlain p) {
  const int64_t unit = int64_t(blockIdx.x) * 8 + threadIdx.x / 32;
  if (unit >= p.tokens * p.heads) return;
  float sum = 0;
  for (int i = threadIdx.x % 32; i < p.d_v; i += 32)
    sum += p.d_write[unit * p.d_v + i] * p.error[unit * p.d_v + i];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) p.d.beta[unit] = sum;
}

// launchers

int splits_of(int width) { return (width + columns - 1) / columns; }

template <class T>
void forward(const DeltaPlain& p, cudaStream_t stream) {
  delta_plain_forward_kernel<T><<<p.documents * p.heads * splits_of(p.d_v), 256, 0, stream>>>(p);
}
template <class T>
void backward(const DeltaPlain& p, cudaStream_t stream) {
  const int by_values = p.documents * p.heads * splits_of(p.d_v);
  const int by_keys = p.documents * p.heads * splits_of(p.d_k);
  delta_plain_reverse_kernel<T><<<by_values, 256, 0, stream>>>(p);
  delta_plain_write_kernel<T><<<by_keys, 256, 0, stream>>>(p);
  delta_plain_read_kernel<T><<<by_keys, 256, 0, stream>>>(p);
  const auto warps = static_cast<unsigned>((p.tokens * p.heads + 7) / 8);
  if (warps > 0) delta_plain_beta_kernel<<<warps, 256, 0, stream>>>(p);
}

}  // namespace

void delta_plain_forward(const DeltaPlain& p, Dtype dtype, cudaStream_t stream) {
  dtype == Dtype::f32 ? forward<float>(p, stream) : forward<__nv_bfloat16>(p, stream);
  check_cuda(cudaGetLastError(), "delta rule (plain)");
}

void delta_plain_backward(const DeltaPlain& p, Dtype dtype, cudaStream_t stream) {
  dtype == Dtype::f32 ? backward<float>(p, stream) : backward<__nv_bfloat16>(p, stream);
  check_cuda(cudaGetLastError(), "delta rule (plain)");
  if (!p.d.log_decay) return;
  GateGradient gate;
  gate.tokens = p.tokens, gate.documents = p.documents, gate.offsets = p.offsets, gate.heads = p.heads;
  gate.splits = splits_of(p.d_k), gate.q_sums = p.gate_q, gate.k_sums = p.gate_k;
  gate.d_log_decay = p.d.log_decay;
  if (p.d_end_state) gate.end_sums = p.gate_end, gate.end_parts = plain_end_parts(p.d_k);
  gate_gradient(gate, stream);
}

}  // namespace weft::cuda
