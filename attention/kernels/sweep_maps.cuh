#pragma once
// What TMA has to know of the tensors of a launch's sweeps, in boxes of a chunk's rows.

#include "attention/kernels/chunk.cuh"
#include "attention/kernels/tensor_map.h"

namespace weft::cuda {

struct SweepMaps {
  struct {
    CUtensorMap a, b, c, dot, out;
  } sweep[most_sweeps];
};

inline SweepMaps sweep_maps(const Sweeps& s) {
  SweepMaps maps;
  for (int i = 0; i < s.count; ++i) {
    const Sweep& w = s.sweep[i];
    auto map = [&](const Rows& rows, int width) {
      return tensor_map(rows.data, rows.pitch, width, s.heads, s.tokens, chunk);
    };
    maps.sweep[i] = {map(w.a, s.d_a), map(w.b, s.d_a), map(w.c, s.d_c), map(w.dot_sums ? w.dot : w.c, s.d_c),
                     map({w.out.data, w.out.pitch}, s.d_c)};
  }
  return maps;
}

}  // namespace weft::cuda
