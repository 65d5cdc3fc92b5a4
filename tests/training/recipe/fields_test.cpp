#include "autograd/fields.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/nearest_name.h"
#include "tests/training/recipe/expect_error.h"

namespace weft {
namespace {

struct Inner {
  double rate = 0.5;
  void fields(FieldVisitor& f) { f("rate", rate, "how fast", {.min = 0, .max = 1, .above_min = true}); }
};

struct Config {
  int64_t chunk = 64;
  double scale = 0.125;
  bool causal = true;
  std::string gate = "scalar";
  std::string note = "a b";
  std::vector<int64_t> sizes = {1, 2};
  std::vector<double> rates;
  std::vector<std::string> names = {"x"};
  Inner inner;

  void fields(FieldVisitor& f) {
    f("chunk", chunk, "tokens handled at once", {.unit = "tokens", .min = 1});
    f("scale", scale, "factor of the logits");
    f("causal", causal, "sees the past only");
    f("gate", gate, "form of the gate", {.choices = {"scalar", "vector"}});
    f("note", note, "free text");
    f("sizes", sizes, "sizes", {.min = 0, .max = 9});
    f("rates", rates, "rates", {.min = 0});
    f("names", names, "names");
    f.section("inner", inner, "the inner part");
  }
};

TEST(Fields, SetsEveryTypeFromText) {
  Config c;
  set_from_text(c, "chunk", "128");
  set_from_text(c, "scale", "-1.5e-3");
  set_from_text(c, "causal", "false");
  set_from_text(c, "gate", "vector");
  set_from_text(c, "note", "any: [text], 3");
  set_from_text(c, "sizes", "[3, 4,5]");
  set_from_text(c, "rates", "0.5,1e2");
  set_from_text(c, "names", "a, 'b, c', \"\"");
  set_from_text(c, "inner.rate", "1");
  EXPECT_EQ(c.chunk, 128);
  EXPECT_EQ(c.scale, -1.5e-3);
  EXPECT_FALSE(c.causal);
  EXPECT_EQ(c.gate, "vector");
  EXPECT_EQ(c.note, "any: [text], 3");
  EXPECT_EQ(c.sizes, (std::vector<int64_t>{3, 4, 5}));
  EXPECT_EQ(c.rates, (std::vector<double>{0.5, 100}));
  EXPECT_EQ(c.names, (std::vector<std::string>{"a", "b, c", ""}));
  EXPECT_EQ(c.inner.rate, 1);
  for (const char* word : {"true", "off", "True", "no", "on", "False", "yes"}) {
    const bool before = c.causal;
    set_from_text(c, "causal", word);
    EXPECT_NE(c.causal, before) << word;
  }
  set_from_text(c, "sizes", "[]");
  set_from_text(c, "chunk", "1e6");
  EXPECT_TRUE(c.sizes.empty());
  EXPECT_EQ(c.chunk, 1'000'000);
}

TEST(Fields, IntegersKeepAllTheirDigits) {
  Config c;
  set_from_text(c, "chunk", "9223372036854775807");
  EXPECT_EQ(c.chunk, INT64_MAX);
  EXPECT_ERROR(set_from_text(c, "chunk", "9223372036854775808"), recipe, "chunk=9223372036854775808",
               "not an int", "");
}

TEST(Fields, RefusesWrongValues) {
  Config c;
  EXPECT_ERROR(set_from_text(c, "chunk", "ten"), recipe, "chunk=ten", "chunk is ten, not an int",
               "give an int, 1 or more");
  EXPECT_ERROR(set_from_text(c, "chunk", "0"), recipe, "chunk=0", "out of range", "1 or more");
  EXPECT_ERROR(set_from_text(c, "chunk", "1.5"), recipe, "chunk=1.5", "not an int", "");
  EXPECT_ERROR(set_from_text(c, "chunk", ""), recipe, "chunk=", "not an int", "");
  EXPECT_ERROR(set_from_text(c, "chunk", "3 "), recipe, "chunk=3 ", "not an int", "");
  EXPECT_ERROR(set_from_text(c, "scale", "nan"), recipe, "scale=nan", "not a finite number", "give a float");
  EXPECT_ERROR(set_from_text(c, "scale", "-.inf"), recipe, "scale=-.inf", "not a finite number", "");
  EXPECT_ERROR(set_from_text(c, "scale", "1e999"), recipe, "scale=1e999", "not a float", "");
  EXPECT_ERROR(set_from_text(c, "causal", "1"), recipe, "causal=1", "not a bool", "give a bool");
  EXPECT_ERROR(set_from_text(c, "gate", "skalar"), recipe, "gate=skalar", "not a known choice",
               "one of scalar, vector");
  EXPECT_ERROR(set_from_text(c, "sizes", "1,x"), recipe, "sizes=1,x", "not an int", "");
  EXPECT_ERROR(set_from_text(c, "sizes", "1,10"), recipe, "sizes=1,10", "out of range", "0 to 9");
  EXPECT_ERROR(set_from_text(c, "inner.rate", "0"), recipe, "inner.rate=0", "out of range",
               "above 0, at most 1");
  EXPECT_ERROR(set_from_text(c, "chnk", "3"), recipe, "chnk=3", "unknown key chnk", "did you mean chunk?");
  EXPECT_ERROR(set_from_text(c, "rate", "3"), recipe, "rate=3", "unknown key rate",
               "did you mean inner.rate?");
  EXPECT_ERROR(set_from_text(c, "zzzzzzzz", "3"), recipe, "zzzzzzzz=3", "unknown key",
               "keys here: chunk, scale");
  EXPECT_EQ(c.chunk, 64) << "a refused value must not be kept";
  EXPECT_EQ(c.sizes, (std::vector<int64_t>{1, 2}));
}

TEST(Fields, DescribesItself) {
  const std::vector<FieldDescription> fields = describe(Config{});
  ASSERT_EQ(fields.size(), 9u);
  EXPECT_EQ(fields[0].name, "chunk");
  EXPECT_EQ(fields[0].type, "int");
  EXPECT_EQ(fields[0].default_value, "64");
  EXPECT_EQ(fields[0].unit, "tokens");
  EXPECT_EQ(fields[0].range, "1 or more");
  EXPECT_EQ(fields[1].default_value, "0.125");
  EXPECT_EQ(fields[3].range, "one of scalar, vector");
  EXPECT_EQ(fields[4].default_value, "a b");
  EXPECT_EQ(fields[5].type, "list of int");
  EXPECT_EQ(fields[5].default_value, "[1, 2]");
  EXPECT_EQ(fields[8].name, "inner.rate");
}

TEST(Fields, DescribedDefaultsSetTheSameValues) {
  Config changed;
  changed.chunk = 7, changed.scale = 0.1, changed.causal = false, changed.names = {"a b", "", "off", "c,d"};
  Config copy;
  for (const FieldDescription& field : describe(changed))
    set_from_text(copy, field.name, field.default_value);
  EXPECT_EQ(copy.scale, 0.1);
  EXPECT_EQ(copy.names, changed.names);
  EXPECT_EQ(copy.chunk, 7);
}

TEST(NearestName, FindsTyposSwapsAndOtherSections) {
  const std::vector<std::string> names = {"optim.lr", "optim.warmup", "model.width", "steps"};
  EXPECT_EQ(nearest_name("optim.wramup", names), "optim.warmup");
  EXPECT_EQ(nearest_name("setps", names), "steps");
  EXPECT_EQ(nearest_name("lr", names), "optim.lr");
  EXPECT_EQ(nearest_name("optim.width", names), "model.width");
  EXPECT_EQ(nearest_name("entirely_else", names), "");
  EXPECT_EQ(nearest_name(std::string(100'000, 'a'), names), "");
  EXPECT_EQ(suggest_name("entirely_else", names, "keys"),
            "known keys: optim.lr, optim.warmup, model.width, steps");
  EXPECT_EQ(suggest_name("x", {}, "keys"), "there are no keys");
}

TEST(FieldValueText, QuotesWhatYamlWouldMisread) {
  EXPECT_EQ(to_text(text_value("plain/path-1.bin", true)), "plain/path-1.bin");
  for (const char* word : {"off", "True", "no", "null", "3", "1e5", "", "a b", "*.bin", "a: b", "# x", "-"})
    EXPECT_EQ(to_text(text_value(word, true)), '"' + std::string(word) + '"');
  EXPECT_EQ(to_text(text_value("3")), "3");
  EXPECT_EQ(to_text(text_value("a\"\\\n\t\x01", true)), "\"a\\\"\\\\\\n\\t\\x01\"");
}

}  // namespace
}  // namespace weft
