#include "training/data/tokenizer_json.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "tests/training/data/fixtures.h"
#include "training/data/bpe_train.h"

namespace weft {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const json& parity() {
  static const json file = json::parse(std::ifstream("tests/training/data/tokenizer_parity.json"));
  return file;
}

// The tokenizer.json of one variant: its model with changes, and its other parts.
json variant_file(const json& variant) {
  json file = variant.at("file"), model = parity().at("models").at(variant.at("model"));
  model.update(file.at("model"));
  file["model"] = model;
  return file;
}

json file_of(const std::string& name) {
  for (const json& v : parity().at("variants"))
    if (v.at("name") == name) return variant_file(v);
  throw std::runtime_error("no variant " + name);
}

std::shared_ptr<const Tokenizer> load(const TempFolder& folder, const json& file) {
  return load_tokenizer(write_file(folder / "tokenizer.json", file.dump()));
}

TEST(TokenizerJson, IdsEqualHuggingFace) {
  const TempFolder folder;
  const json& texts = parity().at("texts");
  std::map<std::string, json> first;  // the other variants of a model list only what differs
  for (const json& variant : parity().at("variants")) {
    SCOPED_TRACE(variant.at("name"));
    const auto tokenizer = load(folder, variant_file(variant));
    const json& base = first.try_emplace(variant.at("model"), variant.at("ids")).first->second;
    const json &ids = variant.at("ids"), &plain = variant.at("plain");
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::string key = std::to_string(i), text = texts[i];
      const Ids expected = ids.contains(key) ? ids[key] : base[key];
      EXPECT_EQ(tokenizer->encode(text), expected) << text;
      const Ids expected_plain = plain.contains(key) ? plain[key].get<Ids>() : expected;
      EXPECT_EQ(tokenizer->encode(text, SpecialText::plain), expected_plain) << text;
    }
  }
}

TEST(TokenizerJson, TrainingEqualsHuggingFace) {
  for (const json& training : parity().at("training")) {
    WordCounts counts(training.at("pattern").get<std::string>());
    counts.add(parity().at("text").get<std::string>());
    const BpeDefinition d = train_bpe(counts, 401, 0);
    std::vector<std::pair<std::string, std::string>> merges;
    for (const auto& [a, b] : d.merges)
      merges.emplace_back(to_byte_alphabet(d.tokens[a]), to_byte_alphabet(d.tokens[b]));
    EXPECT_EQ(json(merges), training.at("merges"));
  }
}

TEST(TokenizerJson, WhatIsWrittenIsReadBackTheSame) {
  const TempFolder folder;
  for (const json& variant : parity().at("variants")) {
    SCOPED_TRACE(variant.at("name"));
    const auto tokenizer = load(folder, variant_file(variant));
    tokenizer->save(folder / "out");
    const auto again = load_tokenizer(folder / "out");
    EXPECT_EQ(again->hash(), tokenizer->hash());
    EXPECT_EQ(again->eos_id(), tokenizer->eos_id());
    EXPECT_EQ(again->bos_id(), tokenizer->bos_id());
    for (const std::string text : parity().at("texts"))
      EXPECT_EQ(again->encode(text), tokenizer->encode(text));
  }
  const auto byte = load_tokenizer("byte");
  byte->save(folder / "byte");
  const auto again = load_tokenizer(folder / "byte");
  EXPECT_EQ(again->hash(), byte->hash());
  EXPECT_EQ(again->encode("a\xff<|endoftext|>"), byte->encode("a\xff<|endoftext|>"));
}

TEST(TokenizerJson, SpellingDoesNotChangeTheHash) {
  const TempFolder folder;
  json file = file_of("gpt2");
  const std::string hash = load(folder, file)->hash();
  for (json& merge : file["model"]["merges"])
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  file["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers",
                            {{{"type", "Split"},
                              {"pattern", {{"Regex", gpt2_pattern}}},
                              {"behavior", "Isolated"},
                              {"invert", false}},
                             {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  file["post_processor"] = {{"type", "ByteLevel"}, {"trim_offsets", false}};
  EXPECT_EQ(load(folder, file)->hash(), hash);
  file["model"]["ignore_merges"] = true;
  EXPECT_NE(load(folder, file)->hash(), hash);
}

TEST(TokenizerJson, Llama2DecodesWithoutTheSpaceItPutsFirst) {
  const TempFolder folder;
  const auto tokenizer = load(folder, file_of("llama2"));
  const std::string text = "the light\n  é and \xff";
  const Ids ids = tokenizer->encode(text);
  EXPECT_EQ(tokenizer->decode(ids), text);
  StreamDecoder stream(*tokenizer);
  std::string streamed;
  for (int32_t id : ids) streamed += stream.push(id);
  EXPECT_EQ(streamed + stream.finish(), text);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_FALSE(tokenizer->may_cut_at_newlines());
}

// What a model writes goes on where the prompt ended: only a whole text has a space to lose.
TEST(TokenizerJson, Llama2KeepsTheSpaceAfterAPrompt) {
  const TempFolder folder;
  const auto tokenizer = load(folder, file_of("llama2"));
  const Ids prompt = tokenizer->encode("the light"), whole = tokenizer->encode("the light and");
  ASSERT_TRUE(std::equal(prompt.begin(), prompt.end(), whole.begin()));
  StreamDecoder stream(*tokenizer, true);
  std::string streamed;
  for (size_t i = prompt.size(); i < whole.size(); ++i) streamed += stream.push(whole[i]);
  EXPECT_EQ(streamed + stream.finish(), " and");
}

// Ids of the tokenizers package, 0.23.
TEST(TokenizerJson, AddedTokensAsHuggingFaceFindsThem) {
  const TempFolder folder;
  json file = file_of("gpt2");
  const auto next = static_cast<int32_t>(file["model"]["vocab"].size());
  const auto add = [&](const std::string& content, int32_t id, bool special, bool rstrip) {
    file["added_tokens"].push_back({{"id", id},
                                    {"content", content},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", rstrip},
                                    {"normalized", false},
                                    {"special", special}});
  };
  const int32_t first = std::max<int32_t>(next, file["added_tokens"].back()["id"].get<int32_t>() + 1);
  file["model"]["ignore_merges"] = true;
  add("PAD", first, true, false);
  add("<|end|>", first + 1, true, true);
  add("\n\n", first + 2, false, false);
  const auto tokenizer = load(folder, file);
  const Ids a = tokenizer->encode("a"), b = tokenizer->encode("b"),
            text = tokenizer->encode("PAD", SpecialText::plain);
  EXPECT_EQ(std::count(text.begin(), text.end(), first), 0) << "a text that spells it out is text";
  EXPECT_EQ(tokenizer->encode("PAD", SpecialText::parse), (Ids{first}));
  // White space that a token takes along can be a token itself.
  EXPECT_EQ(tokenizer->encode("a<|end|>\n\nb", SpecialText::parse), (Ids{a[0], first + 1, first + 2, b[0]}));
  tokenizer->save(folder / "out");
  EXPECT_EQ(load_tokenizer(folder / "out")->encode("PAD", SpecialText::plain), text);

  // It numbers what model.vocab lacks from its size on, whatever the file says.
  for (const int32_t id : {first + 4, first + 2}) {
    json other = file;
    add("more", id, false, false);
    std::swap(other, file);
    EXPECT_THROW(load(folder, other), Error) << id;
  }
}

TEST(TokenizerJson, EndTokenComesFromTheConfigBesideIt) {
  const TempFolder folder;
  json file = file_of("llama3");
  const int32_t usual = load(folder, file)->eos_id();
  EXPECT_EQ(load(folder, file)->bos_id(), usual);  // from the template
  write_file(folder / "tokenizer_config.json", R"({"eos_token": "<mask>"})");
  EXPECT_EQ(load(folder, file)->eos_id(), usual + 1);
  write_file(folder / "tokenizer_config.json", R"({"eos_token": {"content": "<mask>"}})");
  EXPECT_EQ(load(folder, file)->eos_id(), usual + 1);
}

TEST(TokenizerJson, UnsupportedPartsAreNamed) {
  const TempFolder folder;
  const auto refused = [&](const json& patch, const std::string& field) {
    json file = file_of("gpt2");
    file.merge_patch(patch);
    try {
      load(folder, file);
      ADD_FAILURE() << patch << " was accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data);
      EXPECT_NE(std::string(e.what()).find(field), std::string::npos) << e.what();
    }
  };
  refused({{"truncation", {{"max_length", 5}}}}, "truncation");
  refused({{"padding", {{"length", 5}}}}, "padding");
  refused({{"something_new", 1}}, "something_new");
  refused({{"normalizer", {{"type", "Lowercase"}}}}, "normalizer");
  refused({{"normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "a"}}}, {"content", "b"}}}},
          "normalizer");
  refused({{"pre_tokenizer", {{"type", "Whitespace"}}}}, "pre_tokenizer");
  refused({{"pre_tokenizer", {{"more", 1}}}}, "pre_tokenizer.more");
  refused({{"pre_tokenizer", nullptr}}, "pre_tokenizer");
  refused({{"post_processor", {{"type", "BertProcessing"}}}}, "post_processor");
  refused({{"decoder", {{"type", "WordPiece"}}}}, "decoder");
  refused({{"model", {{"type", "WordPiece"}}}}, "model.type");
  refused({{"model", {{"dropout", 0.1}}}}, "model.dropout");
  refused({{"model", {{"end_of_word_suffix", "</w>"}}}}, "model.end_of_word_suffix");
  const json byte = file_of("gpt2")["model"]["vocab"]["ÿ"];
  refused({{"model", {{"vocab", {{"ÿ", nullptr}, {"zyzyzy", byte}}}}}}, "byte");
  refused({{"model", {{"vocab", {{"日", 900}}}}}}, "model.vocab");
  refused({{"model", {{"vocab", {{"!!", 0}}}}}}, "id 0");
  refused({{"model", {{"vocab", {{"!!", -5}}}}}}, "-5");
  refused({{"model", {{"vocab", {{"!!", "x"}}}}}}, "tokenizer.json");
  refused({{"model", {{"merges", {"a b c"}}}}}, "model.merges");
  refused({{"model", {{"merges", {"zz y"}}}}}, "model.merges");
  refused({{"model", {{"merges", {{"a", "q"}}}}}}, "merge");
  refused({{"added_tokens", json::array()}}, "end token");
  refused({{"added_tokens",
            {{{"id", 500},
              {"content", "<x>"},
              {"single_word", true},
              {"special", true},
              {"normalized", false}}}}},
          "single_word");
}

TEST(TokenizerJson, MissingAndBrokenFiles) {
  const TempFolder folder;
  for (const std::string& path :
       {folder / "none.json", folder / ".", write_file(folder / "x.json", "{\"model\": "),
        write_file(folder / "y.json", "[]"), write_file(folder / "z.json", "{}")})
    try {
      (void)load_tokenizer(path);
      ADD_FAILURE() << path;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data) << path;
    }
  try {
    load_tokenizer("byte")->save(write_file(folder / "file", "") + "/under");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::cannot_create);
  }
}

TEST(ByteAlphabet, IsGpt2s) {
  EXPECT_EQ(to_byte_alphabet(" a\n"), "ĠaĊ");
  EXPECT_EQ(from_byte_alphabet("ĠaĊ"), " a\n");
  EXPECT_FALSE(from_byte_alphabet("日"));
  EXPECT_FALSE(from_byte_alphabet(" "));
  const std::string order = bytes_in_alphabet_order();
  EXPECT_EQ(order.size(), 256u);
  EXPECT_EQ(order[0], '!');
  EXPECT_EQ(order[188], '\0');
  EXPECT_EQ(order[220], ' ');  // GPT-2's id of the space
  for (char c : order) EXPECT_EQ(from_byte_alphabet(to_byte_alphabet(std::string(1, c))), std::string(1, c));
}

}  // namespace
}  // namespace weft
