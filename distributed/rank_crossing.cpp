#include "distributed/rank_crossing.h"

#include "attention/chunks.h"
#include "autograd/checkpoint.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/reduce.h"
#include "autograd/planned_device.h"
#include "distributed/collectives.h"

namespace weft {

int64_t row_bytes(const std::vector<Variable>& x) {
  int64_t bytes = 0;
  for (const Variable& v : x) bytes += v.value().row_size() * size_of(v.dtype());
  return bytes;
}

RankCrossing::RankCrossing(const Layout& layout, RankPlan& plan, Communicator& ranks,
                           CrossingStrategy strategy, WireBytes* expected)
    : Crossing(layout), plan_(plan), ranks_(ranks), strategy_(strategy), expected_(expected) {
  CHECK(layout.segments == plan.segments(), "crossing: the layout is not this rank's of the plan");
  CHECK(plan.rank() == ranks.rank() && plan.ranks() == ranks.size(), "crossing: a plan for rank ",
        plan.rank(), " of ", plan.ranks(), ", a communicator of rank ", ranks.rank(), " of ", ranks.size());
}

void RankCrossing::expect(const PartBytes& bytes, bool kept) {
  if (expected_ == nullptr) return;
  if (!kept || !recomputing()) *expected_ += bytes.forward;
  if (Tape::current() != nullptr) *expected_ += bytes.backward;
}

Block RankCrossing::gather_whole(const Block& block) {
  const RankPlan::Whole& whole = plan_.whole();
  expect(gather_bytes(plan_, row_bytes(block.x)), false);
  Block out{{}, whole.layout.position, whole.layout.document};
  for (const Variable& x : block.x)
    out.x.push_back(
        gather_rows(all_gather_rows(ranks_, x, whole.rows.counts, Recompute::repeated), whole.line));
  return out;
}

Variable RankCrossing::own_of_whole(const Variable& y) { return gather_rows(y, plan_.whole().own); }

Variable RankCrossing::operator()(const Scan& part, const Block& block) {
  if (strategy_ == CrossingStrategy::gather) {
    const Block whole = gather_whole(block);
    return own_of_whole(LocalCrossing(plan_.whole().layout)(part, whole));
  }
  const Device device = block.x[0].device();
  const bool fused = !part.total && part.kernel.transition && part.kernel.on(computed_on(device));
  const auto scan = [&](const Block& b) { return fused ? by_kernel(part, b) : by_chunks(part, b); };
  if (!part.reverse) return scan(block);
  const Tensor turned = turned_rows(layout(), device);
  return gather_rows(scan(gather_block(block, turned)), turned);
}

RankCrossing::Known RankCrossing::across(const Scan& part, const State& pieces) {
  const RankPlan::States& states = plan_.states();
  State all;  // of all ranks, then those of the documents here, in order
  for (const Variable& s : pieces)
    all.push_back(gather_rows(all_gather_rows(ranks_, s, states.counts, Recompute::kept),
                              part.reverse ? states.order_back : states.order));
  expect(scan_bytes(plan_, row_bytes(all)), true);
  const Folded folded = fold(part, all, states.documents);
  return {gather_state(concatenate_states({part.identity(), folded.prefix}),
                       part.reverse ? states.before_back : states.before),
          folded.total};
}

Variable RankCrossing::by_kernel(const Scan& part, const Block& block) {
  State before;
  if (plan_.states().total > 0) {
    const RankPlan::Cut& cut = plan_.cut();
    const bool all = cut.rest.dim(0) == 0;
    before = across(part, all ? part.kernel.summarize(block, layout())
                              : part.kernel.summarize(gather_block(block, cut.own), cut.layout))
                 .before;
  }
  return part.kernel.run(block, layout(), before, false).y;
}

Variable RankCrossing::by_chunks(const Scan& part, const Block& block) {
  const RankPlan::States& states = plan_.states();
  const Chunks chunks = cut_chunks(layout(), part.chunk, block.x[0].device());
  const Block cut = into_chunks(block, chunks, part.pad);
  const Folded local = fold(part, part.summarize(cut), chunks);
  State prefix = local.prefix, total = local.total;
  if (states.total > 0) {
    const Known known = across(part, gather_state(local.total, states.own));
    prefix = part.combine(gather_state(known.before, chunks.segment), local.prefix);
    total = gather_state(concatenate_states({local.total, known.documents}), states.document);
  }
  if (part.total) prefix = gather_state(total, chunks.segment);
  return out_of_chunks(part.apply(cut, prefix), chunks);
}

Variable RankCrossing::operator()(const Halo& part, const Block& block) {
  const RankPlan::Halos& halos = plan_.halos(part.width);
  const Block here{block.x, block.position, plan_.segment_of_token()};
  Block before{{}, halos.position, halos.segment};
  if (strategy_ == CrossingStrategy::gather) {
    // Of the whole documents, the rows that the exchange would have brought.
    for (const Variable& x : gather_whole(block).x) before.x.push_back(gather_rows(x, halos.line));
    return part.apply(here, before);
  }
  expect(halo_bytes(plan_, part.width, row_bytes(block.x)), true);
  for (const Variable& x : block.x) {
    const Variable got =
        exchange_rows(ranks_, gather_rows(x, halos.send), halos.sent, halos.received, Recompute::kept);
    before.x.push_back(gather_rows(got, halos.place));
  }
  return part.apply(here, before);
}

Variable RankCrossing::total(const Variable& sums) {
  if (ranks_.size() == 1) return sums;
  const Variable row = reshape(sums, {1, sums.numel()});
  expect(total_bytes(plan_, row_bytes({row})), true);
  const std::vector<int64_t> one_each(static_cast<size_t>(ranks_.size()), 1);
  return reshape(sum(all_gather_rows(ranks_, row, one_each, Recompute::kept), 0), sums.shape());
}

namespace {

State start_of(const Carry& part) {
  const NoTape pause;
  return part.start();
}

}  // namespace

Variable RankCrossing::operator()(const Carry& part, const Block& block) {
  if (strategy_ == CrossingStrategy::gather) {
    const Block whole = gather_whole(block);
    if (whole.position.dim(0) == 0) return carry_nothing(part, block);
    return own_of_whole(LocalCrossing(plan_.whole().layout)(part, whole));
  }
  const State like = start_of(part);
  int64_t bytes = 0;
  for (const Variable& s : like) bytes += s.value().bytes();
  expect(carry_bytes(plan_, bytes), true);
  std::vector<Variable> outputs(layout().segments.size());
  State state(like.size());
  const std::vector<Piece>& pieces = plan_.pieces();
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& p = pieces[i];
    if (p.rank == plan_.rank()) {
      if (p.segment.begin == 0) state = part.start();
      std::tie(outputs[static_cast<size_t>(p.index)], state) =
          part.step(slice_block(block, p.row, p.row + p.segment.size()), state);
    }
    if (i + 1 == pieces.size() || pieces[i + 1].segment.begin == 0 || pieces[i + 1].rank == p.rank) continue;
    for (size_t k = 0; k < like.size(); ++k)
      state[k] = hand_on(ranks_, state[k], p.rank, pieces[i + 1].rank, like[k]);
  }
  return outputs.empty() ? carry_nothing(part, block) : concatenate(outputs, 0);
}

}  // namespace weft
