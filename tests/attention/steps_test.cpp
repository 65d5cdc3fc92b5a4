// Kernels of a decoding step against what they stand for, at sizes that take each of their forms; on the
// default device.

#include "attention/steps.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "attention/flash_attention.h"
#include "autograd/gradcheck.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/sample.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/replay.h"
#endif
#include "tests/few.h"
#include "tests/tolerances.h"

namespace weft {
namespace {

Tensor random(const Shape& shape, Dtype dtype, uint32_t seed) { return random_tensor(shape, seed).to(dtype); }

double wide_difference(const Tensor& a, const Tensor& b) {
  return largest_difference(a.to(Dtype::f64), b.to(Dtype::f64));
}

// Documents of these lengths, whose last tokens are new; the rows behind what is known are poison.
struct Past {
  std::vector<int64_t> lengths;
  int64_t rows;
};

struct Sizes {
  int64_t heads, kv_heads, key, value;
};

// turn: the base of rotary positions that the step gives its queries and keys.
void expect_attention(const Past& past, const Sizes& s, Dtype dtype, const AttentionOptions& options,
                      double turn = 0) {
  const Device device = default_device();
  std::vector<Tensor> k, v, position, document;
  std::vector<void*> addresses;
  std::vector<int32_t> at, number;
  const auto count = static_cast<int64_t>(past.lengths.size());
  // As a projection gives them: views of packed columns.
  const int64_t widths[] = {s.heads * s.key, s.kv_heads * s.key, s.kv_heads * s.value};
  const Tensor packed = random({count, widths[0] + widths[1] + widths[2]}, dtype, 1);
  const Tensor q = packed.columns(0, widths[0]).reshape({count, s.heads, s.key}),
               k_new = packed.columns(widths[0], widths[0] + widths[1]).reshape({count, s.kv_heads, s.key}),
               v_new =
                   packed.columns(widths[0] + widths[1], packed.dim(1)).reshape({count, s.kv_heads, s.value});
  for (int64_t m = 0; m < count; ++m) {
    const int64_t n = past.lengths[static_cast<size_t>(m)];
    k.push_back(random({past.rows, s.kv_heads, s.key}, dtype, static_cast<uint32_t>(2 * m + 10)));
    v.push_back(random({past.rows, s.kv_heads, s.value}, dtype, static_cast<uint32_t>(2 * m + 11)));
    position.push_back(empty({past.rows}, Dtype::i32));
    document.push_back(empty({past.rows}, Dtype::i32));
    at.push_back(static_cast<int32_t>(n - 1));
    number.push_back(static_cast<int32_t>(m));
  }
  const Tensor positions = from_ints(at), documents = from_ints(number);
  const auto turned = [&](const Tensor& x) {
    return turn > 0 ? rotary(x, positions, turn).value() : x.contiguous();
  };
  const Tensor queries = turned(q), keys = turned(k_new), values = v_new.contiguous();
  std::vector<Tensor> o, lse;
  for (int64_t m = 0; m < count; ++m) {
    const int64_t n = past.lengths[static_cast<size_t>(m)];
    k[m].rows(n - 1, n).copy_from(keys.rows(m, m + 1));
    v[m].rows(n - 1, n).copy_from(values.rows(m, m + 1));
    std::vector<int32_t> all;
    for (int64_t t = 0; t < n; ++t) all.push_back(static_cast<int32_t>(t));
    const Tensor same = from_ints(std::vector<int32_t>(static_cast<size_t>(n), static_cast<int32_t>(m)));
    const std::vector<Tensor> y = flash_attention_forward(
        options, queries.rows(m, m + 1).contiguous().to(Dtype::f64), k[m].rows(0, n).to(Dtype::f64),
        v[m].rows(0, n).to(Dtype::f64), positions.rows(m, m + 1).contiguous(),
        documents.rows(m, m + 1).contiguous(), from_ints(all), same);
    o.push_back(y[0]);
    lse.push_back(y[1]);
    const auto poison = [&](Tensor& x) {
      const Tensor fresh = full(x.shape(), NAN, dtype);
      if (n > 1) fresh.rows(0, n - 1).copy_from(x.rows(0, n - 1));
      x = fresh;
      addresses.push_back(x.raw());
    };
    poison(k[m]);
    poison(v[m]);
    addresses.push_back(position[m].raw());
    addresses.push_back(document[m].raw());
  }
  AddressTable table;
  const std::vector<Tensor> y = attention_step(options, q, k_new, v_new, positions, documents,
                                               table.of(addresses, 4, device), past.rows, turn);
  const double bound = tolerance::of(dtype);
  for (int64_t m = 0; m < count; ++m) {
    const int64_t n = past.lengths[static_cast<size_t>(m)];
    EXPECT_LE(wide_difference(y[0].rows(m, m + 1), o[m]), bound) << "o of length " << n;
    EXPECT_LE(wide_difference(y[1].rows(m, m + 1), lse[m]), bound) << "lse of length " << n;
    EXPECT_LE(wide_difference(k[m].rows(n - 1, n), keys.rows(m, m + 1)), turn > 0 ? bound : 0)
        << "k joins the past";
    EXPECT_EQ(wide_difference(v[m].rows(n - 1, n), values.rows(m, m + 1)), 0) << "v joins the past";
    EXPECT_EQ(to_values(position[m].rows(n - 1, n))[0], static_cast<double>(n - 1));
    EXPECT_EQ(to_values(document[m].rows(n - 1, n))[0], static_cast<double>(m));
  }
}

TEST(AttentionStep, EqualsAttention) {
  const Past past{{1, 2, 127, 128, 129, 700}, 800};
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const Sizes& s :
         {Sizes{4, 4, 64, 64}, {4, 2, 128, 128}, {3, 1, 32, 64}, {8, 1, 64, 64}, {2, 2, 6, 5}}) {
      SCOPED_TRACE(
          text(name_of(dtype), ", ", s.heads, " heads on ", s.kv_heads, ", ", s.key, " and ", s.value));
      ASSERT_TRUE(
          has_attention_step({}, empty({1, s.heads, s.key}, dtype), empty({1, s.kv_heads, s.value}, dtype)));
      expect_attention(past, s, dtype, {.scale = 0.3});
    }
}

TEST(AttentionStep, OptionsAndLongTexts) {
  const Sizes s{6, 3, 32, 32};
  expect_attention({{1, 50, 400}, 500}, s, Dtype::f32, {.scale = 0.3, .window = 50});
  expect_attention({{1, 299, 300, 301, 2000}, 2001}, s, Dtype::f32, {.scale = 0.3, .window = 300});
  expect_attention({{1, 50, 400}, 500}, s, Dtype::f32, {.scale = 0.3, .alibi = true});
  expect_attention({{4096, 4097, 4608, 4609, 9000, 3}, 9001}, s, Dtype::f32, {.scale = 0.3});
  expect_attention({{5000}, 5000}, {12, 1, 256, 256}, Dtype::bf16, {.scale = 0.05});
}

TEST(AttentionStep, GivesRotaryPositions) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const Sizes& s : {Sizes{4, 4, 128, 128}, {4, 2, 64, 64}, {8, 1, 32, 64}, {2, 2, 6, 5}}) {
      SCOPED_TRACE(text(name_of(dtype), ", ", s.heads, " heads on ", s.kv_heads, ", ", s.key));
      expect_attention({{1, 2, 129, 300}, 300}, s, dtype, {.scale = 0.3}, 10000);
    }
  expect_attention({{5000}, 5000}, {2, 2, 128, 128}, Dtype::bf16, {.scale = 0.3}, 10000);
}

// How many of its parts are done is counted, and begins anew with each call.
TEST(AttentionStep, SameBitsAgain) {
  const int64_t rows = 9000;
  const Tensor q = random({2, 4, 64}, Dtype::bf16, 1), k = random({2, 2, 64}, Dtype::bf16, 2);
  std::vector<Tensor> cache;
  std::vector<void*> addresses;
  for (uint32_t m = 0; m < 2; ++m)
    for (uint32_t i = 0; i < 4; ++i) {
      cache.push_back(i < 2 ? random({rows, 2, 64}, Dtype::bf16, 10 + 2 * m + i) : empty({rows}, Dtype::i32));
      addresses.push_back(cache.back().raw());
    }
  AddressTable table;
  const Tensor position = from_ints({8999, 4000}), document = from_ints({0, 1});
  const auto once = [&] {
    return attention_step({.scale = 0.3}, q, k, k, position, document,
                          table.of(addresses, 4, default_device()), rows);
  };
  const std::vector<Tensor> first = once();
  for (int i = 0; i < (few() ? 2 : 20); ++i) {
    const std::vector<Tensor> again = once();
    ASSERT_EQ(wide_difference(again[0], first[0]), 0);
    ASSERT_EQ(wide_difference(again[1], first[1]), 0);
  }
}

#ifdef WEFT_CUDA
// Positions are read before the kernel before has ended, but not if it is that kernel which says them.
TEST(AttentionStep, WaitsForPositionsOfItsOwnRecording) {
  if (default_device() != Device::cuda) GTEST_SKIP() << "for a GPU";
  const int64_t rows = 300;
  const Tensor q = random({1, 2, 64}, Dtype::f32, 1), k = random({1, 2, 64}, Dtype::f32, 2);
  const Tensor keys = random({rows, 2, 64}, Dtype::f32, 3), values = random({rows, 2, 64}, Dtype::f32, 4);
  const Tensor ends = from_ints(std::vector<int32_t>(rows, 0)),
               marks = from_ints(std::vector<int32_t>(rows, 0));
  const Tensor logits = zeros({1, 1 << 22}, Dtype::f32);  // a millisecond for one block
  const Tensor zero = from_ints({0});
  AddressTable table;
  const Tensor caches = table.of({keys.raw(), values.raw(), ends.raw(), marks.raw()}, 4, default_device());
  const auto step = [&](const Tensor& position) {
    return attention_step({.scale = 0.3}, q, k, k, position, zero, caches, rows)[0];
  };
  Tensor y;
  cuda::Replay replay;
  replay.record([&] { y = step(sample_rows(logits, zero, {.temperature = 0})); });
  for (const int32_t at : {3, 200, 77}) {
    logits.zero();
    logits.columns(at, at + 1).copy_from(full({1, 1}, 1, Dtype::f32));
    replay.run();
    EXPECT_EQ(wide_difference(y, step(from_ints({at}))), 0) << at;
  }
}
#endif

TEST(AttentionStep, ServesWhatItCan) {
  const Tensor q = empty({1, 1, 64}, Dtype::f32);
  EXPECT_TRUE(has_attention_step({}, q, q));
  EXPECT_FALSE(has_attention_step({.block = 8}, q, q));
  EXPECT_FALSE(has_attention_step({.weighting = Weighting::laplace}, q, q));
}

// As the recurrence reads, in f64.
struct Reference {
  std::vector<double> o, s;
};
Reference recurrence(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& beta,
                     const Tensor& before, double scale) {
  const int64_t m = q.dim(0), h = q.dim(1), d = q.dim(2), e = v.dim(2);
  const auto values = [](const Tensor& x) { return x.defined() ? to_values(x) : std::vector<double>{}; };
  const std::vector<double> Q = values(q), K = values(k), V = values(v), G = values(g), B = values(beta);
  Reference r{std::vector<double>(static_cast<size_t>(m * h * e)), to_values(before)};
  for (int64_t i = 0; i < m * h; ++i)
    for (int64_t c = 0; c < e; ++c) {
      double met = 0;
      const auto state = [&](int64_t row) -> double& {
        return r.s[static_cast<size_t>((i * d + row) * e + c)];
      };
      for (int64_t row = 0; row < d; ++row) {
        if (g.defined()) state(row) *= std::exp(g.rank() == 3 ? G[i * d + row] : G[i]);
        met += K[i * d + row] * state(row);
      }
      const double u = beta.defined() ? B[i] * (V[i * e + c] - met) : V[i * e + c];
      double o = 0;
      for (int64_t row = 0; row < d; ++row) {
        state(row) += K[i * d + row] * u;
        o += Q[i * d + row] * state(row);
      }
      r.o[static_cast<size_t>(i * e + c)] = scale * o;
    }
  return r;
}

TEST(RecurrentStep, IsTheRecurrence) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16})
    for (const auto& [d, e] : {std::pair{128, 128}, {64, 65}, {5, 3}, {700, 40}})
      for (const int gate : {0, 2, 3})
        for (const bool delta : {false, true}) {
          SCOPED_TRACE(text(name_of(dtype), " ", d, " x ", e, ", gate ", gate, delta ? ", delta" : ""));
          const int64_t m = 3, h = 2;
          const Dtype wide = wide_of(dtype);
          const Tensor packed = random({m, h * (2 * d + e)}, dtype, 1);  // views, as projections give them
          const Tensor q = packed.columns(0, h * d).reshape({m, h, d}),
                       k = packed.columns(h * d, 2 * h * d).reshape({m, h, d}),
                       v = packed.columns(2 * h * d, h * (2 * d + e)).reshape({m, h, e});
          const Tensor noise = random(gate == 3 ? Shape{m, h, d} : Shape{m, h}, Dtype::f64, 2);
          std::vector<double> decays = to_values(noise);
          for (double& x : decays) x = -x * x;
          const Tensor g = gate == 0 ? Tensor() : from_values(noise.shape(), wide, decays);
          const Tensor beta = delta ? full({m, h}, 0.01, wide) : Tensor();
          const Tensor before = random({m, h, d, e}, wide, 3);
          const Reference expected = recurrence(q, k, v, g, beta, before, 0.5);
          std::vector<Tensor> states;
          std::vector<void*> addresses;
          for (int64_t i = m; i-- > 0;) {  // they lie in no order
            states.insert(states.begin(), empty({h, d, e}, wide));
            states[0].reshape({1, h, d, e}).copy_from(before.rows(i, i + 1));
          }
          for (const Tensor& s : states) addresses.push_back(s.raw());
          AddressTable table;
          const Tensor o = recurrent_step(q, k, v, g, beta, table.of(addresses, 1, default_device()), 0.5);
          double size = 0;
          for (const double x : expected.o) size = std::max(size, std::abs(x));
          EXPECT_LE(wide_difference(o, from_values(o.shape(), Dtype::f64, expected.o)),
                    tolerance::of(dtype) * (1 + size));
          const Tensor after = from_values(before.shape(), Dtype::f64, expected.s);
          for (int64_t i = 0; i < m; ++i)
            EXPECT_LE(wide_difference(states[i].reshape({1, h, d, e}), after.rows(i, i + 1)),
                      tolerance::of(wide) * (1 + size));
        }
}

TEST(AddressTable, IsUploadedWhenOneMoved) {
  AddressTable table;
  double a = 0, b = 0;
  const void* first = table.of({&a, &b}, 1, default_device()).raw();
  EXPECT_EQ(table.of({&a, &b}, 1, default_device()).raw(), first);
  const Tensor moved = table.of({&b, &a}, 1, default_device());
  const Tensor here = moved.to(Device::cpu);
  EXPECT_EQ(*static_cast<void* const*>(here.raw()), &b);
}

TEST(ShiftWindow, MovesUpByOne) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    for (const int64_t columns : {16, 6, 5}) {
      const Tensor window = random({6, columns}, dtype, 1), before = empty_like(window);
      before.copy_from(window);
      const Tensor rows = random({2, columns + 3}, dtype, 2).columns(3, columns + 3);
      shift_window(window, rows);
      for (int64_t m = 0; m < 2; ++m) {
        EXPECT_EQ(wide_difference(window.rows(3 * m, 3 * m + 2), before.rows(3 * m + 1, 3 * m + 3)), 0);
        EXPECT_EQ(wide_difference(window.rows(3 * m + 2, 3 * m + 3), rows.rows(m, m + 1)), 0);
      }
    }
}

}  // namespace
}  // namespace weft
