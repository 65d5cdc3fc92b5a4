#include "training/data/stories.h"

#include <set>

#include "fixtures.h"

namespace weft {
namespace {

TEST(Stories, AreTheSameOnEveryMachine) {
  EXPECT_EQ(story(1, 0),
            "There once was a quiet girl called Mia who lived near the beach. Mia had a blue umbrella, and "
            "she took it "
            "everywhere.\nBut one day, the blue umbrella was gone! Mia felt very sad.\nThe bird saw her and "
            "said, \"Do "
            "not worry, Mia. We can do it together.\" They looked under every stone near the beach.\nIn the "
            "end, Mia "
            "and the bird shared the blue umbrella and became best friends. She went home and told her mom "
            "all about "
            "it.");
}

TEST(Stories, ArePureFunctionsOfSeedAndNumber) {
  EXPECT_EQ(story(7, 123), story(7, 123));
  EXPECT_NE(story(7, 123), story(8, 123));
  EXPECT_NE(story(7, 123), story(7 + (uint64_t{1} << 32), 123));
  std::set<std::string> different;
  for (int i = 0; i < 2000; ++i) different.insert(story(7, i));
  EXPECT_EQ(different.size(), 2000u);
}

TEST(Stories, ReadLikeEnglish) {
  for (int i = 0; i < 2000; ++i) {
    const std::string text = story(3, i);
    for (const char c : text) ASSERT_TRUE((c >= ' ' && c < 127 && c != '{' && c != '}') || c == '\n') << text;
    ASSERT_EQ(text.find("  "), std::string::npos) << text;
    ASSERT_EQ(text.find("\n\n"), std::string::npos) << text;
    for (const char* wrong : {" a a", " a e", " a i", " a o", " an b", " an l", "..", ",,"})
      ASSERT_EQ(text.find(wrong), std::string::npos) << wrong << " in " << text;
    ASSERT_TRUE(text.back() == '.' || text.back() == '!' || text.back() == '"') << text;
    ASSERT_GT(text.size(), 150u);
  }
}

TEST(Stories, ACorpusIsATextOfManyDocuments) {
  TempFolder dir;
  const std::string corpus = story_corpus(1, 100'000);
  EXPECT_GE(corpus.size(), 100'000u);
  EXPECT_LT(corpus.size(), 102'000u);
  EXPECT_TRUE(story_corpus(1, 200'000).starts_with(corpus));  // a larger one goes on from a smaller one
  const auto texts = texts_of(write_file(dir / "a.txt", corpus));
  for (size_t i = 0; i < texts.size(); ++i) ASSERT_EQ(texts[i], story(1, static_cast<int64_t>(i)));
}

}  // namespace
}  // namespace weft
