#include "training/data/pretokenize.h"

#include <gtest/gtest.h>

#include <random>

#include "autograd/check.h"
#include "training/data/pretokenize_classes.h"

namespace weft {
namespace {

using Pieces = std::vector<std::string>;
using Keep = SplitRule::Keep;

Pieces pieces(const Splitter& splitter, const std::string& text) {
  Pieces out;
  splitter.split(text, [&](std::string_view piece) { out.emplace_back(piece); });
  return out;
}

Pieces pieces(const SplitRule& rule, const std::string& text) { return pieces(*make_splitter(rule), text); }

std::string utf8(char32_t c) {
  std::string out;
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
  if (c < 0x10000)
    return {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3f)),
            static_cast<char>(0x80 | (c & 0x3f))};
  return {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3f)),
          static_cast<char>(0x80 | (c >> 6 & 0x3f)), static_cast<char>(0x80 | (c & 0x3f))};
}

// The class that this machine's PCRE2 gives a code point, whose Unicode may be older or newer than the
// table's.
CharClass regex_class(char32_t c) {
  static const auto letter = make_splitter({.pattern = R"(\p{L})", .keep = Keep::removed, .invert = true});
  static const auto number = make_splitter({.pattern = R"(\p{N})", .keep = Keep::removed, .invert = true});
  static const auto space = make_splitter({.pattern = R"(\s)", .keep = Keep::removed, .invert = true});
  if (!pieces(*letter, utf8(c)).empty()) return CharClass::letter;
  if (!pieces(*number, utf8(c)).empty()) return CharClass::number;
  return pieces(*space, utf8(c)).empty() ? CharClass::other : CharClass::space;
}

TEST(CharClasses, EqualTheRegexEngine) {
  int differ = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    const CharClass mine = char_classes()[c], theirs = regex_class(c);
    if (mine == theirs) continue;
    // Code points that one of the two Unicode versions has not assigned yet, all of them after Unicode 14.
    ++differ;
    EXPECT_TRUE(mine == CharClass::other || theirs == CharClass::other)
        << std::hex << static_cast<uint32_t>(c);
    EXPECT_GT(c, 0x557u);
  }
  EXPECT_LT(differ, 12'000);
}

TEST(FastSplitter, KnownAnswers) {
  const std::string text = "It's  12345 \n\n x\ty,\n";
  EXPECT_EQ(pieces({.pattern = gpt2_pattern}, text),
            (Pieces{"It", "'s", " ", " 12345", " \n\n", " x", "\t", "y", ",", "\n"}));
  EXPECT_EQ(pieces({.pattern = llama3_pattern}, text),
            (Pieces{"It", "'s", " ", " ", "123", "45", " \n\n", " x", "\ty", ",\n"}));
  EXPECT_EQ(pieces({.pattern = qwen2_pattern}, "a 12"), (Pieces{"a", " ", "1", "2"}));
  EXPECT_EQ(pieces({.pattern = llama3_pattern}, ""), Pieces{});
}

TEST(FastSplitter, EqualsTheRegexOnFuzzedText) {
  Pieces atoms = {
      " ",         "  ",     "   ",    "\t",     "\n",     "\r",     "\r\n",   "\n\n", "'",
      "'s",        "'S",     "'t",     "'re",    "'RE",    "'v",     "'l",     "'lL",  "'d",
      "'\xc5\xbf", "a",      "Z",      "e",      "é",      "中",     "한국",   "0",    "9",
      "½",         "Ⅷ",      "٣",      ".",      ",",      "!",      "\"",     "-",    "_",
      "\xcc\x81",  "\u00a0", "\u0085", "\u2003", "\u3000", "\u180e", "\u200b", "😀",    std::string(1, '\0'),
      "\x1c",      "\v",     "\u2028", "ß",      "ǅ",      "ʰ",      "ª",      "²"};
  std::mt19937 rng(3);
  for (const std::string& pattern : {gpt2_pattern, llama3_pattern, qwen2_pattern}) {
    const auto fast = make_splitter({.pattern = pattern}), regex = make_splitter({.pattern = pattern}, false);
    for (int i = 0; i < 30'000; ++i) {
      std::string text;
      for (size_t n = rng() % 24; n > 0; --n) {
        char32_t c = rng() % 8 ? 0 : rng() % (rng() % 2 ? 0x3000 : 0x20000);
        const bool usable = c > 0 && (c < 0xd800 || c >= 0xe000) && char_classes()[c] == regex_class(c);
        text += usable ? utf8(c) : atoms[rng() % atoms.size()];
      }
      ASSERT_EQ(pieces(*fast, text), pieces(*regex, text)) << pattern << '\n' << text;
    }
  }
}

TEST(Splitter, EveryWayToKeepAMatch) {
  const auto split = [](Keep keep, bool invert = false) {
    return pieces({.pattern = "-", .literal = true, .keep = keep, .invert = invert}, "a--b-c-");
  };
  EXPECT_EQ(split(Keep::isolated), (Pieces{"a", "-", "-", "b", "-", "c", "-"}));
  EXPECT_EQ(split(Keep::removed), (Pieces{"a", "b", "c"}));
  EXPECT_EQ(split(Keep::removed, true), (Pieces{"-", "-", "-", "-"}));
  EXPECT_EQ(split(Keep::merged_with_previous), (Pieces{"a-", "-", "b-", "c-"}));
  EXPECT_EQ(split(Keep::merged_with_next), (Pieces{"a", "-", "-b", "-c", "-"}));
  EXPECT_EQ(split(Keep::contiguous), (Pieces{"a", "--", "b", "-", "c", "-"}));
}

TEST(Splitter, EmptyMatchesSeparate) {
  EXPECT_EQ(pieces({.pattern = R"((?=(\d{3})+(?!\d)))"}, "x1234567"), (Pieces{"x1", "234", "567"}));
}

TEST(Splitter, WhiteSpaceAndDigitsAreUnicodeOnes) {
  EXPECT_EQ(pieces({.pattern = R"([^\s]+)"}, "a\u3000b"), (Pieces{"a", "\u3000", "b"}));
  EXPECT_EQ(pieces({.pattern = R"(\S+)"}, "a\u180eb"),
            (Pieces{"a\u180eb"}));  // was white space before Unicode 6.3
  EXPECT_EQ(pieces({.pattern = R"(\d)"}, "٣x"), (Pieces{"٣", "x"}));
  EXPECT_EQ(pieces({.pattern = R"(\u4e2d)"}, "a中b"), (Pieces{"a", "中", "b"}));
}

TEST(Splitter, PatternsThatTheEnginesReadDifferentlyAreRefused) {
  for (const std::string pattern : {"", "a{2}+", "[a[b]]", "[a&&b]", R"(\w+)", R"(\bx)", R"([\S])", "(?m:.)",
                                    "(?i)a", "(?<n>a)", "a{,3}", "(", "[a", R"(\p{Nonsense})", R"(\)", "x(?"})
    try {
      (void)make_splitter({.pattern = pattern});
      ADD_FAILURE() << pattern << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data) << pattern;
    }
}

}  // namespace
}  // namespace weft
