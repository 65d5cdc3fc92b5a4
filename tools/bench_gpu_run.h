#pragma once
// What the rows of `weft bench gpu` have in common.

#include "autograd/tensor.h"
#include "tools/bench_gpu.h"

namespace weft {

class GpuRun {
 public:
  GpuRun(const GpuBench& bench, const BenchDone& done);

  bool small() const { return smaller_ > 1; }
  // n, or a smaller number that divides by `unit`.
  int64_t sized(int64_t n, int64_t unit = 8) const;

  // Random normal values; what differs in `stream` differs in values.
  static Tensor noise(const Shape& shape, Dtype dtype, uint32_t stream);

  // Times once(i), i = 0, 1, ..., on the device's clock; `outputs` are NaN before. Gives the row its floor
  // and hands it on.
  // Its median, in milliseconds.
  double device(BenchRow row, const std::vector<Tensor>& outputs, const std::function<void(int64_t)>& once);
  // The same on the host's clock, from the first call to the end of all work, or until all is asked for:
  // milliseconds a call of `calls` calls one after the other.
  enum class Until { done, asked };
  void host(BenchRow row, int64_t calls, const std::function<void()>& once, Until until = Until::done);
  void finish(BenchRow row);

  // Bytes and operations in a millisecond that this device was seen to reach.
  double byte_rate = 0, flop_rate = 0;

 private:
  int64_t smaller_;
  const BenchDone& done_;
};

// A product of a layer, y (tokens, out) = x (tokens, in) W^T.
struct LayerProduct {
  const char* name;
  int64_t tokens, out, in;
};
// Rows of it and of its two gradients; the three together, in milliseconds.
double bench_gpu_product(GpuRun& run, const LayerProduct& p);
// Rows of causal softmax attention, forward and with its backward; both together, in milliseconds.
double bench_gpu_attention(GpuRun& run, const std::string& name, int64_t batch, int64_t length, int64_t heads,
                           int64_t size);

void bench_gpu_kernels(GpuRun& run, const std::vector<GpuRows>& rows);  // memory, products, loss
void bench_gpu_attention(GpuRun& run);
void bench_gpu_recurrences(GpuRun& run);
void bench_gpu_layers(GpuRun& run);  // a small op and a small block, launched one by one
void bench_gpu_steps(GpuRun& run);
void bench_gpu_floors(GpuRun& run);

}  // namespace weft
