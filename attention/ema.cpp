#include "attention/ema.h"

#include <algorithm>
#include <cmath>

#include "attention/chunks.h"
#include "attention/ema_run.h"
#include "attention/scan_kernel.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/causal_convolution.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/planned_device.h"

namespace weft {
namespace {

// A decay that is 0 after rounding keeps a finite logarithm.
constexpr double kLeastDecay = 1e-30;

Variable log_of(const Variable& decay) {
  return log(maximum(decay, full({1}, kLeastDecay, decay.dtype(), decay.device())));
}

// decay^first, decay^(first + step), ...: log_decay (C, N) -> (C, N, count)
Variable powers(const Variable& log_decay, int64_t count, double first, double step) {
  std::vector<double> exponents;
  for (int64_t i = 0; i < count; ++i) exponents.push_back(first + step * static_cast<double>(i));
  const Dtype dtype = log_decay.dtype();
  const Device device = log_decay.device();
  const Tensor row =
      device == Device::meta ? empty({count}, dtype, device) : from_values({count}, dtype, exponents, device);
  return exp(multiply(reshape(log_decay, {log_decay.dim(0), log_decay.dim(1), 1}), row));
}

Variable column_of(const Variable& x) { return reshape(x, {x.dim(0), x.dim(1), 1}); }

// t[c, i, j] = kernel[c, i - j] for j <= i, else 0:  kernel (C, L) -> (C, L, L)
Variable toeplitz(const Variable& kernel) {
  const int64_t channels = kernel.dim(0), n = kernel.dim(1);
  std::vector<int32_t> distance;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) distance.push_back(static_cast<int32_t>(std::max<int64_t>(i - j, -1)));
  const Variable rows = gather_rows(permute(kernel, {1, 0}), from_ints(distance, kernel.device()));
  return permute(reshape(rows, {n, n, channels}), {2, 0, 1});
}

}  // namespace

DampedEma::DampedEma(int64_t channels, int64_t size, const ParameterScope& scope)
    : channels_(channels), size_(size) {
  const auto declare = [&](const char* name, const Initializer& init) {
    return scope.declare({name, {channels, size}, ParameterKind::vector, init});
  };
  // As the authors start them, but for noise of 0.02 on beta; signs that alternate over the dimensions keep
  // the sum small.
  std::vector<double> signs;
  for (int64_t i = 0; i < channels * size; ++i) signs.push_back(i % size % 2 == 0 ? 1 : -1);
  alpha_ = declare("alpha", Initializer::normal(0.2));
  delta_ = declare("delta", Initializer::normal(0.2));
  beta_ = declare("beta", Initializer::from(signs));
  gamma_ = declare("gamma", Initializer::normal(1));
}

EmaCoefficients DampedEma::coefficients() const { return ema_coefficients(alpha_, delta_, beta_, gamma_); }

Variable DampedEma::kernel(int64_t length) const {
  const EmaCoefficients c = coefficients();
  const Variable log_decay = log_of(c.decay);
  // q^(a width + b) as a product, so that no table of length times N powers is made.
  const auto width =
      static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(std::max<int64_t>(1, length)))));
  const int64_t rows = (length + width - 1) / width;
  const Variable coarse =
      multiply(powers(log_decay, rows, 0, static_cast<double>(width)), column_of(multiply(c.in, c.out)));
  const Variable fine = powers(log_decay, width, 0, 1);
  return slice(reshape(matmul(coarse, fine, {true, false}), {channels_, rows * width}), 1, 0, length);
}

bool DampedEma::has_kernel(Device device, Dtype dtype) const {
  return has_ema_run(computed_on(device), dtype, size_);
}

Scan DampedEma::scan(Device device, Dtype dtype, int64_t chunk, bool fft) const {
  const EmaCoefficients c = coefficients();
  const int64_t channels = channels_, size = size_;
  const Dtype type = c.in.dtype();
  Scan scan;
  scan.names = {"", "h"};
  scan.pad = {0, 0};
  scan.chunk = chunk;
  scan.decay = true;
  scan.identity = [=] {
    return State{full({1, channels, size}, 1, type, device), zeros({1, channels, size}, type, device)};
  };
  scan.summarize = [=](const Block& b) {
    const int64_t count = b.x[0].dim(0), n = b.x[0].dim(1);
    const Variable log_decay = log_of(c.decay);
    const Variable tokens = reshape(sum(b.x[1], 1), {count, 1, 1});
    const Variable weight = multiply(powers(log_decay, n, static_cast<double>(n - 1), -1), column_of(c.in));
    const Variable x = permute(padding_in_front(cast(b.x[0], type), b.document), {2, 1, 0});  // (C, chunk, M)
    return State{exp(multiply(tokens, log_decay)), permute(matmul(weight, x), {2, 0, 1})};
  };
  scan.combine = [](const State& before, const State& after) {
    return State{multiply(before[0], after[0]), add(multiply(after[0], before[1]), after[1])};
  };
  scan.apply = [=](const Block& b, const State& prefix) {
    const int64_t n = b.x[0].dim(1);
    const Variable log_decay = log_of(c.decay);
    const Variable decay = multiply(powers(log_decay, n, 0, 1), column_of(c.out));  // (C, N, chunk)
    const Variable kernel = reshape(matmul(column_of(c.in), decay, {true, false}), {channels, n});
    const Variable inside = matmul(toeplitz(kernel), permute(cast(b.x[0], type), {2, 1, 0}));
    const Variable state = multiply(prefix[1], exp(log_decay));  // one step on
    const Variable before = matmul(decay, permute(state, {1, 2, 0}), {true, false});
    return permute(add(inside, before), {2, 1, 0});
  };
  if (fft)
    scan.whole = [this](const Block& b, const Layout& layout) {
      std::vector<int32_t> first{0};
      int64_t longest = 1;
      for (const Segment& s : layout.segments) {
        first.push_back(first.back() + static_cast<int32_t>(s.size()));
        longest = std::max(longest, s.size());
      }
      return causal_convolution(cast(b.x[0], wide_of(b.x[0].dtype())), kernel(longest),
                                from_ints(first, Device::cpu));
    };
  scan.kernel.serves = [=](Device where) { return has_ema_run(where, dtype, size); };
  scan.kernel.run = [=, identity = scan.identity](const Block& b, const Layout& layout, const State& start,
                                                  bool want_end) {
    const EmaRun r =
        ema_run(b.x[0], c.in, c.out, c.decay, start.empty() ? Variable() : start[1], layout, want_end);
    return run_result(r.y, r.final_state, identity);
  };
  scan.kernel.transition = [=](const Block& b, const Layout& layout) {
    const auto segments = static_cast<int64_t>(layout.segments.size());
    return exp(multiply(reshape(sum_by_segment(b.x[1], layout), {segments, 1, 1}), log_of(c.decay)));
  };
  scan.step = [=](const Block& b, const Tensor& states) -> Variable {
    return ema_step(b.x[0], c.in, c.out, c.decay, states);
  };
  return scan;
}

Variable DampedEma::operator()(const Variable& x, const Block& block, Crossing& cross, int64_t chunk,
                               int64_t fft_up_to, bool reverse) const {
  const Segments& segments = cross.layout().segments;
  const bool fft =
      std::all_of(segments.begin(), segments.end(), [&](const Segment& s) { return s.size() <= fft_up_to; });
  const Device device = x.device();
  const Dtype wide = wide_of(x.dtype());
  const Variable input = has_kernel(device, x.dtype()) ? x : cast(x, wide);
  const Tensor one = ones_("1", {1}, x.dim(0), wide, device).reshape({x.dim(0)});
  Scan part = scan(device, x.dtype(), chunk, fft);
  part.reverse = reverse;
  return cross(part, {{input, one}, block.position, block.document});
}

Variable DampedEma::recurrence(const Variable& x) const {
  const Variable p = sigmoid(alpha_), q = scale(multiply(p, sigmoid(delta_)), -1, 1);
  Variable h = zeros({channels_, size_}, x.dtype());
  std::vector<Variable> y;
  for (int64_t t = 0; t < x.dim(0); ++t) {
    const Variable input = reshape(slice(x, 0, t, t + 1), {channels_, 1});
    h = add(multiply(multiply(p, beta_), input), multiply(q, h));
    y.push_back(reshape(scale(sum(multiply(gamma_, h), 1), 1 / std::sqrt(static_cast<double>(size_))),
                        {1, channels_}));
  }
  return concatenate(y, 0);
}

}  // namespace weft
