// Kernels of a decoding step as phases of one kernel, against the same kernels one by one, to the bit; on a
// GPU that has it.

#include "autograd/cuda/step_run.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>

#include "attention/steps.h"
#include "autograd/cuda/few_rows.h"
#include "autograd/cuda/replay.h"
#include "autograd/draw.h"
#include "autograd/gradcheck.h"
#include "autograd/notes.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/few_rows.h"

namespace weft {
namespace {

// What poisons fresh memory would stand between the phases, and end each run after one.
const bool unpoisoned = setenv("POISON", "0", 1) == 0;

// What f gives with kernels one by one and as runs, of which there have to be some.
template <class F>
void expect_same(F f) {
  const int64_t before = cuda::launched_runs();
  const std::vector<double> apart = f(false);
  EXPECT_EQ(cuda::launched_runs(), before);
  const std::vector<double> together = f(true);
  EXPECT_GT(cuda::launched_runs(), before);
  ASSERT_EQ(apart.size(), together.size());
  size_t other = 0;
  for (size_t i = 0; i < apart.size(); ++i) other += apart[i] != together[i];
  EXPECT_EQ(other, 0) << "of " << apart.size();
}

constexpr int64_t kSize = cuda::kPhaseHead;

Tensor random(const Shape& shape, double scale, uint32_t seed, Dtype dtype = Dtype::bf16) {
  const Tensor x(shape, dtype, Device::cuda);
  draw(x, Spread::normal, scale, {seed, 0, 0});
  return x;
}
Tensor weights(int64_t rows, int64_t columns, uint32_t seed) {
  return random({rows, columns}, 1 / std::sqrt(static_cast<double>(columns)), seed);
}

// A layer of softmax and one of a recurrent state, of one new token of each document; positions: theirs.
struct Sizes {
  std::vector<int32_t> positions;
  int64_t heads, inner;
  double turn;
  bool channels, between;  // a decay for each channel; a kernel that is no phase
};

class Subject {
 public:
  explicit Subject(const Sizes& sizes)
      : sizes_(sizes), batch_(std::ssize(sizes.positions)), width_(sizes.heads * kSize) {
    std::vector<int32_t> numbers;
    std::vector<void*> caches, states;
    for (size_t m = 0; m < sizes.positions.size(); ++m) {
      numbers.push_back(static_cast<int32_t>(m));
      rows_ = std::max<int64_t>(rows_, sizes.positions[m] + 1);
    }
    for (size_t m = 0; m < sizes.positions.size(); ++m) {
      const auto seed = static_cast<uint32_t>(10 * m);
      for (uint32_t i = 0; i < 2; ++i) caches_.push_back(random({rows_, sizes.heads, kSize}, 1, seed + i));
      for (int i = 0; i < 2; ++i) caches_.push_back(zeros({rows_}, Dtype::i32, Device::cuda));
      states_.push_back(random({sizes.heads, kSize, kSize}, 1, seed + 2, Dtype::f32));
      for (size_t i = caches_.size() - 4; i < caches_.size(); ++i) caches.push_back(caches_[i].raw());
      states.push_back(states_.back().raw());
    }
    cache_table_ = caches_at_.of(caches, 4, Device::cuda);
    state_table_ = states_at_.of(states, 1, Device::cuda);
    position_ = from_ints(sizes.positions, Device::cuda);
    document_ = from_ints(numbers, Device::cuda);
    qkv_ = weights(3 * width_, width_, 101);
    out_ = weights(width_, width_, 102);
    up_ = weights(2 * sizes.inner, width_, 103);
    down_ = weights(width_, sizes.inner, 104);
    gain_ = random({width_}, 1, 105, Dtype::f32);
    head_gain_ = random({kSize}, 1, 106, Dtype::f32);
    decay_ =
        scale(square(random(sizes.channels ? Shape{batch_, sizes.heads, kSize} : Shape{batch_, sizes.heads},
                            1, 107, Dtype::f32)),
              -0.1);
    x_ = random({batch_, width_}, 1, 108);
  }

  // What some replays of the step leave behind: its output, caches and states.
  std::vector<double> values(bool as_run) {
    cuda::Replay replay;
    Tensor y;
    replay.record([&] { y = step(); }, as_run);
    std::vector<double> all;
    for (int i = 0; i < 3; ++i) {
      replay.run();
      for (const double v : to_values(y)) all.push_back(v);
    }
    for (const std::vector<Tensor>* kept : {&caches_, &states_})
      for (const Tensor& t : *kept)
        for (const double v : to_values(t)) all.push_back(v);
    return all;
  }

 private:
  Tensor part(const Tensor& qkv, int64_t i) const {
    return qkv.columns(i * width_, (i + 1) * width_).reshape({batch_, sizes_.heads, kSize});
  }
  Tensor step() const {
    const NoTape pause;
    Tensor y = x_;
    for (const bool softmax : {true, false, true}) {
      const Tensor qkv = few_rows_linear(y, qkv_, {.norm = true, .gain = gain_, .eps = 1e-6}),
                   q = part(qkv, 0), k = part(qkv, 1), v = part(qkv, 2);
      if (sizes_.between) y = scale(y, 0.5);
      const Tensor o = softmax ? attention_step({.scale = 0.1}, q, k, v, position_, document_, cache_table_,
                                                rows_, sizes_.turn)[0]
                               : recurrent_step(q, k, v, decay_, {}, state_table_, 0.1);
      Around around{.residual = y};
      if (!softmax)
        around = {.norm = true, .norm_size = kSize, .gain = head_gain_, .eps = 1e-6, .residual = y};
      y = few_rows_linear(o.reshape({batch_, width_}), out_, around);
      y = few_rows_linear(few_rows_linear(y, up_, {.norm = true, .eps = 1e-6, .swiglu = true}), down_,
                          {.residual = y});
    }
    return y;
  }

  Sizes sizes_;
  int64_t batch_, width_, rows_ = 0;
  std::vector<Tensor> caches_, states_;
  AddressTable caches_at_, states_at_;
  Tensor cache_table_, state_table_, position_, document_, qkv_, out_, up_, down_, gain_, head_gain_, decay_,
      x_;
};

void expect_same_bits(const Sizes& sizes) {
  SCOPED_TRACE(text(sizes.positions.size(), " documents, ", sizes.heads, " heads, ", sizes.inner, " inside"));
  expect_same([&](bool as_run) { return Subject(sizes).values(as_run); });
}

TEST(StepRun, IsTheKernelsOneByOne) {
  ASSERT_TRUE(unpoisoned);
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  expect_same_bits({{700}, 16, 5504, 10000, false, false});  // pairs of blocks, two parts of k each
  expect_same_bits({{0, 1, 127, 128}, 3, 1088, 10000, true, false});
  expect_same_bits(
      {{31, 32, 33, 2047, 5000, 0, 4095, 4096, 300}, 2, 2112, 0, false, false});  // one part each
  expect_same_bits({{129, 255, 256, 257, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 16, 5504, 500, false, true});
  expect_same_bits({{40000, 17}, 1, 8192, 10000, true, true});
}

// More phases than one kernel takes.
TEST(StepRun, IsCutWhereItIsTooLong) {
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  const NoTape pause;
  const Tensor w = weights(128, 128, 1), x = random({5, 128}, 1, 2);
  const auto values = [&](bool as_run) {
    cuda::Replay replay;
    Tensor y = x;
    replay.record(
        [&] {
          for (int i = 0; i < 400; ++i) y = few_rows_linear(y, w, {.norm = true, .eps = 1e-6, .residual = y});
        },
        as_run);
    replay.run();
    return to_values(y);
  };
  expect_same(values);
}

// Pairs of blocks that have one unit, four, or none; and products that may not follow one another in a run.
TEST(StepRun, PairsHaveOtherNumbersOfUnitsEachTime) {
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  const NoTape pause;
  for (const int64_t k : {4096, 5504}) {
    const Tensor x = random({3, k}, 1, 1);
    std::vector<Tensor> there, back;
    for (const int64_t n : {64, 4032, 1600, 128, 2176}) {
      there.push_back(weights(n, k, static_cast<uint32_t>(n)));
      back.push_back(weights(k, n, static_cast<uint32_t>(n + 1)));
    }
    const auto values = [&](bool as_run) {
      cuda::Replay replay;
      std::vector<Tensor> y;
      replay.record(
          [&] {
            y.clear();
            Tensor z = x;
            for (size_t i = 0; i < 12; ++i) {
              const size_t which = i % there.size();
              y.push_back(few_rows_linear(z, there[which], {}));
              y.push_back(z = few_rows_linear(y.back(), back[which], {}));
            }
            for (const Tensor& w : there) y.push_back(few_rows_linear(x, w, {}));  // of no other's
          },
          as_run);
      replay.run();
      replay.run();
      std::vector<double> all;
      for (const Tensor& t : y)
        for (const double v : to_values(t)) all.push_back(v);
      return all;
    };
    SCOPED_TRACE(k);
    expect_same(values);
  }
}

// What one run has sent, the next but one must not take for its own.
TEST(StepRun, RunsOfAllSizesTakeTurns) {
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  const NoTape pause;
  struct Chain {
    Tensor x, w, y, y_apart;
    cuda::Replay replay, apart;
  };
  std::vector<std::unique_ptr<Chain>> chains;
  struct Size {
    int64_t rows, width, length;
  };
  for (const Size& size : {Size{1, 512, 60}, Size{8, 1024, 5}, Size{3, 128, 100}, Size{5, 2048, 30}}) {
    Chain& c = *chains.emplace_back(std::make_unique<Chain>());
    c.x = random({size.rows, size.width}, 1, 1);
    c.w = weights(size.width, size.width, 2);
    const auto record = [&](cuda::Replay& replay, Tensor& y, bool as_run) {
      replay.record(
          [&] {
            y = c.x;
            for (int64_t i = 0; i < size.length; ++i)
              y = few_rows_linear(y, c.w, {.norm = true, .eps = 1e-6, .residual = y});
          },
          as_run);
    };
    const int64_t before = cuda::launched_runs();
    record(c.replay, c.y, true);
    EXPECT_GT(cuda::launched_runs(), before) << "nothing ran as one kernel";
    record(c.apart, c.y_apart, false);
  }
  for (uint32_t i = 0; i < 400; ++i) {
    const Chain& c = *chains[(i * i + i / 7) % chains.size()];  // in no simple order
    draw(c.x, Spread::normal, 1, {i, 1, 0});
    c.replay.run();
    if (i % 8 != 0) continue;
    c.apart.run();
    EXPECT_EQ(to_values(c.y), to_values(c.y_apart)) << i;
  }
}

// Rows in the exchange lie as the maker's first column does there, which memory need not have aligned.
TEST(StepRun, ReadsColumnsThatMemoryAlignsOtherwise) {
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  const NoTape pause;
  const Tensor x = random({3, 256}, 1, 1), first = weights(256, 256, 2), second = weights(128, 192, 3),
               third = weights(128, 128, 4);
  const auto values = [&](bool as_run) {
    const Tensor all = zeros({3, 264}, Dtype::bf16, Device::cuda);
    cuda::Replay replay;
    Tensor y;
    replay.record(
        [&] {
          cuda::few_rows(all.columns(4, 260), x, first, 1, 0, {});  // 8 bytes behind a multiple of 16
          y = few_rows_linear(all.columns(8, 200), second, {});
          for (int i = 0; i < 4; ++i) y = few_rows_linear(y, third, {});
        },
        as_run);
    replay.run();
    return to_values(y);
  };
  expect_same(values);
}

// What a state gives is normed where it is made, for the product behind it, and as it is for who else reads
// it.
TEST(StepRun, NormsHeadsForOneReader) {
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  const NoTape pause;
  constexpr int64_t kTexts = 3, kHeads = 2, kWidth = kHeads * kSize;
  const Tensor x = random({kTexts, kWidth}, 1, 1), in = weights(3 * kWidth, kWidth, 2),
               out = weights(kWidth, kWidth, 3), gain = random({kSize}, 1, 4, Dtype::f32),
               decay = full({kTexts, kHeads}, -0.1, Dtype::f32, Device::cuda);
  for (const Tensor& of_head : {gain, Tensor()}) {
    const Around normed{.norm = true, .norm_size = kSize, .gain = of_head, .eps = 1e-6};
    const auto values = [&](bool as_run) {
      std::vector<Tensor> states;
      std::vector<void*> addresses;
      for (uint32_t i = 0; i < kTexts; ++i) {
        states.push_back(random({kHeads, kSize, kSize}, 1, 10 + i, Dtype::f32));
        addresses.push_back(states.back().raw());
      }
      AddressTable table;
      const Tensor at = table.of(addresses, 1, Device::cuda);
      cuda::Replay replay;
      std::vector<Tensor> y;
      replay.record(
          [&] {
            y.clear();
            const Tensor qkv = few_rows_linear(x, in, {});
            const auto part = [&](int64_t i) {
              return qkv.columns(i * kWidth, (i + 1) * kWidth).reshape({kTexts, kHeads, kSize});
            };
            const Tensor o =
                recurrent_step(part(0), part(1), part(2), decay, {}, at, 0.1).reshape({kTexts, kWidth});
            y.push_back(few_rows_linear(o, out, normed));
            y.push_back(few_rows_linear(o, out, {}));
            y.push_back(few_rows_linear(y[0], out, {.residual = y[1]}));
          },
          as_run);
      std::vector<double> all;
      for (int i = 0; i < 2; ++i) {
        replay.run();
        for (const Tensor& t : y)
          for (const double v : to_values(t)) all.push_back(v);
      }
      return all;
    };
    expect_same(values);
  }
}

TEST(StepRun, IsLeftToSingleKernelsWhereItsMemoryDoesNotFit) {
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  const NoTape pause;
  const Tensor x = random({2, 128}, 1, 1), w = weights(128, 128, 2);
  const auto values = [&](bool as_run) {
    cuda::Replay replay;
    Tensor y = x;
    replay.record(
        [&] {
          for (int i = 0; i < 5; ++i) y = few_rows_linear(y, w, {});
        },
        as_run);
    replay.run();
    return to_values(y);
  };
  const std::vector<double> apart = values(false);
  const int64_t before = cuda::launched_runs();
  take_notes();
  cuda::refuse_memory_to_runs(true);
  EXPECT_EQ(values(true), apart);
  cuda::refuse_memory_to_runs(false);
  EXPECT_EQ(cuda::launched_runs(), before);
  const std::vector<std::string> notes = take_notes();
  ASSERT_EQ(notes.size(), 1);
  EXPECT_NE(notes[0].find("32 MiB"), std::string::npos) << notes[0];
  EXPECT_EQ(values(true), apart);
  EXPECT_GT(cuda::launched_runs(), before) << "there is memory again";
}

// A word that is not a number is sent like any other.
TEST(StepRun, SendsWhatIsNoNumber) {
  if (default_device() != Device::cuda || !cuda::has_runs()) GTEST_SKIP() << "for a Hopper GPU";
  const NoTape pause;
  std::vector<double> of_x(4 * 256, 0.5);
  for (size_t i = 256; i < 512; ++i) of_x[i] = std::nan("");
  of_x[600] = INFINITY;
  const Tensor x = from_values({4, 256}, Dtype::bf16, of_x, Device::cuda), w = weights(256, 256, 1);
  const auto values = [&](bool as_run) {
    cuda::Replay replay;
    Tensor y = x;
    replay.record(
        [&] {
          for (int i = 0; i < 6; ++i) y = few_rows_linear(y, w, {.norm = true, .eps = 1e-6, .residual = y});
        },
        as_run);
    replay.run();
    std::vector<double> all;
    for (const double v : to_values(y)) all.push_back(std::isnan(v) ? 1e9 : v);
    EXPECT_EQ(all[0] != 1e9 && all[256] == 1e9, true);
    return all;
  };
  expect_same(values);
}

}  // namespace
}  // namespace weft
