#pragma once
// Times what a training step on the CPU is made of: matrix products, softmax attention, and whole steps of
// two small models. tools/peers/torch_cpu.py times the same shapes in PyTorch.

#include "tools/bench_row.h"

namespace weft {

// All rows in f32 on the cores that OpenMP has, each handed to `done` once measured: warmed up twice, then
// repeated for `seconds`, at least five times. seconds 0: once, cold; to see that it works.
void bench_cpu(double seconds, const BenchDone& done);
// The same for attention with 2, 4, 6 and 8 of 8 heads on, as MoH leaves them: prefill, training, decoding;
// and for a layer of MoH whole.
void bench_heads(double seconds, const BenchDone& done);

}  // namespace weft
