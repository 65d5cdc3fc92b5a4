#pragma once
// What TMA has to know of the tensors of a sweep with a gate for each channel, in boxes of a chunk's rows.

#include "attention/kernels/channel_tiles.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/tensor_map.h"

namespace weft::cuda {

struct ChannelMaps {
  CUtensorMap a, b, c, gates, out;
  // For the gate's gradient: its own place, what is in it before, and in reverse forward's output and dot.
  CUtensorMap gradient, lost, forward_out, dot;
};

// Between dq and dk the gradient's place holds what rounding took from dq: these rows, where the 64 columns
// from `column` of all on are those from 2 * column on.
__host__ __device__ inline Rows lost_rows(const Sweeps& s, const Sweep& sweep) {
  return {sweep.gate_gradient, 2 * int64_t(s.heads) * s.d_c};
}

inline CUtensorMap rows_map(const Sweeps& s, const Rows& rows, int width) {
  return tensor_map(rows.data, rows.pitch, width, s.heads, s.tokens, chunk);
}
// Of f32 (tokens, heads, width), as Gates has it.
inline CUtensorMap gates_map(const Sweeps& s, const float* data, int width) {
  return tensor_map(data, int64_t(s.heads) * width, width, s.heads, s.tokens, chunk,
                    {Dtype::f32, part_columns});
}

inline ChannelMaps channel_maps(const Sweeps& s, GateOf gate) {
  const Sweep& sweep = s.sweep[0];
  ChannelMaps maps{};
  maps.a = rows_map(s, sweep.a, s.d_a), maps.b = rows_map(s, sweep.b, s.d_a);
  maps.c = rows_map(s, sweep.c, s.d_c), maps.out = rows_map(s, {sweep.out.data, sweep.out.pitch}, s.d_c);
  maps.gates = gates_map(s, s.log_decay, gate == GateOf::a ? s.d_a : s.d_c);
  if (gate == GateOf::a || !sweep.gate_gradient) return maps;
  maps.lost = rows_map(s, lost_rows(s, sweep), 2 * s.d_c);
  if (!sweep.reverse) return maps;
  maps.gradient = gates_map(s, sweep.gate_gradient, s.d_c);
  maps.forward_out = rows_map(s, sweep.forward_out, s.d_c), maps.dot = rows_map(s, sweep.dot, s.d_c);
  return maps;
}

// One thread's: all of a tile, or of Gates, from `column` of a head and a token on.
template <class T>
__device__ void load_parts(T tile, const CUtensorMap& map, int column, int head, int64_t token,
                           Barrier full) {
#pragma unroll
  for (int i = 0; i < T::parts; ++i)
    copy_in(tile.part_address(i), &map, column + i * T::part_width, head, int(token), full);
}

}  // namespace weft::cuda
