#include "attention/merge.h"

#include "attention/seen_pairs.h"
#include "autograd/flops.h"
#include "autograd/pair_flops.h"

namespace weft {

Tensor active_of(const Block& query) {
  return query.x.size() > 3 ? query.x[3].value().contiguous() : Tensor();
}

std::vector<Variable> merge(const Merge& part, const Block& query, const Block& keys, double pairs) {
  const Tensor q = query.x[0].value().contiguous(), k = keys.x[1].value().contiguous(),
               v = keys.x[2].value().contiguous(), bias = part.bias, active = active_of(query);
  const std::vector<Tensor> y = part.forward(part.options, q, k, v, query.position, query.document,
                                             keys.position, keys.document, bias, active);
  count_flops(attention_operations(part, pairs, q, v, false));
  if (const AttentionOptions& o = part.options; o.documents > 0 && o.causal && o.window == 0 && o.block == 0)
    note_flops_of_a_pair(attention_operations(part, 1, q, v, false) +
                         (Tape::current() == nullptr ? 0 : attention_operations(part, 1, q, v, true)));
  struct Attributes {
    AttentionOptions options;
    Merge::Backward backward;
    double operations;
  };
  std::vector<Variable> inputs{query.x[0], keys.x[1], keys.x[2]};
  if (bias.defined()) inputs.push_back(part.bias);
  return record_many(
      "merge", inputs, y,
      save(q, k, v, query.position, query.document, keys.position, keys.document, bias, active, y[0], y[1]),
      Attributes{part.options, part.backward, attention_operations(part, pairs, q, v, true)},
      [](Backward& b, const Attributes& a) {
        const std::vector<Tensor> grads =
            a.backward(a.options, b.saved(0), b.saved(1), b.saved(2), b.saved(3), b.saved(4), b.saved(5),
                       b.saved(6), b.saved(7), b.saved(8), b.saved(9), b.saved(10), b.grad(0).contiguous(),
                       b.has_grad(1) ? b.grad(1).contiguous() : Tensor());
        count_flops(a.operations);
        for (size_t i = 0; i < grads.size(); ++i) b.add(static_cast<int>(i), grads[i]);
      });
}

}  // namespace weft
