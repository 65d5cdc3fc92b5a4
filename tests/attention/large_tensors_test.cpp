// Attention over a text of a million tokens with 4096 features, and over as many tokens of documents: tensors
// of more than 2^31 elements, most of more than 2^32.

#include "tests/autograd/large_tensors.h"

#include "attention/delta_run.h"
#include "attention/ema_run.h"
#include "attention/flash_attention.h"
#include "attention/kept_attention.h"
#include "attention/linear_run.h"
#include "attention/memory_ops.h"
#include "attention/merge_partials.h"
#include "attention/selected_attention.h"
#include "attention/sparsek_rows.h"
#include "attention/steps.h"
#include "autograd/determinism.h"

namespace weft {
namespace {

using namespace large;
using Inputs = std::vector<Variable>;

constexpr int64_t kDocument = 4096, kSize = 128;

// Documents of kDocument tokens that make rows [begin, end).
Layout documents(int64_t begin, int64_t end, int64_t length = kDocument) {
  std::vector<int64_t> lengths;
  for (int64_t at = begin; at < end; at += length) lengths.push_back(std::min(length, end - at));
  return whole_documents(lengths);
}

struct Recurrence {
  Variable o, final_state;
};
// Of one text, or of a piece of it that continues with the state before it.
using Recur =
    std::function<Recurrence(const Inputs& x, const Variable& state, const Layout& layout, bool ends)>;

// The whole text at once beside pieces that hand their states on, and on the way back their gradients.
void expect_one_text(const Recur& f, const std::vector<Tensor>& x, int64_t piece = kPiece) {
  const int64_t all = x[0].dim(0);
  const Outcome whole =
      run_rows([&](const Inputs& v, int64_t begin,
                   int64_t end) { return f(v, {}, whole_documents({end - begin}), false).o; },
               x, {}, 0, all);
  const auto part = [&](const Tensor& of, int64_t begin) {
    return of.rows(begin, std::min(all, begin + piece));
  };
  std::vector<Tensor> states{Tensor()};
  for (int64_t begin = 0; begin < all; begin += piece) {
    Inputs v;
    for (const Tensor& each : x) v.emplace_back(part(each, begin));
    const Recurrence r = f(v, states.back(), whole_documents({v[0].dim(0)}), true);
    EXPECT_LE(apart(part(whole.y, begin), r.o), tolerance::kLargeRows) << "output from row " << begin;
    states.push_back(r.final_state.value());
  }
  Tensor d_state = zeros_like(states.back());
  for (int64_t begin = (all - 1) / piece * piece; begin >= 0; begin -= piece) {
    Tape tape;
    Inputs v;
    for (const Tensor& each : x) v.push_back(tape.input(part(each, begin)));
    const Tensor& before = states[static_cast<size_t>(begin / piece)];
    const Variable state = begin > 0 ? tape.input(before) : Variable();
    const Recurrence r = f(v, state, whole_documents({v[0].dim(0)}), true);
    tape.backward({r.o, r.final_state}, {part(whole.y, begin), d_state});
    for (size_t i = 0; i < x.size(); ++i)
      EXPECT_LE(apart(part(whole.d[i], begin), tape.gradient(v[i])), tolerance::kLargeRows)
          << "gradient " << i << " from row " << begin;
    if (begin > 0) d_state = tape.gradient(state);
  }
}

std::vector<Tensor> queries_keys_values(int64_t rows, int64_t heads, Dtype dtype = Dtype::bf16,
                                        int64_t size = kSize) {
  return {noise({rows, heads, size}, dtype, 1), noise({rows, heads, size}, dtype, 2, std::sqrt(3.0 / 128)),
          noise({rows, heads, size}, dtype, 3)};
}

Recurrence linear(const Inputs& v, const Variable& gate, const Variable& state, const Layout& layout,
                  bool ends) {
  const LinearRun r = linear_run(v[0], v[1], v[2], gate, state, 0.1, layout, ends);
  return {r.o, r.final_state};
}
Recur with_gate(int at) {
  return [=](const Inputs& v, const Variable& state, const Layout& layout, bool ends) {
    return linear(v, v[static_cast<size_t>(at)], state, layout, ends);
  };
}

TEST(LargeTensors, LinearAttentionOfOneText) {
  NEEDS_GPU_MEMORY(110);
  const int64_t heads = 32;
  const std::vector<Tensor> x = queries_keys_values(kRows, heads);
  const Tensor decay = full({1, heads}, -0.02, Dtype::f32);
  expect_one_text([&](const Inputs& v, const Variable& state, const Layout& layout,
                      bool ends) { return linear(v, decay.repeated(v[0].dim(0)), state, layout, ends); },
                  x);
}

TEST(LargeTensors, GatedLinearAttentionOfOneText) {
  NEEDS_GPU_MEMORY(110);
  std::vector<Tensor> x = queries_keys_values(kRows, 32);
  x.push_back(noise({kRows, 32}, Dtype::f32, 4, 0.02, -0.03));
  expect_one_text(with_gate(3), x);
}

TEST(LargeTensors, GatedChannelsOfOneText) {  // 2^31
  NEEDS_GPU_MEMORY(110);
  std::vector<Tensor> x = queries_keys_values(kRows, 20);
  x.push_back(noise({kRows, 20, kSize}, Dtype::f32, 4, 0.02, -0.03));
  expect_one_text(with_gate(3), x);
}

TEST(LargeTensors, LinearAttentionOfWideHeads) {
  NEEDS_GPU_MEMORY(110);
  std::vector<Tensor> x = queries_keys_values(kRows, 16, Dtype::bf16, 256);
  x.push_back(noise({kRows, 16}, Dtype::f32, 4, 0.02, -0.03));
  expect_one_text(with_gate(3), x);
}

TEST(LargeTensors, DeltaRuleOfOneText) {  // 2^31: states of every chunk are kept
  NEEDS_GPU_MEMORY(120);
  std::vector<Tensor> x = queries_keys_values(kRows, 17);
  x.push_back(noise({kRows, 17}, Dtype::f32, 4, 0.4, 0.5));
  x.push_back(noise({kRows, 17}, Dtype::f32, 5, 0.02, -0.03));
  expect_one_text(
      [](const Inputs& v, const Variable& state, const Layout& layout, bool ends) {
        const DeltaRun r = delta_run(v[0], v[1], v[2], v[3], v[4], state, 0.1, layout, ends);
        return Recurrence{r.o, r.final_state};
      },
      x);
}

// As LRPE asks for them: 2^31 by a kernel of its own.
TEST(LargeTensors, LinearAttentionWithGradientsInF32) {
  NEEDS_GPU_MEMORY(120);
  std::vector<Tensor> x = queries_keys_values(kRows, 17, Dtype::f32);
  x[2] = noise({kRows, 17, kSize}, Dtype::bf16, 3);
  const Tensor decay = full({1, 17}, -0.02, Dtype::f32);
  expect_one_text([&](const Inputs& v, const Variable& state, const Layout& layout,
                      bool ends) { return linear(v, decay.repeated(v[0].dim(0)), state, layout, ends); },
                  x);
}

// Of f32 the kernels go token by token. That takes long: of the pieces only the last is compared.
TEST(LargeTensors, TokenByToken) {
  NEEDS_GPU_MEMORY(80);
  const int64_t heads = 9, length = 512, rows = kRows - 13, last = length * 2047, key = 8, value = 256;
  const std::vector<Tensor> x{
      noise({rows, heads, key}, Dtype::f32, 1), noise({rows, heads, key}, Dtype::f32, 2),
      noise({rows, heads, value}, Dtype::f32, 3), noise({rows, heads}, Dtype::f32, 4, 0.02, -0.03)};
  const RowsOp f = [&](const Inputs& v, int64_t begin, int64_t end) {
    return linear(v, v[3], {}, documents(begin, end, length), false).o;
  };
  const Outcome whole = run_rows(f, x, {}, 0, rows), part = run_rows(f, x, {}, last, rows);
  EXPECT_EQ(apart(whole.y.rows(last, rows), part.y), 0);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(apart(whole.d[i].rows(last, rows), part.d[i]), 0) << i;
}

TEST(LargeTensors, GatesOfMoreDocumentsThanAGridHasAlongY) {
  NEEDS_GPU_MEMORY(20);
  const int64_t length = 7, rows = length * 70001, heads = 2;
  std::vector<Tensor> x = queries_keys_values(rows, heads, Dtype::bf16, 64);
  x.push_back(noise({rows, heads}, Dtype::f32, 4, 0.02, -0.03));
  expect_pieces([&](const Inputs& v, int64_t begin,
                    int64_t end) { return linear(v, v[3], {}, documents(begin, end, length), false).o; },
                x, {}, tolerance::kLargeRows, length * 30000);
}

TEST(LargeTensors, MovingAverages) {
  NEEDS_GPU_MEMORY(60);
  const int64_t states = 16;
  const std::vector<Tensor> shared{noise({kWidth, states}, Dtype::f32, 2),
                                   noise({kWidth, states}, Dtype::f32, 3),
                                   noise({kWidth, states}, Dtype::f32, 4, 0.4, 0.5)};
  expect_pieces(
      [](const Inputs& v, int64_t begin, int64_t end) {
        return ema_run(v[0], v[1], v[2], v[3], {}, documents(begin, end), false).y;
      },
      {noise({kRows, kWidth}, Dtype::bf16, 1)}, shared, tolerance::kLargeRows);
  // f32 has kernels of its own.
  const int64_t half = kRows / 2 + 40;
  expect_pieces(
      [](const Inputs& v, int64_t begin, int64_t end) {
        return ema_run(v[0], v[1], v[2], v[3], {}, documents(begin, end), false).y;
      },
      {noise({half, kWidth}, Dtype::f32, 1)}, shared, tolerance::kLargeF32);
}

// Softmax: outputs, and with o as what arrived the gradients, of all documents of one length and of some at a
// time. options.documents other than 0: cuDNN may serve.
void expect_attention(const AttentionOptions& given, const std::vector<Tensor>& x, int64_t length,
                      double tolerance, const Tensor& active = {}) {
  struct Results {
    std::vector<Tensor> out, d;
  };
  const auto run = [&](int64_t begin, int64_t end) {
    AttentionOptions options = given;
    if (given.documents != 0) options.documents = static_cast<int32_t>((end - begin) / length);
    const Layout layout = documents(begin, end, length);
    const auto part = [&](const Tensor& of) { return of.defined() ? of.rows(begin, end) : of; };
    const Tensor q = part(x[0]), k = part(x[1]), v = part(x[2]), on = part(active);
    Results r;
    r.out = flash_attention_forward(options, q, k, v, layout.position, layout.document, layout.position,
                                    layout.document, {}, on);
    r.d = flash_attention_backward(options, q, k, v, layout.position, layout.document, layout.position,
                                   layout.document, {}, on, r.out[0], r.out[1], r.out[0], {});
    return r;
  };
  const int64_t rows = x[0].dim(0), piece = kPiece / length * length;
  const Results whole = run(0, rows);
  for (int64_t begin = 0; begin < rows; begin += piece) {
    const int64_t end = std::min(rows, begin + piece);
    const Results part = run(begin, end);
    EXPECT_LE(apart(whole.out[0].rows(begin, end), part.out[0]), tolerance) << "output from " << begin;
    for (size_t i = 0; i < 3; ++i)
      EXPECT_LE(apart(whole.d[i].rows(begin, end), part.d[i]), tolerance)
          << "gradient " << i << " from " << begin;
  }
}

TEST(LargeTensors, Attention) {
  NEEDS_GPU_MEMORY(100);
  expect_attention({.scale = 0.1}, queries_keys_values(kRows, 32), 1024, 0);
}

TEST(LargeTensors, AttentionOfHeadsThatAreSometimesOff) {
  NEEDS_GPU_MEMORY(100);
  const Tensor active = relu(Variable(noise({kRows, 32}, Dtype::f32, 9)));
  expect_attention({.scale = 0.1}, queries_keys_values(kRows, 32), 1024, tolerance::kLargeRows, active);
}

// Views of a packed projection, which has three times the elements of o: these alone cuDNN could count in 32
// bits.
TEST(LargeTensors, AttentionOfAPackedProjection) {
  NEEDS_GPU_MEMORY(80);
  const int64_t length = 4000, rows = 131 * length;
  const Tensor packed = noise({rows, 3 * kWidth}, Dtype::bf16, 1);
  std::vector<Tensor> x;
  for (int64_t i = 0; i < 3; ++i)
    x.push_back(packed.columns(i * kWidth, (i + 1) * kWidth).reshape({rows, 32, kSize}));
  const AttentionOptions options{.scale = 0.1, .documents = 1, .longest = static_cast<int32_t>(length)};
  expect_attention(options, x, length, 0);
  const bool before = deterministic();
  set_deterministic(false);  // cuDNN's backward, too
  expect_attention(options, x, length, tolerance::kLargeRows);
  set_deterministic(before);
}

TEST(LargeTensors, AttentionOfWideHeads) {
  NEEDS_GPU_MEMORY(100);
  expect_attention({.scale = 0.1, .window = 100}, queries_keys_values(kRows, 16, Dtype::bf16, 256), 1024, 0);
}

TEST(LargeTensors, AttentionInF32) {
  NEEDS_GPU_MEMORY(100);
  expect_attention({.scale = 0.1, .window = 64}, queries_keys_values(kRows / 2 + 9, 33, Dtype::f32), 512, 0);
}

TEST(LargeTensors, MergedAttention) {
  NEEDS_GPU_MEMORY(100);
  const Shape heads{kRows, 32, kSize}, numbers_of_heads{kRows, 32};
  expect_pieces([](const Inputs& v, int64_t, int64_t) { return merge_partials(v[0], v[1], v[2], v[3])[0]; },
                {noise(heads, Dtype::bf16, 1), noise(numbers_of_heads, Dtype::f32, 2),
                 noise(heads, Dtype::bf16, 3), noise(numbers_of_heads, Dtype::f32, 4)});
}

// A new token of a text of a million: its past has more than 2^32 elements.
TEST(LargeTensors, StepOfALongText) {
  NEEDS_GPU_MEMORY(60);
  const int64_t heads = 32, at = kRows - 1;
  const std::vector<Tensor> past = queries_keys_values(kRows, heads);
  const Layout layout = whole_documents({kRows});
  const Tensor &k = past[1], &v = past[2], q = past[0].rows(at, kRows).contiguous();
  const Tensor new_k = k.rows(at, kRows).contiguous(), new_v = v.rows(at, kRows).contiguous();
  const Tensor position = from_ints({static_cast<int32_t>(at)}), document = from_ints({0});
  AddressTable table;
  const Tensor caches =
      table.of({k.raw(), v.raw(), layout.position.raw(), layout.document.raw()}, 4, k.device());
  const AttentionOptions options{.scale = 0.1};
  const std::vector<Tensor> expected =
      flash_attention_forward(options, q, k, v, position, document, layout.position, layout.document);
  const std::vector<Tensor> step =
      attention_step(options, q, new_k, new_v, position, document, caches, kRows);
  for (size_t i = 0; i < 2; ++i)
    EXPECT_LE(apart(step[i].reshape({heads, step[i].numel() / heads}),
                    expected[i].reshape({heads, expected[i].numel() / heads})),
              tolerance::kLargeSums)
        << i;
}

TEST(LargeTensors, Memories) {
  NEEDS_GPU_MEMORY(110);
  const int64_t heads = (int64_t{1} << 17) + 9, tokens = 128, size = 64, piece = 1 << 14;
  const Shape gates{heads, tokens, 1};
  const Tensor step = noise(gates, Dtype::f32, 1, 0.4, 0.5), keep = noise(gates, Dtype::f32, 2, 0.1, 0.85),
               momentum = noise(gates, Dtype::f32, 3, 0.4, 0.5);
  expect_pieces(
      [](const Inputs& v, int64_t, int64_t) { return learning_coefficients(v[0], v[1], v[2]).taken; },
      {step, keep, momentum}, {}, 0, piece);
  const Shape weights{heads, size, size}, rows{heads, tokens, size};
  expect_pieces(
      [](const Inputs& v, int64_t, int64_t) {
        const LearningCoefficients c = learning_coefficients(v[3], v[4], v[5]);
        return after_learning(v[0], {}, v[1], v[2], c.last)[0];
      },
      {noise(weights, Dtype::f32, 4), noise(rows, Dtype::f32, 5), noise(rows, Dtype::f32, 6), step, keep,
       momentum},
      {}, tolerance::kLargeF32, piece);
}

TEST(LargeTensors, ReadingMemories) {
  NEEDS_GPU_MEMORY(110);
  const int64_t heads = (int64_t{1} << 16) + 9, tokens = 128, size = 192, piece = 1 << 13;
  const Shape gates{heads, tokens, 1}, rows{heads, tokens, size};
  expect_pieces(
      [](const Inputs& v, int64_t, int64_t) {
        return read_while_learning(v[0], v[1], {}, v[2], v[3], learning_coefficients(v[4], v[5], {}));
      },
      {noise(rows, Dtype::f32, 1, 0.1), noise({heads, size, 16}, Dtype::f32, 2),
       noise(rows, Dtype::f32, 3, 0.1), noise({heads, tokens, 16}, Dtype::f32, 4),
       noise(gates, Dtype::f32, 5, 0.4, 0.5), noise(gates, Dtype::f32, 6, 0.1, 0.85)},
      {}, tolerance::kLargeF32, piece);
}

TEST(LargeTensors, TokensOfMemories) {
  NEEDS_GPU_MEMORY(90);
  const int64_t length = 1024, rows = length * 1025, heads = 16, size = 64;
  expect_pieces(
      [=](const Inputs& v, int64_t begin, int64_t end) {
        const int64_t texts = (end - begin) / length;
        const Inputs m = memory_tokens(v[0], v[1], {texts, 0, heads, size, size});
        return heads_together(multiply(m[0], m[3]), texts, Dtype::bf16);
      },
      {noise({rows, 3 * heads * size}, Dtype::bf16, 1), noise({rows, 3 * heads}, Dtype::bf16, 2)});
}

TEST(LargeTensors, SelectedRows) {
  NEEDS_GPU_MEMORY(60);
  const int64_t rows = 16 * kRows, size = 128, count = 3, piece = int64_t{1} << 21;
  // Rows among the eight that a query stands in, and so the same for all pieces.
  const Tensor index =
      numbers(rows * count, [](int64_t i) { return i / count / 8 * 8 + i % 8; }).reshape({rows, count});
  const Tensor q = noise({rows, size}, Dtype::f32, 1), k = noise({rows, size}, Dtype::f32, 2),
               v = noise({rows, size}, Dtype::f32, 3), gate = noise({rows, count}, Dtype::f32, 4, 0.4, 0.5);
  const auto attend = [&](int64_t begin, int64_t end) {
    const auto part = [&](const Tensor& x) { return x.rows(begin, end); };
    return selected_attention(part(q), part(k), part(v), part(gate), index.rows(0, end - begin),
                              {.scale = 0.1})[0];
  };
  const Tensor whole = attend(0, rows);
  for (int64_t begin = 0; begin < rows; begin += piece) {
    const int64_t end = std::min(rows, begin + piece);
    EXPECT_EQ(apart(whole.rows(begin, end), attend(begin, end)), 0) << begin;
  }
}

TEST(LargeTensors, KeptPairs) {
  NEEDS_GPU_MEMORY(100);
  const int64_t rows = (int64_t{1} << 18) + 5, heads = 65, length = 1024;
  const Shape numbers_of_heads{rows, heads};
  std::vector<Tensor> x = queries_keys_values(rows, heads, Dtype::f32);
  x.push_back(noise({rows, heads}, Dtype::f32, 4, 3));
  expect_pieces(
      [&](const Inputs& v, int64_t begin, int64_t end) {
        return kept_attention(v[0], v[1], v[2], v[3], documents(begin, end, length),
                              {.kept = 16, .support = 32, .scale = 0.1})[0];
      },
      x, {}, tolerance::kLargeF32, int64_t{1} << 15);
}

TEST(LargeTensors, PairsThatDoNotFitAreRefused) {
  NEEDS_GPU_MEMORY(40);
  const int64_t rows = 1 << 16,
                pairs = (int64_t{1} << 15) + 1;  // more than 2^31 scores, of which i32 names some
  const Tensor scores = zeros({rows, pairs}, Dtype::bf16), order = zeros({rows, 1}, Dtype::i32);
  EXPECT_THROW(best_rows(scores, order, 1), Error);
  EXPECT_THROW(pair_rows(zeros({rows, 1, 1}, Dtype::i32), 1, 0, pairs), Error);
}

}  // namespace
}  // namespace weft
