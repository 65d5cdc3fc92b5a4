#include "training/recipe/yaml.h"

#include <gtest/gtest.h>

#include "tests/training/recipe/expect_error.h"

namespace weft {
namespace {

FieldValue parse_text(const std::string& text) { return parse_yaml(text, "r.yaml"); }

TEST(Yaml, KeepsPlacesAndQuotes) {
  const FieldValue root = parse_text("a: 1\nb:\n  c: [x, 'y', \"off\"]\n  d:\n");
  ASSERT_NE(root.find("b"), nullptr);
  const FieldValue& c = *root.find("b")->find("c");
  EXPECT_EQ(c.key_place.text(), "r.yaml:3:3");
  EXPECT_EQ(c.place.text(), "r.yaml:3:6");
  EXPECT_EQ(c.items[1].place.text(), "r.yaml:3:10");
  EXPECT_FALSE(c.items[0].quoted);
  EXPECT_TRUE(c.items[1].quoted);
  EXPECT_EQ(root.find("b")->find("d")->kind, FieldValue::Kind::none);
  EXPECT_EQ(root.find("e"), nullptr);
}

TEST(Yaml, EmptyIsAnEmptyMap) {
  for (const char* text : {"", "\n", "# only a comment\n", "---\n", "\xEF\xBB\xBF"}) {
    EXPECT_EQ(parse_text(text).kind, FieldValue::Kind::map) << text;
    EXPECT_TRUE(parse_text(text).items.empty());
  }
}

TEST(Yaml, RefusesWhatItDoesNotTake) {
  EXPECT_ERROR(parse_text("a: 1\nb: 2\na: 3\n"), recipe, "r.yaml:3:1", "the key a is given twice",
               "keep one");
  EXPECT_ERROR(parse_text("x: {a: 1, a: 2}"), recipe, "r.yaml:1:11", "is given twice", "");
  EXPECT_ERROR(parse_text("a: &n 1\nb: *n\n"), recipe, "r.yaml:1:4", "an anchor", "");
  EXPECT_ERROR(parse_text("a: *n\n"), recipe, "r.yaml:1:4", "", "");
  EXPECT_ERROR(parse_text("a: !!int 1\n"), recipe, "r.yaml:1:4", "a tag", "");
  EXPECT_ERROR(parse_text("? [a]\n: 1\n"), recipe, "r.yaml:1:3", "a key that is a list", "");
  EXPECT_ERROR(parse_text("a: 1\n---\nb: 2\n"), recipe, "r.yaml:2:1", "a second document", "");
  EXPECT_ERROR(parse_text("a: [1, 2\nb: 3\n"), recipe, "r.yaml:2:2", "not YAML", "brackets");
  EXPECT_ERROR(parse_text("a: 'x\n"), recipe, "r.yaml:2:2", "not YAML", "quotes");
  EXPECT_ERROR(parse_text("a:\n\t- b\n"), recipe, "r.yaml:2:2", "not YAML", "");
}

TEST(Yaml, ReadsBlockTexts) {
  EXPECT_EQ(parse_text("a: |\n  two\n  lines\n").find("a")->text, "two\nlines\n");
  EXPECT_EQ(parse_text("a: |-\n  two\n  lines\n\n").find("a")->text, "two\nlines");
  EXPECT_EQ(parse_text("a: >\n  two\n  words\nb: 1").find("a")->text, "two words\n");
  EXPECT_TRUE(parse_text("a: |\n  3\n").find("a")->quoted);
}

TEST(Yaml, RefusesTextThatIsNoText) {
  EXPECT_ERROR(parse_text("a: 1\nb: \xFF\n"), recipe, "r.yaml:2:4", "not UTF-8", "");
  EXPECT_ERROR(parse_text("b: \xC0\x80\n"), recipe, "r.yaml:1:4", "not UTF-8", "");      // overlong
  EXPECT_ERROR(parse_text("b: \xED\xA0\x80\n"), recipe, "r.yaml:1:4", "not UTF-8", "");  // surrogate
  EXPECT_ERROR(parse_text("b: \xF4\x90\x80\x80"), recipe, "r.yaml:1:4", "not UTF-8", "");
  EXPECT_ERROR(parse_text("b: \xE2\x82"), recipe, "r.yaml:1:4", "not UTF-8", "");  // cut short
  EXPECT_ERROR(parse_text(std::string("a\0b", 3)), recipe, "r.yaml:1:2", "control character", "");
  EXPECT_ERROR(parse_text("\xFF\xFE\x61\x00"), recipe, "r.yaml:1:1", "not UTF-8", "UTF-8");
  EXPECT_EQ(parse_text("a: \xE2\x82\xAC \xF0\x9F\xA7\xB5").find("a")->text, "\xE2\x82\xAC \xF0\x9F\xA7\xB5");
}

TEST(Yaml, BoundsDepthAndSize) {
  std::string blocks, dashes = "a: ";
  for (int i = 0; i < 40; ++i) blocks += std::string(static_cast<size_t>(i), ' ') + "k:\n";
  EXPECT_ERROR(parse_text(blocks), recipe, "r.yaml:33:33", "more than 32 levels", "");
  for (int i = 0; i < 40; ++i) dashes += "[";
  EXPECT_ERROR(parse_text(dashes + std::string(40, ']')), recipe, "r.yaml:1:35", "more than 32 levels", "");
  EXPECT_ERROR(parse_text("a: " + std::string(5'000'000, '[')), recipe, "r.yaml:1:1004", "open brackets", "");
  EXPECT_ERROR(parse_text("a: " + std::string(5'000'000, '{')), recipe, "r.yaml:1:1004", "open brackets", "");
  EXPECT_ERROR(parse_text(std::string(10'000'001, 'x')), recipe, "r.yaml", "more than 10 MB", "");
  std::string sequences;
  for (int i = 0; i < 100'000; ++i) sequences += "- ";
  EXPECT_ERROR(parse_text(sequences), recipe, "r.yaml:1:65", "more than 32 levels", "");
  std::string keys;
  for (int i = 0; i < 100'000; ++i) keys += "? ";
  EXPECT_ERROR(parse_text(keys), recipe, "r.yaml:1:3", "a key that is a list", "");
}

}  // namespace
}  // namespace weft
