#pragma once
// Times what a training step on the CPU is made of: matrix products, softmax attention, and whole steps of
// two small models. tools/peers/torch_cpu.py times the same shapes in PyTorch.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace weft {

struct BenchRow {
  std::string name;   // "gemm", "attention forward", "attention decode, 2 of 8 heads", "step hybrid", ...
  std::string shape;  // "512x512x512" (M, N, K); "B8 T512 H4 D32"; "4 layers, width 128, vocab 2048, T512"
  double ms = 0, ms_p10 = 0, ms_p90 = 0;  // median and percentiles over repetitions
  double flops = 0;                       // multiplications and additions of one repetition; 0: not counted
  int64_t tokens = 0;                     // of one repetition; 0: not a matter of tokens
  double bytes = 0, floor_ms = 0;         // that one repetition has to move, and the time of that; 0: unknown
  std::string dtype = "f32";

  double tflops() const { return flops / ms * 1e-9; }
  double tokens_per_s() const { return static_cast<double>(tokens) / ms * 1e3; }
};

// All rows in f32 on the cores that OpenMP has, each handed to `done` once measured: warmed up twice, then
// repeated for `seconds`, at least five times. seconds 0: once, cold; to see that it works.
void bench_cpu(double seconds, const std::function<void(const BenchRow&)>& done);
// The same for attention with 2, 4, 6 and 8 of 8 heads on, as MoH leaves them: prefill, training, decoding;
// and for a layer of MoH whole.
void bench_heads(double seconds, const std::function<void(const BenchRow&)>& done);

}  // namespace weft
