// Every mechanism of the registry over ranks: the same outputs and gradients as on one, however the documents
// are cut. A new mechanism is tested by existing. On a GPU the ranks share it, and exchange through the host.

#include "tests/distributed/rank_conformance.h"

#include <algorithm>

#include "attention/recording_crossing.h"
#include "autograd/fault.h"

namespace weft {
namespace {

class RankConformance : public testing::TestWithParam<ConformanceCase> {};
INSTANTIATE_TEST_SUITE_P(Registry, RankConformance, testing::ValuesIn(conformance_cases()), case_name);

constexpr auto contiguous = SegmentPlan::contiguous;
constexpr auto zigzag = SegmentPlan::zigzag;
constexpr auto balanced = SegmentPlan::balanced;
constexpr auto native = CrossingStrategy::native;
constexpr auto ring = CrossingStrategy::ring;
constexpr auto heads = CrossingStrategy::heads;
constexpr auto gather = CrossingStrategy::gather;

const std::vector<int64_t> one{61}, packed{17, 1, 0, 40, 5}, few{2, 1}, even{24, 24, 24};

// Every pair of ranks x plan, plan x strategy and ranks x strategy. Segments are shorter than a halo of 63,
// and with `few` some ranks hold nothing.
const std::vector<Placing> all_placings{
    {1, contiguous, native, packed}, {1, zigzag, ring, one},        {1, balanced, gather, one},
    {2, contiguous, gather, packed}, {2, zigzag, native, one},      {2, balanced, ring, packed},
    {2, contiguous, heads, packed},  {2, zigzag, heads, one},       {3, contiguous, ring, one},
    {3, zigzag, gather, packed},     {3, balanced, native, one},    {4, contiguous, native, packed},
    {4, zigzag, ring, one},          {4, balanced, gather, packed}, {4, contiguous, native, few},
    {4, contiguous, ring, few},      {4, contiguous, gather, few},  {4, balanced, native, packed},
    {3, balanced, heads, even},      {3, contiguous, native, even}, {2, contiguous, heads, few},
};

// Who holds what is the same on every device: of a GPU, whose small kernels take their time, less is asked.
bool on_gpu() { return default_device() == Device::cuda; }
std::vector<Placing> placings() {
  if (!on_gpu()) return all_placings;
  return {{2, contiguous, gather, packed},
          {2, zigzag, native, one},
          {2, balanced, ring, packed},
          {2, contiguous, heads, packed}};
}
std::vector<Placing> narrow_placings() {
  if (!on_gpu()) return {{3, zigzag, native, packed}, {4, contiguous, ring, one}};
  return {{2, zigzag, native, one}, {2, balanced, ring, packed}};
}

// Parts that move something from rank to rank.
std::vector<PartCall> parts_across(const ConformanceCase& c) {
  Subject s(c, Dtype::f64);
  const Layout layout = whole_documents({9});
  LocalCrossing local(layout);
  RecordingCrossing recording(local);
  std::vector<Variable> inputs;
  for (const Tensor& x : random_inputs(*s.mechanism, 9, Dtype::f64)) inputs.emplace_back(x);
  s.mechanism->forward(block_of(inputs, layout), recording);
  std::vector<PartCall> calls = recording.calls();
  std::erase_if(calls, [](const PartCall& call) { return call.bytes == 0; });
  return calls;
}

// Those that move keys.
std::vector<PartCall> merges_across(const ConformanceCase& c) {
  std::vector<PartCall> calls = parts_across(c);
  std::erase_if(calls, [](const PartCall& call) { return call.kind != PartKind::merge; });
  return calls;
}

bool carries(const ConformanceCase& c) {
  const std::vector<PartCall> calls = parts_across(c);
  return std::any_of(calls.begin(), calls.end(),
                     [](const PartCall& call) { return call.kind == PartKind::carry; });
}

// Whether some part cannot be crossed so; documents that nobody shares are no crossing.
bool refused(const ConformanceCase& c, const Placing& placing) {
  if (placing.strategy != heads) return false;
  bool cut = false;
  for (const Segments& list : plan_segments(placing.plan, placing.lengths, placing.ranks))
    for (const Segment& s : list) cut |= s.begin > 0;
  if (!cut) return false;
  const std::vector<PartCall> merges = merges_across(c);
  return std::any_of(merges.begin(), merges.end(), [&](const PartCall& call) {
    return call.free_heads == 0 || call.free_heads % placing.ranks != 0;
  });
}

MakeSubject of(const ConformanceCase& c, Dtype dtype) {
  return [c, dtype] { return std::make_unique<Subject>(c, dtype); };
}

TEST_P(RankConformance, EqualsOneRank) {
  const MakeSubject subject = of(GetParam(), Dtype::f64);
  for (const Placing& placing : placings()) {
    SCOPED_TRACE(testing::Message() << placing);
    if (refused(GetParam(), placing)) {
      EXPECT_THROW(run_on_ranks(subject, placing), Error);
      continue;
    }
    expect_equal(run_on_ranks(subject, placing), run_on_one(subject, placing), tolerance::of(Dtype::f64));
  }
}

TEST_P(RankConformance, NarrowEqualsOneRank) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const Placing& placing : narrow_placings()) {
      SCOPED_TRACE(testing::Message() << name_of(dtype) << ", " << placing);
      const MakeSubject subject = of(GetParam(), dtype);
      expect_equal(run_on_ranks(subject, placing), run_on_one(subject, placing), tolerance::of(dtype),
                   on_gpu() ? least_difference : difference);
    }
}

// Heads as wide as the tiles of a GPU's kernels are, over several of their chunks. A memory handed from rank
// to rank has no such kernels, and at these sizes its steps grow without end (titans.h).
TEST_P(RankConformance, WideHeadsEqualOneRank) {
  if (carries(GetParam())) return;
  const MechanismEntry& entry = find_mechanism(GetParam().id);
  const Placing placing{2, zigzag, native, {300, 1, 0, 70}};
  for (const int64_t size : {64, 128}) {
    if (size > 64 && !on_gpu()) continue;  // a CPU's kernels are those of 64
    SCOPED_TRACE(testing::Message() << "heads of " << size << ", " << placing);
    Dimensions dims = small_dimensions(entry);
    dims.key = dims.value = dims.width = size;
    const MakeSubject subject = [&] {
      return std::make_unique<Subject>(
          dims, Dtype::bf16, [&](const Dimensions& d, const ParameterScope& scope) {
            return entry.make(parse_attributes(split_settings(GetParam().settings)), d, scope);
          });
    };
    expect_equal(run_on_ranks(subject, placing), run_on_one(subject, placing), tolerance::kBf16Norm,
                 norm_difference);
  }
}

TEST_P(RankConformance, CheckpointedEqualsPlainBitForBit) {
  for (const Placing& placing : {Placing{3, zigzag, native, packed}, Placing{2, contiguous, ring, packed}}) {
    SCOPED_TRACE(testing::Message() << placing);
    const RankOutcome plain = run_on_ranks(of(GetParam(), Dtype::f32), placing);
    const RankOutcome again = run_on_ranks(of(GetParam(), Dtype::f32), placing, true);
    EXPECT_TRUE(same_bits(again.whole.output, plain.whole.output));
    for (size_t i = 0; i < plain.whole.gradients.size(); ++i)
      EXPECT_TRUE(same_bits(again.whole.gradients[i], plain.whole.gradients[i])) << i;
    for (size_t r = 0; r < again.sent.size(); ++r) {
      EXPECT_EQ(again.sent[r], again.expected[r]) << "rank " << r;
      // States and halos are kept from the first run; keys and values come again.
      const WireBytes more = again.sent[r] - plain.sent[r];
      EXPECT_EQ(more.all_to_all, 0);
      EXPECT_EQ(more.reduce_scatter, 0);
      if (merges_across(GetParam()).empty()) {
        EXPECT_EQ(more, WireBytes{});
      }
    }
  }
}

TEST_P(RankConformance, SameBitsTwice) {
  const Placing placing{4, balanced, native, packed};
  const MakeSubject subject = of(GetParam(), Dtype::f32);
  const RankOutcome first = run_on_ranks(subject, placing), second = run_on_ranks(subject, placing);
  EXPECT_TRUE(same_bits(first.whole.output, second.whole.output));
  for (size_t i = 0; i < first.whole.gradients.size(); ++i)
    EXPECT_TRUE(same_bits(first.whole.gradients[i], second.whole.gradients[i])) << i;
}

// An exchange that silently does not happen shows in the bytes, and nowhere else is it sure to.
TEST_P(RankConformance, BytesTellASkippedExchange) {
  const MakeSubject subject = of(GetParam(), Dtype::f32);
  const std::vector<int64_t> cut{std::max<int64_t>(61, 2 * subject()->mechanism->align())};
  for (const CrossingStrategy strategy : {native, gather}) {
    fault::configure("skip_exchange@phase=collective");
    const RankOutcome ranks = run_on_ranks(subject, {2, contiguous, strategy, cut});
    fault::configure("");
    for (size_t r = 0; r < ranks.sent.size(); ++r) {
      EXPECT_EQ(ranks.sent[r], WireBytes{}) << "rank " << r;
      if (strategy == native && parts_across(GetParam()).empty()) continue;
      EXPECT_NE(ranks.expected[r], WireBytes{}) << "rank " << r;
    }
  }
}

}  // namespace
}  // namespace weft
