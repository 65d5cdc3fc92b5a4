// How the kernel of the moving average deals tokens out to threads, and the kernel against its definition.

#include "attention/ema_run.h"

#include <algorithm>

#ifdef WEFT_CUDA
#include "attention/kernel_arguments.h"
#include "attention/kernels/ema.h"
#include "autograd/cuda/runtime.h"
#endif
#include "attention/ema.h"
#include "attention/kernels/ema_plan.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "autograd/planned_device.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

using cuda::EmaPlan;

const std::vector<std::vector<int64_t>> texts{{},      {0, 0},   {1},         {300, 0, 1, 129, 64, 77, 0},
                                              {65536}, {8, 700}, {64, 64, 65}};

TEST(EmaPlan, SpansHoldEveryTokenOnce) {
  for (const std::vector<int64_t>& lengths : texts)
    for (const int64_t most : {1, 32, 70, 129, -70, 1000, -1000, 100000}) {
      SCOPED_TRACE(most);
      const bool matrices = most < 0;
      const int64_t tile = matrices ? cuda::kEmaMatrixTile : 64;
      const EmaPlan plan = cuda::ema_spans(lengths, std::abs(most), matrices);
      const int d = plan.documents, s = plan.spans;
      ASSERT_EQ(plan.values.size(), 2u * d + 2u * s + 2u);
      const int32_t *offsets = plan.values.data(), *rows = offsets + d + 1, *spans = rows + d,
                    *first = spans + s + 1;
      int64_t tokens = 0;
      for (int i = 0; i < d; ++i) {
        EXPECT_EQ(offsets[i], tokens);
        EXPECT_GT(lengths[rows[i]], 0);
        tokens += lengths[rows[i]];
      }
      for (size_t i = 0; i < lengths.size(); ++i)
        EXPECT_EQ(lengths[i] > 0, std::count(rows, rows + d, static_cast<int32_t>(i)) == 1);
      EXPECT_EQ(offsets[d], tokens);
      EXPECT_EQ(spans[0], 0);
      EXPECT_EQ(spans[s], tokens);
      bool cut = false;
      for (int i = 0; i < s; ++i) {
        EXPECT_LT(spans[i], spans[i + 1]);
        EXPECT_LE(offsets[first[i]], spans[i]);
        EXPECT_LT(spans[i], offsets[first[i] + 1]);
        // Pieces are rounded up to tiles, and counted from where a document begins.
        EXPECT_LE(spans[i + 1] - spans[i], (std::abs(most) + tile - 1) / tile * tile);
        EXPECT_EQ((spans[i] - offsets[first[i]]) % tile, 0);
        cut = cut || offsets[first[i]] < spans[i];
      }
      EXPECT_EQ(plan.cut, cut);
    }
}

// For every scheduler one, or two where a document is cut and long (attention/kernels/moving_average.md).
TEST(EmaPlan, AsManySpansAsTheGpuHasSchedulers) {
  const auto plan = [](const std::vector<int64_t>& lengths, int64_t channels) {
    return cuda::plan_ema(lengths, channels, 16, false);
  };
  const EmaPlan batch = plan(std::vector<int64_t>(8, 8192), 2048);
  EXPECT_EQ(batch.spans, 8);
  EXPECT_FALSE(batch.cut);
  EXPECT_EQ(plan(std::vector<int64_t>(512, 128), 2048).spans, 8);  // documents put together
  const EmaPlan long_text = plan({65536}, 2048);
  EXPECT_EQ(long_text.spans, 16);
  EXPECT_TRUE(long_text.cut);
  EXPECT_EQ(plan({8192}, 2048).spans, 16);
  EXPECT_EQ(plan({2048}, 2048).spans, 8);
  EXPECT_EQ(plan({64}, 2048).spans, 1);
}

TEST(EmaPlan, MatricesWhereDocumentsFillTiles) {
  const auto plan = [](const std::vector<int64_t>& lengths, int64_t channels, int64_t size = 16) {
    return cuda::plan_ema(lengths, channels, size, true);
  };
  EXPECT_TRUE(plan(std::vector<int64_t>(8, 8192), 2048).matrices);
  EXPECT_FALSE(plan(std::vector<int64_t>(8, 8192), 2048, 17).matrices);
  EXPECT_FALSE(plan(std::vector<int64_t>(4096, 16), 2048).matrices);
  const EmaPlan wide = plan({65536}, 2048), narrow = plan({65536}, 256);
  EXPECT_TRUE(wide.matrices && !wide.cut);
  EXPECT_TRUE(narrow.matrices && narrow.cut);
}

// y and the states behind the segments, token by token. v: x, in, out, decay, start
std::vector<Variable> definition(const std::vector<Variable>& v, const Layout& layout) {
  const int64_t channels = v[1].dim(0), size = v[1].dim(1);
  std::vector<Variable> y, ends;
  int64_t at = 0, row = 0;
  for (const Segment& s : layout.segments) {
    Variable h = reshape(slice(v[4], 0, row, row + 1), {channels, size});
    for (int64_t t = 0; t < s.size(); ++t, ++at) {
      h = add(multiply(v[1], reshape(slice(v[0], 0, at, at + 1), {channels, 1})), multiply(v[3], h));
      y.push_back(reshape(sum(multiply(v[2], h), 1), {1, channels}));
    }
    ends.push_back(reshape(h, {1, channels, size}));
    ++row;
  }
  return {concatenate(y, 0), concatenate(ends, 0)};
}

template <class F>
std::vector<Tensor> outputs_and_gradients(F f, const std::vector<Tensor>& inputs,
                                          const std::vector<Tensor>& seeds) {
  Tape tape;
  std::vector<Variable> v;
  for (const Tensor& x : inputs) v.push_back(tape.input(x));
  std::vector<Variable> outputs = f(v);
  tape.backward(outputs, seeds);
  std::vector<Tensor> all(outputs.begin(), outputs.end());
  for (const Variable& x : v) all.push_back(tape.gradient(x));
  return all;
}

// The lengths are such that documents are put together and such that one is cut.
TEST(EmaRun, EqualsTheRecurrence) {
  if (!has_ema_run(default_device(), Dtype::f32, 16)) GTEST_SKIP() << "the kernel needs a GPU";
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{30, 0, 1, 40}, {7, 1500}})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
      for (const int64_t size : {int64_t{1}, int64_t{16}, int64_t{17}}) {
        SCOPED_TRACE(text(lengths.back(), " tokens, ", name_of(dtype), ", ", size));
        const Layout layout = whole_documents(lengths);
        const int64_t channels = 40, documents = static_cast<int64_t>(layout.segments.size());
        const Shape coefficients{channels, size}, states{documents, channels, size};
        const Tensor decay = sigmoid(random_tensor(coefficients, 3));
        std::vector<Tensor> inputs{random_tensor({layout.tokens(), channels}, 0),
                                   random_tensor(coefficients, 1), random_tensor(coefficients, 2), decay,
                                   random_tensor(states, 4)};
        std::vector<Tensor> seeds{random_tensor({layout.tokens(), channels}, 5), random_tensor(states, 6)};
        const auto round = [&](std::vector<Tensor>& of) {
          for (size_t i = 0; i < of.size(); ++i) of[i] = of[i].to(i == 0 ? dtype : Dtype::f32);
        };
        round(inputs), round(seeds);
        const auto exact = [](const std::vector<Tensor>& of) {
          std::vector<Tensor> to;
          for (const Tensor& x : of) to.push_back(x.to(Dtype::f64));
          return to;
        };
        const auto expected =
            outputs_and_gradients([&](const std::vector<Variable>& v) { return definition(v, layout); },
                                  exact(inputs), exact(seeds));
        const auto got = outputs_and_gradients(
            [&](const std::vector<Variable>& v) {
              const EmaRun ran = ema_run(v[0], v[1], v[2], v[3], v[4], layout, true);
              return std::vector<Variable>{ran.y, ran.final_state};
            },
            inputs, seeds);
        const char* const names[] = {"y", "end", "dx", "din", "dout", "ddecay", "dstart"};
        for (size_t i = 0; i < got.size(); ++i)
          EXPECT_LE(norm_difference(got[i], expected[i]), tolerance::of(got[i].dtype())) << names[i];

        // The form without states.
        const Tensor none = zeros(states, Dtype::f32);
        std::vector<Tensor> from_zero = inputs;
        from_zero.back() = none;
        const auto plain = outputs_and_gradients(
            [&](const std::vector<Variable>& v) {
              return std::vector<Variable>{ema_run(v[0], v[1], v[2], v[3], {}, layout, false).y};
            },
            inputs, {seeds[0]});
        const auto zero_start =
            outputs_and_gradients([&](const std::vector<Variable>& v) { return definition(v, layout); },
                                  exact(from_zero), {seeds[0].to(Dtype::f64), none.to(Dtype::f64)});
        for (size_t i = 0; i < 5; ++i)
          EXPECT_LE(norm_difference(plain[i], zero_start[i + (i > 0 ? 1 : 0)]),
                    tolerance::of(plain[i].dtype()))
              << names[i + (i > 0 ? 1 : 0)];
      }
}

// A document that the kernel cuts, against pieces of it that hand their states on. Rows of an odd number of
// channels are moved element by element.
TEST(EmaRun, PiecesEqualTheWhole) {
  if (!has_ema_run(default_device(), Dtype::f32, 16)) GTEST_SKIP() << "the kernel needs a GPU";
  const Layout layout = whole_documents({7, 600});
  for (const int64_t channels : {40, 37})
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
      for (const int64_t size : {16, 17}) {
        SCOPED_TRACE(text(channels, " channels, ", name_of(dtype), ", ", size));
        ASSERT_TRUE(cuda::plan_ema({7, 600}, channels, size, false).cut);
        const Shape coefficients{channels, size}, states{2, channels, size};
        const Tensor decay = sigmoid(random_tensor(coefficients, 3));
        const std::vector<Tensor> inputs{random_tensor({607, channels}, 0, dtype),
                                         random_tensor(coefficients, 1, Dtype::f32),
                                         random_tensor(coefficients, 2, Dtype::f32), decay.to(Dtype::f32),
                                         random_tensor(states, 4, Dtype::f32)};
        const std::vector<Tensor> seeds{random_tensor({607, channels}, 5, dtype),
                                        random_tensor(states, 6, Dtype::f32)};
        const std::vector<Tensor> whole = outputs_and_gradients(
            [&](const std::vector<Variable>& v) {
              const EmaRun ran = ema_run(v[0], v[1], v[2], v[3], v[4], layout, true);
              return std::vector<Variable>{ran.y, ran.final_state};
            },
            inputs, seeds);
        const std::vector<Tensor> pieces = outputs_and_gradients(
            [&](const std::vector<Variable>& v) {
              std::vector<Variable> y, ends;
              int64_t at = 0;
              for (const std::vector<int64_t>& counts : {std::vector<int64_t>{7}, {64, 1, 270, 265}}) {
                const auto document = static_cast<int>(ends.size());
                Variable state = slice(v[4], 0, document, document + 1);
                int64_t begin = 0;
                for (const int64_t count : counts) {
                  const EmaRun ran = ema_run(slice(v[0], 0, at, at + count), v[1], v[2], v[3], state,
                                             make_layout({{document, begin, begin + count}}), true);
                  y.push_back(ran.y);
                  state = ran.final_state;
                  at += count, begin += count;
                }
                ends.push_back(state);
              }
              return std::vector<Variable>{concatenate(y, 0), concatenate(ends, 0)};
            },
            inputs, seeds);
        const char* const names[] = {"y", "end", "dx", "din", "dout", "ddecay", "dstart"};
        for (size_t i = 0; i < whole.size(); ++i)
          EXPECT_LE(norm_difference(pieces[i], whole[i]), tolerance::of(whole[i].dtype())) << names[i];
      }
}

#ifdef WEFT_CUDA
// Wherever the plan is made.
TEST(DampedEma, APlanForAGpuTakesItsKernel) {
  ParameterStore store(Dtype::f32, Device::meta);
  const DampedEma ema(8, 16, {store, ""});
  plan_for(Device::cuda);
  EXPECT_TRUE(ema.has_kernel(Device::meta, Dtype::bf16));
  EXPECT_TRUE(ema.has_kernel(Device::meta, Dtype::f32));
  EXPECT_FALSE(ema.has_kernel(Device::meta, Dtype::f64));
  plan_for(Device::cpu);
  EXPECT_FALSE(ema.has_kernel(Device::meta, Dtype::f32));
  plan_for(Device::meta);
  EXPECT_EQ(ema.has_kernel(Device::meta, Dtype::f32), default_device() == Device::cuda);
}

// y, dx, d_in, d_out, d_decay. in, out, decay: (C, N)
std::vector<Tensor> run_kernels(const EmaPlan& plan, const Tensor& x, const Tensor& dy, const Tensor& in,
                                const Tensor& out, const Tensor& decay) {
  const Tensor on_device = from_ints(plan.values, x.device());
  const cuda::Ema shape{.channels = static_cast<int>(in.dim(0)),
                        .size = static_cast<int>(in.dim(1)),
                        .dtype = x.dtype(),
                        .in = floats(in),
                        .out = floats(out),
                        .decay = floats(decay),
                        .documents = plan.documents,
                        .spans = plan.spans,
                        .cut = plan.cut,
                        .matrices = plan.matrices,
                        .plan = static_cast<const int*>(on_device.raw())};
  const Tensor scratch({std::max(ema_forward_workspace(shape), ema_backward_workspace(shape))}, Dtype::f32,
                       x.device());
  std::vector<Tensor> to{Tensor(x.shape(), x.dtype(), x.device()), Tensor(x.shape(), x.dtype(), x.device())};
  for (int i = 0; i < 3; ++i) to.emplace_back(in.shape(), Dtype::f32, x.device());
  cuda::ema_forward(shape, rows_of(x), nullptr, to[0].raw(), nullptr, floats(scratch), cuda::stream());
  cuda::ema_backward(shape, rows_of(x), rows_of(dy), nullptr, nullptr,
                     {to[1].raw(), floats(to[2]), floats(to[3]), floats(to[4])}, floats(scratch),
                     cuda::stream());
  return to;
}

// Whole documents and cut ones, tiles that are full and not, channels beyond a block's 16.
TEST(EmaRun, MatricesEqualScalars) {
  if (!has_ema_run(default_device(), Dtype::bf16, 16)) GTEST_SKIP() << "the kernel needs a GPU";
  const std::vector<int64_t> lengths{300, 0, 1, 1800, 512};
  const int64_t tokens = 2613, channels = 40;
  for (const int64_t size : {16, 5})
    for (const int64_t most : {5000, 700, 512}) {
      SCOPED_TRACE(text(size, " states, spans of ", most));
      const Shape coefficients{channels, size};
      const Tensor x = random_tensor({tokens, channels}, 0, Dtype::bf16),
                   dy = random_tensor({tokens, channels}, 1, Dtype::bf16),
                   in = random_tensor(coefficients, 2, Dtype::f32),
                   out = random_tensor(coefficients, 3, Dtype::f32),
                   decay = sigmoid(random_tensor(coefficients, 4, Dtype::f32));
      EmaPlan plan = cuda::ema_spans(lengths, most, true);
      plan.matrices = false;
      const std::vector<Tensor> scalars = run_kernels(plan, x, dy, in, out, decay);
      plan.matrices = true;
      const std::vector<Tensor> matrices = run_kernels(plan, x, dy, in, out, decay),
                                again = run_kernels(plan, x, dy, in, out, decay);
      const char* const names[] = {"y", "dx", "din", "dout", "ddecay"};
      for (size_t i = 0; i < scalars.size(); ++i) {
        EXPECT_LE(norm_difference(matrices[i], scalars[i]),
                  i < 2 ? tolerance::kRoundedOnce : tolerance::of(Dtype::f32))
            << names[i];
        EXPECT_TRUE(same_bits(matrices[i], again[i])) << names[i];
      }
    }
}
#endif

}  // namespace
}  // namespace weft
