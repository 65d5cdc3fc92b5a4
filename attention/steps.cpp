#include "attention/steps.h"

#include <cstring>

#include "attention/scan_kernel.h"
#include "autograd/ops/elementwise.h"

namespace weft {

const Tensor& AddressTable::of(const std::vector<void*>& addresses, int columns, Device device) {
  if (addresses == last_ && table_.defined() && table_.device() == device) return table_;
  std::vector<int32_t> halves(2 * addresses.size());
  static_assert(sizeof(void*) == 2 * sizeof(int32_t));
  if (!addresses.empty()) std::memcpy(halves.data(), addresses.data(), addresses.size() * sizeof(void*));
  const auto rows = static_cast<int64_t>(addresses.size()) / columns;
  table_ = from_ints(halves, device).reshape({rows, int64_t{2} * columns});
  last_ = addresses;
  return table_;
}

Tensor recurrent_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& beta,
                      const Tensor& states, double scale) {
  const Dtype wide = wide_of(v.dtype());
  const Shape one_a_head{q.dim(0), q.dim(1)};
  CHECK(q.rank() == 3 && k.shape() == q.shape() && v.rank() == 3 && v.dim(0) == q.dim(0) &&
            v.dim(1) == q.dim(1) && k.dtype() == q.dtype() && v.dtype() == q.dtype(),
        "recurrent step: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  CHECK(!g.defined() || ((g.shape() == one_a_head || g.shape() == q.shape()) && g.dtype() == wide),
        "recurrent step: q ", q.shape(), ", g ", g.shape());
  CHECK(!beta.defined() || (beta.shape() == one_a_head && beta.dtype() == wide), "recurrent step: q ",
        q.shape(), ", beta ", beta.shape());
  CHECK(states.shape() == Shape({q.dim(0), 2}), "recurrent step: ", q.dim(0), " documents, states ",
        states.shape());
  const Tensor o = empty({v.dim(0), v.dim(1), v.dim(2)}, v.dtype(), v.device());
  if (o.numel() > 0) ON_DEVICE(v.device(), recurrent_step(o, q, k, v, g, beta, states, scale));
  return o;
}

void use_recurrent_step(Scan& scan, double scale, int64_t key, int beta, int g) {
  if (key > kMostStepKeys) return;
  scan.step = [=](const Block& b, const Tensor& states) -> Variable {
    const Dtype narrow = b.x[2].dtype(), wide = wide_of(narrow);
    const Dtype common = b.x[0].dtype() == narrow ? narrow : wide;  // of features
    const auto number = [&](int i) { return i < 0 ? Tensor() : Tensor(cast(b.x[i], wide)); };
    return cast(recurrent_step(cast(b.x[0], common), cast(b.x[1], common), cast(b.x[2], common), number(g),
                               number(beta), states, scale),
                narrow);
  };
}

Tensor ema_step(const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
                const Tensor& states) {
  CHECK(x.rank() == 2 && in.rank() == 2 && in.dim(0) == x.dim(1) && out.shape() == in.shape() &&
            decay.shape() == in.shape() && in.dtype() == wide_of(x.dtype()),
        "ema step: x ", x.shape(), ", in ", in.shape(), ", out ", out.shape(), ", decay ", decay.shape());
  const Tensor y = empty({x.dim(0), x.dim(1)}, x.dtype(), x.device());
  if (y.numel() > 0)
    ON_DEVICE(x.device(), ema_step(y, x, in.contiguous(), out.contiguous(), decay.contiguous(), states));
  return y;
}

std::vector<Tensor> attention_step(const AttentionOptions& options, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& position, const Tensor& document,
                                   const Tensor& caches, int64_t rows, double turn) {
  const int64_t m = q.dim(0), heads = q.dim(1);
  CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3 && k.dim(0) == m && v.dim(0) == m &&
            q.dim(2) == k.dim(2) && k.dim(1) == v.dim(1) && heads % k.dim(1) == 0 && k.dtype() == q.dtype() &&
            v.dtype() == q.dtype(),
        "attention step: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  CHECK(position.shape() == Shape{m} && document.shape() == Shape{m} && caches.shape() == Shape({m, 8}),
        "attention step: ", m, " documents, positions ", position.shape(), ", caches ", caches.shape());
  const Tensor o = empty({m, heads, v.dim(2)}, q.dtype(), q.device());
  const Tensor lse = empty({m, heads}, wide_of(q.dtype()), q.device());
  const cpu::StepTokens tokens{q, k, v, position, document};
  if (m > 0) ON_DEVICE(q.device(), attention_step(o, lse, tokens, caches, rows, options, turn));
  return {o, lse};
}

void shift_window(const Tensor& window, const Tensor& rows) {
  CHECK(rows.dim(0) > 0 && window.dim(0) % rows.dim(0) == 0 && window.row_size() == rows.row_size() &&
            window.dtype() == rows.dtype() && window.dense(),
        "shift window: ", window.shape(), " by ", rows.shape());
  if (window.numel() > 0) ON_DEVICE(window.device(), shift_window(window, rows));
}

bool has_attention_step(const AttentionOptions& options, const Tensor& q, [[maybe_unused]] const Tensor& v) {
  if (options.weighting != Weighting::softmax || options.block > 0) return false;
  if (q.device() == Device::cpu) return true;
#ifdef WEFT_CUDA
  if (q.device() == Device::cuda) return cuda::attention_step_serves(q.dtype(), q.dim(2), v.dim(2));
#endif
  return false;
}

}  // namespace weft
