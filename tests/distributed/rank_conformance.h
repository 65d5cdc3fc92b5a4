#pragma once
// A mechanism over ranks that are threads, and the same on one.

#include "distributed/rank_crossing.h"
#include "distributed/segments.h"
#include "tests/attention/conformance.h"

namespace weft {

// Documents of these lengths, and how they are cut.
struct Placing {
  int ranks = 1;
  SegmentPlan plan = SegmentPlan::contiguous;
  CrossingStrategy strategy = CrossingStrategy::native;
  std::vector<int64_t> lengths = {};
};
std::ostream& operator<<(std::ostream& out, const Placing& p);

struct RankOutcome {
  Outcome whole;  // output and gradients of inputs on the token line, gradients of parameters summed
  std::vector<std::vector<double>> losses;            // as each rank has them
  std::vector<std::vector<std::string>> collectives;  // recorded by each rank
  std::vector<WireBytes> sent, expected;              // of each rank
};
// Every rank makes its own. checkpointed: the mechanism runs again on the way back.
using MakeSubject = std::function<std::unique_ptr<Subject>()>;
RankOutcome run_on_ranks(const MakeSubject& make, const Placing& placing, bool checkpointed = false);
// The same inputs and adjoint on one rank.
Outcome run_on_one(const MakeSubject& make, const Placing& placing);

// Outputs and all gradients agree, every rank recorded the same collectives, and sent what was expected.
void expect_equal(const RankOutcome& ranks, const Outcome& one, double tolerance,
                  double (*apart)(const Tensor&, const Tensor&) = difference);

}  // namespace weft
