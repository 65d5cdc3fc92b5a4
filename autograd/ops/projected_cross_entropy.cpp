#include "autograd/ops/projected_cross_entropy.h"

#include <algorithm>
#include <utility>

#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/rows.h"
#include "autograd/planned_device.h"

namespace weft {

int64_t loss_chunk(int64_t tokens, int64_t row_bytes, bool gpu, bool of_weight) {
  constexpr int64_t kTile = 128, kMiB = int64_t{1} << 20;
  if (!gpu) return std::max<int64_t>(64, 64 * kMiB / row_bytes);
  const auto rows_of = [=](int64_t bytes) { return std::max(kTile, bytes / row_bytes / kTile * kTile); };
  const int64_t least = rows_of(256 * kMiB), quarter = of_weight ? (tokens + 3) / 4 : 0,
                most = std::clamp(quarter, least, rows_of(1024 * kMiB));
  const int64_t chunks = std::max<int64_t>(1, (tokens + most - 1) / most),
                even = (tokens + chunks - 1) / chunks;
  return std::max(kTile, (even + kTile - 1) / kTile * kTile);
}

CrossEntropy projected_cross_entropy(const Variable& hidden, const Variable& weight, const Tensor& targets,
                                     const CrossEntropyOptions& options) {
  CHECK(hidden.rank() == 2 && weight.rank() == 2 && hidden.dim(1) == weight.dim(1) &&
            hidden.dtype() == weight.dtype() && weight.dim(0) > 0,
        "projected_cross_entropy: hidden ", hidden.shape(), " ", name_of(hidden.dtype()), ", weight ",
        weight.shape(), " ", name_of(weight.dtype()));
  const int64_t tokens = hidden.dim(0), vocabulary = weight.dim(0);
  CHECK(targets.shape() == Shape{tokens} && targets.dtype() == Dtype::i32, "projected_cross_entropy: hidden ",
        hidden.shape(), ", targets ", targets.shape(), " ", name_of(targets.dtype()));
  CHECK(!options.weights.defined() || options.weights.shape() == Shape{tokens},
        "projected_cross_entropy: hidden ", hidden.shape(), ", weights ", options.weights.shape());
  const Device device = hidden.device();
  CHECK(!options.seed.defined() || (options.seed.numel() == 1 && options.seed.dtype() == Dtype::f64 &&
                                    options.seed.device() == device),
        "projected_cross_entropy: seed ", options.seed.shape());
  const Dtype wide = wide_of(hidden.dtype());
  const Tensor token_weights = options.weights.defined() ? options.weights.to(wide) : Tensor();

  const Tensor& x = hidden;
  const Tensor w = computed_on(device) == Device::cpu ? weight.value().to(wide) : weight.value();
  const Tensor loss = empty({tokens}, wide, device), nll = empty({tokens}, wide, device);
  const bool taped = Tape::current() != nullptr;
  const bool of_hidden = taped && hidden.differentiable(), of_weight = taped && weight.differentiable();
  const bool gradient = of_hidden || of_weight;
  const bool gpu = computed_on(device) == Device::cuda;
  const Dtype precision = gpu && gradient ? hidden.dtype() : wide;
  const int64_t chunk =
      options.chunk > 0 ? options.chunk : loss_chunk(tokens, vocabulary * size_of(precision), gpu, of_weight);
  const bool seeded = options.seed.defined(), lands = seeded && of_weight && weight.parameter().defined();
  Tensor dhidden, dweight;
  bool first = true;  // to write d weight
  if (of_hidden) dhidden = empty_like(hidden);
  if (lands) {
    ParameterEntry& p = *weight.parameter();
    dweight = p.gradient;
    first = !std::exchange(p.written, true);
  } else if (of_weight) {
    dweight = empty(weight.shape(), wide, device);
  }
  if (dweight.defined() && first && tokens == 0) dweight.zero();
  const Tensor buffer = empty({std::min(chunk, tokens), vocabulary}, precision, device);
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t end = std::min(tokens, begin + chunk);
    const auto part = [&](const Tensor& t) { return t.defined() ? t.rows(begin, end) : t; };
    const Tensor logits = buffer.rows(0, end - begin), dlogits = gradient ? logits : Tensor();
    gemm(logits, part(x), w, {false, true}, 1, 0);
    ON_DEVICE(device, cross_entropy(part(loss), part(nll), dlogits, logits, part(targets),
                                    part(token_weights), options.softcap, options.z_loss, options.seed));
    if (dhidden.defined()) gemm(part(dhidden), dlogits, w, {}, 1, 0);
    if (dweight.defined()) gemm(dweight, dlogits, part(x), {true, false}, 1, first && begin == 0 ? 0 : 1);
  }
  if (lands) dweight = {};
  struct Seeded {
    bool seeded;
  };
  return {record("projected_cross_entropy", {hidden, weight}, sum(loss, 0).value(), save(dhidden, dweight),
                 Seeded{seeded},
                 [](Backward& grads, const Seeded& made) {
                   for (int i = 0; i < 2; ++i) {
                     const Tensor& d = grads.saved(i);
                     if (!d.defined()) continue;  // nobody wants it, or it landed already
                     if (made.seeded) {
                       grads.add(i, d);
                       continue;
                     }
                     const Into into = grads.into(i);
                     ON_DEVICE(into.target.device(), add_scaled(into.target, d, grads.grad(), into.beta));
                   }
                 }),
          nll};
}

}  // namespace weft
