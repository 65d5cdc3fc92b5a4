#include "attention/flash_attention.h"

#include <cmath>

namespace weft {
std::vector<Tensor> flash_attention_forward(const AttentionOptions& options, const Tensor& q, const Tensor& k,
                                            const Tensor& v, const Tensor& q_position,
                                            const Tensor& q_document, const Tensor& k_position,
                                            const Tensor& k_document, const Tensor& bias,
                                            const Tensor& active) {
  CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3 && q.dim(2) == k.dim(2) && k.dim(0) == v.dim(0) &&
            k.dim(1) == v.dim(1) && q.dim(1) % k.dim(1) == 0,
        "attention: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  CHECK(q_position.dim(0) == q.dim(0) && k_position.dim(0) == k.dim(0), "attention: ", q.dim(0), " queries, ",
        q_position.dim(0), " positions; ", k.dim(0), " keys, ", k_position.dim(0), " positions");
  CHECK(!bias.defined() || (bias.rank() == 2 && bias.dim(0) == q.dim(1) && bias.dim(1) > 0 &&
                            (options.causal || bias.dim(1) % 2 == 1) && bias.dtype() == wide_of(q.dtype())),
        "attention: q ", q.shape(), ", bias ", bias.shape());
  CHECK(!active.defined() || active.numel() == q.dim(0) * q.dim(1), "attention: q ", q.shape(), ", active ",
        active.shape());
  const Tensor o = empty({q.dim(0), q.dim(1), v.dim(2)}, q.dtype(), q.device());
  const Tensor lse = empty({q.dim(0), q.dim(1)}, wide_of(q.dtype()), q.device());
  const cpu::AttentionTokens tokens{q_position, q_document, k_position, k_document, active};
  ON_DEVICE(q.device(), flash_forward(o, lse, q, k, v, tokens, bias, options));
  return {o, lse};
}

std::vector<Tensor> flash_attention_backward(const AttentionOptions& options, const Tensor& q,
                                             const Tensor& k, const Tensor& v, const Tensor& q_position,
                                             const Tensor& q_document, const Tensor& k_position,
                                             const Tensor& k_document, const Tensor& bias,
                                             const Tensor& active, const Tensor& o, const Tensor& lse,
                                             const Tensor& d_o, const Tensor& d_lse) {
  return flash_attention_backward_to({empty_like(q), empty_like(k), empty_like(v)}, options, q, k, v,
                                     q_position, q_document, k_position, k_document, bias, active, o, lse,
                                     d_o, d_lse);
}

std::vector<Tensor> flash_attention_backward_to(const std::vector<Tensor>& places,
                                                const AttentionOptions& options, const Tensor& q,
                                                const Tensor& k, const Tensor& v, const Tensor& q_position,
                                                const Tensor& q_document, const Tensor& k_position,
                                                const Tensor& k_document, const Tensor& bias,
                                                const Tensor& active, const Tensor& o, const Tensor& lse,
                                                const Tensor& d_o, const Tensor& d_lse) {
  const Tensor &dq = places[0], &dk = places[1], &dv = places[2];
  CHECK(dq.shape() == q.shape() && dk.shape() == k.shape() && dv.shape() == v.shape(), "attention: q ",
        q.shape(), ", k ", k.shape(), ", v ", v.shape(), "; places ", dq.shape(), ", ", dk.shape(), ", ",
        dv.shape());
  const Tensor dbias = bias.defined() ? zeros_like(bias) : Tensor();
  const cpu::AttentionTokens tokens{q_position, q_document, k_position, k_document, active};
  ON_DEVICE(q.device(),
            flash_backward(dq, dk, dv, dbias, q, k, v, tokens, bias, o, lse, d_o, d_lse, options));
  if (!bias.defined()) return {dq, dk, dv};
  return {dq, dk, dv, dbias};
}

std::vector<double> alibi_slopes(int64_t heads) {
  int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  std::vector<double> slopes;
  for (int64_t i = 1; i <= power; ++i)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(i) / static_cast<double>(power)));
  for (int64_t i = 1; static_cast<int64_t>(slopes.size()) < heads; i += 2)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(i) / static_cast<double>(2 * power)));
  return slopes;
}

}  // namespace weft
