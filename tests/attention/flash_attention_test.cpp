// bf16 in the sizes that training uses, against f64 of the same numbers. (What the options mean: merge_test.)

#include "attention/flash_attention.h"

#include "autograd/layout.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

struct Case {
  const char* name;
  AttentionOptions options;
  int64_t heads, kv_heads, key, value;
  bool some_off = false;  // heads of some queries are off
  int64_t distances = 0;  // with a bias of their own
};
const std::vector<Case> cases{
    {"causal", {.scale = 0.12}, 4, 2, 64, 64},
    {"causal, wide", {.scale = 0.09}, 2, 1, 128, 128},
    {"full", {.scale = 0.09, .causal = false}, 2, 2, 128, 128},
    {"window", {.scale = 0.12, .window = 100}, 3, 1, 64, 64},
    {"full, window", {.scale = 0.12, .causal = false, .window = 30}, 2, 2, 64, 128},
    {"block", {.scale = 0.12, .block = 70}, 2, 2, 32, 96},
    {"heads off", {.scale = 0.12}, 4, 2, 64, 64, true},
    {"heads off, wide", {.scale = 0.09, .causal = false}, 3, 3, 128, 128, true},
    {"one head, sometimes off", {.scale = 0.12, .window = 100}, 1, 1, 64, 32, true},
    {"many features", {.scale = 0.05, .block = 150}, 1, 1, 384, 520},
    {"many features, full", {.scale = 0.07, .causal = false}, 4, 2, 200, 72},
    {"many features, heads off", {.scale = 0.09}, 4, 2, 96, 264, true},
    {"laplace", {.scale = 0.12, .block = 150, .weighting = Weighting::laplace}, 2, 1, 64, 136},
    {"relu2", {.scale = 0.12, .causal = false, .window = 90, .weighting = Weighting::relu2}, 2, 2, 48, 64},
    {"laplace, heads off", {.scale = 0.12, .weighting = Weighting::laplace}, 4, 2, 64, 64, true},
    {"slopes", {.scale = 0.12, .alibi = true}, 6, 2, 64, 64},
    {"bias", {.scale = 0.12, .block = 150}, 2, 1, 64, 264, false, 100},
    {"bias, full", {.scale = 0.12, .causal = false}, 4, 2, 64, 64, false, 41},
    {"bias, relu2, heads off", {.scale = 0.12, .weighting = Weighting::relu2}, 2, 2, 64, 64, true, 30},
};

Tensor greater_than_zero(const Tensor& x) {
  std::vector<double> on = to_values(x);
  for (double& value : on) value = value > 0 ? 1 : 0;
  return from_values(x.shape(), Dtype::f32, on);
}

struct Attention {
  Attention(const Case& c, const Layout& queries, const Layout& keys)
      : options(c.options), q_at(queries), k_at(keys) {
    const int64_t n = queries.tokens(), m = keys.tokens();
    q = random_tensor({n, c.heads, c.key}, 1, Dtype::bf16);
    k = random_tensor({m, c.kv_heads, c.key}, 2, Dtype::bf16);
    v = random_tensor({m, c.kv_heads, c.value}, 3, Dtype::bf16);
    d_o = random_tensor({n, c.heads, c.value}, 4, Dtype::bf16);
    d_lse = random_tensor({n, c.heads}, 5, Dtype::f32);
    if (c.distances > 0) bias = random_tensor({c.heads, c.distances}, 7, Dtype::f32);
    if (c.some_off) active = greater_than_zero(random_tensor({n, c.heads}, 6));
  }
  // {o, lse, dq, dk, dv} and, with a bias, dbias. The way back reads o and lse of the same precision.
  std::vector<Tensor> run(Dtype dtype) const {
    const Tensor x = q.to(dtype), y = k.to(dtype), z = v.to(dtype);
    const Tensor b = bias.defined() ? bias.to(wide_of(dtype)) : Tensor();
    std::vector<Tensor> all = flash_attention_forward(options, x, y, z, q_at.position, q_at.document,
                                                      k_at.position, k_at.document, b, active);
    for (const Tensor& d : flash_attention_backward(options, x, y, z, q_at.position, q_at.document,
                                                    k_at.position, k_at.document, b, active, all[0], all[1],
                                                    d_o.to(dtype), d_lse.to(wide_of(dtype))))
      all.push_back(d);
    return all;
  }
  AttentionOptions options;
  Layout q_at, k_at;
  Tensor q, k, v, d_o, d_lse, active, bias;
};

void expect_close(const Attention& a) {
  const std::vector<Tensor> narrow = a.run(Dtype::bf16), wide = a.run(Dtype::f64), again = a.run(Dtype::bf16);
  const char* names[] = {"o", "lse", "dq", "dk", "dv", "dbias"};
  for (size_t i = 0; i < narrow.size(); ++i) {
    EXPECT_LE(norm_difference(narrow[i], wide[i]), i == 1 ? 1e-5 : 8e-3) << names[i];
    EXPECT_TRUE(same_bits(narrow[i], again[i])) << names[i];
  }
}

TEST(FlashAttention, Bf16OfPackedDocuments) {
  const Layout layout = whole_documents({200, 1, 130, 67});
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    expect_close(Attention(c, layout, layout));
  }
}

TEST(FlashAttention, Bf16BiasOfMoreTilesThanFitAtATime) {
  const Layout layout = whole_documents({8500});
  expect_close(Attention({"", {.scale = 0.12, .block = 150}, 1, 1, 64, 64, false, 30}, layout, layout));
}

// Documents of one length that are known as such, dense and as columns of a projection.
TEST(FlashAttention, Bf16OfShortDocumentsOfOneLength) {
  constexpr int64_t kDocuments = 3, kHeads = 4, kKeyHeads = 2;
  for (const int64_t length : {1, 63, 64, 65, 200, 450})
    for (const int64_t size : {64, 128})
      for (const bool causal : {true, false}) {
        SCOPED_TRACE(text(length, " tokens, ", size, " features", causal ? ", causal" : ""));
        const Layout layout = whole_documents(std::vector<int64_t>(kDocuments, length));
        Attention a({"", {.scale = 0.12, .causal = causal}, kHeads, kKeyHeads, size, size}, layout, layout);
        a.options.documents = kDocuments;
        a.options.longest = static_cast<int32_t>(length);
        expect_close(a);
        const std::vector<Tensor> dense = a.run(Dtype::bf16);
        const Tensor all = empty({kDocuments * length, (kHeads + 2 * kKeyHeads) * size}, Dtype::bf16);
        int64_t at = 0;
        for (Tensor* x : {&a.q, &a.k, &a.v}) {
          const Tensor columns = all.columns(at, at + x->row_size()).reshape(x->shape());
          columns.copy_from(*x);
          at += x->row_size();
          *x = columns;
        }
        const std::vector<Tensor> packed = a.run(Dtype::bf16);
        for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(dense[i], packed[i])) << i;
      }
}

// A GPU has fewer multiprocessors than there are pieces of work.
TEST(FlashAttention, Bf16OfMoreTilesThanMultiprocessors) {
  const Layout layout = whole_documents({700, 40, 900, 130, 800});
  expect_close(Attention({"", {.scale = 0.3}, 8, 4, 16, 8}, layout, layout));
  expect_close(Attention({"", {.scale = 0.3, .window = 300}, 8, 8, 8, 72}, layout, layout));
}

// A warp looks at 256 tiles of 64 queries at a time.
TEST(FlashAttention, Bf16OfManyDocuments) {
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 170; ++i) lengths.push_back(1 + 7 * i % 200);
  const Layout layout = whole_documents(lengths);
  expect_close(Attention({"", {.scale = 0.3}, 1, 1, 8, 8}, layout, layout));
}

// Keys of a gather: other segments, another order, rows that are nobody.
TEST(FlashAttention, Bf16OfKeysInAnyOrder) {
  const Layout queries = make_layout({{1, 5, 20}, {0, 40, 240}, {3, 0, 3}});
  std::vector<int32_t> position{0, 0, 7}, document{-1, -1, -1};
  for (const Segment& s : Segments{{0, 100, 240}, {1, 0, 20}, {0, 0, 100}})
    for (int64_t t = s.begin; t < s.end; ++t) {
      position.push_back(static_cast<int32_t>(t));
      document.push_back(s.document);
    }
  const Layout keys{{}, from_ints(position), from_ints(document)};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    expect_close(Attention(c, queries, keys));
  }
}

// What a row gets does not depend on how many of the others are on, not in its last bit.
TEST(FlashAttention, Bf16OfHeadsThatOthersUse) {
  const Layout layout = whole_documents({400});
  for (const Case& c : cases) {
    if (!c.some_off) continue;
    SCOPED_TRACE(c.name);
    Attention a(c, layout, layout);
    const Tensor o = a.run(Dtype::bf16)[0];
    std::vector<double> on = to_values(a.active);
    const int64_t first = 250;  // the token from which on all heads are on
    for (int64_t i = first * c.heads; i < 400 * c.heads; ++i) on[i] = 1;
    a.active = from_values(a.active.shape(), Dtype::f32, on);
    const Tensor other = a.run(Dtype::bf16)[0];
    EXPECT_TRUE(same_bits(o.rows(0, first), other.rows(0, first)));
    EXPECT_FALSE(same_bits(o.rows(first, 400), other.rows(first, 400)));
  }
}

}  // namespace
}  // namespace weft
