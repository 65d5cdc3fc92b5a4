// Linear attention as one op, with every kind of gate and from a state of its own, against the same composed
// of chunks, and against the recurrence token by token where decays are extreme.

#include <cmath>

#include "attention/crossing.h"
#include "attention/gla.h"
#include "attention/linear_attention.h"
#include "attention/linear_run.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "tests/attention/conformance.h"
#include "tests/attention/served_types.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

enum class Gates : uint8_t { none, fixed, head, channel };
constexpr const char* kGateNames[] = {"none", "fixed", "head", "channel"};

class LinearRunGates : public testing::TestWithParam<Gates> {};
class LinearRunOnCpu : public LinearRunGates {
 protected:
  void SetUp() override {
    if (default_device() != Device::cpu) GTEST_SKIP() << "of f64, which a GPU's kernels do not take";
  }
};
const auto all_gates = testing::Values(Gates::none, Gates::fixed, Gates::head, Gates::channel);
const auto gate_name = [](const auto& info) { return std::string(kGateNames[size_t(info.param)]); };
INSTANTIATE_TEST_SUITE_P(Gates, LinearRunGates, all_gates, gate_name);
INSTANTIATE_TEST_SUITE_P(Gates, LinearRunOnCpu, all_gates, gate_name);

struct Sizes {
  std::vector<int64_t> lengths;
  int64_t heads = 2, key = 5, value = 7;
};

Tensor decays(const Shape& shape, uint32_t seed, double strength) {
  std::vector<double> g = to_values(random_tensor(shape, seed));
  for (double& x : g) x = -strength * x * x;
  return from_values(shape, Dtype::f64, g);
}

// q, k, v, start and, if it is learned, g.
std::vector<Tensor> inputs_of(Gates gates, const Layout& layout, const Sizes& s, double strength = 0.25) {
  const int64_t n = layout.tokens();
  const Shape keys{n, s.heads, s.key};
  std::vector<Tensor> in{random_tensor(keys, 1),
                         random_tensor(keys, 2, Dtype::f64, 1 / std::sqrt(static_cast<double>(s.key))),
                         random_tensor({n, s.heads, s.value}, 3),
                         random_tensor({std::ssize(layout.segments), s.heads, s.key, s.value}, 4)};
  if (gates == Gates::head) in.push_back(decays({n, s.heads}, 5, strength));
  if (gates == Gates::channel) in.push_back(decays(keys, 5, strength));
  return in;
}

// The gate of a token; fixed ones are a row that stands for all.
Variable gate_of(Gates gates, const std::vector<Variable>& in) {
  const Tensor& q = in[0];
  if (gates == Gates::fixed)
    return decays({1, q.dim(1)}, 6, 0.1).to(wide_of(q.dtype())).to(q.device()).repeated(q.dim(0));
  return gates == Gates::none ? Variable() : cast(in[4], wide_of(q.dtype()));
}

std::vector<Variable> fused(Gates gates, const Layout& layout, const std::vector<Variable>& in) {
  const LinearRun r = linear_run(in[0], in[1], in[2], gate_of(gates, in), cast(in[3], wide_of(in[0].dtype())),
                                 0.3, layout, true);
  return {r.o, r.final_state};
}

// From the states at hand, as a stream goes on.
std::vector<Variable> composed(Gates gates, const Layout& layout, const std::vector<Variable>& in) {
  const Tensor &q = in[0], &v = in[2];
  Scan scan =
      gates == Gates::channel
          ? channel_decay_scan(0.3, 16, q.dim(1), q.dim(2), v.dim(2), v.dtype(), v.device())
          : linear_scan(0.3, 16, gates != Gates::none, q.dim(1), q.dim(2), v.dim(2), v.dtype(), v.device());
  scan.kernel = {};
  Block block{{in[0], in[1], in[2]}, layout.position, layout.document};
  if (gates != Gates::none) block.x.push_back(gate_of(gates, in));
  Stream stream;
  stream.slots.emplace_back();
  const Variable start = cast(in[3], wide_of(q.dtype()));
  std::map<int, State>& states = stream.slots[0].states;
  int64_t row = 0;
  for (const Segment& s : layout.segments) {
    states[s.document] = {scan.identity()[0], slice(start, 0, row, row + 1)};
    ++row;
  }
  LocalCrossing cross(layout, &stream);
  const Variable o = cross(scan, block);
  std::vector<Variable> ends;
  for (const Segment& s : layout.segments) ends.push_back(states[s.document][1]);
  return {o, concatenate(ends, 0)};
}

// by_norm: bf16 that a GPU's matrix units have rounded on the way, too.
void expect_fused_equals_composed(Gates gates, const Sizes& s, const std::vector<Dtype>& dtypes,
                                  double strength = 0.25, bool by_norm = false) {
  const Layout layout = whole_documents(s.lengths);
  for (const Dtype dtype : served(dtypes)) {
    // bf16 beside the composition in f32, on the same numbers and adjoints: results alone are rounded.
    std::vector<Tensor> narrow, wide;
    for (const Tensor& x : inputs_of(gates, layout, s, strength)) {
      narrow.push_back(x.to(dtype));
      wide.push_back(narrow.back().to(dtype == Dtype::bf16 ? Dtype::f32 : dtype));
    }
    const auto got = outputs_and_gradients([&](const auto& in) { return fused(gates, layout, in); }, narrow);
    const auto expected = outputs_and_gradients(
        [&](const auto& in) {
          std::vector<Variable> y = composed(gates, layout, in);
          y[0] = cast(y[0], dtype);
          return y;
        },
        wide);
    ASSERT_EQ(got.size(), expected.size());
    // A GPU's kernels sum in another order.
    const auto apart = by_norm                           ? norm_difference
                       : default_device() == Device::cpu ? difference
                                                         : least_difference;
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_LE(apart(got[i], expected[i]), by_norm ? tolerance::kBf16Norm : tolerance::of(dtype))
          << name_of(dtype) << " " << layout.tokens() << " tokens, " << s.key << " by " << s.value
          << ", result " << i;
  }
}

TEST_P(LinearRunGates, EqualsTheCompositionAtEveryLength) {
  for (int64_t n = 1; n <= 130; ++n)
    expect_fused_equals_composed(GetParam(), {{n}}, {Dtype::f64, Dtype::f32});
}

TEST_P(LinearRunGates, EqualsTheCompositionOfPackedDocuments) {
  const std::vector<Dtype> all{Dtype::f64, Dtype::f32, Dtype::bf16};
  for (const auto& [key, value] : {std::pair<int64_t, int64_t>{1, 1}, {3, 9}, {16, 33}, {32, 32}, {65, 40}})
    expect_fused_equals_composed(GetParam(), {{70, 1, 0, 33, 130, 32}, 3, key, value}, all);
}

// Heads as wide as tiles, and documents that kernels cut: from states that have a gradient of their own.
TEST_P(LinearRunGates, WideHeadsEqualTheComposition) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "kernels need a GPU";
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{70, 1, 0, 130}, {5000, 70}})
    for (const auto& [key, value] :
         {std::pair<int64_t, int64_t>{64, 64}, {64, 128}, {128, 64}, {128, 128}, {256, 256}})
      expect_fused_equals_composed(GetParam(), {lengths, 2, key, value}, {Dtype::bf16}, 0.25, true);
}

// Of which not every state is kept.
TEST_P(LinearRunOnCpu, EqualsTheCompositionOfLongDocuments) {
  expect_fused_equals_composed(GetParam(), {{1025, 1024, 2500}, 2, 4, 3}, {Dtype::f64});
}

TEST_P(LinearRunGates, StrongDecaysEqualTheComposition) {
  expect_fused_equals_composed(GetParam(), {{130, 40}, 2, 9, 6}, {Dtype::f64, Dtype::f32}, 4);
}

TEST_P(LinearRunOnCpu, GradientsViewsAndPlans) {
  const Layout layout = whole_documents({37, 1, 70});
  const Gates gates = GetParam();
  expect_op([&](const auto& in) { return fused(gates, layout, in); }, inputs_of(gates, layout, {}));
}

// One long document of one head is cut among threads, many short ones are dealt out.
TEST_P(LinearRunOnCpu, SameBitsOnThreads) {
  const Gates gates = GetParam();
  for (const Sizes& s :
       {Sizes{{3000, 5}, 1, 16, 16}, Sizes{{3000}, 3, 9, 20}, Sizes{{400, 500, 0, 600}, 3, 16, 16}}) {
    const Layout layout = whole_documents(s.lengths);
    expect_same_bits_on_threads([&](const auto& in) { return fused(gates, layout, in); },
                                inputs_of(gates, layout, s));
  }
}

// Also of gates that decide how a chunk is best computed.
TEST_P(LinearRunGates, EarlierOutputsKeepTheirBits) {
  const Gates gates = GetParam();
  const Layout layout = whole_documents({100});
  for (const Dtype dtype : served({Dtype::f64, Dtype::f32, Dtype::bf16})) {
    std::vector<Variable> in;
    for (const Tensor& x : inputs_of(gates, layout, {{100}, 2, 17, 19})) in.emplace_back(x.to(dtype));
    const Tensor before = fused(gates, layout, in)[0];
    for (int64_t token = 0; token < 100; ++token)
      for (size_t which = 0; which < in.size(); ++which) {
        if (which == 3) continue;
        for (const double value : {-1e4, -0.0}) {
          std::vector<Variable> other = in;
          const Tensor changed = empty_like(in[which]);
          changed.copy_from(in[which]);
          changed.rows(token, token + 1).copy_from(full(changed.shape().with(0, 1), value, dtype));
          other[which] = changed;
          const Tensor after = fused(gates, layout, other)[0];
          EXPECT_TRUE(same_bits(after.rows(0, token), before.rows(0, token)))
              << name_of(dtype) << " token " << token << ", input " << which;
        }
      }
  }
}

// The recurrence itself, in f64, with gates that may be -infinity.
std::vector<Variable> token_by_token(const Layout& layout, const std::vector<Variable>& in) {
  const int64_t heads = in[0].dim(1), key = in[0].dim(2), value = in[2].dim(2);
  std::vector<Variable> outputs, ends;
  int64_t t = 0, document = 0;
  for (const Segment& segment : layout.segments) {
    Variable s = reshape(slice(in[3], 0, document, document + 1), {heads, key, value});
    ++document;
    for (int64_t i = 0; i < segment.size(); ++i, ++t) {
      const auto at = [&](const Variable& x, int64_t rows, int64_t columns) {
        return reshape(slice(x, 0, t, t + 1), {heads, rows, columns});
      };
      const bool channel = in[4].rank() == 3;
      s = add(multiply(exp(at(in[4], channel ? key : 1, 1)), s),
              matmul(at(in[1], key, 1), at(in[2], 1, value)));
      outputs.push_back(reshape(scale(matmul(at(in[0], 1, key), s), 0.3), {1, heads, value}));
    }
    ends.push_back(reshape(s, {1, heads, key, value}));
  }
  return {concatenate(outputs, 0), concatenate(ends, 0)};
}

TEST_P(LinearRunGates, GatesThatForgetAtOnce) {
  const Gates gates = GetParam();
  if (gates != Gates::head && gates != Gates::channel) return;
  const Sizes sizes{{100, 1, 40}, 2, 6, 5};
  const Layout layout = whole_documents(sizes.lengths);
  std::vector<Tensor> exact = inputs_of(gates, layout, sizes, 0.05);
  std::vector<double> g = to_values(exact[4]);
  for (size_t i = 0; i < g.size(); ++i) {
    if (i % 7 == 3) g[i] = -1e4;
    if (i % 11 == 5) g[i] = -INFINITY;
    if (i % 13 == 6) g[i] = -90;  // between the least normal number of f32 and 0
    if (i % 17 == 1) g[i] = 0;
  }
  exact[4] = from_values(exact[4].shape(), Dtype::f64, g);
  const auto expected =
      outputs_and_gradients([&](const auto& in) { return token_by_token(layout, in); }, exact);
  for (const Dtype dtype : served({Dtype::f64, Dtype::f32})) {
    std::vector<Tensor> in;
    for (const Tensor& x : exact) in.push_back(x.to(dtype));
    const auto got = outputs_and_gradients([&](const auto& x) { return fused(gates, layout, x); }, in);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_LE(difference(got[i], expected[i]), tolerance::of(dtype)) << name_of(dtype) << " result " << i;
    const std::vector<double> dg = to_values(got.back());
    for (size_t i = 0; i < g.size(); ++i)
      if (g[i] < -1e3) {
        EXPECT_LE(std::abs(dg[i]), default_device() == Device::cpu ? 0 : tolerance::of(dtype))
            << "a decay of 0 has no slope, or on a GPU, where it is a difference of sums, their rounding";
      }
  }
}

TEST(LinearRunChecks, NameWhatDoesNotFit) {
  const Layout layout = whole_documents({4});
  const Tensor q = random_tensor({4, 2, 3}, 1), v = random_tensor({4, 2, 5}, 2),
               gate = random_tensor({4, 3}, 3), state = random_tensor({1, 2, 5, 3}, 4);
  EXPECT_THROW(linear_run(q, random_tensor({4, 2, 4}, 1), v, {}, {}, 1, layout, false), Error);
  EXPECT_THROW(linear_run(q, q, random_tensor({5, 2, 5}, 1), {}, {}, 1, layout, false), Error);
  EXPECT_THROW(linear_run(q, q, v, gate, {}, 1, layout, false), Error);
  EXPECT_THROW(linear_run(q, q, v, {}, state, 1, layout, false), Error);
  EXPECT_THROW(linear_run(q, q, v, {}, {}, 1, whole_documents({3}), false), Error);
  // Of another type than v are q and k together, in the type of its sums, and without a gate of channels.
  const Tensor wide = q.to(Dtype::f32), narrow = q.to(Dtype::bf16), values = v.to(Dtype::bf16);
  EXPECT_THROW(linear_run(q, q, values, {}, {}, 1, layout, false), Error);
  EXPECT_THROW(linear_run(wide, narrow, values, {}, {}, 1, layout, false), Error);
  EXPECT_THROW(linear_run(narrow, narrow, v.to(Dtype::f32), {}, {}, 1, layout, false), Error);
  EXPECT_THROW(linear_run(wide, wide, values, wide, {}, 1, layout, false), Error);
}

// A layer reaches it: one entry of the tape where the composition has dozens.
TEST(LinearRunChecks, MechanismsUseIt) {
  for (const char* name : {"linear", "lightning", "simple_gla", "gla"}) {
    const Dimensions dims{2, 2, 8, 8, 16};
    Subject s(dims, Dtype::f32, [&](const Dimensions& d, const ParameterScope& scope) {
      return find_mechanism(name).make({}, d, scope);
    });
    Tape tape;
    std::vector<Variable> in;
    for (const Tensor& x : random_inputs(*s.mechanism, 100, Dtype::f32)) in.push_back(tape.input(x));
    run_whole(*s.mechanism, whole_documents({100}), in);
    EXPECT_LE(tape.size(), 2) << name;
  }
}

}  // namespace
}  // namespace weft
