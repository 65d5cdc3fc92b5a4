#pragma once
// Sweeps (sweep.h) whose decay is a vector, one log decay for each token, head and channel of the keys
// (channel_gate.md). The keys' channels are those that a and b are summed over, or those of
// c and of the output:
//
//   of_a   out_i = scale * sum_j (sum_x decay_x(i, j) a_ix b_jx) c_j          o, dv
//   of_c   out_i = scale * sum_j (a_i . b_j) (decay(i, j) * c_j)              dq, dk
//
// log_decay of Sweeps is (tokens, heads, d_a) or (tokens, heads, d_c). The gradient of the gate comes with
// the sweeps of_c: forward, end_sums = the rows' sums of end_dot * state; then, in reverse, gate_gradient
// becomes the sum over later tokens of c * forward_out - dot * out, from end_sums on. Until then it holds
// what the two need beside forward_out: plain, forward's dot * out; on tiles, what rounding took from
// forward_out, as bf16, of each 64 columns in the first half of their place.

#include "attention/kernels/sweep.h"

namespace weft::cuda {

enum class GateOf { a, c };

// All sweeps are of the same kind and direction.
void channel_sweep_plain(const Sweeps& sweeps, GateOf gate, Dtype dtype,
                         cudaStream_t stream);  // widths to 256
// bf16, widths of 64 and 128; wgmma: on compute capability 9.0
void channel_sweep_tiles(const Sweeps& sweeps, GateOf gate, bool wgmma, cudaStream_t stream);
// Shared memory that a block of threads of channel_sweep_tiles needs for sweeps between these widths.
int channel_sweep_bytes(int d_k, int d_v);

}  // namespace weft::cuda
