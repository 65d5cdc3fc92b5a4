#include "attention/merge.h"

#include "attention/flash_attention.h"
#include "attention/seen_pairs.h"
#include "autograd/flops.h"
#include "autograd/pair_flops.h"

namespace weft {

Tensor active_of(const Block& query) {
  return query.x.size() > 3 ? query.x[3].value().contiguous() : Tensor();
}

namespace {

// Rows that every kernel reads and writes where they are: at multiples of 16 bytes. Those of a projection
// are.
bool in_place(const Tensor& x) {
  return (x.dim(0) <= 1 || x.pitch() >= x.row_size()) && x.rows_at_multiples_of(16);
}
Tensor readable(const Merge& part, const Tensor& x) {
  return part.forward == flash_attention_forward && in_place(x) ? x : x.contiguous();
}

// Where the gradient of a saved input is written. columns: whether it may be some of a wider tensor. Where
// heads are off a kernel clears it first, which there would be a call a row.
Tensor writable(Backward& b, int i, bool columns = true) {
  const Tensor& like = b.saved(i);
  const Tensor room = columns ? b.room(i, like) : empty_like(like);
  return in_place(room) ? room : empty_like(like);
}

}  // namespace

std::vector<Variable> merge(const Merge& part, const Block& query, const Block& keys, double pairs) {
  const Tensor k = readable(part, keys.x[1]), v = readable(part, keys.x[2]), bias = part.bias,
               active = active_of(query);
  // A view keeps all of the projection: not worth it where keys come as a copy, as behind a halo.
  const Tensor& own = query.x[0].value();
  const Tensor q = own.buffer() == keys.x[1].value().buffer() ? readable(part, own) : own.contiguous();
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
        const auto gradients = [&](auto backward) {
          return backward(a.options, b.saved(0), b.saved(1), b.saved(2), b.saved(3), b.saved(4), b.saved(5),
                          b.saved(6), b.saved(7), b.saved(8), b.saved(9), b.saved(10), b.grad(0).contiguous(),
                          b.has_grad(1) ? b.grad(1).contiguous() : Tensor());
        };
        std::vector<Tensor> grads;
        if (a.backward == flash_attention_backward) {
          const bool all_on = !b.saved(8).defined();
          const std::vector<Tensor> places{writable(b, 0, all_on), writable(b, 1), writable(b, 2)};
          grads = gradients(
              [&](const auto&... arguments) { return flash_attention_backward_to(places, arguments...); });
        } else {
          grads = gradients(a.backward);
        }
        count_flops(a.operations);
        for (size_t i = 0; i < grads.size(); ++i) b.add(static_cast<int>(i), grads[i]);
      });
}

}  // namespace weft
