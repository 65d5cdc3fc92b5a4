#include "distributed/rank_crossing_merge.h"

#include "attention/chunks.h"
#include "attention/merge.h"
#include "attention/seen_pairs.h"
#include "autograd/ops/arrange.h"
#include "distributed/collectives.h"
#include "distributed/rank_crossing.h"

namespace weft {
namespace {

// Tokens of this rank with all heads -> tokens of all ranks with this rank's heads, and back. (n, H, D) is
// cut into (n, P, H/P, D); in between, rows are (P n, H/P, D).
class HeadTrade {
 public:
  HeadTrade(Communicator& ranks, const std::vector<int64_t>& tokens)
      : ranks_(ranks),
        tokens_(tokens),
        parts_(ranks.size()),
        own_(tokens[static_cast<size_t>(ranks.rank())]) {
    same_.assign(tokens.size(), own_);
  }

  Variable to_heads(const Variable& x) {
    const int64_t heads = x.dim(1) / parts_, size = x.value().row_size() / x.dim(1);
    const Variable cut = permute(reshape(x, {own_, parts_, heads, size}), {1, 0, 2, 3});
    return exchange_rows(ranks_, reshape(cut, {parts_ * own_, heads, size}), same_, tokens_,
                         Recompute::repeated);
  }

  Variable to_tokens(const Variable& y) {
    const int64_t heads = y.dim(1), size = y.dim(2);
    const Variable got = exchange_rows(ranks_, y, tokens_, same_, Recompute::repeated);
    return reshape(permute(reshape(got, {parts_, own_, heads, size}), {1, 0, 2, 3}),
                   {own_, parts_ * heads, size});
  }

 private:
  Communicator& ranks_;
  const std::vector<int64_t>& tokens_;
  std::vector<int64_t> same_;
  int64_t parts_, own_;
};

// The segments of this rank that are whole documents.
Segments uncut_segments(const RankPlan& plan) {
  Segments segments;
  for (const Piece& p : plan.pieces())
    if (!p.cut && p.rank == plan.rank()) segments.push_back(p.segment);
  return segments;
}

}  // namespace

Segments cut_segments(const RankPlan& plan, std::optional<int> rank) {
  Segments segments;
  for (const Piece& p : plan.pieces())
    if (p.cut && (!rank || p.rank == *rank)) segments.push_back(p.segment);
  return segments;
}

std::vector<Variable> RankCrossing::operator()(const Merge& part, const Block& block) {
  const auto pairs_among = [&](const Segments& s) { return seen_pairs(part.options, s, s); };
  if (strategy_ == CrossingStrategy::gather) {
    const Block whole = gather_whole(block);
    std::vector<Variable> y = merge(part, whole, whole, pairs_among(plan_.whole().layout.segments));
    for (Variable& v : y) v = own_of_whole(v);
    return y;
  }
  if (const int64_t size = part.options.block; size > 0) {  // all keys that a token can see are here
    for (const Segment& s : layout().segments)
      CHECK(s.begin % size == 0, "crossing: token ", s.begin, " of document ", s.document,
            " is inside a block of ", size);
    return merge(part, block, block, pairs_among(layout().segments));
  }
  const RankPlan::Cut& cut = plan_.cut();
  if (cut.rows.total == 0) return merge(part, block, block, pairs_among(layout().segments));
  if (cut.rest.dim(0) == 0) return merge_across(part, block);
  const Block rest = gather_block(block, cut.rest);
  const std::vector<Variable> here = merge(part, rest, rest, pairs_among(uncut_segments(plan_))),
                              across = merge_across(part, gather_block(block, cut.own));
  std::vector<Variable> y;
  for (size_t i = 0; i < here.size(); ++i)
    y.push_back(gather_rows(concatenate({here[i], across[i]}, 0), cut.back));
  return y;
}

std::vector<Variable> RankCrossing::merge_across(const Merge& part, const Block& block) {
  const std::vector<Variable> keys{block.x[1], block.x[2]};
  switch (strategy_) {
    case CrossingStrategy::heads: return merge_by_heads(part, block);
    case CrossingStrategy::ring: {
      const Dtype wide = wide_of(block.x[0].dtype());
      const int64_t elements = keys[0].value().row_size() + keys[1].value().row_size();
      expect(ring_bytes(plan_, row_bytes(keys), elements * size_of(wide)), false);
      return ring_merge(ranks_, plan_, part, block);
    }
    default: break;
  }
  const GatheredRows& rows = plan_.cut().rows;
  expect(merge_bytes(plan_, row_bytes(keys)), false);
  Block all{{{}}, rows.position, rows.document};
  for (const Variable& x : keys)
    all.x.push_back(all_gather_rows(ranks_, x, rows.counts, Recompute::repeated));
  return merge(part, block, all,
               seen_pairs(part.options, cut_segments(plan_, plan_.rank()), cut_segments(plan_, {})));
}

std::vector<Variable> RankCrossing::merge_by_heads(const Merge& part, const Block& block) {
  for (const Variable& x : block.x)
    if (x.dim(1) % ranks_.size() != 0)
      throw Error(Exit::recipe,
                  text("crossing by heads: ", x.dim(1), " heads do not divide by ", ranks_.size(), " ranks"),
                  "mesh.strategy", "use native or ring, or another number of ranks");
  if ((part.options.alibi || part.bias.defined()) && ranks_.size() > 1)
    throw Error(Exit::recipe, "crossing by heads: every head has a bias of its own", "mesh.strategy",
                "use native or ring");
  const GatheredRows& rows = plan_.cut().rows;
  HeadTrade trade(ranks_, rows.counts);
  Block mine{{}, rows.position, rows.document};
  for (const Variable& x : block.x) mine.x.push_back(trade.to_heads(x));
  const Segments all = cut_segments(plan_, {});
  const std::vector<Variable> y = merge(part, mine, mine, seen_pairs(part.options, all, all));
  const Variable o = trade.to_tokens(y[0]);
  const Variable lse = trade.to_tokens(reshape(y[1], {y[1].dim(0), y[1].dim(1), 1}));
  expect(heads_bytes(plan_, row_bytes(block.x), row_bytes({o, lse})), false);
  return {o, reshape(lse, {lse.dim(0), lse.dim(1)})};
}

}  // namespace weft
