#include "training/data/pretokenize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
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

// The class that a regular expression gives a code point.
CharClass regex_class(char32_t c) {
  static const auto letter = make_splitter({.pattern = R"(\p{L})", .keep = Keep::removed, .invert = true});
  static const auto number = make_splitter({.pattern = R"(\p{N})", .keep = Keep::removed, .invert = true});
  static const auto space = make_splitter({.pattern = R"(\s)", .keep = Keep::removed, .invert = true});
  if (!pieces(*letter, utf8(c)).empty()) return CharClass::letter;
  if (!pieces(*number, utf8(c)).empty()) return CharClass::number;
  return pieces(*space, utf8(c)).empty() ? CharClass::other : CharClass::space;
}

TEST(CharClasses, EqualTheRegexEngine) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    ASSERT_EQ(char_classes()[c], regex_class(c)) << std::hex << static_cast<uint32_t>(c);
  }
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
        const bool usable = c > 0 && (c < 0xd800 || c >= 0xe000);
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

// The numbers are those of Hugging Face tokenizers 0.23.3, which are Unicode 16.0's.
TEST(Splitter, CategoriesAreThoseOfUnicode16) {
  std::string all;
  for (char32_t c = 0; c < 0x110000; ++c)
    if (c < 0xd800 || c >= 0xe000) all += utf8(c);
  const std::map<std::string, size_t> expected = {
      {"L", 141028}, {"M", 2501},  {"N", 1911},  {"P", 855},  {"S", 8514},    {"Z", 19},
      {"Lu", 1858},  {"Ll", 2258}, {"Lt", 31},   {"Lm", 404}, {"Lo", 136477}, {"Mc", 468},
      {"Me", 13},    {"Nd", 760},  {"Nl", 236},  {"No", 915}, {"Pd", 27},     {"Po", 640},
      {"Sm", 950},   {"Sc", 63},   {"So", 7376}, {"Cc", 65},  {"Cf", 170}};
  for (const auto& [name, count] : expected) {
    const auto of = [&](const std::string& pattern) {
      size_t matched = 0;
      const SplitRule rule{.pattern = pattern + '+', .keep = Keep::removed, .invert = true};
      make_splitter(rule)->split(all, [&](std::string_view piece) {
        matched += std::ranges::count_if(piece, [](char byte) { return (byte & 0xc0) != 0x80; });
      });
      return matched;
    };
    EXPECT_EQ(of(text(R"(\p{)", name, '}')), count) << name;
    EXPECT_EQ(of(text(R"([^\p{)", name, "}]")), 0x110000 - 0x800 - count) << name;
  }
}

// The pieces here and in the next two tests are those of Hugging Face tokenizers 0.23.3.
TEST(Splitter, Gpt4oPatternOnCodePointsNewInUnicode15And16) {
  const std::string pattern =
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
      R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
      R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  EXPECT_EQ(pieces({.pattern = pattern},
                   "a\U00013d6cb\U00010d50\U00010d70 X\U00010d70\U00010d50 1\U00010d40!"
                   "\U00011f50"),
            (Pieces{"a\U00013d6cb", "\U00010d50\U00010d70", " X\U00010d70", "\U00010d50", " ", "1\U00010d40",
                    "!", "\U00011f50"}));
  EXPECT_EQ(pieces({.pattern = R"(\P{L}+)"}, "a1\U00013d6c2"), (Pieces{"a", "1", "\U00013d6c", "2"}));
  EXPECT_EQ(pieces({.pattern = R"(\p{^L}+)"}, "a1b"), (Pieces{"a", "1", "b"}));
  EXPECT_EQ(pieces({.pattern = R"(\d)"}, "a\U00010d401"), (Pieces{"a", "\U00010d40", "1"}));
  EXPECT_EQ(pieces({.pattern = R"(\D+)"}, "a\U00010d401"), (Pieces{"a", "\U00010d401"}));
}

TEST(Splitter, ScriptsAreScriptsAndNotTheirExtensions) {
  EXPECT_EQ(pieces({.pattern = R"(\p{Han}+)"}, "漢、字。《「〆々〇"),
            (Pieces{"漢", "、", "字", "。《「〆", "々〇"}));
  EXPECT_EQ(pieces({.pattern = R"(\p{Hani})"}, "a中、"), (Pieces{"a", "中", "、"}));
  EXPECT_EQ(pieces({.pattern = R"(\P{Han}+)"}, "漢、字"), (Pieces{"漢", "、", "字"}));
  EXPECT_EQ(pieces({.pattern = R"([^\p{Han}]+)"}, "漢、字"), (Pieces{"漢", "、", "字"}));
  EXPECT_EQ(pieces({.pattern = R"([\p{Hiragana}a]+)"}, "あー、ゝa"), (Pieces{"あ", "ー、", "ゝa"}));
  EXPECT_EQ(pieces({.pattern = R"(\p{Katakana}+)"}, "カー。ア"), (Pieces{"カ", "ー。", "ア"}));
  EXPECT_EQ(pieces({.pattern = R"(\p{Latin}+)"}, "a\u0363b"), (Pieces{"a", "\u0363", "b"}));
  EXPECT_EQ(pieces({.pattern = R"(\p{Arabic}+)"}, "ب،ب\u064b"), (Pieces{"ب", "،", "ب", "\u064b"}));
}

TEST(Splitter, WithoutCaseOnlyOneCharacterForOne) {
  EXPECT_EQ(pieces({.pattern = "(?i:['’]s|s|t(?=s)|k)"}, "x’S\u017f\u212aT"),
            (Pieces{"x", "’S", "\u017f", "\u212a", "T"}));
  EXPECT_EQ(pieces({.pattern = "(?i:s[s]|s+s)|ss"}, "ß"), (Pieces{"ß"}));
}

TEST(Splitter, PatternsThatTheEnginesReadDifferentlyAreRefused) {
  for (const std::string pattern : {"",
                                    "a{2}+",
                                    "[a[b]]",
                                    "[a&&b]",
                                    R"(\w+)",
                                    R"(\bx)",
                                    R"([\S])",
                                    "(?m:.)",
                                    "(?i)a",
                                    "(?<n>a)",
                                    "a{,3}",
                                    "(",
                                    "[a",
                                    R"(\p{Nonsense})",
                                    R"(\)",
                                    "x(?",
                                    R"(\p{Alphabetic})",
                                    R"(\p{Lower})",
                                    R"(\p{Emoji})",
                                    R"(\p{Any})",
                                    R"(\p{Cn})",
                                    R"(\p{C})",
                                    R"(\p{Mn})",
                                    R"([\P{L}])",
                                    R"([\D])",
                                    R"(\p{sc:Han})",
                                    R"((?i:\p{Lu}))",
                                    "(?i:ss)",
                                    "(?i:a(b|ST))",
                                    "(?i:oFf)",
                                    "(?i:s(?:s))",
                                    "(?i:(?i:a)fi)",
                                    "(?i:fL)",
                                    "(?i:ß)",
                                    "(?i:[ß])",
                                    "(?i:[!-÷])",
                                    R"((?i:\u0073s))"})
    try {
      (void)make_splitter({.pattern = pattern});
      ADD_FAILURE() << pattern << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data) << pattern;
    }
}

}  // namespace
}  // namespace weft
