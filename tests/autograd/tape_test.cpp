#include "autograd/tape.h"

#include "autograd/checkpoint.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/rms_norm.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

TEST(Tape, NothingIsRecordedWithoutATapeOrADifferentiableInput) {
  const Variable x = random_tensor({3, 4}, 1);
  EXPECT_FALSE(exp(x).differentiable());
  Tape tape;
  exp(x);
  EXPECT_EQ(tape.size(), 0);
  exp(tape.input(x));
  EXPECT_EQ(tape.size(), 1);
  {
    const NoTape pause;
    EXPECT_FALSE(exp(x).differentiable());
  }
  EXPECT_EQ(Tape::current(), &tape);
}

TEST(Tape, AVariableOfAnotherTapeIsRefused) {
  Tape outer;
  const Variable x = outer.input(random_tensor({2}, 1));
  Tape inner;
  const Tensor own = random_tensor({2}, 2), seed = random_tensor({2}, 3);
  const Variable y = inner.input(own);
  EXPECT_THROW(exp(x), Error);
  EXPECT_EQ(inner.size(), 0);  // and leaves no half of an entry
  inner.backward(exp(y), seed);
  EXPECT_LE(difference(inner.gradient(y), multiply(seed, exp(own))), 1e-15);
}

// The norm of a stream that goes on beside it: what the stream brings back is added by the norm's own kernel,
// and the sum has the bits of the op of sums.
TEST(Tape, ANormAddsWhatCameBackBefore) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Tensor x = random_tensor({5, 24}, 1, dtype), seed = random_tensor({5, 24}, 2, dtype),
                 straight = random_tensor({5, 24}, 3, dtype);
    const auto gradient = [&](bool norm, bool stream) {
      Tape tape;
      const Variable v = tape.input(x), y = rms_norm(v), z = scale(v, 2);
      std::vector<Variable> out;
      std::vector<Tensor> seeds;
      if (norm) out.push_back(y), seeds.push_back(seed);
      if (stream) out.push_back(z), seeds.push_back(straight);
      tape.backward(out, seeds);
      return tape.gradient(v);
    };
    EXPECT_TRUE(same_bits(gradient(true, true), add(gradient(false, true), gradient(true, false))));
  }
}

// A weight, or some of its rows, used again and again: one gradient, made of many products, added to what was
// there and left to others.
TEST(Tape, GatheredWeightsHaveTheGradientOfPlainOnes) {
  const int64_t uses = 21, rows = 16;  // more than are made at a time
  const Tensor x = random_tensor({uses * rows, 5}, 1), g = random_tensor({uses * rows, 6}, 2);
  for (const auto& [begin, end] : {std::pair{0, 6}, {2, 4}})
    for (const bool before : {false, true}) {
      ParameterStore store(Dtype::f64);
      const Parameter w = store.declare({"w", {6, 5}, ParameterKind::matrix, Initializer::normal(1)});
      store.commit();
      const auto gradient = [&](bool gather) {
        store.begin_step();
        Tape tape;
        const Variable weight = gather ? gathered(w, begin, end) : slice(w, 0, begin, end);
        std::vector<Variable> out;
        std::vector<Tensor> seeds;
        for (int64_t i = 0; i < uses; ++i) {
          const Variable own = tape.input(x.rows(i * rows, (i + 1) * rows));
          out.push_back(linear(own, weight));
          seeds.push_back(g.rows(i * rows, (i + 1) * rows).columns(begin, end));
        }
        if (before) out.push_back(linear(x, w)), seeds.push_back(g);
        tape.backward(out, seeds);
        EXPECT_TRUE(store.finish_step().empty());
        return w->gradient.to(Dtype::f64).contiguous();
      };
      const Tensor plain = scale(gradient(false), 1).value();
      EXPECT_LE(difference(gradient(true), plain), 1e-13) << begin << ' ' << before;
      const NoTape pause;
      EXPECT_FALSE(gathered(w).differentiable());
    }
}

TEST(Tape, AGradientThatTwoInputsShareIsNotSummedInPlace) {
  // add() hands the same tensor to both inputs; the later use of a must not change the gradient of b.
  Tape tape;
  const Variable a = tape.input(random_tensor({5}, 1)), b = tape.input(random_tensor({5}, 2));
  const Variable twice = scale(a, 3);
  const Tensor seed = random_tensor({5}, 3);
  tape.backward(add(add(a, b), twice), seed);
  EXPECT_LE(difference(tape.gradient(b), seed), 0.0);
  EXPECT_LE(difference(tape.gradient(a), scale(seed, 4)), 1e-15);
}

// A reshape records nothing. By add(), by into() (the weight of a product) and from the end, whatever comes
// first.
TEST(Tape, GradientsOfAllShapesOfAVariableMeet) {
  const Tensor flat = random_tensor({12}, 1), left = random_tensor({3, 2}, 2);
  {
    Tape tape;
    reshape(exp(tape.input(flat)), {3, 4});
    EXPECT_EQ(tape.size(), 1);
  }
  for (const bool late : {false, true})
    expect_gradients(
        [=](const std::vector<Variable>& x) {
          const Variable y = exp(x[0]);
          Variable square;
          if (late) square = sigmoid(reshape(y, {4, 3}));
          const Variable product = matmul(x[1], reshape(y, {2, 6}));
          if (!late) square = sigmoid(reshape(y, {4, 3}));
          return std::vector{product, square, y, reshape(y, {2, 2, 3})};
        },
        {flat, left});
}

TEST(Tape, SavedStorageIsCountedOnceAndFreedOnTheWayBack) {
  Tape tape;
  const Variable x = tape.input(random_tensor({8, 8}, 1));
  const Variable y = exp(x), z = square(y);
  EXPECT_EQ(tape.saved_bytes(), 3 * 8 * 8 * 8);  // x, y (saved by both), z
  tape.backward(z, random_tensor({8, 8}, 2));
  EXPECT_EQ(tape.saved_bytes(), 0);
}

TEST(Tape, ACollectiveRunsBackwardThoughNoGradientReachedIt) {
  static int runs = 0;
  runs = 0;
  Tape tape;
  const Variable x = tape.input(random_tensor({2}, 1));
  record_many(
      "gather", {x}, {random_tensor({4}, 2)}, save(), NoAttributes{},
      [](Backward& b, const NoAttributes&) {
        ++runs;
        EXPECT_FALSE(b.has_grad());
        EXPECT_EQ(to_values(b.grad()), std::vector<double>(4, 0.0));
      },
      true);
  tape.backward(exp(x), random_tensor({2}, 3));
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(tape.collectives(), std::vector<const char*>{"gather"});
}

struct Net {
  explicit Net(Dtype precision = Dtype::f64) : store(precision, default_device(), 7) {
    first = store.declare({"first", {6, 5}, ParameterKind::matrix, Initializer::normal(0.5)});
    tied = store.declare({"tied", {6, 6}, ParameterKind::matrix, Initializer::normal(0.5)});
    frozen = store.declare({"frozen", {6, 6}, ParameterKind::matrix, Initializer::normal(0.5), {}, false});
    unused = store.declare({"unused", {3}, ParameterKind::vector, Initializer::constant(1)});
    store.commit();
  }
  std::vector<Variable> inner(const std::vector<Variable>& v) const {
    return {add(silu(linear(v[0], tied)), linear(v[0], frozen))};
  }
  std::vector<Variable> block(const std::vector<Variable>& v, bool nested) const {
    std::vector<Variable> h{tanh(linear(v[0], first))};
    const Function f = [this](const std::vector<Variable>& x) { return inner(x); };
    h = nested ? checkpoint(h, f) : f(h);
    return {linear(h[0], tied)};  // the second use of the same weight
  }
  Variable forward(const Variable& x, int checkpointing) const {
    const Function f = [this, checkpointing](const std::vector<Variable>& v) {
      return block(v, checkpointing == 2);
    };
    return checkpointing > 0 ? checkpoint({x}, f)[0] : f({x})[0];
  }
  ParameterStore store;
  Parameter first, tied, frozen, unused;
};

// Weights, a tied weight, a frozen one, a block within a block: every gradient equal to the last bit.
TEST(Checkpoint, EqualsThePlainRunBitForBit) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    std::vector<std::vector<Tensor>> gradients;
    for (const int checkpointing : {0, 1, 2}) {
      Net net(dtype);
      net.store.begin_step();
      Tape tape;
      const Variable x = tape.input(random_tensor({9, 5}, 3, dtype));
      const Variable y = net.forward(x, checkpointing);
      EXPECT_TRUE(checkpointing == 0 || tape.size() == 1);
      tape.backward(y, random_tensor({9, 6}, 4, dtype));
      EXPECT_EQ(net.store.finish_step(), std::vector<std::string>{"unused"});
      gradients.push_back({y.value(), tape.gradient(x), net.first->gradient, net.tied->gradient});
      EXPECT_FALSE(net.frozen->gradient.defined());
    }
    for (size_t mode = 1; mode < 3; ++mode)
      for (size_t i = 0; i < gradients[0].size(); ++i)
        EXPECT_TRUE(same_bits(gradients[mode][i], gradients[0][i]))
            << name_of(dtype) << " mode " << mode << " tensor " << i;
  }
}

TEST(Checkpoint, GradientsAreRight) {
  Net net;
  expect_gradients([&](const std::vector<Variable>& v) { return std::vector{net.forward(v[0], 2)}; },
                   {random_tensor({4, 5}, 1)}, &net.store);
}

TEST(Checkpoint, AVariableThatIsNoInputIsRefused) {
  Tape tape;
  const Variable x = tape.input(random_tensor({3}, 1)), stray = tape.input(random_tensor({3}, 2));
  const Variable y =
      checkpoint({x}, [&](const std::vector<Variable>& v) { return std::vector{add(v[0], stray)}; })[0];
  EXPECT_THROW(tape.backward(y, random_tensor({3}, 3)), Error);
}

TEST(Parameters, MicroBatchesAddAndStepsStartAnew) {
  Net net;
  const Tensor x = random_tensor({4, 5}, 1), seed = random_tensor({4, 6}, 2);
  const auto pass = [&] {
    Tape tape;
    tape.backward(net.forward(x, 0), seed);
  };
  net.store.begin_step();
  pass();
  const Tensor once = scale(net.tied->gradient, 1.0).value();
  pass();
  EXPECT_LE(difference(net.tied->gradient, scale(once, 2)), 1e-14);
  net.store.begin_step();  // no zeroing in between: the first writer overwrites
  pass();
  EXPECT_TRUE(same_bits(net.tied->gradient, once));
}

TEST(Parameters, InitialValuesDependOnTheNameAlone) {
  ParameterStore a(Dtype::f32, default_device(), 5), b(Dtype::bf16, default_device(), 5);
  const Parameter pa = a.declare({"w", {4, 4}, ParameterKind::matrix, Initializer::normal(1)});
  b.declare({"other", {8, 3}, ParameterKind::matrix, Initializer::uniform(1)});
  const Parameter pb = b.declare({"w", {4, 4}, ParameterKind::matrix, Initializer::normal(1)});
  a.commit();
  b.commit();
  EXPECT_TRUE(same_bits(pa->master, pb->master));
  EXPECT_EQ(pb->working.dtype(), Dtype::bf16);
  EXPECT_TRUE(same_bits(pb->working, pb->master.to(Dtype::bf16)));
  EXPECT_THROW(a.declare({"late", {1}, ParameterKind::vector, {}}), Error);
}

}  // namespace
}  // namespace weft
