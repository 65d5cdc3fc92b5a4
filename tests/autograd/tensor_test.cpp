#include "autograd/tensor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numbers>
#include <string>
#include <thread>

#include "autograd/draw.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

TEST(Tensor, RowsAndColumnsAreViews) {
  const Tensor x = from_values({3, 4}, Dtype::f32, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  const Tensor c = x.columns(1, 3);
  EXPECT_FALSE(c.dense());
  EXPECT_EQ(c.pitch(), 4);
  EXPECT_EQ(to_values(c), (std::vector<double>{1, 2, 5, 6, 9, 10}));
  EXPECT_EQ(to_values(c.rows(1, 3)), (std::vector<double>{5, 6, 9, 10}));
  EXPECT_EQ(to_values(c.reshape({3, 2, 1})), to_values(c));
  EXPECT_THROW(c.reshape({6}), Error);
  c.zero();
  EXPECT_EQ(to_values(x), (std::vector<double>{0, 0, 0, 3, 4, 0, 0, 7, 8, 0, 0, 11}));
  EXPECT_THROW(x.rows(2, 4), Error);
  EXPECT_THROW(x.data<double>(), Error);
}

TEST(Tensor, ARowMayStandForMany) {
  const Tensor x = from_values({2, 3}, Dtype::f32, {1, 2, 3, 4, 5, 6}), y = x.repeated(4);
  EXPECT_TRUE(y.repeats());
  EXPECT_FALSE(x.repeats());
  EXPECT_FALSE(y.dense());
  EXPECT_EQ(y.buffer(), x.buffer());
  const std::vector<double> rows{1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3};
  EXPECT_EQ(to_values(y), rows);
  EXPECT_EQ(to_values(y.contiguous()), rows);
  EXPECT_EQ(to_values(y.to(Dtype::f64)), rows);
  EXPECT_EQ(to_values(y.to(Device::cpu)), rows);
  EXPECT_EQ(to_values(x.to(Device::cpu).repeated(4).to(default_device())), rows);
  EXPECT_EQ(to_values(y.rows(3, 4)), (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(to_values(y.reshape({4, 3, 1})), rows);
  EXPECT_THROW(y.reshape({12}), Error);
  EXPECT_EQ(to_values(x.repeated(0)), std::vector<double>{});
  EXPECT_THROW(empty({0, 3}, Dtype::f32).repeated(2), Error);
}

TEST(Tensor, FreshMemoryIsPoisoned) {  // the tests run with POISON=1
  const Tensor x = empty({5}, Dtype::f32);
  for (double v : to_values(x)) EXPECT_TRUE(std::isnan(v));
}

// Blocks of all sizes around those that wait in lists, from several threads: aligned, and nobody's but their
// owner's.
TEST(Tensor, BlocksAreTheirOwnersAlone) {
  const auto use = [](int32_t mark) {
    std::vector<Tensor> held;
    for (int i = 0; i < 400; ++i) {
      const int64_t n = std::array{1, 16, 17, 1000, 16384, 16385, 40000}[i % 7];
      const Tensor t = empty({n}, Dtype::i32, Device::cpu);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(t.raw()) % 64, 0);
      std::fill_n(t.data<int32_t>(), n, mark + i);
      held.push_back(t);
      if (i % 3 == 2) held.erase(held.begin());
      for (const Tensor& x : held)
        ASSERT_EQ(x.data<int32_t>()[0], x.data<int32_t>()[x.numel() - 1]) << "overwritten";
    }
    for (size_t i = 1; i < held.size(); ++i)
      EXPECT_EQ(held[i].data<int32_t>()[0], held[i - 1].data<int32_t>()[0] + 1);
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(use, 1000 * i);
  for (std::thread& thread : threads) thread.join();
}

TEST(Tensor, Bf16RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(float(bf16(1.0f + 0x1p-8f)), 1.0f);                // a tie: to even
  EXPECT_EQ(float(bf16(1.0f + 3 * 0x1p-8f)), 1.0f + 0x1p-6f);  // a tie: to even, upwards
  EXPECT_EQ(float(bf16(3.4e38f)), INFINITY);
  EXPECT_TRUE(std::isnan(float(bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Tensor, MetaCarriesShapesOnlyAndIsBooked) {
  reset_peak(Device::meta);
  const MemoryReport before = memory_report(Device::meta);
  {
    const MemoryScope scope("outer");
    const MemoryScope inner("inner");
    const Tensor x = zeros({1 << 20, 1 << 10}, Dtype::f32, Device::meta);
    EXPECT_EQ(x.raw(), nullptr);
  }
  const MemoryReport after = memory_report(Device::meta);
  EXPECT_EQ(after.bytes, before.bytes);
  EXPECT_EQ(after.peak_bytes - before.bytes, int64_t{4} << 30);
  EXPECT_EQ(after.peak_by_scope[0].first, "outer/inner");
}

TEST(Tensor, AScopeHasOneNameHoweverItIsEntered) {
  const auto take = [] { return empty({1 << 20}, Dtype::f32, Device::meta); };
  reset_peak(Device::meta);
  std::vector<Tensor> taken;
  for (int i = 0; i < 2; ++i) {
    const MemoryScope scope("one"), inner("other");
    taken.push_back(take());
  }
  const MemoryScope at_once("one/other");
  const MemoryScope elsewhere("other");  // one/other/other
  taken.push_back(take());
  std::map<std::string, int64_t> by_scope;
  for (const auto& [name, bytes] : memory_report(Device::meta).peak_by_scope) by_scope[name] += bytes;
  EXPECT_EQ(by_scope["one/other"], 2 * taken[0].bytes());
  EXPECT_EQ(by_scope["one/other/other"], taken[0].bytes());
  EXPECT_FALSE(by_scope.contains("one"));
}

#ifdef WEFT_CUDA
// 256 small blocks that fill a segment of the arena, given back: they are one block again when nothing else
// fits. It stands before the next test, which leaves so much waiting that nothing more does.
TEST(Tensor, WhatWaitsIsJoined) {
  if (default_device() != Device::cuda || std::getenv("APART") != nullptr) GTEST_SKIP();
  constexpr int64_t kBlock = int64_t{1} << 20, kBlocks = 256;
  std::vector<Tensor> living;
  int64_t side_by_side = 0;
  while (side_by_side < kBlocks) {
    living.push_back(empty({kBlock / 2}, Dtype::bf16));
    const size_t n = living.size();
    const bool next =
        n > 1 && static_cast<char*>(living[n - 1].raw()) - static_cast<char*>(living[n - 2].raw()) == kBlock;
    side_by_side = next ? side_by_side + 1 : 1;
    ASSERT_LT(n, 4096);
  }
  void* const first = living[living.size() - kBlocks].raw();
  living.resize(living.size() - kBlocks);
  EXPECT_EQ(empty({kBlocks * kBlock / 2}, Dtype::bf16).raw(), first);
}
#endif

TEST(Tensor, ThoseThatLiveNeverOverlap) {
  const RandomKey key{7, 8};
  std::map<const char*, Tensor> living;  // by address
  int64_t taken = 0;
  for (uint32_t i = 0; i < 2000; ++i) {
    const PhiloxBlock r = key.draw(i);
    if (r[0] % 2 == 0 && !living.empty()) {
      auto gone = living.begin();
      std::advance(gone, r[1] % living.size());
      living.erase(gone);
      continue;
    }
    // Few sizes come again and again, and some are large.
    const int64_t sizes[] = {1, 64, 500, 513, 4096, r[2] % 5000, (2 << 20) + r[2] % 1000, r[3] % (3 << 20)};
    const Tensor x = empty({sizes[r[1] % 8]}, Dtype::bf16);
    const char* const at = static_cast<const char*>(x.raw());
    if (at == nullptr) continue;  // no elements
    ++taken;
    const auto behind = living.lower_bound(at);
    if (behind != living.end()) {
      ASSERT_LE(at + x.bytes(), behind->first) << i;
    }
    if (behind != living.begin()) {
      const auto& [before, other] = *std::prev(behind);
      ASSERT_LE(before + other.bytes(), at) << i;
    }
    living.emplace(at, x);
  }
  EXPECT_GT(taken, 500);
}

TEST(Philox, KnownAnswers) {  // of the authors' own test vectors (Random123, kat_vectors)
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, MomentsOfTheNormal) {
  const RandomKey key{1, 2, 3};
  double sum = 0, squares = 0;
  const int n = 20000;
  for (int i = 0; i < n; ++i) {
    const double x = key.normal(i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / n, 0, 0.03);
  EXPECT_NEAR(squares / n, 1, 0.04);
}

// Against the C library's longest types, at the ends of their ranges too.
TEST(Philox, NormalsAreRight) {
  for (uint32_t i = 0; i < 20000; ++i) {
    PhiloxBlock r = RandomKey{4, 5}.draw(i);
    if (i < 256) r[1] = i << 24;
    if (i < 512 && i >= 256) r[0] = ~0u - (i - 256);
    if (i < 768 && i >= 512) r[0] = i - 512;
    const long double u = (static_cast<long double>(r[0]) + 1) * 0x1p-32L,
                      angle = 2 * std::numbers::pi_v<long double> * static_cast<long double>(r[1]) * 0x1p-32L,
                      expected = std::sqrt(-2 * std::log(u)) * std::cos(angle);
    ASSERT_NEAR(normal_of(r), static_cast<double>(expected), 2e-15) << r[0] << " " << r[1];
  }
}

// Bits of this device are those of the CPU.
TEST(Draw, IsTheSameOnEveryDevice) {
  for (const Spread spread : {Spread::normal, Spread::uniform})
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const Shape shape{3, 70001};
      const Tensor here = empty(shape, dtype, Device::cpu), there = empty(shape, dtype);
      draw(here, spread, 0.02, {7, 8});
      draw(there, spread, 0.02, {7, 8});
      EXPECT_EQ(to_values(there), to_values(here)) << name_of(dtype);
    }
  const Tensor x = empty({4}, Dtype::f32);
  draw(x, Spread::normal, 0.5, {7, 8});
  const RandomKey key{7, 8};
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(to_values(x)[i], static_cast<float>(0.5 * key.normal(i)));
}

TEST(Tensor, ViewsMoveBetweenDevices) {
  const Tensor x = from_values({3, 4}, Dtype::f64, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  const Tensor there = x.columns(1, 3).to(Device::cpu), y = zeros({3, 4}, Dtype::f64);
  EXPECT_EQ(to_values(there), (std::vector<double>{1, 2, 5, 6, 9, 10}));
  y.columns(2, 4).copy_from(there);
  EXPECT_EQ(to_values(y), (std::vector<double>{0, 0, 1, 2, 0, 0, 5, 6, 0, 0, 9, 10}));
}

}  // namespace
}  // namespace weft
