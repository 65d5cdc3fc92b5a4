// Rows of norms, rotary, swiglu and AdamW, which memory decides; of products; of projection and loss.

#include <algorithm>

#include "autograd/layout.h"
#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/rows.h"
#include "autograd/ops/swiglu.h"
#include "optim/gradient_norm.h"
#include "optim/optimizer.h"
#include "tools/bench_gpu_run.h"

namespace weft {
namespace {

constexpr int64_t kKernelHeads = 16, kKernelHead = 128, kKernelWidth = kKernelHeads * kKernelHead;
constexpr double kEps = 1e-6;

double bytes_of(const std::vector<Tensor>& tensors) {
  double bytes = 0;
  for (const Tensor& t : tensors) bytes += static_cast<double>(t.bytes());
  return bytes;
}

// A row of what reads `in` and writes `out`, all of it once.
void memory(GpuRun& run, const char* name, const std::string& shape, const std::vector<Tensor>& in,
            const std::vector<Tensor>& out, const std::function<void()>& once) {
  BenchRow row{.name = name, .shape = shape};
  row.bytes = bytes_of(in) + bytes_of(out);
  run.device(row, out, [&](int64_t) { once(); });
}

void norms(GpuRun& run, int64_t n, int64_t width) {
  const std::string shape = text(n, "x", width);
  const auto noise = [&](uint32_t stream) { return GpuRun::noise({n, width}, Dtype::bf16, stream); };
  const Tensor x = noise(1), branch = noise(2), dy = noise(3), dsum = noise(4),
               gain = GpuRun::noise({width}, Dtype::f32, 5);
  const Tensor y = empty_like(x), sum = empty_like(x), dx = empty_like(x), rstd = empty({n}, Dtype::f32),
               parts = empty({norm_blocks(n).count, width}, Dtype::f32), dgain = empty({width}, Dtype::f32);
  const Device device = x.device();
  memory(run, "rms_norm forward", shape, {x}, {y, rstd},
         [&] { ON_DEVICE(device, rms_norm_forward(y, rstd, x, gain, kEps)); });
  memory(run, "rms_norm backward", shape, {x, dy, rstd}, {dx, dgain}, [&] {
    ON_DEVICE(device, rms_norm_backward(dx, parts, x, rstd, gain, dy));
    ON_DEVICE(device, sum_rows(dgain, parts, 0));
  });
  memory(run, "add_rms_norm forward", shape, {x, branch}, {sum, y, rstd},
         [&] { ON_DEVICE(device, add_rms_norm_forward(sum, y, rstd, x, branch, gain, kEps)); });
  memory(run, "add_rms_norm backward", shape, {sum, dy, dsum, rstd}, {dx, dgain}, [&] {
    ON_DEVICE(device, add_rms_norm_backward(dx, parts, sum, rstd, gain, dsum, dy));
    ON_DEVICE(device, sum_rows(dgain, parts, 0));
  });
}

// q and k, into tensors of their own.
void turn(GpuRun& run, int64_t n) {
  const auto noise = [&](uint32_t stream) {
    return GpuRun::noise({n, kKernelHeads, kKernelHead}, Dtype::bf16, stream);
  };
  const Tensor q = noise(1), k = noise(2), q2 = empty_like(q), k2 = empty_like(k);
  const Tensor position = whole_documents(std::vector<int64_t>(static_cast<size_t>(n / 512), 512)).position;
  const std::string shape = text("2 x ", n, "x", kKernelHeads, "x", kKernelHead);
  const std::vector<cpu::RotaryPart> there{{q2, q}, {k2, k}};
  memory(run, "rotary", shape, {q, k}, {q2, k2},
         [&] { ON_DEVICE(q.device(), rotary(there, position, 10000, kKernelHead, 1)); });
}

void gated(GpuRun& run, int64_t n, int64_t f) {
  const std::string shape = text(n, "x", f);
  const Tensor both = GpuRun::noise({n, 2 * f}, Dtype::bf16, 1), dy = GpuRun::noise({n, f}, Dtype::bf16, 2);
  const Tensor gate = both.columns(0, f), up = both.columns(f, 2 * f), y = empty_like(dy),
               d = empty_like(both), dgate = d.columns(0, f), dup = d.columns(f, 2 * f);
  memory(run, "swiglu forward", shape, {both}, {y},
         [&] { ON_DEVICE(y.device(), swiglu_forward(y, gate, up)); });
  memory(run, "swiglu backward", shape, {both, dy}, {d},
         [&] { ON_DEVICE(y.device(), swiglu_backward(dgate, dup, gate, up, dy)); });
}

// 124 million weights in matrices and vectors: the gradient's norm, and the update with its clipping and the
// bf16 copies.
void update(GpuRun& run) {
  ParameterStore store(Dtype::bf16);
  const int64_t rows = run.sized(124'000'000 / kKernelWidth), half = rows / 2;
  store.declare({"a", {half, kKernelWidth}, ParameterKind::matrix});
  store.declare({"b", {rows - half, kKernelWidth}, ParameterKind::embedding});
  store.declare({"c", {kKernelWidth}, ParameterKind::vector});
  store.commit();
  std::vector<Tensor> masters;
  BenchRow norm{.name = "gradient norm", .shape = text(store.numel(), " weights")},
      step{.name = "adamw", .shape = norm.shape};
  for (const ParameterGroup& g : store.groups()) {
    g.master.copy_from(GpuRun::noise(g.master.shape(), g.master.dtype(), 1));
    g.gradient.copy_from(GpuRun::noise(g.gradient.shape(), g.gradient.dtype(), 2));
    norm.bytes += bytes_of({g.gradient});
    step.bytes += 7 * bytes_of({g.master});  // weight and two moments there and back, and the gradient
    if (g.working.buffer() != g.master.buffer()) step.bytes += bytes_of({g.working});
  }
  const Tensor sums = empty({static_cast<int64_t>(store.groups().size())}, Dtype::f64);
  run.device(norm, {sums}, [&](int64_t) {
    int64_t i = 0;
    for (const ParameterGroup& g : store.groups()) {
      ON_DEVICE(store.device(), sum_of_squares(sums.rows(i, i + 1), g.gradient));
      ++i;
    }
  });
  const auto optimizer = make_optimizer({.lr = 1e-4}, store);
  StepState state{.gradient_norm = 100};
  run.device(step, {}, [&](int64_t) { optimizer->step(state); });
}

// Projection and cross-entropy, forward and back, the weight's gradient in the store's.
void loss(GpuRun& run, int64_t tokens, int64_t width, int64_t vocabulary) {
  ParameterStore store(Dtype::bf16);
  const Parameter weight = store.declare({"weight", {vocabulary, width}, ParameterKind::embedding});
  store.commit();
  weight->working.copy_from(GpuRun::noise(weight->info.shape, Dtype::bf16, 1));
  const Tensor h = GpuRun::noise({tokens, width}, Dtype::bf16, 2);
  std::vector<int32_t> ids;
  const RandomKey random{42, 3};
  for (int64_t i = 0; i < tokens; ++i)
    ids.push_back(
        static_cast<int32_t>(random.draw(static_cast<uint64_t>(i))[0] % static_cast<uint64_t>(vocabulary)));
  const Tensor targets = from_ints(ids);
  const double share = 1 / static_cast<double>(tokens);
  const Tensor seed = full({}, share, Dtype::f32), of_loss = full({1}, share, Dtype::f64);
  Tensor dh;
  const auto once = [&] {
    store.begin_step();
    Tape tape;
    const Variable x = tape.input(h);
    tape.backward(projected_cross_entropy(x, weight, targets, {.seed = of_loss}).loss, seed);
    store.finish_step();
    dh = tape.gradient(x);
  };
  once();
  dh = {};
  reset_peak(store.device());
  const int64_t before = memory_report(store.device()).bytes;
  once();
  BenchRow row{.name = "projection + cross-entropy", .shape = text(tokens, "x", width, "x", vocabulary)};
  row.flops = 6.0 * static_cast<double>(tokens * width * vocabulary);
  row.note =
      text("extra memory ", (memory_report(store.device()).peak_bytes - before - dh.bytes()) / 1'000'000,
           " MB beside both gradients");
  run.device(row, {weight->gradient}, [&](int64_t) { once(); });
}

}  // namespace

// Two sets of tensors take turns.
double bench_gpu_product(GpuRun& run, const LayerProduct& p) {
  const int64_t tokens = run.sized(p.tokens, 64), out = run.sized(p.out, 64), in = run.sized(p.in, 64);
  struct Set {
    Tensor x, w, y, dy, dx, dw;
  };
  std::vector<Set> sets;
  for (uint32_t i = 0; i < 2; ++i) {
    const auto noise = [&](int64_t a, int64_t b, uint32_t k) {
      return GpuRun::noise({a, b}, Dtype::bf16, 8 * i + k);
    };
    sets.push_back({noise(tokens, in, 0), noise(out, in, 1), empty({tokens, out}, Dtype::bf16),
                    noise(tokens, out, 2), empty({tokens, in}, Dtype::bf16), empty({out, in}, Dtype::f32)});
  }
  const auto row = [&](const char* which) {
    BenchRow r{.name = text(p.name, " ", which), .shape = text(tokens, "x", out, "x", in)};
    r.flops = 2.0 * static_cast<double>(tokens * out * in);
    return r;
  };
  const double forward = run.device(row("forward"), {sets[0].y}, [&](int64_t i) {
    const Set& s = sets[static_cast<size_t>(i % 2)];
    gemm(s.y, s.x, s.w, {false, true}, 1, 0);
  });
  const double dx = run.device(row("dx"), {sets[0].dx}, [&](int64_t i) {
    const Set& s = sets[static_cast<size_t>(i % 2)];
    gemm(s.dx, s.dy, s.w, {}, 1, 0);
  });
  const double dw = run.device(row("dw"), {sets[0].dw}, [&](int64_t i) {
    const Set& s = sets[static_cast<size_t>(i % 2)];
    gemm(s.dw, s.dy, s.x, {true, false}, 1, 0);
  });
  return forward + dx + dw;
}

void bench_gpu_kernels(GpuRun& run, const std::vector<GpuRows>& rows) {
  const auto wants = [&](GpuRows r) { return std::find(rows.begin(), rows.end(), r) != rows.end(); };
  if (wants(GpuRows::memory)) {
    norms(run, run.sized(32768, 512), kKernelWidth);
    norms(run, run.sized(65536, 512), 768);
    turn(run, run.sized(32768, 512));
    gated(run, run.sized(16384, 512), 5632);
    update(run);
  }
  if (wants(GpuRows::products))
    for (const LayerProduct& p :
         {LayerProduct{"124M qkv", 32768, 2304, 768}, LayerProduct{"124M out", 32768, 768, 768},
          LayerProduct{"124M gate_up", 32768, 4096, 768}, LayerProduct{"124M down", 32768, 768, 2048},
          LayerProduct{"1.3B qkv", 16384, 6144, 2048}, LayerProduct{"1.3B out", 16384, 2048, 2048},
          LayerProduct{"1.3B gate_up", 16384, 11264, 2048}, LayerProduct{"1.3B down", 16384, 2048, 5632}})
      bench_gpu_product(run, p);
  if (wants(GpuRows::loss)) loss(run, run.sized(8192, 64), run.sized(2048, 64), run.sized(50304, 64));
}

}  // namespace weft
