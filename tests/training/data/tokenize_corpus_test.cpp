#include "training/data/tokenize_corpus.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "autograd/check.h"
#include "tests/training/data/fixtures.h"
#include "training/checkpoint/hash.h"
#include "training/data/corpus.h"
#include "training/data/token_source.h"
#include "training/data/tokenize_corpus_input.h"

namespace weft {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::string zstd_of(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 1));
  return out;
}

std::string words(std::mt19937& rng, int count) {
  static const char* const list[] = {"the", "cat",   "sat", "on",         "a",   "mat,",
                                     "and", "12345", "é",   "\"quoted\"", "x\ty"};
  std::string out;
  for (int i = 0; i < count; ++i) {
    if (i > 0) out += ' ';
    out += list[rng() % std::size(list)];
  }
  return out;
}

std::shared_ptr<const Tokenizer> small_bpe() {
  WordCounts counts(llama3_pattern);
  std::mt19937 rng(1);
  counts.add(words(rng, 2000));
  return make_bpe_tokenizer(train_bpe(counts, 320));
}

// The tokens of one shard; checks the header.
template <class T>
void read_shard(const std::string& path, int32_t magic, int32_t version, Ids& out) {
  const std::string bytes = read_file(path);
  int32_t header[256];
  ASSERT_GE(bytes.size(), sizeof header);
  std::memcpy(header, bytes.data(), sizeof header);
  EXPECT_EQ(header[0], magic);
  EXPECT_EQ(header[1], version);
  ASSERT_EQ(bytes.size(), sizeof header + static_cast<size_t>(header[2]) * sizeof(T));
  for (size_t at = sizeof header; at < bytes.size(); at += sizeof(T)) {
    T token;
    std::memcpy(&token, bytes.data() + at, sizeof token);
    out.push_back(static_cast<int32_t>(token));
  }
}

json manifest_of(const std::string& folder) { return json::parse(read_file(folder + "/manifest.json")); }

Ids all_tokens(const std::string& folder) {
  Ids out;
  const json manifest = manifest_of(folder);
  for (const json& shard : manifest["shards"]) {
    const size_t before = out.size();
    const std::string path = folder + "/" + shard["file"].get<std::string>();
    read_shard<uint16_t>(path, 20240520, 1, out);
    EXPECT_EQ(out.size() - before, shard["tokens"]);
    EXPECT_EQ(shard["hash"], hash_file(path));
  }
  return out;
}

// Three files: documents in json lines, compressed json lines, and plain text.
class TokenizeCorpus : public ::testing::Test {
 protected:
  void SetUp() override {
    std::mt19937 rng(7);
    std::string lines[2], plain;
    for (std::string& file : lines)
      for (int i = 0; i < 40; ++i) {
        documents.push_back(words(rng, 1 + static_cast<int>(rng() % 200)) +
                            (i % 5 ? "" : "\n<|endoftext|>\n"));
        file += json{{"id", i}, {"text", documents.back()}}.dump() + (i % 7 ? "\n" : "\r\n\n");
      }
    lines[0] += "{\"text\": \"\"}\n";  // no document
    for (int i = 0; i < 20; ++i) {
      documents.push_back(words(rng, 100) + "\n\n  " + words(rng, 5));
      plain += documents.back() + (i % 2 ? "\n<|endoftext|>\n" : "\n\n\n");
    }
    options.inputs = {write_file(folder / "a.jsonl", lines[0]),
                      write_file(folder / "b.ndjson.zst", zstd_of(lines[1])),
                      write_file(folder / "c.txt", plain)};
    options.output = folder / "out";
    options.threads = 2;
    tokenizer = small_bpe();
    for (const std::string& d : documents) {
      expected.push_back(tokenizer->eos_id());
      tokenizer->encode_to(d, SpecialText::plain, expected);
    }
  }

  int64_t text_bytes() const {
    size_t sum = 0;
    for (const std::string& d : documents) sum += d.size();
    return static_cast<int64_t>(sum);
  }

  Exit code() {
    try {
      tokenize_corpus(*tokenizer, options);
    } catch (const Error& e) {
      return e.code;
    }
    return Exit::ok;
  }

  TempFolder folder;
  std::vector<std::string> documents;
  std::shared_ptr<const Tokenizer> tokenizer;
  TokenizeOptions options;
  Ids expected;
};

TEST_F(TokenizeCorpus, WritesEveryDocumentAfterAnEndToken) {
  options.shard_tokens = 6000;
  options.validation_tokens = 300;
  const TokenizeProgress done = tokenize_corpus(*tokenizer, options);
  EXPECT_EQ(done.tokens, static_cast<int64_t>(expected.size()));
  EXPECT_EQ(done.documents, static_cast<int64_t>(documents.size()));
  EXPECT_EQ(done.text_bytes, text_bytes());
  EXPECT_EQ(all_tokens(options.output), expected);

  const json manifest = manifest_of(options.output);
  EXPECT_TRUE(manifest["complete"]);
  EXPECT_EQ(manifest["tokenizer"]["hash"], tokenizer->hash());
  EXPECT_EQ(manifest["documents"], documents.size());
  EXPECT_EQ(manifest["text_bytes"], text_bytes());
  EXPECT_EQ(manifest["shards"][0]["file"], "corpus_val_000000.bin");
  EXPECT_EQ(manifest["shards"][0]["tokens"], 300);
  EXPECT_EQ(manifest["shards"][1]["file"], "corpus_train_000000.bin");
  EXPECT_EQ(manifest["shards"][1]["tokens"], 6000);
  EXPECT_EQ(manifest["inputs"][1]["hash"], hash_file(options.inputs[1]));
  EXPECT_EQ(manifest["inputs"][1]["size"], std::filesystem::file_size(options.inputs[1]));
}

TEST_F(TokenizeCorpus, ThreadsChangeNothing) {
  options.shard_tokens = 7000;
  tokenize_corpus(*tokenizer, options);
  const json one = manifest_of(options.output);
  options.threads = 5;
  options.output = folder / "again";
  tokenize_corpus(*tokenizer, options);
  EXPECT_EQ(manifest_of(options.output), one);
}

TEST_F(TokenizeCorpus, OurReadersFindTheSameDocumentsInShardAndText) {
  tokenize_corpus(*tokenizer, options);
  const SourceOptions source{
      .tokenizer = tokenizer.get(), .vocab_size = tokenizer->vocab_size(), .eos = tokenizer->eos_id()};
  const auto shard = open_source(options.output + "/corpus_train_000000.bin", source);
  ASSERT_EQ(shard->documents(), static_cast<int64_t>(documents.size()));
  int64_t at = 0;
  for (const std::string& input : options.inputs) {
    const auto text = open_source(input, source);
    for (int64_t i = 0; i < text->documents(); ++i, ++at) {
      const int64_t length =
          text->length(i) - 1;  // the end token that no document follows is missing in the shard
      EXPECT_EQ(shard->hash(at, 0, length), text->hash(i, 0, length)) << input << " " << i;
    }
  }
}

TEST_F(TokenizeCorpus, ItsFolderIsTrainingData) {
  options.shard_tokens = 6000;
  options.validation_tokens = 300;
  tokenize_corpus(*tokenizer, options);
  SourceOptions source;
  source.tokenizer = tokenizer.get();
  source.vocab_size = tokenizer->vocab_size();
  source.eos = static_cast<int32_t>(tokenizer->eos_id());
  const std::vector<std::string> files = expand_paths({options.output});
  EXPECT_EQ(files.size() + 1, manifest_of(options.output)["shards"].size());
  EXPECT_TRUE(files.front().ends_with("corpus_train_000000.bin"));
  EXPECT_GT(open_corpus({options.output}, source).tokens(), 6000);

  const auto code_with = [&](const Tokenizer& other) {
    source.tokenizer = &other;
    try {
      open_corpus({options.output}, source);
    } catch (const Error& e) {
      return e.code;
    }
    return Exit::ok;
  };
  EXPECT_EQ(code_with(*tokenizer), Exit::ok);
  EXPECT_EQ(code_with(*load_tokenizer("byte")), Exit::data);

  json manifest = manifest_of(options.output);
  manifest["complete"] = false;
  write_file(folder / "out/manifest.json", manifest.dump());
  EXPECT_EQ(code_with(*tokenizer), Exit::data);
}

TEST_F(TokenizeCorpus, SomethingIsLeftToTrainOn) {
  const auto all = static_cast<int64_t>(expected.size());
  for (const int64_t held_out : {all + 1, all}) {
    options.validation_tokens = held_out;
    try {
      tokenize_corpus(*tokenizer, options);
      ADD_FAILURE() << held_out << " of " << all;
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::data);
      EXPECT_NE(std::string(e.what()).find(text("hold ", all, " tokens, of which ", held_out)),
                std::string::npos)
          << e.what();
    }
  }
  options.validation_tokens = all - 1;
  EXPECT_EQ(code(), Exit::ok) << "the same folder serves";
  EXPECT_EQ(all_tokens(options.output), expected);
  EXPECT_EQ(manifest_of(options.output)["shards"].size(), 2u);
}

TEST_F(TokenizeCorpus, SpecialTokensAreParsedOnRequest) {
  options.special = SpecialText::parse;
  tokenize_corpus(*tokenizer, options);
  const Ids ids = all_tokens(options.output);
  EXPECT_EQ(std::ranges::count(ids, tokenizer->eos_id()),
            static_cast<std::ptrdiff_t>(documents.size()) + 16);  // every fifth of 80 lines holds one
}

TEST_F(TokenizeCorpus, ContinuesWhereItWasStopped) {
  options.threads = 1;
  std::mt19937 rng(8);
  // One batch holds all of this corpus, so stop at the turn of files that are larger.
  std::string big;
  for (int i = 0; i < 3000; ++i) {
    const std::string document = words(rng, 300);
    documents.push_back(document);
    big += json{{"text", document}}.dump() + "\n";
    expected.push_back(tokenizer->eos_id());
    tokenizer->encode_to(document, SpecialText::plain, expected);
  }
  options.shard_tokens = 150'001;
  options.inputs.push_back(write_file(folder / "d.jsonl", big));

  int calls = 0;
  options.stop = [&] { return ++calls > 2; };
  EXPECT_EQ(code(), Exit::stopped);
  EXPECT_FALSE(manifest_of(options.output)["complete"]);
  const size_t shards = manifest_of(options.output)["shards"].size();
  ASSERT_GE(shards, 2u);
  const std::string first = options.output + "/corpus_train_000000.bin";
  const auto written = std::filesystem::last_write_time(first);
  write_file(options.output + "/corpus_train_000009.bin.tmp-1", "left behind");

  calls = -1'000'000;
  const TokenizeProgress done = tokenize_corpus(*tokenizer, options);
  EXPECT_EQ(all_tokens(options.output), expected);
  EXPECT_EQ(done.documents, static_cast<int64_t>(documents.size()));
  EXPECT_EQ(done.text_bytes, text_bytes());
  EXPECT_LT(done.new_bytes, done.text_bytes);
  EXPECT_EQ(std::filesystem::last_write_time(first), written);  // kept
  EXPECT_FALSE(std::filesystem::exists(options.output + "/corpus_train_000009.bin.tmp-1"));

  // The same as without the interruption.
  const json resumed = manifest_of(options.output);
  options.output = folder / "at once";
  options.threads = 3;
  tokenize_corpus(*tokenizer, options);
  EXPECT_EQ(manifest_of(options.output), resumed);
}

TEST_F(TokenizeCorpus, WhatIsDoneIsCountedAgain) {
  options.shard_tokens = 6000;
  const TokenizeProgress done = tokenize_corpus(*tokenizer, options);
  const TokenizeProgress again = tokenize_corpus(*tokenizer, options);
  EXPECT_EQ(done.text_bytes, text_bytes());
  EXPECT_EQ(done.new_bytes, text_bytes());
  EXPECT_EQ(again.text_bytes, done.text_bytes);
  EXPECT_EQ(again.new_bytes, 0);

  // Earlier versions did not keep it, and to count it anew would take all the text.
  const std::string path = options.output + "/manifest.json";
  json manifest = manifest_of(options.output);
  manifest.erase("text_bytes");
  for (json& shard : manifest["shards"]) shard.erase("text_bytes");
  write_file(path, manifest.dump());
  EXPECT_EQ(tokenize_corpus(*tokenizer, options).text_bytes, std::nullopt);
  std::filesystem::remove(options.output + "/corpus_train_000001.bin");
  EXPECT_EQ(tokenize_corpus(*tokenizer, options).text_bytes, std::nullopt);
  EXPECT_EQ(all_tokens(options.output), expected);
  EXPECT_FALSE(manifest_of(options.output).contains("text_bytes"));
}

TEST_F(TokenizeCorpus, DamagedShardsAreWrittenAgain) {
  options.shard_tokens = 6000;
  tokenize_corpus(*tokenizer, options);
  const json before = manifest_of(options.output);
  for (const char* name : {"/corpus_train_000002.bin", "/corpus_train_000000.bin"}) {
    const std::string path = options.output + name;
    std::string bytes = read_file(path);
    bytes.back() ^= 1;
    write_file(path, bytes);
    tokenize_corpus(*tokenizer, options);
    EXPECT_EQ(manifest_of(options.output), before);
    EXPECT_EQ(all_tokens(options.output), expected);
    std::filesystem::remove(path);
    tokenize_corpus(*tokenizer, options);
    EXPECT_EQ(all_tokens(options.output), expected);
  }
}

TEST_F(TokenizeCorpus, AnotherCorpusInTheFolderIsLeftAlone) {
  tokenize_corpus(*tokenizer, options);
  EXPECT_EQ(code(), Exit::ok);
  TokenizeOptions good = options;
  options.shard_tokens = 10;
  EXPECT_EQ(code(), Exit::cannot_create);
  options = good;
  options.inputs.pop_back();
  EXPECT_EQ(code(), Exit::cannot_create);
  options = good;
  write_file(options.inputs[2], "changed");
  EXPECT_EQ(code(), Exit::cannot_create);
  options.output = folder / "other";
  std::filesystem::create_directory(options.output);
  write_file(options.output + "/x.bin", "");
  EXPECT_EQ(code(), Exit::cannot_create);
  write_file(options.output + "/manifest.json", "{}");
  EXPECT_EQ(code(), Exit::data);
}

TEST_F(TokenizeCorpus, BadLinesStopOrAreCounted) {
  const std::string bad =
      "{\"text\": \"ab\"}\n{\"text\": \n{\"body\": \"x\"}\n[1]\n{\"text\": 3}\n{\"text\": "
      "\"\xff\"}\n{\"text\": \"cd\"}\n";
  options.inputs = {write_file(folder / "bad.jsonl", bad)};
  try {
    tokenize_corpus(*tokenizer, options);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::data);
    EXPECT_EQ(e.where, options.inputs[0] + ":2");
  }
  options.output = folder / "skipping";
  options.skip_bad_lines = true;
  const TokenizeProgress done = tokenize_corpus(*tokenizer, options);
  EXPECT_EQ(done.documents, 2);
  EXPECT_EQ(done.skipped_lines, 5);
  EXPECT_EQ(manifest_of(options.output)["skipped_lines"], 5);
}

TEST_F(TokenizeCorpus, WrongInputsAndOptions) {
  options.inputs = {folder / "a.jsonl", folder / "missing.txt"};
  EXPECT_EQ(code(), Exit::data);
  EXPECT_FALSE(std::filesystem::exists(options.output));
  options.inputs = {write_file(folder / "empty.txt", "\n\n")};
  EXPECT_EQ(code(), Exit::data);
  options.output = folder / "o2";
  options.inputs = {write_file(folder / "binary.txt", std::string("a\0b\n", 4))};
  EXPECT_EQ(code(), Exit::data);
  options.output = folder / "o3";
  options.inputs = {write_file(folder / "cut.jsonl.zst", zstd_of(std::string(1000, 'x')).substr(0, 12))};
  EXPECT_EQ(code(), Exit::data);
  options.inputs = {};
  EXPECT_EQ(code(), Exit::usage);
  options.inputs = {folder / "a.jsonl"};
  options.shard_tokens = 0;
  EXPECT_EQ(code(), Exit::usage);
  options.shard_tokens = int64_t{1} << 31;
  EXPECT_EQ(code(), Exit::usage);
  options.shard_tokens = 5;
  options.name = "a/b";
  EXPECT_EQ(code(), Exit::usage);
  options.name = "c";
  options.output = folder / "a.jsonl";
  EXPECT_EQ(code(), Exit::cannot_create);
}

// Whichever thread meets the end first.
TEST_F(TokenizeCorpus, ACutOffFileIsTheErrorWithManyThreads) {
  std::mt19937 rng(11);
  std::string plain;
  while (plain.size() < 2'000'000) plain += words(rng, 12) + "\n";
  std::string bytes = zstd_of(plain);
  bytes.resize(bytes.size() - 100);
  options.inputs = {write_file(folder / "cut.txt.zst", bytes)};
  tokenizer = load_tokenizer("byte");
  options.threads = 8;
  for (int i = 0; i < 20; ++i) {
    const Error error = error_of([&] { tokenize_corpus(*tokenizer, options); });
    EXPECT_EQ(error.code, Exit::data) << error.what();
    const Error counting = error_of([&] { count_words_in_files(options.inputs, gpt2_pattern, false, 8); });
    EXPECT_EQ(counting.code, Exit::data) << counting.what();
  }
}

TEST_F(TokenizeCorpus, LargeVocabulariesTake32Bits) {
  BpeDefinition d;
  for (int b = 0; b < 256; ++b) d.tokens.emplace_back(1, static_cast<char>(b));
  for (int id = 256; id < 65537; ++id) d.tokens.push_back(text("<", id, ">"));
  d.eos_id = 65536;
  tokenizer = make_bpe_tokenizer(d);
  options.inputs = {write_file(folder / "x.txt", "ab")};
  tokenize_corpus(*tokenizer, options);
  Ids ids;
  read_shard<uint32_t>(options.output + "/corpus_train_000000.bin", 20240801, 7, ids);
  EXPECT_EQ(ids, (Ids{65536, 'a', 'b'}));
}

TEST_F(TokenizeCorpus, CountingWordsReadsTheSameDocuments) {
  WordCounts direct(gpt2_pattern);
  for (const std::string& d : documents) direct.add(d);
  const WordCounts counted = count_words_in_files(options.inputs, gpt2_pattern, false, 3);
  EXPECT_EQ(counted.words(), direct.words());
  EXPECT_EQ(counted.sorted(), direct.sorted());
}

TEST(UnitReader, CutsLongDocumentsWhereNoTokenChanges) {
  const TempFolder folder;
  const auto tokenizer = small_bpe();
  std::mt19937 rng(9);
  std::string document;
  while (document.size() < 3 * UnitReader::cut_bytes)
    document += words(rng, 9) + (rng() % 3 ? "\n" : rng() % 2 ? " \n" : "\n\n");
  while (document.back() == '\n' || document.back() == ' ') document.pop_back();
  const std::string path = write_file(folder / "long.txt", document);

  UnitReader reader({path}, true);
  std::vector<TextUnit> batch, units;
  while (reader.next(batch, 1000)) units.insert(units.end(), batch.begin(), batch.end());
  ASSERT_EQ(units.size(), 3u);
  Ids ids;
  std::string joined;
  for (size_t i = 0; i < units.size(); ++i) {
    EXPECT_EQ(units[i].starts_document, i == 0);
    EXPECT_EQ(units[i].index, static_cast<int64_t>(i));
    EXPECT_LT(units[i].text.size(), UnitReader::cut_bytes + 10'000);
    joined += units[i].text;
    tokenizer->encode_to(units[i].text, SpecialText::plain, ids);
  }
  EXPECT_EQ(joined, document);
  EXPECT_EQ(ids, tokenizer->encode(document, SpecialText::plain));

  UnitReader whole({path}, false);
  ASSERT_TRUE(whole.next(batch, 1));
  ASSERT_EQ(batch.size(), 1u);
  EXPECT_EQ(batch[0].text, document);
}

}  // namespace
}  // namespace weft
