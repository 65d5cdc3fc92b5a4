#include <limits>
#include <numeric>

#include "attention/merge.h"
#include "attention/seen_pairs.h"
#include "autograd/flops.h"
#include "autograd/ops/convert.h"
#include "distributed/collectives.h"
#include "distributed/rank_crossing_merge.h"

namespace weft {
namespace {

void add_to(const Tensor& to, const Tensor& from) { ON_DEVICE(to.device(), accumulate(to, from)); }

// Tensors of one rank on their way around: each turn sends what is here to the next rank.
class Ring {
 public:
  Ring(Communicator& ranks, const std::vector<int64_t>& rows)
      : ranks_(ranks), rows_(rows), owner_(ranks.rank()) {}

  // Whose tensors are here, and where his rows start among those of all ranks.
  int owner() const { return owner_; }
  int64_t first_row() const { return std::accumulate(rows_.begin(), rows_.begin() + owner_, int64_t{0}); }
  int64_t rows() const { return rows_[static_cast<size_t>(owner_)]; }

  void turn(std::vector<Tensor*> tensors) {
    const int size = ranks_.size(), next = (ranks_.rank() + 1) % size,
              previous = (ranks_.rank() + size - 1) % size;
    owner_ = (owner_ + size - 1) % size;
    for (Tensor* x : tensors) {
      const Device device = x->device();
      const Tensor sent = on_host(*x), y = empty(sent.shape().with(0, rows()), sent.dtype(), sent.device());
      if (exchanges(sent))
        ranks_.send_recv(sent.raw(), sent.numel(), next, y.raw(), y.numel(), previous, y.dtype(),
                         "ring_merge");
      else
        y.zero();
      *x = y.to(device);
    }
  }

 private:
  Communicator& ranks_;
  const std::vector<int64_t>& rows_;
  int owner_;
};

}  // namespace

std::vector<Variable> ring_merge(Communicator& ranks, const RankPlan& plan, const Merge& part,
                                 const Block& block) {
  const GatheredRows& all = plan.cut().rows;
  const Tensor q = block.x[0].value().contiguous(), k = block.x[1].value().contiguous(),
               v = block.x[2].value().contiguous(), bias = part.bias, active = active_of(block);
  const Dtype wide = wide_of(q.dtype());
  const Tensor o = zeros({q.dim(0), q.dim(1), v.dim(2)}, wide, q.device());
  const Tensor lse = full({q.dim(0), q.dim(1)}, -std::numeric_limits<double>::infinity(), wide, q.device());
  const double pairs = seen_pairs(part.options, cut_segments(plan, plan.rank()), cut_segments(plan, {}));
  count_flops(attention_operations(part, pairs, q, v, false));
  {
    Ring ring(ranks, all.counts);
    Tensor keys = k, values = v;
    for (int i = 0; i < ranks.size(); ++i) {
      if (i > 0) ring.turn({&keys, &values});
      const int64_t begin = ring.first_row(), end = begin + ring.rows();
      const std::vector<Tensor> more = part.forward(
          part.options, q.to(wide), keys.to(wide), values.to(wide), block.position, block.document,
          all.position.rows(begin, end), all.document.rows(begin, end), bias, active);
      ON_DEVICE(q.device(), add_partial(o, lse, more[0], more[1]));
    }
  }
  const Tensor y = o.to(q.dtype());
  const auto adjoint = [&ranks, counts = all.counts, options = part.options, backward = part.backward,
                        operations = attention_operations(part, pairs, q, v, true)](
                           const std::vector<Variable>& x) -> std::vector<Variable> {
    count_flops(operations);
    const Tensor &q = x[0], &position = x[3], &document = x[4], &all_position = x[5], &all_document = x[6];
    const Dtype wide = wide_of(q.dtype()), narrow = q.dtype();
    const Tensor query = q.to(wide), bias = x[7], active = x[8], o = x[9].value().to(wide), lse = x[10],
                 d_o = x[11].value().to(wide), d_lse = x[12];
    const Tensor dbias = bias.defined() ? zeros_like(bias) : Tensor();
    Tensor keys = x[1], values = x[2];
    const Tensor dq = zeros(q.shape(), wide, q.device());
    Tensor dk = zeros(keys.shape(), wide, q.device()), dv = zeros(values.shape(), wide, q.device());
    Ring ring(ranks, counts);
    for (int i = 0; i < ranks.size(); ++i) {
      const int64_t begin = ring.first_row(), end = begin + ring.rows();
      const std::vector<Tensor> d = backward(options, query, keys.to(wide), values.to(wide), position,
                                             document, all_position.rows(begin, end),
                                             all_document.rows(begin, end), bias, active, o, lse, d_o, d_lse);
      add_to(dq, d[0]);
      add_to(dk, d[1]);
      add_to(dv, d[2]);
      if (bias.defined()) add_to(dbias, d[3]);
      if (i + 1 < ranks.size())
        ring.turn({&keys, &values, &dk, &dv});
      else
        ring.turn({&dk, &dv});  // home
    }
    std::vector<Variable> gradients{dq.to(narrow), dk.to(narrow), dv.to(narrow)};
    if (bias.defined()) gradients.emplace_back(dbias);
    return gradients;
  };
  std::vector<Variable> inputs{block.x[0], block.x[1], block.x[2]};
  if (bias.defined()) inputs.push_back(part.bias);
  return record_collective(
      "ring_merge", inputs, {y, lse},
      {q, k, v, block.position, block.document, all.position, all.document, bias, active, y, lse}, adjoint);
}

}  // namespace weft
