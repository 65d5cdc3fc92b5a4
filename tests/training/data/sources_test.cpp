// Every format, read right.

#include "fixtures.h"

namespace weft {
namespace {

using Texts = std::vector<std::string>;

TEST(Sources, LlmcU16) {
  TempFolder dir;
  // The end token stands before each document, as llm.c writes them: the leading one alone is an empty
  // document.
  const auto path = write_file(dir / "a.bin", llmc_file({9, 1, 2, 3, 9, 4, 9, 9, 5, 6}, false));
  const auto source = open_source(path, token_options(10, 9));
  EXPECT_EQ(source->format(), "llm.c u16");
  EXPECT_EQ(documents_of(*source), (Documents{{1, 2, 3, 9}, {4, 9}, {5, 6}}));
  EXPECT_EQ(source->empty_documents(), 2);
  EXPECT_EQ(source->tokens(), 8);
}

TEST(Sources, LlmcU32) {
  TempFolder dir;
  const auto path = write_file(dir / "a.bin", llmc_file({128000, 70000, 1, 128000, 2}, true));
  EXPECT_EQ(documents_of(path, token_options(128256, 128000)), (Documents{{70000, 1, 128000}, {2}}));
}

TEST(Sources, NanoGptIsOneDocumentWithoutAnEndToken) {
  TempFolder dir;
  const auto path = write_file(dir / "train.bin", bytes_of(std::vector<uint16_t>{0, 1, 65535, 3}));
  EXPECT_EQ(documents_of(path, token_options(65536)), (Documents{{0, 1, 65535, 3}}));
  EXPECT_EQ(documents_of(path, token_options(65536, 1)), (Documents{{0, 1}, {65535, 3}}));
}

TEST(Sources, MegatronByAnyOfItsNames) {
  TempFolder dir;
  for (const int code : {8, 4}) {
    write_file(dir / "corpus.idx", megatron_index({3, 0, 2, 1}, code));
    const std::vector<int32_t> tokens = {1, 2, 3, 4, 9, 9};
    const std::vector<uint16_t> narrow(tokens.begin(), tokens.end());
    write_file(dir / "corpus.bin", code == 8 ? bytes_of(narrow) : bytes_of(tokens));
    for (const char* name : {"corpus", "corpus.idx", "corpus.bin"}) {
      const auto source = open_source(dir / name, token_options(10, 9));
      EXPECT_EQ(source->format(), code == 8 ? "Megatron u16" : "Megatron i32");
      EXPECT_EQ(documents_of(*source), (Documents{{1, 2, 3}, {4, 9}}));
      EXPECT_EQ(source->empty_documents(), 2);  // the one without tokens, and the end token alone
    }
  }
}

TEST(Sources, MegatronDocumentsOfSeveralSequencesAndModes) {
  TempFolder dir;
  std::string index = megatron_index({2, 1, 3});
  const size_t marks_at = index.size() - 4 * 8;
  index.replace(marks_at, 32, bytes_of(std::vector<int64_t>{0, 2, 3}));
  index.replace(26, 8, bytes_of(std::vector<uint64_t>{3}));
  write_file(dir / "c.idx", index + std::string(3, '\0'));
  write_file(dir / "c.bin", bytes_of(std::vector<uint16_t>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(documents_of(dir / "c", token_options(10)), (Documents{{1, 2, 3}, {4, 5, 6}}));
}

TEST(Sources, Hdf5WithAndWithoutOffsets) {
  TempFolder dir;
  const std::vector<int64_t> offsets = {0, 2, 2, 5};
  for (const int64_t chunk : {0, 2}) {
    write_hdf5(dir / "a.h5", {1, 2, 3, 4, 5}, &offsets, chunk);
    const auto source = open_source(dir / "a.h5", token_options(10));
    EXPECT_EQ(documents_of(*source), (Documents{{1, 2}, {3, 4, 5}}));
    EXPECT_EQ(source->empty_documents(), 1);
    write_hdf5(dir / "b.data", {1, 9, 3, 4, 5}, nullptr, chunk);  // found by magic, not by name
    EXPECT_EQ(documents_of(dir / "b.data", token_options(10, 9)), (Documents{{1, 9}, {3, 4, 5}}));
  }
}

TEST(Sources, PlainTextDocuments) {
  TempFolder dir;
  EXPECT_EQ(texts_of(write_file(dir / "a.txt", "one\ntwo\n\nthree\n")), (Texts{"one\ntwo\n\nthree"}));
  EXPECT_EQ(texts_of(write_file(dir / "b.txt", "\n\none\n\n\ntwo\r\nmore\r\n\r\n\r\n\r\nthree")),
            (Texts{"one", "two\nmore", "three"}));
  EXPECT_EQ(texts_of(write_file(dir / "c.txt",
                                "one\n<|endoftext|>\ntwo\n\n<|endoftext|>\n\nthree <|endoftext|>\n")),
            (Texts{"one", "two", "three <|endoftext|>"}));
  const std::string mark = "\xef\xbb\xbf";  // as other systems begin a file; anywhere else it is text
  EXPECT_EQ(texts_of(write_file(dir / "e.txt", mark + "<|endoftext|>\r\none\r\n" + mark + "two\r\n")),
            (Texts{"one\n" + mark + "two"}));
  EXPECT_EQ(texts_of(write_file(dir / "e.txt.gz", gzipped(mark + "one"))), (Texts{"one"}));
  EXPECT_EQ(texts_of(write_file(dir / "e.jsonl", mark + R"({"text": "one"})")), (Texts{"one"}));
  EXPECT_EQ(texts_of(write_file(dir / "d", "no name, no line end")), (Texts{"no name, no line end"}));
}

TEST(Sources, EveryTextDocumentEndsWithTheEndToken) {
  TempFolder dir;
  const auto path = write_file(dir / "a.txt", "ab\n\n\nc");
  EXPECT_EQ(documents_of(path, byte_options()), (Documents{{'a', 'b', byte_end}, {'c', byte_end}}));
}

TEST(Sources, Jsonl) {
  TempFolder dir;
  const std::string text =
      "{\"id\": 1, \"text\": \"one\\n\\u00e9\"}\n\n{\"text\": \"\"}\r\n{\"text\": \"three\"}";
  for (const auto& path : {write_file(dir / "a.jsonl", text), write_file(dir / "a.jsonl.gz", gzipped(text)),
                           write_file(dir / "a.jsonl.zst", zstandard(text))}) {
    EXPECT_EQ(texts_of(path), (Texts{"one\n\xc3\xa9", "three"})) << path;
    EXPECT_EQ(open_source(path, byte_options())->empty_documents(), 1);
  }
}

TEST(Sources, CompressedTextOfManyBlocksAndJoinedMembers) {
  TempFolder dir;
  std::string text;
  for (int i = 0; text.size() < 3'000'000; ++i) text += "line " + std::to_string(i * 7919) + "\n";
  const std::string half = text.substr(0, 1'234'567), rest = text.substr(1'234'567);
  text.pop_back();
  EXPECT_EQ(texts_of(write_file(dir / "a.gz", gzipped(half) + gzipped(rest))), Texts{text});
  EXPECT_EQ(texts_of(write_file(dir / "a.zst", zstandard(half) + zstandard(rest))), Texts{text});
}

TEST(Sources, TheHashDependsOnTokensOnly) {
  TempFolder dir;
  std::vector<uint32_t> tokens(40'000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint32_t>(i * 37 % 1000);
  const auto a = open_source(write_file(dir / "a.bin", llmc_file(tokens, false)), token_options(1000));
  const auto b = open_source(write_file(dir / "b.bin", llmc_file(tokens, true)), token_options(1000));
  EXPECT_EQ(a->hash(0, 0, 40'000), b->hash(0, 0, 40'000));
  EXPECT_EQ(a->hash(0, 1000, 1900), a->hash(0, 2000, 2900));
  EXPECT_NE(a->hash(0, 0, 40'000), a->hash(0, 0, 39'999));
}

TEST(Sources, PiecesOfADocument) {
  TempFolder dir;
  std::vector<uint32_t> tokens(50'000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint32_t>(i % 50'021);
  const auto source = open_source(write_file(dir / "a.bin", llmc_file(tokens, false)), token_options(60'000));
  for (const auto& [begin, end] :
       {std::pair{0, 1}, {17, 17}, {16'383, 16'385}, {1, 49'999}, {49'999, 50'000}}) {
    std::vector<int32_t> piece(end - begin);
    source->read(0, begin, end, piece.data());
    for (int i = begin; i < end; ++i) ASSERT_EQ(piece[i - begin], static_cast<int32_t>(tokens[i]));
  }
}

}  // namespace
}  // namespace weft
