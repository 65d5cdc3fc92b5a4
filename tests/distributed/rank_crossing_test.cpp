// Parts that no mechanism of the registry has in this form, the bytes on the wire in numbers, and a whole
// model.

#include "distributed/rank_crossing.h"

#include <mutex>

#include "attention/softmax.h"
#include "autograd/flops.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "distributed/thread_comm.h"
#include "layers/model.h"
#include "tests/distributed/rank_conformance.h"

namespace weft {
namespace {

constexpr auto contiguous = SegmentPlan::contiguous;
constexpr auto zigzag = SegmentPlan::zigzag;
constexpr auto balanced = SegmentPlan::balanced;
constexpr auto native = CrossingStrategy::native;

// A mechanism that is one part and nothing else.
class Bare : public Mechanism {
 public:
  Bare(const Dimensions& dims, std::vector<Input> inputs,
       std::function<Variable(const Block&, Crossing&)> forward)
      : Mechanism(dims), inputs_(std::move(inputs)), forward_(std::move(forward)) {}
  std::vector<Input> inputs() const override { return inputs_; }
  Variable forward(const Block& block, Crossing& cross) const override { return forward_(block, cross); }
  Variable reference(const Block&) const override { return {}; }

 private:
  std::vector<Input> inputs_;
  std::function<Variable(const Block&, Crossing&)> forward_;
};

MakeSubject bare(const Dimensions& dims, const std::vector<Input>& inputs,
                 const std::function<Variable(const Block&, Crossing&)>& forward, Dtype dtype = Dtype::f64) {
  return [=] {
    return std::make_unique<Subject>(dims, dtype, [&](const Dimensions& d, const ParameterScope&) {
      return std::make_unique<Bare>(d, inputs, forward);
    });
  };
}

void expect_everywhere(const MakeSubject& subject) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{37}, {5, 0, 23, 1, 14}, {1, 2}, {0}, {}})
    for (const int ranks : {1, 2, 3, 4})
      for (const SegmentPlan plan : {contiguous, zigzag, balanced})
        for (const CrossingStrategy strategy : {native, CrossingStrategy::gather}) {
          const Placing placing{ranks, plan, strategy, lengths};
          SCOPED_TRACE(testing::Message() << placing);
          expect_equal(run_on_ranks(subject, placing), run_on_one(subject, placing),
                       tolerance::of(Dtype::f64));
        }
}

// The state is a product of matrices: a wrong order shows.
TEST(RankCrossing, ScanOfWhatDoesNotCommute) {
  Scan scan;
  scan.names = {"P"};
  scan.pad = {0};
  scan.chunk = 4;
  const auto identity = from_values({1, 2, 2}, Dtype::f64, {1, 0, 0, 1});
  const auto factor = [identity](const Variable& x, int64_t t) {  // I + x_t of every chunk, (M, 2, 2)
    return add(reshape(slice(x, 1, t, t + 1), {x.dim(0), 2, 2}), identity);
  };
  scan.identity = [identity] { return State{identity}; };
  scan.combine = [](const State& before, const State& after) { return State{matmul(after[0], before[0])}; };
  scan.summarize = [factor](const Block& b) {
    Variable p = factor(b.x[0], 0);
    for (int64_t t = 1; t < b.x[0].dim(1); ++t) p = matmul(factor(b.x[0], t), p);
    return State{p};
  };
  scan.apply = [factor](const Block& b, const State& prefix) {
    Variable p = prefix[0];
    std::vector<Variable> outputs;
    for (int64_t t = 0; t < b.x[0].dim(1); ++t) {
      p = matmul(factor(b.x[0], t), p);
      outputs.push_back(reshape(p, {p.dim(0), 1, 4}));
    }
    return concatenate(outputs, 1);
  };
  expect_everywhere(bare({.width = 4}, {{"x", "c", Domain::direction}},
                         [scan](const Block& block, Crossing& cross) { return cross(scan, block); }));
}

TEST(RankCrossing, BidirectionalScan) {
  Scan scan;
  scan.names = {"S"};
  scan.pad = {0};
  scan.chunk = 4;
  scan.total = true;
  scan.identity = [] { return State{zeros({1, 1, 3}, Dtype::f64)}; };
  scan.combine = [](const State& before, const State& after) { return State{add(before[0], after[0])}; };
  scan.summarize = [](const Block& b) { return State{sum(b.x[0], 1, true)}; };
  scan.apply = [](const Block& b, const State& state) { return multiply(b.x[0], state[0]); };
  expect_everywhere(bare({.width = 3}, {{"x", "c"}},
                         [scan](const Block& block, Crossing& cross) { return cross(scan, block); }));
}

// Scans as if there were a kernel for each: whole segments from the states before them, here by chunks.
class KernelCrossing : public Crossing {
 public:
  explicit KernelCrossing(Crossing& inner) : Crossing(inner.layout()), inner_(inner) {}
  Variable operator()(const Scan& part, const Block& block) override {
    if (!part.kernel.transition) return inner_(part, block);
    Scan scan = part;
    scan.kernel.serves = [](Device) { return true; };
    scan.kernel.run = [&part](const Block& b, const Layout& layout, const State& start, bool) {
      const Chunks chunks = cut_chunks(layout, part.chunk, b.x[0].device());
      const Block cut = into_chunks(b, chunks, part.pad);
      Folded folded = fold(part, part.summarize(cut), chunks);
      if (!start.empty()) {
        folded.prefix = part.combine(gather_state(start, chunks.segment), folded.prefix);
        folded.total = part.combine(start, folded.total);
      }
      return Scan::Ran{out_of_chunks(part.apply(cut, folded.prefix), chunks), folded.total};
    };
    return inner_(scan, block);
  }
  std::vector<Variable> operator()(const Merge& part, const Block& b) override { return inner_(part, b); }
  Variable operator()(const Halo& part, const Block& block) override { return inner_(part, block); }
  Variable operator()(const Carry& part, const Block& block) override { return inner_(part, block); }
  Variable total(const Variable& sums) override { return inner_.total(sums); }

 private:
  Crossing& inner_;
};

class WithKernels : public Mechanism {
 public:
  explicit WithKernels(std::unique_ptr<Mechanism> inner)
      : Mechanism(inner->dims()), inner_(std::move(inner)) {}
  std::vector<Input> inputs() const override { return inner_->inputs(); }
  Variable forward(const Block& block, Crossing& cross) const override {
    KernelCrossing kernels(cross);
    return inner_->forward(block, kernels);
  }
  Variable reference(const Block&) const override { return {}; }

 private:
  std::unique_ptr<Mechanism> inner_;
};

// Mega's, for whose average only GPUs have a kernel; other scans have one here, and are in the suite over
// ranks.
TEST(RankCrossing, AKernelStartsFromTheStatesOfOtherRanks) {
  const MechanismEntry& entry = find_mechanism("mega");
  const auto subject = [&entry](bool kernels) {
    return [&entry, kernels] {
      return std::make_unique<Subject>(small_dimensions(entry), Dtype::f64,
                                       [&](const Dimensions& d, const ParameterScope& scope) {
                                         std::unique_ptr<Mechanism> mechanism = entry.make({}, d, scope);
                                         if (kernels)
                                           mechanism = std::make_unique<WithKernels>(std::move(mechanism));
                                         return mechanism;
                                       });
    };
  };
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{37}, {5, 0, 23, 1, 14}, {1, 2}, {0}, {}})
    for (const int ranks : {1, 2, 3})
      for (const SegmentPlan plan : {contiguous, zigzag, balanced}) {
        const Placing placing{ranks, plan, native, lengths};
        SCOPED_TRACE(testing::Message() << placing);
        expect_equal(run_on_ranks(subject(true), placing), run_on_one(subject(false), placing),
                     tolerance::of(Dtype::f64));
      }
}

// y_t = x_t + sum of 2^-i x_{t-i} over the halo, by segment.
Halo halo_of(int64_t width) {
  return {width, [width](const Block& block, const Block& before) {
            std::vector<int32_t> segment;
            for (const double s : to_values(block.document)) segment.push_back(static_cast<int32_t>(s));
            Variable y = block.x[0];
            const auto n = static_cast<int64_t>(segment.size());
            const Variable all = concatenate({before.x[0], block.x[0]}, 0);
            for (int64_t i = 1; i <= width; ++i) {
              std::vector<int32_t> index;
              for (int64_t t = 0, begin = 0; t < n; ++t) {
                if (t > 0 && segment[static_cast<size_t>(t)] != segment[static_cast<size_t>(t - 1)])
                  begin = t;
                const int64_t g = segment[static_cast<size_t>(t)];
                index.push_back(static_cast<int32_t>(t - i >= begin ? before.position.dim(0) + t - i
                                                                    : (g + 1) * width + t - begin - i));
              }
              y = add(y, scale(gather_rows(all, from_ints(index)), std::pow(0.5, i)));
            }
            return y;
          }};
}

TEST(RankCrossing, HaloOverSeveralShortSegments) {
  for (const int64_t width : {1, 3, 12}) {
    const auto forward = [halo = halo_of(width)](const Block& block, Crossing& cross) {
      // Documents without a token have no segment, so numbers of documents and segments part; on one rank the
      // halo is given segments too.
      Block by_segment = block;
      std::vector<int32_t> segment;
      for (size_t g = 0; g < cross.layout().segments.size(); ++g)
        segment.insert(segment.end(), static_cast<size_t>(cross.layout().segments[g].size()),
                       static_cast<int32_t>(g));
      by_segment.document = from_ints(segment);
      return cross(halo, by_segment);
    };
    expect_everywhere(bare({.width = 3}, {{"x", "c"}}, forward));
  }
}

// What crosses is what the formulas say, in numbers.
std::vector<WireBytes> sent_for(const MakeSubject& subject, const Placing& placing) {
  return run_on_ranks(subject, placing).sent;
}

TEST(RankCrossing, BytesOfAScanDoNotDependOnTheLength) {
  const MakeSubject subject = [] {
    return std::make_unique<Subject>(ConformanceCase{"linear", ""}, Dtype::f32);
  };
  const Dimensions d = small_dimensions(find_mechanism("linear"));
  const int64_t state = (d.heads + d.heads * d.key * d.value) * 4;
  for (const int64_t length : {30, 300}) {
    const auto sent = sent_for(subject, {3, contiguous, native, {length}});
    for (const WireBytes& w : sent)
      EXPECT_EQ(w, (WireBytes{.all_gather = 2 * state, .reduce_scatter = 2 * state}));
    // Two pieces a rank. Documents that nobody shares cost nothing.
    for (const WireBytes& w : sent_for(subject, {2, zigzag, native, {length, 0}})) EXPECT_GT(w.all_gather, 0);
    for (const WireBytes& w : sent_for(subject, {3, contiguous, native, {length, length, length}}))
      EXPECT_EQ(w, WireBytes{});
  }
}

TEST(RankCrossing, BytesOfAMerge) {
  const Dimensions d = small_dimensions(find_mechanism("softmax"));
  const int64_t keys = d.kv_heads * (d.key + d.value);  // elements a token
  for (const auto& [dtype, size] : {std::pair{Dtype::f32, 4}, {Dtype::bf16, 2}}) {
    const MakeSubject subject = [dtype = dtype] {
      return std::make_unique<Subject>(ConformanceCase{"softmax", ""}, dtype);
    };
    for (const WireBytes& w : sent_for(subject, {3, contiguous, native, {30}}))
      EXPECT_EQ(w, (WireBytes{.all_gather = 2 * 10 * keys * size, .reduce_scatter = 20 * keys * size}));
    // Keys and values go round twice, and their gradients once, in f32 and all the way home.
    for (const WireBytes& w : sent_for(subject, {3, contiguous, CrossingStrategy::ring, {30}}))
      EXPECT_EQ(w, (WireBytes{.send_recv = 2 * 20 * keys * size + 30 * keys * 4}));
    // Half of the heads of its own tokens, and of the outputs of the other's; the same on the way back.
    const int64_t inputs = (d.heads * d.key + keys) * size, outputs = d.heads * (d.value * size + 4);
    for (const WireBytes& w : sent_for(subject, {2, contiguous, CrossingStrategy::heads, {20}}))
      EXPECT_EQ(w, (WireBytes{.all_to_all = 2 * 10 * (inputs + outputs) / 2}));
  }
}

// A state that only moves in order: s <- tanh(s / 2 + x).
Carry leaky_sum(Dtype dtype) {
  Carry carry;
  carry.names = {"s"};
  carry.start = [dtype] { return State{zeros({1, 3}, dtype)}; };
  carry.step = [](const Block& b, const State& state) {
    Variable s = state[0];
    std::vector<Variable> outputs;
    for (int64_t t = 0; t < b.x[0].dim(0); ++t)
      outputs.push_back(s = tanh(add(scale(s, 0.5), slice(b.x[0], 0, t, t + 1))));
    return std::pair{concatenate(outputs, 0), State{s}};
  };
  return carry;
}

TEST(RankCrossing, CarryThroughEveryPlacing) {
  expect_everywhere(bare({.width = 3}, {{"x", "c"}}, [](const Block& block, Crossing& cross) {
    return cross(leaky_sum(Dtype::f64), block);
  }));
}

TEST(RankCrossing, BytesOfAHaloAndACarry) {
  const MakeSubject subject = bare(
      {.width = 3}, {{"x", "c"}},
      [](const Block& block, Crossing& cross) { return cross(halo_of(4), block); }, Dtype::f32);
  const int64_t row = 3 * 4;
  const auto sent = sent_for(subject, {3, contiguous, native, {9}});  // a halo spans two neighbours
  EXPECT_EQ(sent[0].all_to_all, (3 + 1) * row);
  EXPECT_EQ(sent[1].all_to_all, (3 + 3) * row);  // forward to rank 2, back to rank 0
  EXPECT_EQ(sent[2].all_to_all, (3 + 1) * row);

  const MakeSubject carry = bare(
      {.width = 3}, {{"x", "c"}},
      [](const Block& block, Crossing& cross) { return cross(leaky_sum(Dtype::f32), block); }, Dtype::f32);
  const int64_t state = 3 * 4;
  const auto passed = sent_for(carry, {3, contiguous, native, {30}});
  EXPECT_EQ(passed[0], (WireBytes{.send_recv = state}));
  EXPECT_EQ(passed[1], (WireBytes{.send_recv = 2 * state}));
  EXPECT_EQ(passed[2], (WireBytes{.send_recv = state}));
}

TEST(RankCrossing, HeadsThatDoNotDivideAreRefused) {
  for (const auto& [settings, ranks] : {std::pair{"", 3}, {"position=alibi", 2}}) {
    const ConformanceCase c{"softmax", settings};
    try {
      run_on_ranks([&] { return std::make_unique<Subject>(c, Dtype::f32); },
                   {ranks, contiguous, CrossingStrategy::heads, {20}});
      FAIL() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::recipe) << e.what();
    }
  }
}

TEST(RankCrossing, PlansHaveNoGaps) {
  EXPECT_THROW(RankPlan({{{0, 0, 4}}, {{0, 5, 9}}}, 0), Error);
  EXPECT_THROW(RankPlan({{{0, 0, 4}}, {{0, 3, 9}}}, 0), Error);
  EXPECT_THROW(RankPlan({{{0, 2, 4}}}, 0), Error);
  EXPECT_NO_THROW(RankPlan({{{0, 2, 4}}, {{0, 0, 2}, {1, 0, 3}}}, 1));
}

class RankCrossings : public CrossingFactory {
 public:
  RankCrossings(RankPlan& plan, Communicator& comm, WireBytes& expected)
      : plan_(plan), comm_(comm), expected_(expected) {}
  std::unique_ptr<Crossing> make(const Layout& layout, int) override {
    return std::make_unique<RankCrossing>(layout, plan_, comm_, native, &expected_);
  }

 private:
  RankPlan& plan_;
  Communicator& comm_;
  WireBytes& expected_;
};

struct ModelRun {
  Tensor output;
  std::vector<Tensor> gradients;
};

ModelConfig small_model(const std::string& checkpointing) {
  ModelConfig config;
  config.layers = {"linear", "softmax", "delta_rule", "sliding_window"};
  config.width = 8;
  config.heads = config.kv_heads = 2;
  config.head_size = 4;
  config.ffn = 8;
  config.vocab = 11;
  config.short_conv = 4;
  config.checkpointing = checkpointing;
  return config;
}

ModelRun run_model(const ModelConfig& config, const Layout& layout, const Tensor& tokens,
                   const Tensor& adjoint, CrossingFactory& crossings) {
  ParameterStore store(Dtype::f64, default_device(), 5);
  const Model model(config, store);
  store.commit();
  store.begin_step();
  Tape tape;
  const Variable y = model.hidden(tokens, layout, crossings);
  tape.backward(y, adjoint);
  store.finish_step();
  ModelRun run{y, {}};
  for (const auto& entry : store.entries()) {
    run.gradients.push_back(empty_like(entry->gradient));
    run.gradients.back().copy_from(entry->gradient);
  }
  return run;
}

TEST(RankCrossing, AWholeModel) {
  const std::vector<int64_t> lengths{25, 2, 14};
  const int64_t n = 41;
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < n; ++i) ids.push_back(i * i % 11);
  const Tensor tokens = from_ints(ids), adjoint = random_tensor({n, 8}, 7);
  const Layout whole = whole_documents(lengths);
  for (const char* checkpointing : {"none", "block"}) {
    const ModelConfig config = small_model(checkpointing);
    LocalCrossings local;
    const ModelRun one = run_model(config, whole, tokens, adjoint, local);
    for (const SegmentPlan plan : {contiguous, balanced}) {
      constexpr int ranks = 3;
      const std::vector<Segments> segments = plan_segments(plan, lengths, ranks);
      std::vector<ModelRun> runs(ranks);
      std::vector<WireBytes> sent(ranks), expected(ranks), foretold(ranks);
      run_ranks(ranks, [&](Communicator& comm) {
        const auto r = static_cast<size_t>(comm.rank());
        std::vector<int32_t> rows;
        for (const Segment& s : segments[r]) {
          int32_t start = 0;
          for (int d = 0; d < s.document; ++d) start += static_cast<int32_t>(lengths[static_cast<size_t>(d)]);
          for (int64_t t = s.begin; t < s.end; ++t) rows.push_back(start + static_cast<int32_t>(t));
        }
        const Tensor index = from_ints(rows);
        RankPlan rank_plan(segments, comm.rank());
        RankCrossings crossings(rank_plan, comm, expected[r]);
        runs[r] = run_model(config, make_layout(segments[r]), gather_rows(tokens, index),
                            gather_rows(adjoint, index), crossings);
        sent[r] = comm.wire();
        EXPECT_LE(difference(runs[r].output, gather_rows(one.output, index)), tolerance::of(Dtype::f64));

        // A dry run on meta tells the bytes.
        RankPlan dry_plan(segments, comm.rank(), Device::meta);
        RankCrossings dry(dry_plan, comm, foretold[r]);
        ParameterStore store(Dtype::f64, Device::meta);
        const Model model(config, store);
        store.commit();
        const auto own = static_cast<int64_t>(rows.size());
        Tape tape;
        const Variable y =
            model.hidden(empty({own}, Dtype::i32, Device::meta), make_layout(segments[r], Device::meta), dry);
        tape.backward(y, empty_like(y));
        EXPECT_EQ(comm.wire(), sent[r]);
      });
      EXPECT_EQ(sent, expected);
      EXPECT_EQ(sent, foretold);
      for (size_t i = 0; i < one.gradients.size(); ++i) {
        Variable sum = runs[0].gradients[i];
        for (size_t r = 1; r < ranks; ++r) sum = add(sum, runs[r].gradients[i]);
        EXPECT_LE(difference(sum, one.gradients[i]), tolerance::of(Dtype::f64)) << "gradient " << i;
      }
    }
  }
}

// The ranks together compute what one does, wherever keys and queries are.
TEST(RankCrossing, AttentionCountsItsOperationsOnce) {
  const Dimensions dims{.heads = 4, .kv_heads = 4, .key = 4, .value = 4, .width = 16};
  double operations = 0;
  std::mutex mutex;
  const MakeSubject subject =
      bare(dims, {{"q", "h k"}, {"k", "g k"}, {"v", "g v"}}, [&](const Block& block, Crossing& cross) {
        const double before = counted_flops();
        const Variable o = cross(softmax_merge({}), block)[0];
        const std::lock_guard lock(mutex);
        if (Tape::current() != nullptr)  // and not where only shapes are asked for
          operations += counted_flops() - before;
        return o;
      });
  const auto counted = [&](const std::function<void()>& run) {
    operations = 0;
    run();
    return operations;
  };
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{37}, {5, 0, 23, 1, 14}, {1, 2}}) {
    const double alone = counted([&] { run_on_one(subject, {1, contiguous, native, lengths}); });
    EXPECT_GT(alone, 0);
    for (const SegmentPlan plan : {contiguous, zigzag, balanced})
      for (const CrossingStrategy strategy : {native, CrossingStrategy::ring, CrossingStrategy::heads}) {
        const Placing placing{4, plan, strategy, lengths};
        EXPECT_EQ(counted([&] { run_on_ranks(subject, placing); }), alone) << placing;
      }
  }
}

}  // namespace
}  // namespace weft
