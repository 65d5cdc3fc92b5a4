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

// A backward pass has most of its tensors in several sweeps: each is described once, since the driver takes
// its time for that.
inline SweepMaps sweep_maps(const Sweeps& s) {
  struct Described {
    const void* data;
    int64_t pitch;
    int width;
    const CUtensorMap* map;
  };
  Described known[5 * most_sweeps];
  int count = 0;
  const auto describe = [&](CUtensorMap& to, const void* data, int64_t pitch, int width) {
    for (int i = 0; i < count; ++i)
      if (const Described& d = known[i]; d.data == data && d.pitch == pitch && d.width == width) {
        to = *d.map;
        return;
      }
    to = tensor_map(data, pitch, width, s.heads, s.tokens, chunk);
    known[count++] = {data, pitch, width, &to};
  };
  SweepMaps maps;
  for (int i = 0; i < s.count; ++i) {
    const Sweep& w = s.sweep[i];
    const Rows& dot = w.dot_sums ? w.dot : w.c;
    describe(maps.sweep[i].a, w.a.data, w.a.pitch, s.d_a);
    describe(maps.sweep[i].b, w.b.data, w.b.pitch, s.d_a);
    describe(maps.sweep[i].c, w.c.data, w.c.pitch, s.d_c);
    describe(maps.sweep[i].dot, dot.data, dot.pitch, s.d_c);
    describe(maps.sweep[i].out, w.out.data, w.out.pitch, s.d_c);
  }
  return maps;
}

}  // namespace weft::cuda
