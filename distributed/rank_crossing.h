#pragma once
// Context parallelism: a Crossing over ranks that hold pieces of the same documents. A mechanism runs
// unchanged; what crosses a border is what decoding would keep at that token. Outputs and gradients are those
// of one rank, for any placing of the pieces; a parameter's gradient is the sum over the ranks.
//
//   Scan    one state a piece, gathered; every rank folds those before its own
//   Merge   keys and values, in one of the ways below
//   Halo    the tokens before a piece, from whoever holds them
//   Carry   the state, from piece to piece in the order of the text: right for any placing, but serial
//   total   the sums of every rank
//
// Documents in one piece cost nothing. On the meta device shapes are computed and nothing is sent.

#include "attention/crossing.h"
#include "distributed/rank_crossing_plan.h"

namespace weft {

enum class CrossingStrategy : uint8_t {
  native,  // Merge: all keys and values are gathered, then one attention
  ring,   // Merge: they travel around the ranks, and again on the way back; nobody ever holds all (Liu et al.
          // 2023, "Ring attention with blockwise transformers")
  heads,  // Merge: ranks trade tokens for heads (Jacobs et al. 2023, "DeepSpeed Ulysses"); q and k heads must
          // divide by the ranks, or it is an Error (recipe)
  gather,  // every part: inputs are gathered and the whole is computed everywhere; the fallback, and the
           // oracle
};

class RankCrossing : public Crossing {
 public:
  // layout: of this rank, as in the plan. Plan and communicator outlive the tape. `expected` grows by the
  // bytes that this rank has to send for the parts crossed, forward and, under a tape, on the way back,
  // checkpoints accounted for; it equals what the communicator counts, unless an exchange does not happen.
  RankCrossing(const Layout& layout, RankPlan& plan, Communicator& ranks,
               CrossingStrategy strategy = CrossingStrategy::native, WireBytes* expected = nullptr);

  Variable operator()(const Scan& part, const Block& block) override;
  std::vector<Variable> operator()(const Merge& part, const Block& block) override;
  Variable operator()(const Halo& part, const Block& block) override;
  Variable operator()(const Carry& part, const Block& block) override;
  // Gathered, and summed in rank order: the same bits everywhere.
  Variable total(const Variable& sums) override;
  bool goes_on() const override { return false; }

 private:
  // A Scan on the segments of this rank: by the part's kernel, or composed of chunks.
  Variable by_kernel(const Scan& part, const Block& block);
  Variable by_chunks(const Scan& part, const Block& block);
  // From the summaries of the pieces of cut documents here, what the ranks know: the states before this
  // rank's segments, (G, ...), and the summaries of the cut documents that have a piece here.
  struct Known {
    State before, documents;
  };
  Known across(const Scan& part, const State& pieces);
  // Merge among the tokens of cut documents.
  std::vector<Variable> merge_across(const Merge& part, const Block& block);
  std::vector<Variable> merge_by_heads(const Merge& part, const Block& block);
  // The whole documents, from the tokens of all ranks; and this rank's of them.
  Block gather_whole(const Block& block);
  Variable own_of_whole(const Variable& y);
  void expect(const PartBytes& bytes, bool kept);

  RankPlan& plan_;
  Communicator& ranks_;
  CrossingStrategy strategy_;
  WireBytes* expected_;
};

// Bytes of a token of these.
int64_t row_bytes(const std::vector<Variable>& x);

}  // namespace weft
