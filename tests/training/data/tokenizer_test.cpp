#include "training/data/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "autograd/check.h"
#include "training/data/bpe_train.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

using Ids = std::vector<int32_t>;

std::string random_bytes(std::mt19937& rng, size_t most) {
  std::string out(rng() % (most + 1), '\0');
  for (char& c : out)
    c = static_cast<char>(rng() % 4 == 0 ? rng() % 256 : "ab '\n1\xc3\xa9\xe2\x96\x81"[rng() % 11]);
  return out;
}

std::shared_ptr<const Tokenizer> small_bpe(const std::string& pattern = llama3_pattern) {
  WordCounts counts(pattern);
  counts.add("the cat and the hat, the dog and the frog: café, naïve, 日本語 日本語 'll 's 1234 12\n\n  the");
  return make_bpe_tokenizer(train_bpe(counts, 300, 1));
}

TEST(ByteTokenizer, KnownAnswers) {
  const auto byte = load_tokenizer("byte");
  EXPECT_EQ(byte->vocab_size(), 257);
  EXPECT_EQ(byte->eos_id(), 256);
  EXPECT_FALSE(byte->bos_id());
  EXPECT_EQ(byte->encode("aé\xff"), (Ids{97, 0xc3, 0xa9, 0xff}));
  EXPECT_EQ(byte->encode(""), Ids{});
  EXPECT_EQ(byte->encode("<|endoftext|>a<|endoftext|>"), (Ids{256, 97, 256}));
  EXPECT_EQ(byte->encode("<|endoftext|>", SpecialText::plain).size(), 13u);
  EXPECT_EQ(byte->decode(Ids{104, 105, 256}), "hi<|endoftext|>");
}

TEST(Tokenizer, RoundTripsAnyBytes) {
  std::mt19937 rng(1);
  for (const auto& tokenizer : {load_tokenizer("byte"), small_bpe(), small_bpe(gpt2_pattern)})
    for (int i = 0; i < 3000; ++i) {
      const std::string text = random_bytes(rng, 60);
      const Ids ids = tokenizer->encode(text, i % 2 ? SpecialText::plain : SpecialText::parse);
      EXPECT_EQ(tokenizer->decode(ids), text);
      for (int32_t id : ids) ASSERT_TRUE(id >= 0 && id < tokenizer->vocab_size());
    }
}

TEST(Tokenizer, InvalidBytesDoNotChangeTheirNeighbours) {
  const auto bpe = small_bpe();
  Ids expected = bpe->encode("the cat");
  const Ids bad = bpe->encode("\xff\xc3"), after = bpe->encode(" and");
  expected.insert(expected.end(), bad.begin(), bad.end());
  expected.insert(expected.end(), after.begin(), after.end());
  EXPECT_EQ(bpe->encode("the cat\xff\xc3 and"), expected);
}

TEST(Tokenizer, LongWordsAndTexts) {
  const auto bpe = small_bpe();
  const std::string word(100'000, 't'), spaces(50'000, ' ');
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += "the dog and ";
  for (const std::string& s : {word, spaces, spaces + "\n" + spaces, text, word + spaces + text})
    EXPECT_EQ(bpe->decode(bpe->encode(s)), s);
}

TEST(Tokenizer, ThreadsAgree) {
  const auto a = small_bpe(), b = small_bpe(gpt2_pattern);
  const std::string text = "the cat's hat\n\n and 123456 日本語";
  const Ids from_a = a->encode(text), from_b = b->encode(text);
  ASSERT_NE(from_a, from_b);
#pragma omp parallel for
  for (int i = 0; i < 200; ++i) {  // the word memory of a thread must not mix up the two
    EXPECT_EQ(a->encode(text), from_a);
    EXPECT_EQ(b->encode(text), from_b);
  }
}

TEST(Tokenizer, UnknownIdsAreErrors) {
  for (const auto& tokenizer : {load_tokenizer("byte"), small_bpe()})
    for (int32_t id : {-1, tokenizer->vocab_size()}) try {
        (void)tokenizer->decode(Ids{id});
        ADD_FAILURE() << "decoded " << id;
      } catch (const Error& e) {
        EXPECT_EQ(e.code, Exit::data);
      }
}

TEST(StreamDecoder, NeverSplitsACharacter) {
  const auto byte = load_tokenizer("byte");
  const std::string text = "aé日😀\u0301z";
  StreamDecoder stream(*byte);
  std::string out;
  for (int32_t id : byte->encode(text)) {
    const std::string part = stream.push(id);
    EXPECT_EQ(valid_prefix(part), part.size());
    out += part;
  }
  EXPECT_EQ(out, text);
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, HoldsBackOnlyWhatCanStillBecomeACharacter) {
  const auto byte = load_tokenizer("byte");
  StreamDecoder stream(*byte);
  EXPECT_EQ(stream.push(0xf0), "");
  EXPECT_EQ(stream.push(0x9f), "");
  EXPECT_EQ(stream.push('a'),
            "\xf0\x9f"
            "a");                        // it became none
  EXPECT_EQ(stream.push(0xff), "\xff");  // never starts one
  EXPECT_EQ(stream.push(0xed), "");
  EXPECT_EQ(stream.push(0xa0), "\xed\xa0");  // a surrogate
  EXPECT_EQ(stream.push(0xe2), "");
  EXPECT_EQ(stream.finish(), "\xe2");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDecoder, EqualsDecodeOnRandomTokens) {
  std::mt19937 rng(2);
  for (const auto& tokenizer : {load_tokenizer("byte"), small_bpe()})
    for (int i = 0; i < 500; ++i) {
      StreamDecoder stream(*tokenizer);
      Ids ids(rng() % 40);
      std::string out;
      for (int32_t& id : ids) out += stream.push(id = static_cast<int32_t>(rng() % tokenizer->vocab_size()));
      EXPECT_EQ(out + stream.finish(), tokenizer->decode(ids));
    }
}

TEST(Utf8, ValidityOfEveryShortString) {
  // Against the definition: decode, and require the shortest form of a code point that is no surrogate.
  const auto is_valid = [](const std::string& s) {
    char32_t c;
    size_t n = s.size();
    const auto b = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
    if (n == 1) return b(0) < 0x80;
    for (size_t i = 1; i < n; ++i)
      if ((b(i) & 0xc0) != 0x80) return false;
    if (n == 2 && (b(0) & 0xe0) == 0xc0)
      c = (b(0) & 0x1f) << 6 | (b(1) & 0x3f);
    else if (n == 3 && (b(0) & 0xf0) == 0xe0)
      c = (b(0) & 0x0f) << 12 | (b(1) & 0x3f) << 6 | (b(2) & 0x3f);
    else
      return false;
    return c >= (n == 2 ? 0x80u : 0x800u) && (c < 0xd800 || c > 0xdfff);
  };
  for (int a = 0; a < 256; ++a)
    for (int b = 0; b < 256; ++b) {
      const std::string two{static_cast<char>(a), static_cast<char>(b)};
      EXPECT_EQ(utf8_length(two) == 2, is_valid(two)) << a << ' ' << b;
      for (int c : {0x00, 0x7f, 0x80, 0xbf, 0xc0}) {
        const std::string three = two + static_cast<char>(c);
        ASSERT_EQ(utf8_length(three) == 3, is_valid(three)) << a << ' ' << b << ' ' << c;
      }
    }
  EXPECT_EQ(utf8_length("\xf0\x8f\xbf\xbf"), 0u);
  EXPECT_EQ(utf8_length("\xf0\x90\x80\x80"), 4u);
  EXPECT_EQ(utf8_length("\xf4\x8f\xbf\xbf"), 4u);
  EXPECT_EQ(utf8_length("\xf4\x90\x80\x80"), 0u);
  EXPECT_EQ(utf8_length(""), 0u);
}

TEST(Tokenizer, MayCutAtNewlines) {
  EXPECT_TRUE(load_tokenizer("byte")->may_cut_at_newlines());
  for (const std::string& pattern : {gpt2_pattern, llama3_pattern, qwen2_pattern}) {
    const auto bpe = small_bpe(pattern);
    EXPECT_TRUE(bpe->may_cut_at_newlines());
    for (const std::string left : {"the cat\n", "\n\n x1\n"})
      for (const std::string right : {"the", "1 a\n\n", "Z\n"}) {
        Ids parts = bpe->encode(left);
        const Ids tail = bpe->encode(right);
        parts.insert(parts.end(), tail.begin(), tail.end());
        EXPECT_EQ(bpe->encode(left + right), parts);
      }
  }
  EXPECT_FALSE(small_bpe(R"(\s?\p{L}+|\s+)")->may_cut_at_newlines());
}

}  // namespace
}  // namespace weft
