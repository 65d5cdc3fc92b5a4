#include "training/data/ngram.h"

#include <cmath>
#include <ctime>
#include <map>

#include "fixtures.h"
#include "training/data/baseline.h"
#include "training/data/stories.h"

namespace weft {
namespace {

// The same model, straight from its definition.
class SlowNgram {
 public:
  void train(const std::string& document) {
    const std::string padded = std::string(4, '\0') + document;
    for (size_t i = 4; i < padded.size(); ++i) ++counts_[4][padded.substr(i - 4, 5)];
  }
  void build() {
    for (int n = 3; n >= 0; --n)
      for (const auto& [gram, count] : counts_[n + 1]) counts_[n][gram.substr(1)] += 1;
  }
  double probability(const std::string& context, char byte, int n) const {
    if (n < 0) return 1.0 / 256;
    const std::string tail = context.substr(context.size() - n);
    double total = 0, kinds = 0, own = 0, once = 0, twice = 0;
    for (const auto& [gram, count] : counts_[n]) {
      once += count == 1;
      twice += count == 2;
      if (gram.substr(0, n) != tail) continue;
      total += count;
      ++kinds;
      if (gram[n] == byte) own = count;
    }
    const double lower = probability(context, byte, n - 1);
    if (total == 0) return lower;
    const double d = once > 0 ? once / (once + 2 * twice) : 0.5;
    return (std::max(own - d, 0.0) + d * kinds * lower) / total;
  }
  double bits(const std::string& document) const {
    const std::string padded = std::string(4, '\0') + document;
    double sum = 0;
    for (size_t i = 4; i < padded.size(); ++i)
      sum -= std::log2(probability(padded.substr(i - 4, 4), padded[i], 4));
    return sum;
  }

 private:
  std::map<std::string, double> counts_[5];
};

TEST(ByteNgram, IsTheKneserNeyModel) {
  ByteNgram model;
  SlowNgram slow;
  for (int i = 0; i < 3; ++i) {
    model.train(story(1, i));
    slow.train(story(1, i));
  }
  slow.build();
  for (const std::string& text :
       {story(1, 1), story(1, 9).substr(0, 80), std::string("\xff\x00zzq", 5), std::string("")})
    EXPECT_NEAR(model.bits(text), slow.bits(text), 1e-9 * (1 + text.size()));
}

TEST(ByteNgram, ProbabilitiesSumToOne) {
  ByteNgram model;
  for (int i = 0; i < 50; ++i) model.train(story(1, i));
  for (const std::string context : {"", "T", "Once", "the ", "qqqq", "\xff"}) {
    double sum = 0;
    for (int byte = 0; byte < 256; ++byte)
      sum += std::exp2(model.bits(context) - model.bits(context + static_cast<char>(byte)));
    EXPECT_NEAR(sum, 1, 1e-9) << context;
  }
}

TEST(ByteNgram, UntrainedIsUniform) {
  ByteNgram model;
  EXPECT_DOUBLE_EQ(model.bits("hello"), 40);
}

TEST(ByteNgram, LearnsMoreFromMore) {
  ByteNgram model;
  double before = 8;
  const std::string held_out = story_corpus(99, 20'000);
  for (int i = 0; i < 4096; ++i) {
    model.train(story(1, i));
    if (i != 15 && i != 255 && i != 4095) continue;
    const double bpb = model.bits(held_out) / static_cast<double>(held_out.size());
    EXPECT_LT(bpb, before);
    before = bpb;
  }
  EXPECT_LT(before, 1.0);
}

TEST(Baseline, IsTheModelOnTheTextOfBothSides) {
  TempFolder dir;
  const auto path = write_file(dir / "a.txt", story_corpus(1, 50'000));
  const ByteTokens tokenizer;
  const Datasets sets = open_datasets({{{path}}, 0.1, {}}, 64, byte_options());
  ByteNgram model;
  double bits = 0, bytes = 0;
  const auto text_of = [](const Span& span) {
    std::vector<int32_t> tokens(span.end - span.begin);
    span.source->read(span.document, span.begin, span.end, tokens.data());
    return std::string(tokens.begin(), tokens.end() - 1);  // without the end token
  };
  for (const Span& span : sets.train.parts()[0].corpus.spans()) model.train(text_of(span));
  for (const Span& span : sets.val->parts()[0].corpus.spans()) {
    const std::string text = text_of(span);
    bits += model.bits(text);
    bytes += static_cast<double>(text.size());
  }
  const double bpb = baseline_bits_per_byte(sets.train, *sets.val, tokenizer);
  EXPECT_DOUBLE_EQ(bpb, bits / bytes);
  EXPECT_GT(baseline_bits_per_byte(sets.train, *sets.val, tokenizer, {5'000, 1'000'000}),
            bpb);  // less text to learn from
  EXPECT_TRUE(std::isnan(baseline_bits_per_byte(sets.train, *sets.val, tokenizer, {5'000, 0})));
}

TEST(ByteNgram, IsFastAndBounded) {
  // Random bytes are the worst case: nearly every five of them are new.
  std::string noise(4'400'000, '\0');
  uint64_t x = 1;
  for (char& c : noise) c = static_cast<char>((x = x * 6364136223846793005u + 1442695040888963407u) >> 56);
  ByteNgram model;
  const std::clock_t start = std::clock();
  model.train(noise);
  EXPECT_LT(model.bits(std::string_view(noise).substr(0, 200'000)) / 200'000, 8);
#ifdef __SANITIZE_ADDRESS__
  const double limit = 300;
#else
  const double limit = 15;
#endif
  EXPECT_LT(double(std::clock() - start) / CLOCKS_PER_SEC, limit);

  const std::string more = "text past the limit";
  const double before = model.bits(more);
  for (int i = 0; i < 100; ++i) model.train(more);
  EXPECT_EQ(model.bits(more), before);
}

}  // namespace
}  // namespace weft
