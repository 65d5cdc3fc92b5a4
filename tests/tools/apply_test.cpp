// `weft apply` on every mechanism of the registry: its flags leave the function as it is, and its gradients
// are those of the function that it computes.

#include "tools/apply.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/reduce.h"
#include "tests/attention/conformance.h"
#include "tests/tools/apply_files.h"

namespace weft {
namespace {

class Apply : public testing::TestWithParam<ConformanceCase> {
 protected:
  ApplyCase make(int64_t rows = 2, int64_t tokens = 21) const {
    return {GetParam().id, GetParam().settings, rows, tokens};
  }
};
INSTANTIATE_TEST_SUITE_P(Registry, Apply, testing::ValuesIn(conformance_cases()), case_name);

const double kExact = tolerance::of(Dtype::f64);

TEST_P(Apply, ReferenceEqualsDefault) {
  const ApplyCase c = make();
  for (const auto& left_out :
       std::vector<std::vector<std::string>>{{}, {"state0."}, {"state0.", "dstate.", "doc"}}) {
    const Tensors in = c.without(left_out);
    expect_same(apply_to(c.words({"--dtype", "f64", "--reference"}), in),
                apply_to(c.words({"--dtype", "f64"}), in), kExact, "reference");
  }
}

TEST_P(Apply, ChunkLengthChangesNothing) {
  const ApplyCase c = make();
  const Tensors expected = apply_to(c.words({"--dtype", "f64"}), c.in);
  for (const char* chunk : {"1", "7", "21", "1000"})
    expect_same(apply_to(c.words({"--dtype=f64", "--chunk", chunk}), c.in), expected, kExact,
                std::string("chunk ") + chunk);
}

TEST_P(Apply, DecodeEqualsFull) {
  const ApplyCase c = make();
  const Tensors in = c.without({"dy", "dstate."});
  if (!c.causal) {
    EXPECT_EQ(apply_error(c.words({"--mode", "decode:3"}), in).code, Exit::recipe);
    return;
  }
  const Tensors expected = apply_to(c.words({"--dtype", "f64", "--mode", "full"}), in);
  for (const char* mode : {"decode:0", "decode:8", "decode:21"})
    expect_same(apply_to(c.words({"--dtype", "f64", "--mode", mode}), in), expected, kExact, mode);
}

TEST_P(Apply, SegmentsEqualOneRank) {
  const ApplyCase c = make();
  const Tensors expected = apply_to(c.words({"--dtype", "f64"}), c.in);
  for (const char* segments :
       {"1", "2", "3:zigzag", "2:zigzag:ring", "3:contiguous:gather", "2:contiguous:heads"})
    expect_same(apply_to(c.words({"--dtype", "f64", "--segments", segments}), c.in), expected, kExact,
                segments);
  const Tensors plain = c.without({"dy", "dstate.", "state0."});
  expect_same(apply_to(c.words({"--dtype", "f64", "--segments", "3"}), plain),
              apply_to(c.words({"--dtype", "f64"}), plain), kExact, "without gradients");
}

double dot(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = to_values(a), y = to_values(b);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

TEST_P(Apply, GradientsAreThoseOfTheFunction) {
  const ApplyCase c = make(2, 7);
  const Tensors out = apply_to(c.words({"--dtype", "f64"}), c.in);
  const auto loss = [&](const Tensors& in) {
    const Tensors values = apply_to(c.words({"--dtype", "f64"}), in);
    double sum = dot(values.at("y"), c.in.at("dy"));
    for (const StateInfo& s : c.signature.states)
      sum += dot(values.at("state." + s.name), c.in.at("dstate." + s.name));
    return sum;
  };
  const double step = 1e-5;
  for (const auto& item : c.without({"dy", "dstate.", "doc"})) {
    const std::string& name = item.first;  // no bindings: lambdas take them
    const Tensor& value = item.second;
    ASSERT_TRUE(out.count("grad." + name)) << name;
    const std::vector<double> gradient = to_values(out.at("grad." + name)), x = to_values(value);
    EXPECT_EQ(out.at("grad." + name).shape(), value.shape()) << name;
    for (size_t sample = 0; sample < 4; ++sample) {
      const size_t i = (sample * 7919 + 3) % x.size();
      Tensors moved = c.without({"dy", "dstate."});
      const auto at = [&](double by) {
        std::vector<double> y = x;
        y[i] += by;
        moved[name] = from_values(value.shape(), Dtype::f64, y);
        return loss(moved);
      };
      // Four points: two are off by 1e-5 where a normaliser is small and the gradient in the thousands.
      const double slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
      EXPECT_NEAR(slope, gradient[i], 1e-6) << name << " " << i;
    }
  }
}

// Of equal scores the earlier count, for what is kept and for what the gates are computed over: so gradients
// do not depend on how tokens are grouped either.
TEST(ApplySparseK, EqualScoresCountByAge) {
  const ApplyCase c("sparsek", "k=2 window=2", 1, 21);
  Tensors in = c.without({"state0.", "dstate.", "doc"});
  std::vector<double> few = to_values(in["u"]);
  for (double& u : few)
    u = std::round(u) / 8;  // apart by less than 1, so that the gates are not at their ends
  for (const bool all : {true, false}) {
    in["u"] = all ? zeros(in["u"].shape(), Dtype::f64) : from_values(in["u"].shape(), Dtype::f64, few);
    const Tensors expected = apply_to(c.words({"--dtype", "f64", "--reference"}), in);
    for (const char* chunk : {"1", "5", "6", "1000"})
      expect_same(apply_to(c.words({"--dtype", "f64", "--chunk", chunk}), in), expected, kExact,
                  std::string("chunk ") + chunk);
    for (const char* segments : {"2", "3:zigzag"})
      expect_same(apply_to(c.words({"--dtype", "f64", "--segments", segments}), in), expected, kExact,
                  segments);
  }
}

// The state of the first half begins the second.
TEST_P(Apply, StatesChain) {
  const ApplyCase c = make(2, 20);
  if (!c.only_states) return;
  const Tensors in = c.without({"dy", "dstate.", "doc"});
  const auto half = [&](int64_t begin, int64_t end) {
    Tensors out;
    for (const auto& [name, value] : in)
      out[name] =
          name.starts_with("p.") || name.starts_with("state0.") ? value : slice(value, 1, begin, end).value();
    return out;
  };
  const Tensors whole = apply_to(c.words({"--dtype", "f64"}), in);
  const Tensors first = apply_to(c.words({"--dtype", "f64"}), half(0, 9));
  Tensors rest = half(9, 20);
  for (const StateInfo& s : c.signature.states) rest["state0." + s.name] = first.at("state." + s.name);
  const Tensors second = apply_to(c.words({"--dtype", "f64"}), rest);
  EXPECT_LE(difference(concatenate({first.at("y"), second.at("y")}, 1), whole.at("y")), kExact);
  for (const StateInfo& s : c.signature.states)
    EXPECT_LE(difference(second.at("state." + s.name), whole.at("state." + s.name)), kExact) << s.name;
}

// A document is as if it were alone; a given state is the first one's, and the last one's state comes out.
TEST_P(Apply, DocumentsAreApart) {
  const ApplyCase c = make(1, 21);
  const Tensors in = c.without({"dy", "dstate."});
  const Tensors packed = apply_to(c.words({"--dtype", "f64"}), in);
  const int64_t cut = 7;
  const auto alone = [&](int64_t begin, int64_t end, bool with_state) {
    Tensors out;
    for (const auto& [name, value] : in) {
      if (name == "doc" || (name.starts_with("state0.") && !with_state)) continue;
      const bool line = !name.starts_with("state0.") && !name.starts_with("p.");
      out[name] = line ? slice(value, 1, begin, end).value() : value;
    }
    return apply_to(c.words({"--dtype", "f64"}), out);
  };
  const Tensors first = alone(0, cut, true), second = alone(cut, 21, false);
  EXPECT_LE(difference(concatenate({first.at("y"), second.at("y")}, 1), packed.at("y")), kExact);
  for (const StateInfo& s : c.signature.states)
    EXPECT_LE(difference(second.at("state." + s.name), packed.at("state." + s.name)), kExact) << s.name;
}

TEST_P(Apply, Dtypes) {
  ApplyCase c = make();
  for (auto& [name, value] : c.in)  // a random start can bring a normaliser close to zero
    if (name.starts_with("state0.")) value.zero();
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const std::string flag = dtype == Dtype::f32 ? "f32" : "bf16";
    // Both start from numbers that the dtype has: what a mechanism selects may hang on a rounding.
    Tensors in = c.in;
    for (auto& [name, value] : in)
      if (is_float(value.dtype()) && !name.starts_with("p.")) value = value.to(dtype).to(Dtype::f64);
    const Tensors exact = apply_to(c.words({"--dtype", "f64"}), in);
    for (const auto& [name, value] : exact) EXPECT_EQ(value.dtype(), Dtype::f64) << name;
    const Tensors out = apply_to(c.words({"--dtype", flag}), in);
    EXPECT_EQ(out.size(), exact.size());
    for (const auto& [name, value] : out) {
      const bool wide = name.starts_with("state.") || name.starts_with("grad.p.") ||
                        name.starts_with("grad.state0.") || name.starts_with("aux.");
      EXPECT_EQ(value.dtype(), wide ? Dtype::f32 : dtype) << name;
      const Tensor& expected = exact.at(name);
      const double size = 1 + std::sqrt(dot(expected, expected) / static_cast<double>(expected.numel()));
      EXPECT_LE(largest_difference(value.to(Dtype::f64), expected) / size, dtype == Dtype::f32 ? 2e-4 : 0.3)
          << flag << " " << name;
    }
  }
  const Tensors standard = apply_to(c.words({}), c.in);
  EXPECT_EQ(standard.at("y").dtype(), Dtype::f32);
}

// A scan that could do a document at once still says its states.
TEST(ApplyStates, ComeWithAFormForWholeDocumentsToo) {
  const ApplyCase c("mega", "", 2, 21);
  expect_same(apply_to(c.words({"ema=fft", "--dtype", "f64"}), c.in),
              apply_to(c.words({"--dtype", "f64"}), c.in), kExact, "fft");
}

}  // namespace
}  // namespace weft
