#include "autograd/ops/projected_cross_entropy.h"

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

// hidden, weight, targets, token weights
std::vector<Tensor> problem(int64_t tokens, int64_t vocabulary, int64_t width) {
  std::vector<double> weights = to_values(random_tensor({tokens}, 4));
  for (double& w : weights) w = std::abs(w);
  const Tensor targets = random_ints(tokens, vocabulary, 3);
  edit<int32_t>(targets, [&](int32_t* t) {
    for (int64_t i = 2; i < tokens; i += 5) t[i] = -1;
  });
  return {random_tensor({tokens, width}, 1), random_tensor({vocabulary, width}, 2), targets,
          from_values({tokens}, Dtype::f64, weights)};
}

// The loss of the inputs above; the token weights are constants.
Function loss(CrossEntropyOptions options, bool weighted) {
  return [=](const std::vector<Variable>& v) mutable {
    if (weighted) options.weights = v[3].value();
    return std::vector{projected_cross_entropy(v[0], v[1], v[2], options).loss};
  };
}

TEST(ProjectedCrossEntropy, AgainstTheDefinition) {
  const int64_t n = 11, vocabulary = 37, width = 5;
  const std::vector<Tensor> p = problem(n, vocabulary, width);
  const std::vector<double> x = to_values(p[0]), w = to_values(p[1]), target = to_values(p[2]),
                            token_weight = to_values(p[3]);
  for (const double cap : {0.0, 3.0})
    for (const double z : {0.0, 0.01}) {
      double total = 0;
      std::vector<double> nll(n);
      for (int64_t i = 0; i < n; ++i) {
        if (target[i] < 0) continue;
        double sum = 0, at_target = 0;
        for (int64_t j = 0; j < vocabulary; ++j) {
          double logit = 0;
          for (int64_t c = 0; c < width; ++c) logit += x[i * width + c] * w[j * width + c];
          if (cap > 0) logit = cap * std::tanh(logit / cap);
          sum += std::exp(logit);
          if (j == target[i]) at_target = logit;
        }
        nll[i] = std::log(sum) - at_target;
        total += token_weight[i] * (nll[i] + z * std::log(sum) * std::log(sum));
      }
      for (const int64_t chunk : {0, 1, 4, 11}) {
        const CrossEntropy c = projected_cross_entropy(p[0], p[1], p[2], {chunk, cap, z, p[3]});
        EXPECT_EQ(c.loss.shape(), Shape{});
        EXPECT_NEAR(to_values(c.loss)[0], total, 1e-11);
        EXPECT_LE(difference(c.nll, from_values({n}, Dtype::f64, nll)), 1e-12);
      }
    }
}

TEST(ProjectedCrossEntropy, Gradients) {
  const std::vector<Tensor> p = problem(11, 37, 5);
  for (const int64_t chunk : {0, 4}) {
    expect_gradients(loss({chunk}, false), {p[0], p[1], p[2]});
    const Function everything = [=](const std::vector<Variable>& v) {
      return std::vector{projected_cross_entropy(v[0], v[1], v[2], {chunk, 3, 0.01, p[3]}).loss};
    };
    expect_gradients(everything, {p[0], p[1], p[2]});
    expect_precision(everything, {p[0], p[1], p[2]});
  }
  expect_precision(loss({}, false), {p[0], p[1], p[2]});
  expect_meta_shapes(loss({4}, true), p);
  expect_op(loss({}, false), problem(1, 1, 1));
  expect_op(loss({}, false), problem(0, 3, 2));
  expect_same_bits_on_threads(loss({64}, false), problem(130, 190, 24));
}

TEST(ProjectedCrossEntropy, OneSideAloneMayBeLearned) {
  const std::vector<Tensor> p = problem(7, 9, 4);
  expect_gradients(
      [&](const std::vector<Variable>& v) {
        return std::vector{projected_cross_entropy(v[0], p[1], p[2]).loss};
      },
      {p[0]});
  expect_gradients(
      [&](const std::vector<Variable>& v) {
        return std::vector{projected_cross_entropy(p[0], v[0], p[2]).loss};
      },
      {p[1]});
}

TEST(ProjectedCrossEntropy, NothingButIgnoredTargets) {
  Tape tape;
  const Variable x = tape.input(random_tensor({3, 4}, 1, Dtype::bf16)),
                 w = tape.input(random_tensor({5, 4}, 2, Dtype::bf16));
  const CrossEntropy c = projected_cross_entropy(x, w, from_ints({-1, -1, -1}), {0, 0, 0.1, {}});
  EXPECT_EQ(c.loss.dtype(), Dtype::f32);
  EXPECT_EQ(to_values(c.loss)[0], 0);
  tape.backward(c.loss);
  EXPECT_EQ(to_values(tape.gradient(x)), std::vector<double>(12, 0.0));
  EXPECT_EQ(to_values(tape.gradient(w)), std::vector<double>(20, 0.0));
}

// Logits of +-1e4, certainty, and a target at probability 0.
TEST(ProjectedCrossEntropy, ExtremeLogitsStayFinite) {
  const Tensor x = from_values({2, 1}, Dtype::f32, {100, 100}),
               w = from_values({3, 1}, Dtype::f32, {100, -100, 0});
  const CrossEntropy c = projected_cross_entropy(x, w, from_ints({0, 1}));
  EXPECT_EQ(to_values(c.nll), (std::vector<double>{0, 20000}));
  // Near certainty: -log p = log(1 + e^-12), far below the last digit of a logit of 10000.
  const Tensor near = from_values({2, 1}, Dtype::f32, {10000, 9988});
  const CrossEntropy d = projected_cross_entropy(from_values({1, 1}, Dtype::f32, {1}), near, from_ints({0}));
  EXPECT_NEAR(to_values(d.nll)[0], std::log1p(std::exp(-12.0)), 1e-7);
}

TEST(ProjectedCrossEntropy, ATargetOutsideTheVocabularyIsADataErrorThatNamesIt) {
  for (const int32_t id : {5, -2}) try {
      projected_cross_entropy(on_cpu({2, 4}), on_cpu({5, 4}), from_ints({0, id}, Device::cpu));
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data);
      EXPECT_NE(std::string(e.what()).find(text("id ", id, " ")), std::string::npos) << e.what();
    }
}

// The weight's gradient lands in the store in f32, scaled, and adds to what a tied use wrote.
TEST(ProjectedCrossEntropy, ParameterGradientsAreScaledAndAdded) {
  ParameterStore store(Dtype::bf16);
  const Parameter w = store.declare({"w", {19, 6}, ParameterKind::embedding, Initializer::normal(1)});
  store.commit();
  const Tensor x = random_tensor({8, 6}, 1, Dtype::bf16), targets = random_ints(8, 19, 2);
  Tape exact_tape;
  const Variable exact = exact_tape.input(w->working.to(Dtype::f64));
  exact_tape.backward(projected_cross_entropy(x.to(Dtype::f64), exact, targets).loss,
                      from_values({}, Dtype::f64, {0.75}));
  store.begin_step();
  for (int pass = 0; pass < 2; ++pass) {
    Tape tape;
    const CrossEntropy c = projected_cross_entropy(x, w, targets, {3});
    EXPECT_EQ(tape.saved_bytes(), 19 * 6 * 4);
    tape.backward(c.loss, from_values({}, Dtype::f32, {0.375}));
  }
  // A GPU multiplies in the model's type, so the gradient of the logits is rounded to it.
  const Dtype product = default_device() == Device::cuda ? Dtype::bf16 : Dtype::f32;
  EXPECT_LE(difference(w->gradient, exact_tape.gradient(exact)), tolerance::of(product));
  const NoTape pause;
  EXPECT_FALSE(projected_cross_entropy(x, w, targets).loss.differentiable());
}

// A seed that is known beforehand: the same gradients, and none of the weight's size kept.
TEST(ProjectedCrossEntropy, ASeedMakesGradientsAtOnce) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    std::vector<std::vector<Tensor>> results;
    for (const double seed : {0.0, 0.375}) {
      ParameterStore store(dtype);
      const Parameter w = store.declare({"w", {19, 6}, ParameterKind::embedding, Initializer::normal(1)});
      store.commit();
      store.begin_step();
      for (int pass = 0; pass < 2; ++pass) {
        Tape tape;
        const Variable x = tape.input(random_tensor({8, 6}, 1, dtype));
        const CrossEntropy c = projected_cross_entropy(
            x, w, random_ints(8, 19, 2),
            {.chunk = 3, .z_loss = 0.1, .seed = seed != 0 ? full({1}, seed, Dtype::f64) : Tensor()});
        EXPECT_EQ(tape.saved_bytes(),
                  8 * 6 * size_of(dtype) + (seed != 0 ? 0 : 19 * 6 * size_of(c.loss.dtype())));
        tape.backward(c.loss, from_values({}, c.loss.dtype(), {0.375}));
        results.push_back({c.loss, tape.gradient(x)});
      }
      EXPECT_TRUE(store.finish_step().empty());
      results.back().push_back(w->gradient);
    }
    for (size_t i = 0; i < 3; ++i)
      EXPECT_LE(difference(results[3][i], results[1][i]), tolerance::of(dtype)) << name_of(dtype) << i;
    EXPECT_TRUE(same_bits(results[0][0], results[2][0]));
  }
  Tape tape;  // a weight that is no parameter
  const Variable w = tape.input(random_tensor({5, 4}, 2));
  const CrossEntropy c = projected_cross_entropy(random_tensor({3, 4}, 1), w, from_ints({0, 1, -1}),
                                                 {.seed = full({1}, 2, Dtype::f64)});
  tape.backward(c.loss, from_values({}, Dtype::f64, {2}));
  Tape plain;
  const Variable v = plain.input(w.value());
  plain.backward(projected_cross_entropy(random_tensor({3, 4}, 1), v, from_ints({0, 1, -1})).loss,
                 from_values({}, Dtype::f64, {2}));
  EXPECT_LE(difference(tape.gradient(w), plain.gradient(v)), 1e-12);
}

// Against f64, many tokens in one chunk: all that a row's loss is made of, rows of fewer vectors than threads
// and of more.
TEST(ProjectedCrossEntropy, ManyRowsOfBf16) {
  for (const int64_t vocabulary : {int64_t{104}, int64_t{6408}})
    for (const double cap : {0.0, 3.0}) {
      const std::vector<Tensor> p = problem(1601, vocabulary, 6);
      std::vector<std::vector<Tensor>> results;
      for (const Dtype dtype : {Dtype::f64, Dtype::bf16}) {
        ParameterStore store(dtype);
        const Parameter w =
            store.declare({"w", {vocabulary, 6}, ParameterKind::embedding, Initializer::normal(1)});
        store.commit();
        w->working.copy_from(p[1].to(Dtype::bf16).to(dtype));
        store.begin_step();
        Tape tape;
        const Variable x = tape.input(p[0].to(Dtype::bf16).to(dtype));
        const CrossEntropy c = projected_cross_entropy(x, w, p[2],
                                                       {.chunk = 1601,
                                                        .softcap = cap,
                                                        .z_loss = 0.01,
                                                        .weights = p[3],
                                                        .seed = full({1}, 0.5, Dtype::f64)});
        tape.backward(c.loss, full({}, 0.5, c.loss.dtype()));
        results.push_back({c.nll, tape.gradient(x), w->gradient});
      }
      for (size_t i = 0; i < 3; ++i)
        EXPECT_LE(norm_difference(results[1][i], results[0][i]), tolerance::kBf16Norm)
            << vocabulary << " " << cap << " " << i;
    }
}

// A row of 50304 logits in bf16 is 100,608 bytes.
TEST(ProjectedCrossEntropy, ChunksOfAGpuGrowWithTheBatch) {
  const int64_t row = 2 * 50304;
  const auto chunk = [&](int64_t tokens) { return loss_chunk(tokens, row, true, true); };
  EXPECT_EQ(chunk(32768), 8192) << "a quarter";
  EXPECT_EQ(chunk(8192), 2048) << "as even as 256 MiB allow";
  EXPECT_EQ(chunk(1000), 1024) << "whole tiles";
  EXPECT_EQ(chunk(0), 128);
  EXPECT_EQ(loss_chunk(32768, 2 * row, true, false), 1280) << "nobody wants the weight's gradient";
  for (const int64_t tokens : {1, 3000, 12345, 50000, 131072, 1 << 20}) {
    const int64_t size = chunk(tokens);
    EXPECT_EQ(size % 128, 0) << tokens;
    EXPECT_LE(size * row, int64_t{1} << 30) << tokens;
    EXPECT_GE(size * row, std::min<int64_t>(tokens * row, int64_t{100} << 20)) << tokens;
    EXPECT_LT((tokens + size - 1) / size * size - tokens, size) << tokens;
  }
  EXPECT_EQ(loss_chunk(32768, 4 * 2048, false, true), 8192) << "64 MiB on a CPU";
}

// The peak beside what is kept is one chunk of logits, not all of them.
TEST(ProjectedCrossEntropy, LogitsExistByTheChunk) {
  const int64_t tokens = 96, vocabulary = 2048, chunk = 8;
  const Tensor x = random_tensor({tokens, 4}, 1, Dtype::f32),
               w = random_tensor({vocabulary, 4}, 2, Dtype::f32),
               targets = random_ints(tokens, vocabulary, 3);
  projected_cross_entropy(x, w, targets, {chunk});  // allocates what a library keeps
  reset_peak(default_device());
  const int64_t before = memory_report(default_device()).bytes;
  Tape tape;
  projected_cross_entropy(tape.input(x), tape.input(w), targets, {chunk});
  const int64_t extra = memory_report(default_device()).peak_bytes - before;
  EXPECT_LE(extra, 4 * (chunk * vocabulary + tokens * 4 + vocabulary * 4) + 64 * 1024);
}

}  // namespace
}  // namespace weft
