// What attention counts as its work: the pairs that meet, no more and no less.

#include "attention/seen_pairs.h"

#include "attention/merge.h"
#include "attention/softmax.h"
#include "autograd/flops.h"
#include "tests/attention/conformance.h"

namespace weft {
namespace {

bool meet(const AttentionOptions& o, int64_t query, int64_t key) {
  return (!o.causal || key <= query) && (o.window == 0 || std::abs(query - key) < o.window) &&
         (o.block == 0 || query / o.block == key / o.block);
}

double by_counting(const AttentionOptions& options, const Segments& queries, const Segments& keys) {
  double pairs = 0;
  for (const Segment& q : queries)
    for (const Segment& k : keys)
      for (int64_t i = q.begin; i < q.end && q.document == k.document; ++i)
        for (int64_t j = k.begin; j < k.end; ++j) pairs += meet(options, i, j) ? 1 : 0;
  return pairs;
}

TEST(SeenPairs, AreThoseThatOneCounts) {
  const Segments whole{{0, 0, 40}, {1, 0, 1}, {2, 0, 23}},
      pieces{{2, 7, 19}, {0, 5, 11}, {0, 11, 30}, {3, 0, 4}};
  for (const bool causal : {true, false})
    for (const int64_t window : {0, 1, 6, 100})
      for (const int64_t block : {0, 1, 8, 64}) {
        const AttentionOptions options{.causal = causal, .window = window, .block = block};
        SCOPED_TRACE(testing::Message() << "causal " << causal << " window " << window << " block " << block);
        for (const Segments& queries : {whole, pieces, Segments{}})
          for (const Segments& keys : {whole, pieces, Segments{}})
            EXPECT_EQ(seen_pairs(options, queries, keys), by_counting(options, queries, keys));
        Segments past = pieces;
        for (Segment& s : past) s.begin = 0;
        double behind = 0;
        for (size_t i = 0; i < pieces.size(); ++i) behind += by_counting(options, {pieces[i]}, {past[i]});
        EXPECT_EQ(seen_pairs(options, pieces), behind);
      }
}

// Operations of one mechanism forward, and with its way back.
std::pair<double, double> operations(const std::string& mechanism, const std::string& settings,
                                     const std::vector<int64_t>& lengths, Device device) {
  const Dimensions dims{.heads = 4, .kv_heads = 2, .key = 8, .value = 6, .width = 16};
  ParameterStore store(Dtype::f32, device);
  const auto m =
      find_mechanism(mechanism).make(parse_attributes(split_settings(settings)), dims, {store, ""});
  store.commit();
  const Layout layout = whole_documents(lengths, device);
  Tape tape;
  Block block{{}, layout.position, layout.document};
  for (const Input& input : m->inputs())
    block.x.push_back(tape.input(zeros(input_shape(input, dims, layout.tokens()), Dtype::f32, device)));
  LocalCrossing cross(layout);
  const double start = counted_flops();
  const Variable y = m->forward(block, cross);
  const double forward = counted_flops() - start;
  tape.backward(y, zeros(y.shape(), Dtype::f32, device));
  return {forward, counted_flops() - start};
}

TEST(AttentionOperations, OfPairsReallySeenOnMetaToo) {
  const std::vector<int64_t> lengths{9, 1, 30};
  const double pairs = 9 * 10 / 2 + 1 + 30 * 31 / 2;
  const double near = (1 + 2 + 3 + 6 * 4) + 1 + (1 + 2 + 3 + 27 * 4);  // a window of 4
  for (const Device device : {default_device(), Device::meta}) {
    SCOPED_TRACE(name_of(device));
    const auto of = [&](double seen) {  // four heads; keys of 8, values of 6
      return std::pair(seen * 4 * 2 * (8 + 6), seen * 4 * 2 * (8 + 6 + 3 * 8 + 2 * 6));
    };
    EXPECT_EQ(operations("softmax", "", lengths, device), of(pairs));
    EXPECT_EQ(operations("softmax", "causal=false", lengths, device), of(81 + 1 + 900));
    EXPECT_EQ(operations("sliding_window", "window=4", lengths, device), of(near));
  }
}

// Prefill in pieces sees what the whole does.
TEST(AttentionOperations, OfAStreamAddUp) {
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 4, .value = 4, .width = 8};
  const auto total = [&](const std::vector<int64_t>& pieces) {
    ParameterStore none;
    const Softmax softmax({}, dims, {none, ""});
    Stream stream;
    const double start = counted_flops();
    int64_t at = 0;
    for (const int64_t count : pieces) {
      const Layout layout = make_layout({{0, at, at + count}});
      at += count;
      const Tensor x = zeros({count, 2, 4}, Dtype::f32);
      LocalCrossing cross(layout, &stream);
      softmax.forward({{x, x, x}, layout.position, layout.document}, cross);
    }
    return counted_flops() - start;
  };
  EXPECT_EQ(total({5, 1, 7, 1}), total({14}));
  EXPECT_GT(total({14}), 0);
}

}  // namespace
}  // namespace weft
