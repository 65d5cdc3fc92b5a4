// The sweep with a gate for each channel, token by token in f32, as the recurrence is written: for f32, and
// for widths that have no tiles.

#include "attention/kernels/channel_sweep.h"
#include "attention/kernels/plain.cuh"

namespace weft::cuda {

// kernels

namespace {

// One block: one document, head, sweep and 32 columns of the state. On its way from token to token the state
// decays by the gate of the later one.
template <class T, GateOf gate>
__global__ void __launch_bounds__(256) channel_sweep_plain_kernel(const __grid_constant__ Sweeps s) {
  const Sweep& sweep = s.sweep[blockIdx.y];
  const int splits = (s.d_c + plain_columns - 1) / plain_columns;
  const int split = blockIdx.x % splits, head = blockIdx.x / splits % s.heads,
            document = blockIdx.x / splits / s.heads;
  const int lane = threadIdx.x % lanes, column = split * plain_columns + threadIdx.x / lanes;
  const bool inside = column < s.d_c;
  const int2 range = document_range(s, document);
  const int64_t place = int64_t(document) * s.heads + head;

  auto offset = [&](int row) {
    return place * s.d_a * s.d_c +
           (sweep.transposed ? int64_t(column) * s.d_a + row : int64_t(row) * s.d_c + column);
  };
  const int gates = gate == GateOf::a ? s.d_a : s.d_c;
  auto decay = [&](int64_t token, int channel) {
    return exp2f(to_log2(s.log_decay[(token * s.heads + head) * gates + channel]));
  };
  float state[most_rows];
  auto decay_state = [&](int64_t token) {
    const float whole = gate == GateOf::c && inside ? decay(token, column) : 1.f;
#pragma unroll
    for (int r = 0; r < most_rows; ++r) {
      const int row = r * lanes + lane;
      if (row < s.d_a) state[r] *= gate == GateOf::a ? decay(token, row) : whole;
    }
  };
#pragma unroll
  for (int r = 0; r < most_rows; ++r) {
    const int row = r * lanes + lane;
    state[r] =
        inside && row < s.d_a && sweep.state_in ? sweep.state_in_scale * sweep.state_in[offset(row)] : 0.f;
  }

  const bool writes = inside && lane == 0;
  double later = writes && sweep.reverse && sweep.end_sums ? sweep.end_sums[place * s.d_c + column] : 0;
  for (int n = 0; n < range.y; ++n) {
    const int64_t token = range.x + (sweep.reverse ? range.y - 1 - n : n);
    if (!sweep.reverse) decay_state(token);
    if (sweep.reverse && n > 0) decay_state(token + 1);
    const float c = inside ? value<T>(sweep.c, token, int64_t(head) * s.d_c + column) : 0.f;
    float whole = 0;
#pragma unroll
    for (int r = 0; r < most_rows; ++r) {
      const int row = r * lanes + lane;
      if (row >= s.d_a) continue;
      const float a = value<T>(sweep.a, token, int64_t(head) * s.d_a + row);
      const float b = value<T>(sweep.b, token, int64_t(head) * s.d_a + row);
      state[r] += b * c;
      whole += a * state[r];
    }
#pragma unroll
    for (int step = 1; step < lanes; step *= 2) whole += __shfl_xor_sync(~0u, whole, step);
    if (!writes) continue;
    const int64_t at = int64_t(head) * s.d_c + column;
    static_cast<T*>(sweep.out.data)[token * sweep.out.pitch + at] = T(s.scale * whole);
    if (!sweep.gate_gradient) continue;
    const float product = s.scale * whole * value<T>(sweep.dot, token, at);
    float& sum = sweep.gate_gradient[token * s.heads * s.d_c + at];
    if (sweep.reverse) later += sum - product;
    sum = sweep.reverse ? static_cast<float>(later) : product;
  }
  if (sweep.reverse && range.y > 0) decay_state(range.x);
  float end = 0;
#pragma unroll
  for (int r = 0; r < most_rows; ++r) {
    const int row = r * lanes + lane;
    if (!inside || row >= s.d_a) continue;
    if (sweep.state_out) sweep.state_out[offset(row)] = sweep.state_out_scale * state[r];
    if (sweep.end_dot) end += state[r] * sweep.end_dot[offset(row)];
  }
#pragma unroll
  for (int step = 1; step < lanes; step *= 2) end += __shfl_xor_sync(~0u, end, step);
  if (sweep.end_dot && writes) sweep.end_sums[place * s.d_c + column] = end;
}

}  // namespace

// launchers

void channel_sweep_plain(const Sweeps& s, GateOf gate, Dtype dtype, cudaStream_t stream) {
  const dim3 grid(s.documents * s.heads * ((s.d_c + plain_columns - 1) / plain_columns), s.count);
  auto launch = [&](auto kernel) { kernel<<<grid, 256, 0, stream>>>(s); };
  if (dtype == Dtype::f32)
    launch(gate == GateOf::a ? channel_sweep_plain_kernel<float, GateOf::a>
                             : channel_sweep_plain_kernel<float, GateOf::c>);
  else
    launch(gate == GateOf::a ? channel_sweep_plain_kernel<__nv_bfloat16, GateOf::a>
                             : channel_sweep_plain_kernel<__nv_bfloat16, GateOf::c>);
  check_cuda(cudaGetLastError(), "channel gate (plain)");
}

}  // namespace weft::cuda
