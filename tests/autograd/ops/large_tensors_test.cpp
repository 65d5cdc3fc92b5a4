// Ops on tensors of more than 2^31 elements, most of more than 2^32: what a text of a million tokens makes of
// a feed-forward layer. And what 32 bits cannot count is refused.

#include "tests/autograd/large_tensors.h"

#include "autograd/ops/add_rms_norm.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/causal_convolution.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/gated_rms_norm.h"
#include "autograd/ops/gates.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/lrpe.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "autograd/ops/rms_norm.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/sample.h"
#include "autograd/ops/scan.h"
#include "autograd/ops/short_conv.h"
#include "autograd/ops/softmax.h"
#include "autograd/ops/sparsek.h"
#include "autograd/ops/swiglu.h"
#include "autograd/ops/top_k.h"
#include "autograd/ops/triangle.h"

namespace weft {
namespace {

using namespace large;
using Inputs = std::vector<Variable>;

Tensor rows_of_noise(uint32_t seed = 1, Dtype dtype = Dtype::bf16) {
  return noise({kRows, kWidth}, dtype, seed);
}

TEST(LargeTensors, CopiesAndTypes) {
  NEEDS_GPU_MEMORY(90);
  const Tensor x = rows_of_noise();
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return cast(v[0], Dtype::f32); }, {x});
  // Columns are copied with a pitch, odd ones element by element.
  for (const int64_t cut : {1024, 1001})
    expect_pieces(
        [cut](const Inputs& v, int64_t, int64_t) {
          const Inputs parts = split_columns(v[0], {cut, kWidth - cut});
          return concatenate({parts[1], parts[0]}, 1);
        },
        {x});
  const Tensor inner = x.columns(8, kWidth), copy = inner.contiguous();
  EXPECT_EQ(apart(copy, inner), 0);
  EXPECT_EQ(apart(full({kRows, kWidth}, 0.5, Dtype::bf16).rows(kPiece, kRows),
                  full({1, kWidth}, 0.5, Dtype::bf16).repeated(kRows - kPiece)),
            0);
}

TEST(LargeTensors, Draws) {
  NEEDS_GPU_MEMORY(20);
  for (const Spread spread : {Spread::uniform, Spread::normal}) {
    const Tensor x = empty({kRows, kWidth}, Dtype::f32);
    const RandomKey key{7, stream_of("large")};
    ON_DEVICE(x.device(), draw(x, spread, 1, key));
    for (const int64_t row : {int64_t{0}, kRows / 2, kRows - 1}) {
      const std::vector<double> got = to_values(x.rows(row, row + 1));
      for (int64_t j = 0; j < kWidth; ++j)
        ASSERT_NEAR(got[static_cast<size_t>(j)],
                    drawn(spread, 1, key, static_cast<uint64_t>(row * kWidth + j)), 1e-6);
    }
  }
}

TEST(LargeTensors, Elementwise) {
  NEEDS_GPU_MEMORY(60);
  const Tensor x = rows_of_noise(), row = noise({kWidth}, Dtype::bf16, 2);
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return silu(scale(v[0], 2, 0.5)); }, {x});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return multiply(v[0], v[1]); },
                {x, noise({kRows, 1}, Dtype::bf16, 3)});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return add(v[0], v[1]); }, {x}, {row});
}

TEST(LargeTensors, GatesAndSwiglu) {
  NEEDS_GPU_MEMORY(90);
  const Tensor x = rows_of_noise();
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return swiglu(v[0]); }, {x});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return sglu(v[0]); }, {x});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return log_sigmoid_gate(v[0], 16); }, {x});
}

TEST(LargeTensors, Norms) {
  NEEDS_GPU_MEMORY(80);
  const Tensor x = rows_of_noise(), gain = noise({kWidth}, Dtype::f32, 2, 0.5, 1),
               bias = noise({kWidth}, Dtype::f32, 3);
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return rms_norm(v[0], v[1]); }, {x}, {gain});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return layer_norm(v[0], v[1], v[2]); }, {x},
                {gain, bias});
  expect_pieces(
      [](const Inputs& v, int64_t, int64_t) {
        const auto both = add_rms_norm(v[0], v[1], v[2]);
        return add(both.sum, both.norm);
      },
      {x, rows_of_noise(4)}, {gain});
}

TEST(LargeTensors, NormsOfHeads) {  // 2^26 rows
  NEEDS_GPU_MEMORY(80);
  const Tensor x = noise({kRows, 64, 64}, Dtype::bf16, 1);
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return gated_rms_norm(v[0], v[1]); },
                {x, noise(x.shape(), Dtype::bf16, 2)});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return rms_norm(v[0]); }, {x});
}

TEST(LargeTensors, Softmax) {
  NEEDS_GPU_MEMORY(60);
  const Tensor x = rows_of_noise();
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return softmax(v[0]); }, {x});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return log_sum_exp(v[0]); }, {x});
}

TEST(LargeTensors, Products) {
  NEEDS_GPU_MEMORY(60);
  const auto times = [](const Inputs& v, int64_t, int64_t) { return linear(v[0], v[1], v[2]); };
  expect_pieces(times, {noise({kRows, 64}, Dtype::bf16, 1)},
                {noise({kWidth, 64}, Dtype::bf16, 2, 0.2), noise({kWidth}, Dtype::bf16, 3)},
                tolerance::kLargeRows);
  expect_pieces(times, {rows_of_noise()},
                {noise({64, kWidth}, Dtype::bf16, 2, 0.03), noise({64}, Dtype::bf16, 3)},
                tolerance::kLargeRows);
  // Few rows by as large a weight.
  const Tensor few = noise({4, kWidth}, Dtype::bf16, 6),
               weight = noise({kRows, kWidth}, Dtype::bf16, 7, 0.03);
  const Tensor all = linear(few, weight);
  for (int64_t begin = 0; begin < kRows; begin += kPiece) {
    const int64_t end = std::min(kRows, begin + kPiece);
    EXPECT_LE(apart(all.columns(begin, end), linear(few, weight.rows(begin, end))), tolerance::kLargeRows)
        << begin;
  }
  const Tensor many = noise({kRows, 64, 64}, Dtype::bf16, 4);
  expect_pieces(
      [](const Inputs& v, int64_t, int64_t) {
        return matmul(v[0], v[1], {false, true});
      },
      {many, noise({kRows, 16, 64}, Dtype::bf16, 5, 0.2)}, {}, tolerance::kLargeRows);
}

TEST(LargeTensors, Embeddings) {
  NEEDS_GPU_MEMORY(80);
  const int64_t vocabulary = 5003;
  const auto look_up = [](const Tensor& ids) {
    return [=](const Inputs& v, int64_t begin, int64_t end) { return embedding(v[0], ids.rows(begin, end)); };
  };
  // As many tokens, of few words: expect_pieces has no rows here but those of y.
  const Tensor table = noise({vocabulary, kWidth}, Dtype::bf16, 1);
  const Tensor ids = numbers(kRows, [=](int64_t i) { return i * 7919 % vocabulary; });
  const Outcome whole = run_rows(look_up(ids), {}, {table}, 0, kRows);
  const Tensor sum = zeros(table.shape(), Dtype::f32);
  for (int64_t begin = 0; begin < kRows; begin += kPiece) {
    const int64_t end = std::min(kRows, begin + kPiece);
    const Outcome part = run_rows(look_up(ids), {}, {table}, begin, end);
    EXPECT_EQ(apart(whole.y.rows(begin, end), part.y), 0) << begin;
    ON_DEVICE(sum.device(), accumulate(sum, part.d[0]));
  }
  EXPECT_LE(apart(whole.d[0], sum), tolerance::kLargeSums);
  // Few tokens, of as many words.
  const Tensor large_table = rows_of_noise();
  const Tensor last = numbers(1000, [](int64_t i) { return kRows - 1 - i; }),
               back = numbers(1000, [](int64_t i) { return 999 - i; });
  const Outcome few = run_rows(look_up(last), {}, {large_table}, 0, 1000);
  const Tensor expected = gather_rows(large_table.rows(kRows - 1000, kRows), back);
  EXPECT_EQ(apart(few.y, expected), 0);
  EXPECT_EQ(apart(few.d[0].rows(kRows - 1000, kRows), large_table.rows(kRows - 1000, kRows)), 0);
  EXPECT_EQ(to_values(weft::sum(few.d[0].rows(kPiece, 2 * kPiece).reshape({kPiece * kWidth}), 0))[0], 0);
}

TEST(LargeTensors, RowsInAnotherOrder) {
  NEEDS_GPU_MEMORY(60);
  const Tensor x = rows_of_noise(), turned = numbers(kRows, [](int64_t i) { return kRows - 1 - i; });
  Tape tape;
  const Variable v = tape.input(x), y = gather_rows(v, turned);
  for (const int64_t row : {int64_t{0}, kRows / 3, kRows - 1})
    EXPECT_EQ(apart(y.value().rows(row, row + 1), x.rows(kRows - 1 - row, kRows - row)), 0) << row;
  tape.backward(y, y.value());
  EXPECT_EQ(apart(tape.gradient(v), x), 0);
}

TEST(LargeTensors, Permutations) {
  NEEDS_GPU_MEMORY(60);
  const Tensor x = rows_of_noise(), heads = x.reshape({kRows, 32, 128});
  const Tensor by_head = permute(heads, {1, 0, 2});
  for (const int64_t head : {0, 17, 31})
    EXPECT_EQ(apart(by_head.rows(head, head + 1).reshape({kRows, 128}),
                    slice(heads, 1, head, head + 1).value().reshape({kRows, 128})),
              0)
        << head;
  EXPECT_EQ(apart(permute(by_head, {1, 0, 2}), heads), 0);
  const Tensor turned = permute(x, {1, 0});
  for (const int64_t column : {int64_t{0}, int64_t{2048}, kWidth - 1})
    EXPECT_EQ(apart(turned.rows(column, column + 1).reshape({kRows, 1}), x.columns(column, column + 1)), 0);
  EXPECT_EQ(apart(permute(turned, {1, 0}), x), 0);
  // As many matrices as no grid has along z.
  const Tensor many = permute(x.reshape({kRows, 64, 64}), {0, 2, 1});
  EXPECT_EQ(apart(many.rows(kRows - 99, kRows),
                  permute(x.reshape({kRows, 64, 64}).rows(kRows - 99, kRows), {0, 2, 1})),
            0);
}

TEST(LargeTensors, Reductions) {
  NEEDS_GPU_MEMORY(60);
  const Tensor x = rows_of_noise();
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return sum(v[0], 1, true); }, {x});
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return max(v[0], 1, true); }, {x});
  double all = 0;
  const Tensor columns = zeros({kWidth}, Dtype::f32);
  for (int64_t begin = 0; begin < kRows; begin += kPiece) {
    const Tensor part = x.rows(begin, std::min(kRows, begin + kPiece));
    all += to_values(sum(sum(cast(part, Dtype::f32), 1), 0))[0];
    ON_DEVICE(columns.device(), accumulate(columns, sum(cast(part, Dtype::f32), 0)));
  }
  const double usual = std::sqrt(static_cast<double>(x.numel()));  // such a sum
  EXPECT_NEAR(to_values(sum(x.reshape({x.numel()}), 0))[0] / usual, all / usual, 1e-2);
  EXPECT_LE(apart(sum(x, 0).value().reshape({kWidth, 1}), columns.reshape({kWidth, 1})),
            tolerance::kLargeSums);
  // The largest of a column stands in the last row.
  const Tensor last = full({kWidth}, 3, Dtype::bf16);
  x.rows(kRows - 1, kRows).copy_from(last.reshape({1, kWidth}));
  Tape tape;
  const Variable v = tape.input(x), y = max(v, 0);
  tape.backward(y, last);
  EXPECT_EQ(apart(y, last), 0);
  EXPECT_EQ(apart(tape.gradient(v).rows(kRows - 1, kRows), last.reshape({1, kWidth})), 0);
}

TEST(LargeTensors, Positions) {
  NEEDS_GPU_MEMORY(90);
  const Tensor position = numbers(kRows, [](int64_t i) { return i; });
  expect_pieces(
      [&](const Inputs& v, int64_t begin, int64_t end) { return rotary(v[0], position.rows(begin, end)); },
      {noise({kRows, 32, 128}, Dtype::bf16, 1)});
  expect_pieces(
      [](const Inputs& v, int64_t, int64_t) { return scale(lrpe_features({v[0]}, v[2], v[1])[0], 1, 0.3); },
      {noise({kRows, 16, 128}, Dtype::bf16, 1), noise({kRows}, Dtype::f32, 2, 1000)},
      {noise({16, 128}, Dtype::f32, 3)}, tolerance::kLargeF32);
}

TEST(LargeTensors, Convolutions) {
  NEEDS_GPU_MEMORY(100);
  const Tensor position = numbers(kRows, [](int64_t i) { return i % kPiece; });
  expect_pieces([&](const Inputs& v, int64_t begin,
                    int64_t end) { return short_conv(v[0], v[1], v[2], position.rows(begin, end)); },
                {rows_of_noise()}, {noise({kWidth, 4}, Dtype::f32, 2), noise({kWidth}, Dtype::f32, 3)});
  // A document's transform has twice its tokens: more than 2^31 numbers of one, too.
  const int64_t tokens = int64_t{1} << 20, channels = 1040, few = 16;
  const Tensor x = noise({tokens, channels}, Dtype::bf16, 4),
               kernel = noise({channels, tokens}, Dtype::bf16, 5, 0.01);
  const Tensor first = from_ints({0, static_cast<int32_t>(tokens)}, Device::cpu);
  const Tensor y = causal_convolution(x, kernel, first);
  const Tensor last = causal_convolution(x.columns(channels - few, channels).contiguous(),
                                         kernel.rows(channels - few, channels), first);
  EXPECT_LE(apart(y.columns(channels - few, channels), last), tolerance::kLargeSums);
}

TEST(LargeTensors, Scans) {
  NEEDS_GPU_MEMORY(90);
  const int64_t rows = (int64_t{1} << 15) + 5, piece = 1 << 12;
  const auto starts = [=](int64_t begin, int64_t end) {
    std::vector<int32_t> first;
    for (int64_t at = begin; at < end; at += piece) first.push_back(static_cast<int32_t>(at - begin));
    first.push_back(static_cast<int32_t>(end - begin));
    return from_ints(first);
  };
  expect_pieces([&](const Inputs& v, int64_t begin,
                    int64_t end) { return decay_scan(v[0], v[1], starts(begin, end))[1]; },
                {noise({rows, 16, 1, 1}, Dtype::f32, 1, 0.1, 0.85), noise({rows, 16, 64, 64}, Dtype::f32, 2)},
                {}, tolerance::kLargeF32, piece);
}

TEST(LargeTensors, CrossEntropy) {
  NEEDS_GPU_MEMORY(40);
  const Tensor targets = numbers(kRows, [](int64_t i) { return i * 31 % kWidth; });
  const auto run = [&](int64_t chunk) {
    return run_rows(
        [&](const Inputs& v, int64_t, int64_t) {
          return projected_cross_entropy(v[0], v[1], targets, {.chunk = chunk}).loss;
        },
        {noise({kRows, 64}, Dtype::bf16, 1)}, {noise({kWidth, 64}, Dtype::bf16, 2)}, 0, kRows);
  };
  const Outcome whole = run(kRows), parts = run(1 << 14);
  EXPECT_NEAR(to_values(whole.y)[0] / to_values(parts.y)[0], 1, 1e-4);
  EXPECT_LE(apart(whole.d[0], parts.d[0]), tolerance::kLargeRows);
  EXPECT_LE(apart(whole.d[1], parts.d[1]), tolerance::kLargeSums);
}

TEST(LargeTensors, Samples) {
  NEEDS_GPU_MEMORY(20);
  const int64_t rows = (int64_t{1} << 16) + 3, vocabulary = 50000;  // f32: more than 2^33 bytes
  const Tensor logits = noise({rows, vocabulary}, Dtype::f32, 1),
               index = numbers(rows, [](int64_t i) { return i; });
  for (const DrawOptions& draws : {DrawOptions{.temperature = 0}, DrawOptions{.top_k = 50}}) {
    const Tensor all = sample_rows(logits, index, draws).to(Device::cpu);
    const Tensor last =
        sample_rows(logits.rows(rows - 9, rows), index.rows(rows - 9, rows), draws).to(Device::cpu);
    for (int64_t i = 0; i < 9; ++i)
      EXPECT_EQ(all.data<int32_t>()[rows - 9 + i], last.data<int32_t>()[i]) << i;
  }
}

TEST(LargeTensors, Triangles) {
  NEEDS_GPU_MEMORY(90);
  const Tensor x = noise({kRows, 64, 64}, Dtype::bf16, 1);
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return lower_triangle(v[0], -1, 2); }, {x});
  for (const int axis : {1, 2})
    expect_pieces([=](const Inputs& v, int64_t, int64_t) { return cumulative_sum(v[0], axis); }, {x});
  const int64_t half = kRows / 2 + 40;
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return solve_unit_lower(v[0], v[1]); },
                {noise({half, 64, 64}, Dtype::f32, 2, 0.1), noise({half, 64, 16}, Dtype::f32, 3)}, {},
                tolerance::kLargeF32);
}

TEST(LargeTensors, Selections) {
  NEEDS_GPU_MEMORY(60);
  const int64_t rows = (int64_t{1} << 23) + 77, piece = 1 << 20;
  const Tensor x = noise({rows, 257}, Dtype::bf16, 1);
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return top_k(v[0], 8).values; }, {x}, {}, 0, piece);
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return sparsek(v[0], 3); }, {x}, {},
                tolerance::kLargeF32, piece);
}

// What 32 bits do not count.

TEST(LargeTensors, MoreOutputsThanAGridHasBlocks) {
  NEEDS_GPU_MEMORY(80);
  const int64_t n = (int64_t{1} << 32) + 100;
  Tape tape;
  const Variable one = tape.input(noise({n}, Dtype::bf16, 1)), y = add(one, zeros({2, n}, Dtype::bf16));
  tape.backward(y, y.value());
  const Tensor d = tape.gradient(one);
  const int64_t rows = n / 4;
  const Tensor got = d.reshape({rows, 4}), expected = scale(one.value(), 2).value().reshape({rows, 4});
  EXPECT_EQ(apart(got.rows(0, 1 << 20), expected.rows(0, 1 << 20)), 0);
  EXPECT_EQ(apart(got.rows(rows / 2, rows / 2 + (1 << 20)), expected.rows(rows / 2, rows / 2 + (1 << 20))),
            0);
  EXPECT_EQ(apart(got.rows(rows - (1 << 20), rows), expected.rows(rows - (1 << 20), rows)), 0);
}

TEST(LargeTensors, PlacesThatDoNotFitAreRefused) {
  NEEDS_GPU_MEMORY(60);
  const int64_t n = (int64_t{1} << 31) + 64;
  const Tensor x = zeros({n}, Dtype::bf16);
  EXPECT_THROW(max(Variable(x), 0), Error);
}

TEST(LargeTensors, OrdersThatDoNotFitAreRefused) {
  NEEDS_GPU_MEMORY(60);
  const int64_t n = (int64_t{1} << 31) + 64;
  const Tensor x = zeros({n}, Dtype::bf16);
  // More entries than an order of them can number.
  const Tensor index = zeros({n}, Dtype::i32), to = zeros({8, 1}, Dtype::bf16);
  EXPECT_THROW(ON_DEVICE(to.device(), scatter_rows(to, x.reshape({n, 1}), index)), Error);
}

}  // namespace
}  // namespace weft
