#include "training/score.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "distributed/agree.h"
#include "distributed/collectives.h"
#include "training/micro_batch.h"

namespace weft {

Scores score(const Model& model, const Batch& batch, Communicator* ranks, SegmentPlan plan,
             CrossingStrategy strategy) {
  const NoTape pause;
  const int count = size_of(ranks), rank = rank_of(ranks);
  const MicroBatch own = cut_micro_batch(batch, plan, count, rank, model.align(), default_device());
  std::vector<Variable> states;
  states.push_back(
      model.hidden(own.tokens, own.layout, *crossings_of(own, ranks, strategy), nullptr, &states));
  Scores scores;
  RankPlan order(own.all, rank);
  for (const Variable& x : states) {
    const RankPlan::Whole& whole = order.whole();
    const Variable all = count == 1 ? x : all_gather_rows(*ranks, x, whole.rows.counts, Recompute::repeated);
    scores.hidden.push_back(gather_rows(all, whole.line));
  }
  if (rank > 0) return {};
  const Tensor last = scores.hidden.back();
  scores.hidden.pop_back();
  scores.logits = model.logits(last);
  scores.nll = projected_cross_entropy(last, model.output_weight(), from_ints(batch.targets)).nll;
  return scores;
}

}  // namespace weft
