#include "autograd/ops/joined_linear.h"

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

// Three weights with `in` columns; of 16 they lie side by side, of 5 there are gaps.
struct Weights {
  explicit Weights(int64_t in, Dtype dtype = Dtype::f64) : store(dtype) {
    for (const int64_t rows : {3, 2, 6})
      all.push_back(
          store.declare({text("w", rows), {rows, in}, ParameterKind::matrix, Initializer::normal(1)}));
    store.commit();
  }
  Variable one_by_one(const Variable& x) const {
    return concatenate({linear(x, all[0]), linear(x, all[1]), linear(x, all[2])}, 1);
  }
  std::vector<Tensor> gradients() const {
    std::vector<Tensor> copies;
    for (const Parameter& w : all) copies.push_back(add(w->gradient, zeros_like(w->gradient)).value());
    return copies;
  }
  ParameterStore store;
  std::vector<Parameter> all;
};

TEST(JoinedLinear, Gradients) {
  for (const int64_t in : {16, 5}) {
    Weights w(in);
    expect_gradients(
        [&](const std::vector<Variable>& v) { return std::vector{joined_linear(v[0], w.store, w.all)}; },
        {random_tensor({4, in}, 1)}, &w.store);
  }
  Weights w(16);
  EXPECT_THROW(joined_linear(random_tensor({4, 5}, 1), w.store, w.all), Error);
  EXPECT_THROW(joined_linear(random_tensor({4, 16}, 1), w.store, {}), Error);
}

// Two micro-batches, and between them one where a weight is used by itself.
TEST(JoinedLinear, AddsLikeTheSingleProducts) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const int64_t in : {16, 5})
      for (const bool alone_first : {false, true}) {
        SCOPED_TRACE(text(name_of(dtype), " ", in, " ", alone_first));
        Weights w(in, dtype);
        const auto step = [&](bool joined) {
          w.store.begin_step();
          const auto alone = [&] {
            Tape tape;
            const Variable y = linear(random_tensor({3, in}, 9, dtype), w.all[1]);
            tape.backward(y, random_tensor(y.shape(), 8).to(dtype));
          };
          if (alone_first) alone();
          std::vector<Tensor> results;
          for (const uint32_t seed : {1, 2}) {
            Tape tape;
            const Variable x = tape.input(random_tensor({7, in}, seed, dtype));
            const Variable y = joined ? joined_linear(x, w.store, w.all) : w.one_by_one(x);
            tape.backward(y, random_tensor(y.shape(), 7).to(dtype));
            results.push_back(y.value());
            results.push_back(tape.gradient(x));
            if (!alone_first) alone();
          }
          EXPECT_TRUE(w.store.finish_step().empty());
          for (const Tensor& g : w.gradients()) results.push_back(g);
          return results;
        };
        const std::vector<Tensor> one = step(true), many = step(false);
        for (size_t i = 0; i < one.size(); ++i)
          EXPECT_LE(difference(one[i], many[i]), tolerance::of(dtype)) << i;
      }
}

// A weight that is not trained has no gradient, and the others have theirs.
TEST(JoinedLinear, NotAllAreTrained) {
  ParameterStore store(Dtype::f64);
  const Parameter a = store.declare({"a", {2, 16}, ParameterKind::matrix, Initializer::normal(1)});
  ParameterInfo fixed{"b", {3, 16}, ParameterKind::matrix, Initializer::normal(1)};
  fixed.trainable = false;
  const Parameter b = store.declare(fixed);
  store.commit();
  Tape tape;
  const Tensor x = random_tensor({4, 16}, 1), dy = random_tensor({4, 5}, 2);
  store.begin_step();
  tape.backward(joined_linear(x, store, {a, b}), dy);
  EXPECT_LE(difference(a->gradient, matmul(dy.columns(0, 2), x, {true, false})), 1e-12);
}

}  // namespace
}  // namespace weft
