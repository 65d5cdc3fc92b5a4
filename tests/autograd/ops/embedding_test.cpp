#include "autograd/ops/embedding.h"

#include <algorithm>
#include <random>

#include "tests/autograd/ops/op_checks.h"

namespace weft {
namespace {

std::vector<Variable> look_up(const std::vector<Variable>& v) { return {embedding(v[0], v[1])}; }

TEST(Embedding, ValuesAndGradients) {
  const Tensor table = random_tensor({5, 3}, 1);
  const Tensor ids = from_ints({4, 0, 4, 2, 4, 0});
  const std::vector<double> y = to_values(embedding(table, ids)), t = to_values(table);
  const int32_t expected[] = {4, 0, 4, 2, 4, 0};
  for (int i = 0; i < 6; ++i)
    for (int c = 0; c < 3; ++c) EXPECT_EQ(y[i * 3 + c], t[expected[i] * 3 + c]);
  expect_op(look_up, {table, ids});
  expect_op(look_up, {random_tensor({1, 1}, 2), from_ints({0})});
  expect_op(look_up, {table, from_ints({})});
  expect_same_bits_on_threads(look_up, {random_tensor({70, 193}, 3), random_ints(301, 70, 4)});
}

TEST(Embedding, AnIdOutsideTheTableIsADataErrorThatNamesIt) {
  for (const int32_t id : {5, -1}) try {
      embedding(on_cpu({5, 3}), from_ints({0, id}, Device::cpu));
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data);
      EXPECT_NE(std::string(e.what()).find(text("id ", id, " ")), std::string::npos) << e.what();
    }
  EXPECT_THROW(embedding(random_tensor({5, 3}, 1), random_tensor({2}, 1)), Error);
}

// A parameter's gradient is cleared by the first writer of a step, and rows without a token stay zero.
TEST(Embedding, ParameterGradientsStartAnewAndAdd) {
  ParameterStore store(Dtype::bf16);
  const Parameter table = store.declare({"t", {4, 2}, ParameterKind::embedding, Initializer::normal(1)});
  store.commit();
  const Tensor ids = from_ints({1, 1, 3}), dy = from_values({3, 2}, Dtype::bf16, {1, 2, 3, 4, 5, 6});
  for (int step = 0; step < 2; ++step) {
    store.begin_step();
    for (int pass = 1; pass <= 2; ++pass) {
      Tape tape;
      tape.backward(embedding(table, ids), dy);
      const double k = pass;
      EXPECT_EQ(to_values(table->gradient), (std::vector<double>{0, 0, 4 * k, 6 * k, 0, 0, 5 * k, 6 * k}));
    }
  }
}

// 1000 ones in bf16 would stop at 256.
TEST(Embedding, ABf16TableSumsInF32) {
  Tape tape;
  const Variable table = tape.input(random_tensor({2, 1}, 1, Dtype::bf16));
  tape.backward(embedding(table, from_ints(std::vector<int32_t>(1000, 1))),
                from_values({1000, 1}, Dtype::bf16, std::vector<double>(1000, 1.0)));
  EXPECT_EQ(to_values(tape.gradient(table)), (std::vector<double>{0, 1000}));
}

// Ids of one token, of some, and of more than a GPU's warp sums alone, in rows of whole vectors and of
// others; against sums in f64, on top of what was there.
TEST(Embedding, RareAndFrequentIds) {
  std::vector<int32_t> of;
  for (const auto& [id, count] : std::vector<std::pair<int32_t, int>>{
           {0, 1}, {1, 63}, {2, 64}, {3, 65}, {4, 2}, {5, 500}, {7, 128}, {8, 129}, {9, 17}})
    of.insert(of.end(), static_cast<size_t>(count), id);
  std::shuffle(of.begin(), of.end(), std::mt19937(1));
  for (const int64_t columns : {1, 33, 264, 777})
    for (const Dtype dtype : {Dtype::f64, Dtype::bf16}) {
      const auto n = static_cast<int64_t>(of.size());
      const Tensor dy = random_tensor({n, columns}, 7, dtype), ids = from_ints(of);
      ParameterStore store(dtype);
      const Parameter table =
          store.declare({"t", {11, columns}, ParameterKind::embedding, Initializer::normal(1)});
      store.commit();
      store.begin_step();
      std::vector<double> sums(static_cast<size_t>(11 * columns));
      const std::vector<double> g = to_values(dy);
      for (int pass = 0; pass < 2; ++pass) {
        Tape tape;
        tape.backward(embedding(table, ids), dy);
        for (size_t i = 0; i < of.size(); ++i)
          for (int64_t c = 0; c < columns; ++c)
            sums[static_cast<size_t>(of[i] * columns + c)] +=
                g[i * static_cast<size_t>(columns) + static_cast<size_t>(c)];
      }
      EXPECT_LE(difference(table->gradient, from_values({11, columns}, Dtype::f64, sums)),
                dtype == Dtype::f64 ? 1e-12 : 1e-4)
          << columns << " " << name_of(dtype);
    }
}

}  // namespace
}  // namespace weft
