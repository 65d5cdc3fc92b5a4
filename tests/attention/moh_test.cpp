// Which heads are on, that the others cost nothing, and what routers learn from.

#include "attention/moh.h"

#include <algorithm>

#include "attention/flash_attention.h"
#include "autograd/flops.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"
#include "autograd/ops/top_k.h"
#include "tests/attention/conformance.h"

namespace weft {
namespace {

// Keeps the heads that a layer asked for.
class ActiveHeads : public LocalCrossing {
 public:
  using LocalCrossing::LocalCrossing;
  using LocalCrossing::operator();
  std::vector<Variable> operator()(const Merge& part, const Block& block) override {
    active = block.x[3].value();
    return LocalCrossing::operator()(part, block);
  }
  Tensor active;
};

TEST(Moh, ExactlySharedAndRoutedHeadsAreOn) {
  const int64_t n = 50;
  const Dimensions dims{.heads = 6, .kv_heads = 3, .key = 4, .value = 4, .width = 8};
  for (const char* router : {"learned", "norm"}) {
    Subject s(dims, Dtype::f64, [&](const Dimensions& d, const ParameterScope& scope) {
      return std::make_unique<Moh>(MohConfig{.shared = 2, .top_k = 3, .router = router}, d, scope);
    });
    const Layout layout = whole_documents({n});
    ActiveHeads cross(layout);
    s.mechanism->forward({{random_tensor({n, 8}, 1)}, layout.position, layout.document}, cross);
    const std::vector<double> on = to_values(cross.active), heads = to_values(sum(cross.active, 1)),
                              load = to_values(sum(cross.active, 0));
    for (const double count : heads) EXPECT_EQ(count, 5);
    EXPECT_EQ(load[0], n);
    EXPECT_EQ(load[1], n);
    for (int64_t h = 2; h < 6; ++h) {
      EXPECT_GT(load[h], 0);
      EXPECT_LT(load[h], n);
    }
  }
}

struct HeadAttention {
  explicit HeadAttention(int64_t tokens, int64_t heads, int64_t size)
      : layout(whole_documents({tokens})),
        q(random_tensor({tokens, heads, size}, 1, Dtype::f32)),
        k(random_tensor({tokens, heads, size}, 2, Dtype::f32)),
        v(random_tensor({tokens, heads, size}, 3, Dtype::f32)),
        d_o(random_tensor({tokens, heads, size}, 4, Dtype::f32)),
        d_lse(random_tensor({tokens, heads}, 5, Dtype::f32)) {}
  // {o, lse, dq, dk, dv}
  std::vector<Tensor> run(const Tensor& active) const {
    const Tensor &at = layout.position, &of = layout.document;
    std::vector<Tensor> y = flash_attention_forward({}, q, k, v, at, of, at, of, {}, active);
    for (const Tensor& d :
         flash_attention_backward({}, q, k, v, at, of, at, of, {}, active, y[0], y[1], d_o, d_lse))
      y.push_back(d);
    return y;
  }
  Layout layout;
  Tensor q, k, v, d_o, d_lse;
};

Tensor random_choice(int64_t n, int64_t heads, int64_t on) {
  return marks(top_k(random_tensor({n, heads}, 9, Dtype::f32), on).indices, heads, Dtype::f32);
}

void poison(const Tensor& x, const Tensor& active) {
  const int64_t size = x.numel() / active.numel();
  const std::vector<double> on = to_values(active);
  edit<float>(x, [&](float* values) {
    for (size_t i = 0; i < on.size(); ++i)
      if (on[i] == 0) std::fill_n(values + static_cast<int64_t>(i) * size, size, NAN);
  });
}

// As if all heads had been computed and those that are off masked; and nothing of these is ever read.
TEST(Moh, HeadsThatAreOffAreNeverTouched) {
  const int64_t n = 150, heads = 4, size = 8;
  HeadAttention a(n, heads, size);
  const Tensor active = random_choice(n, heads, 2), all = full({n, heads}, 1, Dtype::f32);
  HeadAttention masked(n, heads, size);
  masked.d_o = multiply(masked.d_o, reshape(active, {n, heads, 1})).value();
  masked.d_lse = multiply(masked.d_lse, active).value();
  const std::vector<Tensor> expected = masked.run(all);
  for (const Tensor& x : {a.q, a.d_o, a.d_lse}) poison(x, active);
  const std::vector<Tensor> y = a.run(active);
  const std::vector<double> on = to_values(active), lse = to_values(y[1]), full_lse = to_values(expected[1]);
  for (size_t i = 0; i < on.size(); ++i) {
    if (on[i] == 1)
      EXPECT_NEAR(lse[i], full_lse[i], 1e-5);
    else
      EXPECT_EQ(lse[i], -INFINITY);
  }
  const Variable rows = reshape(active, {n, heads, 1});
  EXPECT_LE(difference(y[0], multiply(expected[0], rows)), tolerance::of(Dtype::f32));
  for (int i = 2; i < 5; ++i) EXPECT_LE(difference(y[i], expected[i]), tolerance::of(Dtype::f32)) << i;
}

// One token attends to itself, so y = W_out (g v). By hand: a weight that is on passes the gradient of the
// softmax behind it, one that is off none.
TEST(Moh, StraightThroughPassesTheGradientOfTheSoftmax) {
  const Dimensions dims{.heads = 4, .kv_heads = 4, .key = 3, .value = 2, .width = 5};
  Subject s(dims, Dtype::f64, [](const Dimensions& d, const ParameterScope& scope) {
    return std::make_unique<Moh>(MohConfig{.shared = 1, .top_k = 2, .router = "norm"}, d, scope);
  });
  const Layout layout = whole_documents({1});
  const Tensor x = random_tensor({1, 5}, 1);
  const Function layer = [&](const std::vector<Variable>& v) {
    return std::vector{run_whole(*s.mechanism, layout, v)};
  };
  const Outcome outcome = run_with_gradients(s, layout, {x}, layer);
  const Function by_hand = [&](const std::vector<Variable>& in) {
    const auto weight = [&](const char* name) { return Variable(s.store.find(name)); };
    const Variable projected = linear(in[0], weight("in.weight"));  // 12 of q, 12 of k, 8 of v
    const Variable q = reshape(slice(projected, 1, 0, 12), {4, 3}),
                   v = reshape(slice(projected, 1, 24, 32), {4, 2});
    const Variable length = slice(sqrt(sum(square(q), 1)), 0, 1, 4);
    const Variable apart = subtract(length, mean(length, 0, true));
    const Variable deviation = sqrt(scale(sum(square(apart), 0, true), 0.5));
    const Variable p = softmax(reshape(divide(length, deviation), {1, 3}));
    const Tensor on = marks(top_k(p.value(), 2).indices, 3, Dtype::f64);
    const Variable passed = multiply(p, on), constant = subtract(on, passed.value());
    const Variable gates = concatenate({full({1, 1}, 1, Dtype::f64), add(passed, constant.value())}, 1);
    const Variable weighted = multiply(v, reshape(gates, {4, 1}));
    return std::vector{linear(reshape(weighted, {1, 8}), weight("out.weight"))};
  };
  const Outcome expected = run_with_gradients(s, layout, {x}, by_hand);
  EXPECT_LE(difference(outcome.output, expected.output), 1e-12);
  for (size_t i = 0; i < outcome.gradients.size(); ++i)
    EXPECT_LE(difference(outcome.gradients[i], expected.gradients[i]), 1e-9) << i;
}

// From a router that prefers one head, down the balance loss alone.
// Of one chosen head the released code's weight is 1: a layer whose outputs cannot train its router says so.
TEST(Moh, WarnsOfARouterThatOutputsCannotTrain) {
  const Dimensions dims{.heads = 4, .kv_heads = 4, .key = 4, .value = 4, .width = 8};
  const Layout layout = whole_documents({20});
  for (const int64_t top_k : {1, 2})
    for (const char* form : {"code", "paper"}) {
      Subject s(dims, Dtype::f64, [&](const Dimensions& d, const ParameterScope& scope) {
        return std::make_unique<Moh>(MohConfig{.shared = 1, .top_k = top_k, .form = form}, d, scope);
      });
      run_with_gradients(s, layout, {random_tensor({20, 8}, 1)});
      double largest = 0;
      for (const double g : to_values(s.store.find("router.routed")->gradient))
        largest = std::max(largest, std::abs(g));
      EXPECT_EQ(largest < 1e-12, !s.mechanism->warning().empty()) << form << " top_k=" << top_k;
      EXPECT_EQ(s.mechanism->warning().empty(), top_k > 1 || std::string(form) == "paper");
    }
}

// As small as the output projections of other mechanisms.
TEST(Moh, WritesLittleIntoTheResidualStreamAtFirst) {
  const Dimensions dims{.heads = 8, .kv_heads = 8, .key = 4, .value = 8, .width = 64, .layers = 9};
  ParameterStore store(Dtype::f64);
  const Moh layer({.shared = 1}, dims, {store, ""});
  store.commit();
  const std::vector<double> weights = to_values(store.find("out.weight")->master);
  double squares = 0;
  for (const double w : weights) squares += w * w;
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(weights.size())), std::sqrt(0.4 / (64 * 2 * 9)), 1e-3);
}

TEST(Moh, BalanceLossEvensTheLoad) {
  const int64_t n = 200, width = 16;
  const Dimensions dims{.heads = 5, .kv_heads = 5, .key = 4, .value = 4, .width = width};
  Subject s(dims, Dtype::f64, [](const Dimensions& d, const ParameterScope& scope) {
    return std::make_unique<Moh>(MohConfig{.shared = 1, .top_k = 1}, d, scope);
  });
  const Layout layout = whole_documents({n});
  std::vector<double> values = to_values(random_tensor({n, width}, 1));
  for (int64_t i = 0; i < n; ++i) values[i * width] = 1;  // a bias for the router
  const Tensor x = from_values({n, width}, Dtype::f64, values);
  const Parameter router = s.store.find("router.routed");
  edit<double>(router->working, [](double* w) { w[0] += 2; });
  const auto step = [&] {
    s.store.begin_step();
    Tape tape;
    ActiveHeads cross(layout);
    s.mechanism->forward({{x}, layout.position, layout.document}, cross);
    const Variable loss = cross.losses()[0].value;
    tape.backward(loss);
    s.store.finish_step();
    const std::vector<double> gradient = to_values(router->gradient);
    edit<double>(router->working, [&](double* w) {
      for (size_t i = 0; i < gradient.size(); ++i) w[i] -= 0.5 * gradient[i];
    });
    const std::vector<double> load = to_values(sum(slice(cross.active, 1, 1, 5), 0));
    double variance = 0;
    for (const double l : load) variance += (l - n / 4.0) * (l - n / 4.0) / 4;
    return std::pair{to_values(loss)[0], std::sqrt(variance) / (n / 4.0)};
  };
  const auto [first_loss, first_variation] = step();
  std::pair<double, double> last;
  for (int i = 0; i < 100; ++i) last = step();
  EXPECT_GT(first_variation, 0.8);
  EXPECT_LT(last.second, 0.4 * first_variation);
  EXPECT_LT(last.first, first_loss);
  EXPECT_NEAR(last.first, 1, 0.1);  // one routed head
}

// A layer of 8 heads, and what its passes cost. Documents of one token: attention costs the same for each
// head that is on.
struct Costs {
  static constexpr int64_t kTokens = 200, kWidth = 16;
  explicit Costs(int64_t on, bool one_head = false)
      : subject({.heads = 8, .kv_heads = 8, .key = 6, .value = 4, .width = kWidth}, Dtype::f64,
                [&](const Dimensions& d, const ParameterScope& scope) {
                  return std::make_unique<Moh>(MohConfig{.top_k = on}, d, scope);
                }) {
    if (!one_head) return;
    edit<double>(subject.store.find("router.routed")->working, [](double* w) { w[3 * kWidth] += 100; });
  }
  static Tensor inputs() {
    const Tensor x = random_tensor({kTokens, kWidth}, 1);
    edit<double>(x, [](double* values) {
      for (int64_t i = 0; i < kTokens; ++i) values[i * kWidth] = 1;
    });
    return x;
  }
  double train() {
    const double before = counted_flops();
    run_with_gradients(subject, whole_documents(std::vector<int64_t>(kTokens, 1)), {inputs()});
    return counted_flops() - before;
  }
  // One more token of a document.
  double decode() const {
    Stream stream;
    const Layout past = whole_documents({4}), next = make_layout({{0, 4, 5}});
    LocalCrossing prefill(past, &stream);
    subject.mechanism->forward({{inputs().rows(0, 4)}, past.position, past.document}, prefill);
    LocalCrossing step(next, &stream);
    const double before = counted_flops();
    subject.mechanism->forward({{inputs().rows(4, 5)}, next.position, next.document}, step);
    return counted_flops() - before;
  }
  Subject subject;
};

TEST(Moh, ComputeFallsWithTheActiveShare) {
  if (default_device() != Device::cpu) GTEST_SKIP() << "projections are whole on a GPU";
  constexpr double kHead = 2.0 * Costs::kWidth * (6 + 4);  // query and output of one token
  for (const bool decoding : {false, true}) {
    const auto cost = [&](int64_t on) { return decoding ? Costs(on).decode() : Costs(on).train(); };
    const double head = cost(2) - cost(1), rest = cost(1) - head;
    for (const int64_t on : {3, 4, 8}) EXPECT_EQ(cost(on), rest + static_cast<double>(on) * head) << on;
    EXPECT_GE(head, decoding ? kHead : 3 * Costs::kTokens * kHead);
    // Keys and values of all heads, and the router.
    EXPECT_EQ(rest, (decoding ? 1 : 3 * Costs::kTokens) * (8 * kHead + 2.0 * Costs::kWidth * 8));
  }
}

TEST(Moh, KeysThatNobodyLooksAtAreLeftOut) {
  if (default_device() != Device::cpu) GTEST_SKIP() << "projections are whole on a GPU";
  constexpr double kHead = 2.0 * Costs::kWidth * (6 + 4);  // key and value of one token
  Costs one(1, true);
  EXPECT_EQ(Costs(1).train() - one.train(), 3 * Costs::kTokens * 7 * kHead);
  EXPECT_EQ(Costs(1).decode(), one.decode()) << "a later token may look at them";
  const Layout layout = whole_documents({Costs::kTokens});
  const Tensor y = run_whole(*one.subject.mechanism, layout, {Costs::inputs()});
  EXPECT_LE(difference(y, reference_by_document(*one.subject.mechanism, block_of({Costs::inputs()}, layout))),
            tolerance::of(Dtype::f64));
}

TEST(Moh, RefusesMoreHeadsThanThereAre) {
  ParameterStore store;
  try {
    Moh({.shared = 2, .top_k = 3}, {.heads = 4, .kv_heads = 4}, {store, ""});
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::recipe);
  }
}

}  // namespace
}  // namespace weft
