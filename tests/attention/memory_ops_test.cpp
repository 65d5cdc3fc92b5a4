#include "attention/memory_ops.h"

#include <string>
#include <thread>

#include "attention/merge_partials.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

Tensor gates(const Shape& shape, uint64_t seed) { return sigmoid(random_tensor(shape, seed)).value(); }

// Both ops together are the recurrences with whole gradients, token by token.
TEST(MemoryOps, AreTheRecurrences) {
  for (const int64_t n : {1, 5, few() ? 33 : 70}) {
    const int64_t h = 3, in = 4, out = 6;
    const Variable step = gates({h, n, 1}, 1), keep = gates({h, n, 1}, 2), momentum = gates({h, n, 1}, 3);
    const Variable x = random_tensor({h, n, in}, 4), y = random_tensor({h, n, out}, 5);
    for (const bool with_momentum : {true, false}) {
      Variable a = random_tensor({h, in, out}, 6), s = random_tensor({h, in, out}, 7);
      if (!with_momentum) s = zeros({h, in, out}, Dtype::f64);
      const LearningCoefficients c = learning_coefficients(step, keep, with_momentum ? momentum : Variable());
      const auto after = after_learning(a, with_momentum ? s : Variable(), x, y, c.last);
      EXPECT_EQ(after.size(), with_momentum ? 2U : 1U);
      const Variable a0 = a, s0 = s;
      std::vector<Variable> gradients, weights;
      for (int64_t t = 0; t < n; ++t) {
        const auto own = [&](const Variable& v) { return slice(v, 1, t, t + 1); };
        gradients.push_back(matmul(own(x), own(y), {true, false}));
        s = subtract(with_momentum ? multiply(s, own(momentum)) : Variable(zeros(s.shape(), Dtype::f64)),
                     multiply(gradients.back(), own(step)));
        a = add(multiply(a, own(keep)), s);
        Variable sum = add(multiply(a0, own(c.from_a)), multiply(s0, own(c.from_s)));
        for (int64_t j = 0; j < n; ++j)
          sum = subtract(sum, j <= t ? multiply(gradients[j], slice(own(c.taken), 2, j, j + 1))
                                     : multiply(a0, slice(own(c.taken), 2, j, j + 1)));
        EXPECT_LE(difference(sum, a), 1e-12) << n << " at " << t;
        weights.push_back(a);
      }
      EXPECT_LE(difference(after[0], a), 1e-12) << n;
      const Variable q = random_tensor({h, n, in}, 8);
      const Variable read = read_while_learning(q, a0, with_momentum ? s0 : Variable(), x, y, c);
      for (int64_t t = 0; t < n; ++t)
        EXPECT_LE(difference(slice(read, 1, t, t + 1), matmul(slice(q, 1, t, t + 1), weights[t])), 1e-12)
            << n;
      if (with_momentum) {
        EXPECT_LE(difference(after[1], s), 1e-12) << n;
      }
    }
  }
}

// Ranks of one process are threads; a kernel's limits are the process's.
TEST(MemoryOps, ThreadsWithChunksOfTheirOwn) {
  std::vector<std::thread> threads;
  std::vector<std::string> failures(4);
  for (int64_t n = 1; n <= 4; ++n)
    threads.emplace_back([n, &failure = failures[n - 1]] {
      try {
        const Tensor step = gates({2, 25 * n, 1}, 1), seed = random_tensor({2, 25 * n, 25 * n}, 2);
        std::vector<Tensor> first;
        for (int i = 0; i < 100; ++i) {
          Tape tape;
          const Variable x = tape.input(step);
          const Variable taken = learning_coefficients(x, x, x).taken;
          tape.backward(taken, seed);
          if (first.empty()) first = {taken.value(), tape.gradient(x)};
          if (difference(taken, first[0]) + difference(tape.gradient(x), first[1]) != 0)
            failure = "other bits";
        }
      } catch (const std::exception& e) {
        failure = e.what();
      }
    });
  for (std::thread& t : threads) t.join();
  for (const std::string& failure : failures) EXPECT_EQ(failure, "");
}

TEST(MemoryOps, Gradients) {
  const std::vector<Tensor> inputs{gates({2, 4, 1}, 1), gates({2, 4, 1}, 2), gates({2, 4, 1}, 3)};
  const Function coefficients = [](const std::vector<Variable>& v) {
    const auto c = learning_coefficients(v[0], v[1], v.size() > 2 ? v[2] : Variable());
    return std::vector{c.from_a, c.from_s, c.taken, c.last};
  };
  expect_gradients(coefficients, inputs);
  expect_meta_shapes(coefficients, inputs);
  expect_gradients(coefficients, {inputs[0], inputs[1]});
  const std::vector<Tensor> state{random_tensor({2, 3, 5}, 4), random_tensor({2, 4, 3}, 5),
                                  random_tensor({2, 4, 5}, 6), random_tensor({2, 2, 6}, 7),
                                  random_tensor({2, 3, 5}, 8)};
  const Function after = [](const std::vector<Variable>& v) {
    return after_learning(v[0], v.size() > 4 ? v[4] : Variable(), v[1], v[2], v[3]);
  };
  expect_gradients(after, state);
  expect_meta_shapes(after, state);
  expect_gradients(after, {state[0], state[1], state[2], state[3]});
  // x, a, in, out, from_a, taken, s, from_s
  const std::vector<Tensor> reading{random_tensor({2, 4, 3}, 1),
                                    state[0],
                                    state[1],
                                    state[2],
                                    random_tensor({2, 4, 1}, 2),
                                    random_tensor({2, 4, 4}, 3),
                                    state[4],
                                    random_tensor({2, 4, 1}, 4)};
  const Function read = [&](const std::vector<Variable>& v) {
    const bool both = v.size() > 6;
    return std::vector{read_while_learning(v[0], v[1], both ? v[6] : Variable(), v[2], v[3],
                                           {v[4], both ? v[7] : v[4], v[5], {}})};
  };
  expect_gradients(read, reading);
  expect_meta_shapes(read, reading);
  expect_gradients(read, {reading.begin(), reading.begin() + 6});
}

// Chunk after chunk: the slope of |k A - v|^2 where it begins, and what it leaves behind.
std::vector<Variable> composed_learning(const std::vector<Variable>& v, int64_t chunks) {
  Variable a = v[0], s = v[1];
  const int64_t h = a.dim(0);
  std::vector<Variable> errors, before_a, before_s;
  for (int64_t c = 0; c < chunks; ++c) {
    const auto own = [&](const Variable& x) { return slice(x, 0, c * h, (c + 1) * h); };
    errors.push_back(scale(subtract(matmul(own(v[2]), a), own(v[3])), 2));
    before_a.push_back(a);
    before_s.push_back(s);
    const auto after = after_learning(a, s, own(v[2]), errors.back(), own(v[4]));
    a = after[0], s = after[1];
  }
  return {concatenate(errors, 0), concatenate(before_a, 0), concatenate(before_s, 0), a, s};
}

TEST(MemoryOps, AMatrixLearnsChunkByChunk) {
  for (const int64_t chunks : {1, 2, 5})
    for (const int64_t n : {1, 4}) {
      const std::vector<Tensor> inputs{
          random_tensor({2, 3, 5}, 1), random_tensor({2, 3, 5}, 2), random_tensor({chunks * 2, n, 3}, 3),
          random_tensor({chunks * 2, n, 5}, 4), random_tensor({chunks * 2, 2, n + 2}, 5, Dtype::f64, 0.4)};
      const Function f = [&](const std::vector<Variable>& v) {
        const MatrixLearning m = learn_matrix(v[0], v[1], v[2], v[3], v[4], chunks);
        EXPECT_EQ(m.before_a.shape(), Shape({chunks * 2, 3, 5}));
        // Of a single chunk they are inputs.
        return chunks == 1 ? std::vector{m.error, m.a, m.s}
                           : std::vector{m.error, m.before_a, m.before_s, m.a, m.s};
      };
      const Function composed = [&](const std::vector<Variable>& v) {
        std::vector<Variable> y = composed_learning(v, chunks);
        if (chunks == 1) y.erase(y.begin() + 1, y.begin() + 3);
        return y;
      };
      expect_gradients(f, inputs);
      expect_meta_shapes(f, inputs);
      for (const Dtype type : {Dtype::f64, Dtype::f32}) {
        const auto typed = each_float(inputs, [&](const Tensor& x) { return x.to(type); });
        const std::vector<Tensor> expected = outputs_and_gradients(composed, typed);
        for (const bool views : {false, true}) {
          const std::vector<Tensor> got =
              outputs_and_gradients(f, views ? each_float(typed, as_columns) : typed, views);
          for (size_t i = 0; i < got.size(); ++i)
            EXPECT_LE(difference(got[i], expected[i]), tolerance::of(type))
                << chunks << " " << n << ", " << i;
        }
      }
    }
}

// What others hold of its gradients stays as it was.
TEST(MemoryOps, LearningLeavesAdjointsAlone) {
  const Tensor seed = random_tensor({4, 3, 5}, 6), kept = random_tensor({4, 3, 5}, 6);
  Tape tape;
  const Variable k = tape.input(random_tensor({4, 3, 2}, 1));
  const MatrixLearning m = learn_matrix(random_tensor({2, 2, 5}, 2), random_tensor({2, 2, 5}, 3), k,
                                        random_tensor({4, 3, 5}, 4), random_tensor({4, 2, 5}, 5), 2);
  tape.backward(m.error, seed);
  EXPECT_TRUE(same_bits(seed, kept));
}

// More tokens than a block has threads.
TEST(MemoryOps, LongChunks) {
  const int64_t n = 600;
  const auto run = [&](const Tensor& keep) {
    Tape tape;
    const Variable step = tape.input(gates({1, n, 1}, 1)), kept = tape.input(keep),
                   momentum = tape.input(gates({1, n, 1}, 3));
    const auto c = learning_coefficients(step, kept, momentum);
    tape.backward({c.taken, c.last}, {random_tensor({1, n, n}, 5), random_tensor({1, 2, n + 2}, 6)});
    return std::vector{c.taken.value(), tape.gradient(step), tape.gradient(kept), tape.gradient(momentum)};
  };
  const Tensor keep = gates({1, n, 1}, 2);
  const std::vector<Tensor> y = run(keep);
  const std::vector<double> taken = to_values(y[0]), kept = to_values(keep), dstep = to_values(y[1]);
  const std::vector<double> theta = to_values(gates({1, n, 1}, 1)), eta = to_values(gates({1, n, 1}, 3));
  const std::vector<double> g = to_values(random_tensor({1, n, n}, 5)),
                            e = to_values(random_tensor({1, 2, n + 2}, 6));
  for (const int64_t j : {0, 1, 300, 598, 599}) {
    double a = 0, s = 0, sum = 0;
    for (int64_t t = j; t < n; ++t) {
      s = t == j ? 1 : eta[t] * s;
      a = kept[t] * a + s;
      EXPECT_NEAR(taken[t * n + j], theta[j] * a, 1e-12);
      sum += g[t * n + j] * a;
    }
    EXPECT_NEAR(dstep[j], sum + e[2 + j] * a + e[n + 2 + 2 + j] * s, 1e-10) << j;
  }
  // One keep or momentum alone enters linearly.
  const auto loss = [&](const std::vector<double>& keeps, const std::vector<double>& momenta) {
    const auto c = learning_coefficients(gates({1, n, 1}, 1), from_values({1, n, 1}, Dtype::f64, keeps),
                                         from_values({1, n, 1}, Dtype::f64, momenta));
    const std::vector<double> all = to_values(c.taken), last = to_values(c.last);
    double sum = 0;
    for (size_t i = 0; i < all.size(); ++i) sum += all[i] * g[i];
    for (size_t i = 0; i < last.size(); ++i) sum += last[i] * e[i];
    return sum;
  };
  const std::vector<double> dkeep = to_values(y[2]), dmomentum = to_values(y[3]);
  for (const size_t t : {0, 1, 40, 300, 599}) {
    std::vector<double> keeps = kept, momenta = eta;
    keeps[t] += 1;
    momenta[t] += 1;
    EXPECT_NEAR(dkeep[t], loss(keeps, eta) - loss(kept, eta), 1e-8) << t;
    EXPECT_NEAR(dmomentum[t], loss(kept, momenta) - loss(kept, eta), 1e-8) << t;
  }
}

Variable unit_length(const Variable& x) {
  return multiply(x, reciprocal(sqrt(scale(sum(square(x), -1, true), 1, 1e-6))));
}

// The op as a composition. rows (B (skip + n), ...), logits (B n, ...)
std::vector<Variable> composed_tokens(const Variable& rows, const Variable& logits,
                                      const MemoryTokenSizes& s) {
  const Dtype type = wide_of(rows.dtype());
  const int64_t n = logits.dim(0) / s.documents, width = rows.dim(1);
  const Variable tokens =
      cast(slice(reshape(rows, {s.documents, s.skip + n, width}), 1, s.skip, s.skip + n), type);
  std::vector<Variable> out;
  int64_t at = 0;
  for (const int64_t size : {s.key, s.key, s.value}) {
    const Variable part =
        silu(reshape(slice(tokens, 2, at, at + s.heads * size), {s.documents, n, s.heads, size}));
    const Variable one = out.size() < 2 ? unit_length(part) : part;
    out.push_back(reshape(permute(one, {0, 2, 1, 3}), {s.documents * s.heads, n, size}));
    at += s.heads * size;
  }
  const Variable gate = sigmoid(cast(logits, type));
  for (int64_t i = 0; i < 3; ++i) {
    const Variable g = reshape(slice(gate, 1, i * s.heads, (i + 1) * s.heads), {s.documents, n, s.heads});
    const Variable by_head = reshape(permute(g, {0, 2, 1}), {s.documents * s.heads, n, 1});
    out.push_back(i < 2 ? by_head : scale(by_head, -1, 1));
  }
  return out;
}

TEST(MemoryOps, TokensAreTheirComposition) {
  for (const int64_t skip : {0, 3}) {
    const MemoryTokenSizes sizes{2, skip, 3, 4, 5};
    const int64_t n = 6;
    const std::vector<Tensor> inputs{random_tensor({2 * (skip + n), 3 * 13}, 1),
                                     random_tensor({2 * n, 9}, 2)};
    const Function f = [&](const std::vector<Variable>& v) { return memory_tokens(v[0], v[1], sizes); };
    expect_op(f, inputs);
    const std::vector<Tensor> got = outputs_and_gradients(f, inputs);
    const std::vector<Tensor> expected = outputs_and_gradients(
        [&](const std::vector<Variable>& v) { return composed_tokens(v[0], v[1], sizes); }, inputs);
    for (size_t i = 0; i < got.size(); ++i) EXPECT_LE(difference(got[i], expected[i]), 1e-12) << i;
  }
}

TEST(MemoryOps, HeadsTogether) {
  const Tensor y = random_tensor({6, 4, 5}, 1);  // 2 documents, 3 heads
  const Function f = [](const std::vector<Variable>& v) {
    return std::vector{heads_together(v[0], 2, v[0].dtype())};
  };
  expect_gradients(f, {y});
  expect_meta_shapes(f, {y});
  EXPECT_TRUE(same_bits(f({y})[0], reshape(permute(reshape(y, {2, 3, 4, 5}), {0, 2, 1, 3}), {8, 15})));
  EXPECT_EQ(heads_together(y.to(Dtype::f32), 2, Dtype::bf16).dtype(), Dtype::bf16);
}

TEST(MergePartials, AreSharesOfOneSoftmax) {
  const Tensor a = random_tensor({5, 2, 3}, 1), b = random_tensor({5, 2, 3}, 2);
  const Tensor l = random_tensor({5, 2}, 3), m = random_tensor({5, 2}, 4);
  const Function f = [](const std::vector<Variable>& v) { return merge_partials(v[0], v[1], v[2], v[3]); };
  expect_gradients(f, {a, l, b, m});
  expect_meta_shapes(f, {a, l, b, m});
  const auto y = merge_partials(a, l, b, m);
  const std::vector<double> o = to_values(y[0]), lse = to_values(y[1]), A = to_values(a), B = to_values(b),
                            L = to_values(l), M = to_values(m);
  for (size_t i = 0; i < lse.size(); ++i) {
    const double p = std::exp(L[i]), r = std::exp(M[i]);
    EXPECT_NEAR(lse[i], std::log(p + r), 1e-12);
    for (size_t c = 3 * i; c < 3 * i + 3; ++c) EXPECT_NEAR(o[c], (p * A[c] + r * B[c]) / (p + r), 1e-12);
  }
}

TEST(MergePartials, NoKey) {
  const Tensor none = full({1, 1}, -INFINITY, Dtype::f64), some = full({1, 1}, 0.5, Dtype::f64);
  const Tensor zero = zeros({1, 1, 2}, Dtype::f64), o = random_tensor({1, 1, 2}, 1);
  EXPECT_TRUE(same_bits(merge_partials(zero, none, o, some)[0], o));
  EXPECT_TRUE(same_bits(merge_partials(o, some, zero, none)[0], o));
  const auto y = merge_partials(zero, none, zero, none);
  EXPECT_TRUE(same_bits(y[0], zero));
  EXPECT_EQ(to_values(y[1])[0], -INFINITY);
}

}  // namespace
}  // namespace weft
