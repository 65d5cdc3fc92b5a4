#pragma once
// Times what a training step on a GPU is made of, kernel by kernel and whole: the rows of
// tools/peers/torch_gpu.py. Rows of memory are compared with a copy of the same run, rows of products with a
// large product of the same run.

#include "tools/bench_row.h"

namespace weft {

// Which rows. floors, only if asked for: what a training step of recipes/124m/softmax.yaml and
// 1b/softmax.yaml takes at least, by its products and its attention measured one by one and by the bytes of
// all else at the rate of a copy.
enum class GpuRows : uint8_t { memory, products, loss, attention, recurrence, small, step, floors };

struct GpuBench {
  std::vector<GpuRows> rows = {GpuRows::memory,     GpuRows::products, GpuRows::loss, GpuRows::attention,
                               GpuRows::recurrence, GpuRows::small,    GpuRows::step};
  // 1, or how many times smaller everything is: to see that it works, on a CPU too. Then each row runs once.
  int64_t smaller = 1;
};

// On the default device, in bf16, every row handed to `done` once measured: warmed up, then the median of 50
// repetitions, fewer (10 at least) where 50 take longer than two seconds, 3 of calls above 100 ms. Inputs are
// random and larger than a second cache, or several take turns; outputs of memory, products and loss (but
// adamw) are NaN before, and an Error (internal) if they are after.
void bench_gpu(const GpuBench& bench, const BenchDone& done);

}  // namespace weft
