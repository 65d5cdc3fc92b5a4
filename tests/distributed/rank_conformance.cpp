#include "tests/distributed/rank_conformance.h"

#include <numeric>

#include "autograd/checkpoint.h"
#include "autograd/ops/arrange.h"
#include "distributed/thread_comm.h"

namespace weft {
namespace {

int64_t sum_of(const std::vector<int64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

// Where the tokens of these segments are on the token line.
std::vector<int32_t> line_rows(const Segments& segments, const std::vector<int64_t>& lengths) {
  std::vector<int32_t> rows;
  for (const Segment& s : segments) {
    const int64_t start = std::accumulate(lengths.begin(), lengths.begin() + s.document, int64_t{0});
    for (int64_t t = s.begin; t < s.end; ++t) rows.push_back(static_cast<int32_t>(start + t));
  }
  return rows;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Placing& p) {
  const char* plans[] = {"contiguous", "zigzag", "balanced"};
  const char* strategies[] = {"native", "ring", "heads", "gather"};
  out << p.ranks << " ranks, " << plans[static_cast<int>(p.plan)] << ", "
      << strategies[static_cast<int>(p.strategy)] << ", documents of";
  for (const int64_t n : p.lengths) out << " " << n;
  return out;
}

RankOutcome run_on_ranks(const MakeSubject& make, const Placing& placing, bool checkpointed) {
  const auto ranks = static_cast<size_t>(placing.ranks);
  const std::unique_ptr<Subject> sample = make();
  const Dtype dtype = sample->store.precision();
  const size_t input_count = sample->mechanism->inputs().size();
  const std::vector<Segments> segments =
      plan_segments(placing.plan, placing.lengths, placing.ranks, sample->mechanism->align());
  std::vector<Outcome> outcomes(ranks);
  RankOutcome result;
  result.collectives.resize(ranks);
  result.sent.resize(ranks);
  result.expected.resize(ranks);
  run_ranks(placing.ranks, [&](Communicator& comm) {
    const auto r = static_cast<size_t>(comm.rank());
    comm.check_collectives(true);
    const std::unique_ptr<Subject> subject = make();
    const Mechanism& mechanism = *subject->mechanism;
    RankPlan plan(segments, comm.rank());
    const Layout layout = make_layout(segments[r]);
    const Tensor rows = from_ints(line_rows(segments[r], placing.lengths));
    std::vector<Tensor> inputs;
    for (const Tensor& x : random_inputs(mechanism, sum_of(placing.lengths), dtype))
      inputs.push_back(gather_rows(x, rows));
    const Function forward = [&](const std::vector<Variable>& v) {
      RankCrossing cross(layout, plan, comm, placing.strategy, &result.expected[r]);
      const Variable y = mechanism.forward(block_of(v, layout), cross);
      return with_losses(y, cross);
    };
    Shape shape;
    {
      const NoTape pause;
      RankCrossing cross(layout, plan, comm, CrossingStrategy::native);
      std::vector<Variable> plain(inputs.begin(), inputs.end());
      shape = mechanism.forward(block_of(plain, layout), cross).shape();
    }
    const Tensor adjoint = gather_rows(random_adjoint(shape.with(0, sum_of(placing.lengths)), dtype), rows);
    const WireBytes before = comm.wire();
    outcomes[r] = run_with_gradients(
        *subject, layout, inputs,
        [&](const std::vector<Variable>& v) {
          const std::vector<Variable> y = checkpointed ? checkpoint(v, forward) : forward(v);
          for (const char* name : Tape::current()->collectives()) result.collectives[r].push_back(name);
          return y;
        },
        adjoint, static_cast<double>(layout.tokens()) / static_cast<double>(sum_of(placing.lengths)));
    result.sent[r] = comm.wire() - before;
  });

  std::vector<int32_t> position(static_cast<size_t>(sum_of(placing.lengths)));
  int32_t at = 0;
  for (const Segments& list : segments)
    for (const int32_t row : line_rows(list, placing.lengths)) position[static_cast<size_t>(row)] = at++;
  for (const Outcome& o : outcomes) result.losses.push_back(o.losses);
  const auto put_together = [&](const auto& of_rank) {
    std::vector<Variable> parts;
    for (const Outcome& o : outcomes) parts.push_back(of_rank(o));
    return gather_rows(concatenate(parts, 0), from_ints(position)).value();
  };
  result.whole.output = put_together([](const Outcome& o) { return o.output; });
  for (size_t i = 0; i < outcomes[0].gradients.size(); ++i) {
    Variable sum = outcomes[0].gradients[i];
    for (size_t r = 1; r < ranks; ++r)
      if (i >= input_count) sum = add(sum, outcomes[r].gradients[i]);
    result.whole.gradients.push_back(
        i < input_count ? put_together([&](const Outcome& o) { return o.gradients[i]; }) : sum.value());
  }
  return result;
}

Outcome run_on_one(const MakeSubject& make, const Placing& placing) {
  const std::unique_ptr<Subject> subject = make();
  const Layout layout = whole_documents(placing.lengths);
  return run_with_gradients(
      *subject, layout, random_inputs(*subject->mechanism, layout.tokens(), subject->store.precision()),
      [&](const std::vector<Variable>& v) { return run_with_losses(*subject->mechanism, layout, v); });
}

void expect_equal(const RankOutcome& ranks, const Outcome& one, double tolerance,
                  double (*apart)(const Tensor&, const Tensor&)) {
  EXPECT_LE(apart(ranks.whole.output, one.output), tolerance);
  ASSERT_EQ(ranks.whole.gradients.size(), one.gradients.size());
  for (size_t i = 0; i < one.gradients.size(); ++i)
    EXPECT_LE(apart(ranks.whole.gradients[i], one.gradients[i]), tolerance) << "gradient " << i;
  for (size_t r = 0; r < ranks.sent.size(); ++r) {
    ASSERT_EQ(ranks.losses[r].size(), one.losses.size());
    for (size_t i = 0; i < one.losses.size(); ++i)
      EXPECT_NEAR(ranks.losses[r][i], one.losses[i], tolerance * (1 + std::abs(one.losses[i])))
          << "rank " << r;
    EXPECT_EQ(ranks.collectives[r], ranks.collectives[0]) << "rank " << r;
    EXPECT_EQ(ranks.sent[r], ranks.expected[r]) << "rank " << r;
  }
}

}  // namespace weft
