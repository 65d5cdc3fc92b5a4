#include "tools/bench_gpu.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "autograd/device_times.h"
#include "autograd/draw.h"
#include "autograd/ops/matmul.h"
#include "optim/gradient_norm.h"
#include "tools/bench_gpu_run.h"

namespace weft {
namespace {

constexpr int64_t kRepeats = 50, kFewest = 10, kOfLong = 3;
constexpr double kPatience = 2000, kLong = 100;  // ms of a row, of a call
// After a product that takes all the power there is the card's clocks stay lower for some tenths of a
// second, and what memory decides is slower with them, the first row after the product by 10 %.
constexpr std::chrono::milliseconds kRest{300};

Tensor flat(const Tensor& x) { return x.reshape({x.numel()}); }

void poison(const std::vector<Tensor>& outputs) {
  for (const Tensor& t : outputs) t.copy_from(full(t.shape(), NAN, t.dtype(), t.device()));
}
void check_written(const BenchRow& row, const std::vector<Tensor>& outputs) {
  for (const Tensor& t : outputs)
    if (!std::isfinite(sum_of_squares(flat(t.contiguous()))))
      throw Error(Exit::internal, text(row.name, " ", row.shape, " left elements unwritten, or not finite"),
                  "bench gpu", "report this");
}

}  // namespace

GpuRun::GpuRun(const GpuBench& bench, const BenchDone& done) : smaller_(bench.smaller), done_(done) {}

int64_t GpuRun::sized(int64_t n, int64_t unit) const {
  return small() ? std::max(unit, n / smaller_ / unit * unit) : n;
}

Tensor GpuRun::noise(const Shape& shape, Dtype dtype, uint32_t stream) {
  const Tensor x = empty(shape, dtype);
  draw(x, Spread::normal, 1, {42, stream});
  return x;
}

void GpuRun::finish(BenchRow row) {
  row.dtype = "bf16";
  if (row.bytes > 0 && byte_rate > 0) row.floor_ms = row.bytes / byte_rate;
  if (row.flops > 0 && flop_rate > 0) row.floor_ms = std::max(row.floor_ms, row.flops / flop_rate);
  done_(row);
}

double GpuRun::device(BenchRow row, const std::vector<Tensor>& outputs,
                      const std::function<void(int64_t)>& once) {
  poison(outputs);
  int64_t repeats = 1;
  if (!small()) {
    once(0);
    wait_for(default_device());
    const auto start = BenchClock::now();
    once(1);
    wait_for(default_device());
    const double ms = ms_since(start);
    if (ms > kLong) {
      repeats = kOfLong;
    } else {
      repeats = std::clamp(static_cast<int64_t>(kPatience / ms), kFewest, kRepeats);
      for (int64_t i = 2; i < 4; ++i) once(i);
    }
    poison(outputs);
  }
  row.take(device_times(default_device(), repeats, once));
  check_written(row, outputs);
  const double ms = row.ms;
  finish(std::move(row));
  return ms;
}

void GpuRun::host(BenchRow row, int64_t calls, const std::function<void()>& once, Until until) {
  const int64_t repeats = small() ? 1 : kRepeats;
  if (small()) calls = 1;
  for (int64_t i = 0; i < calls && !small(); ++i) once();
  std::vector<double> times;
  for (int64_t r = 0; r < repeats; ++r) {
    wait_for(default_device());
    const auto start = BenchClock::now();
    for (int64_t i = 0; i < calls; ++i) once();
    if (until == Until::done) wait_for(default_device());
    times.push_back(ms_since(start) / static_cast<double>(calls));
  }
  row.take(std::move(times));
  finish(std::move(row));
}

void bench_gpu(const GpuBench& bench, const BenchDone& done) {
  GpuRun run(bench, done);
  const auto wants = [&](GpuRows r) {
    return std::find(bench.rows.begin(), bench.rows.end(), r) != bench.rows.end();
  };
  {  // what all others are compared with
    const int64_t n = run.sized(int64_t{1} << 28), side = run.sized(8192);
    const Tensor from = GpuRun::noise({n}, Dtype::bf16, 1), to = empty({n}, Dtype::bf16);
    const auto keep = [&](const BenchRow& row) {
      if (row.bytes > 0) run.byte_rate = row.bytes / row.ms;
      if (row.flops > 0) run.flop_rate = row.flops / row.ms;
      done(row);
    };
    const BenchDone keep_rate = keep;
    GpuRun first(bench, keep_rate);
    BenchRow copy{.name = "copy", .shape = text(n >> 19, " MiB")};
    copy.bytes = 4.0 * static_cast<double>(n);
    first.device(copy, {to}, [&](int64_t) { to.copy_from(from); });
    BenchRow product{.name = "product", .shape = text(side, "x", side, "x", side)};
    product.flops = 2.0 * std::pow(static_cast<double>(side), 3);
    const Tensor a = GpuRun::noise({side, side}, Dtype::bf16, 2),
                 b = GpuRun::noise({side, side}, Dtype::bf16, 3), c = empty({side, side}, Dtype::bf16);
    first.device(product, {c}, [&](int64_t) { gemm(c, a, b, {false, true}, 1, 0); });
  }
  if (!run.small()) std::this_thread::sleep_for(kRest);
  bench_gpu_kernels(run, bench.rows);
  if (wants(GpuRows::attention)) bench_gpu_attention(run);
  if (wants(GpuRows::recurrence)) bench_gpu_recurrences(run);
  if (wants(GpuRows::small)) bench_gpu_layers(run);
  if (wants(GpuRows::step)) bench_gpu_steps(run);
  if (wants(GpuRows::floors)) bench_gpu_floors(run);
}

}  // namespace weft
