// Files that break their format: Exit::data, with file and offset, and never a crash.

#include <hdf5.h>
#include <unistd.h>

#include <cstring>

#include "fixtures.h"
#include "training/data/input_file.h"
#include "training/data/stories.h"
#include "training/data/text_stream.h"

namespace weft {
namespace {

// The message of a data error, with its place.
std::string complaint(const std::string& path, const SourceOptions& options) {
  const Error error = error_of([&] { documents_of(path, options); });
  EXPECT_EQ(error.code, Exit::data) << path << ": " << error.what();
  return text(error.where, ": ", error.what());
}

void expect_complaint(const std::string& path, const SourceOptions& options, const std::string& where,
                      const std::string& what) {
  const std::string all = complaint(path, options);
  EXPECT_EQ(all.find(path.substr(0, path.rfind('.'))), 0u) << all;
  EXPECT_NE(all.find(where), std::string::npos) << all << "\nshould name: " << where;
  EXPECT_NE(all.find(what), std::string::npos) << all << "\nshould say: " << what;
}

template <class T>
std::string patched(std::string bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return bytes;
}

TEST(BrokenFiles, Llmc) {
  TempFolder dir;
  const std::string good = llmc_file({1, 2, 3, 4}, false);
  const auto check = [&](const std::string& bytes, const std::string& where, const std::string& what) {
    expect_complaint(write_file(dir / "a.bin", bytes), token_options(50257), where, what);
  };
  check(patched(good, 4, 2), "byte 4", "version 2");
  check(patched(good, 8, 5), "byte 8", "cut off or too long");
  check(patched(good, 8, -1), "byte 8", "cut off or too long");
  check(good + "x", "byte 8", "cut off or too long");
  check(patched(good, 1024 + 2 * 2, uint16_t{50257}), "byte 1028",
        "token 50257 is outside the vocabulary of 50257");
  check(patched(good, 0, 20240522), "byte 0", "evaluation");
  check(patched(good, 0, 0x88d83401u), "byte 0", "big-endian");
  check(patched(llmc_file({1}, true), 1024, 0xffffffffu), "byte 1024", "token 4294967295");
  for (const bool wide : {false, true})
    for (size_t cut = 0; cut < good.size(); cut += cut < 16 || cut > 1000 ? 1 : 101)
      complaint(write_file(dir / "a.bin", llmc_file({1, 2, 3, 4}, wide).substr(0, cut)),
                token_options(50257));
}

TEST(BrokenFiles, NanoGpt) {
  TempFolder dir;
  expect_complaint(write_file(dir / "a.bin", "abc"), token_options(65536), "byte 3", "cut off");
  expect_complaint(write_file(dir / "a.bin", ""), token_options(65536), "a.bin", "no tokens");
  expect_complaint(write_file(dir / "a.bin", bytes_of(std::vector<uint16_t>{1, 2, 99})), token_options(50),
                   "byte 4", "token 99");
}

// Ids from 65536 on were cut to their low 16 bits by whoever wrote them so: other words, and none is out of
// range.
TEST(BrokenFiles, SixteenBitsAreTooFewForALargeVocabulary) {
  class Large : public ByteTokens {
    int32_t vocab_size() const override { return 65537; }
  };
  TempFolder dir;
  const Large tokenizer;
  const SourceOptions options{&tokenizer, 65537, -1, false};
  const std::string words = bytes_of(std::vector<uint16_t>{1, 2, 3});
  const std::string what = "16-bit tokens, too few for the 65537 of the tokenizer";
  expect_complaint(write_file(dir / "a.bin", words), options, "a.bin", what);
  expect_complaint(write_file(dir / "b.bin", llmc_file({1, 2, 3}, false)), options, "b.bin", what);
  write_file(dir / "c.bin", words);
  expect_complaint(write_file(dir / "c.idx", megatron_index({3})), options, "c.bin", what);
  EXPECT_EQ(documents_of(write_file(dir / "d.bin", llmc_file({1, 65536}, true)), options),
            (Documents{{1, 65536}}));
}

// Read as 16 bits every second token is 0, which is easily learned and not what was meant.
TEST(BrokenFiles, ThirtyTwoBitsWithoutAHeader) {
  TempFolder dir;
  std::vector<uint32_t> tokens;
  for (uint32_t i = 0; i < 1000; ++i) tokens.push_back(i * 7919 % 50257);
  expect_complaint(write_file(dir / "a.bin", bytes_of(tokens)), token_options(50257), "byte 2", "32-bit");
  tokens[20] |= 1u << 16;
  EXPECT_EQ(documents_of(write_file(dir / "b.bin", bytes_of(tokens)), token_options(50257))[0].size(), 2000u);
  const std::vector<uint16_t> zeros(1000, 0);
  EXPECT_EQ(documents_of(write_file(dir / "c.bin", bytes_of(zeros)), token_options(50257))[0].size(), 1000u);
}

TEST(BrokenFiles, Megatron) {
  TempFolder dir;
  const std::string good = megatron_index({3, 2, 4});
  const std::string tokens = bytes_of(std::vector<uint16_t>{1, 2, 3, 4, 5, 6, 7, 8, 9});
  const auto check = [&](const std::string& bytes, const std::string& where, const std::string& what) {
    write_file(dir / "a.bin", tokens);
    expect_complaint(write_file(dir / "a.idx", bytes), token_options(50), where, what);
  };
  const size_t pointers = 34 + 3 * 4, marks = pointers + 3 * 8;
  check(patched(good, 0, 'X'), "byte 0", "magic");
  check(patched(good, 9, uint64_t{2}), "byte 9", "version 2");
  check(patched(good, 9, uint64_t{1} << 56), "byte 9", "big-endian");
  check(patched(good, 17, uint8_t{5}), "byte 17", "element type 5");
  check(patched(good, 18, uint64_t{1} << 62), "byte 18", "sequences");
  check(patched(good, 26, uint64_t{1} << 62), "byte 26", "document marks");
  check(patched(good, 34 + 4, int32_t{-2}), "byte 38", "length -2");
  check(patched(good, pointers + 8, int64_t{8}), text("byte ", pointers + 8), "points at byte 8");
  check(patched(good, pointers + 8, int64_t{-6}), text("byte ", pointers + 8), "points at byte -6");
  check(patched(good, marks, int64_t{1}), text("byte ", marks), "starts at sequence 1");
  check(patched(good, marks + 8, int64_t{3}), text("byte ", marks + 16), "starts at sequence 2, after 3");
  check(patched(good, marks + 24, int64_t{4}), text("byte ", marks + 24), "starts at sequence 4");
  check(patched(good, marks + 24, int64_t{2}), text("byte ", marks), "last document ends");
  check(good + "x", text("byte ", good.size() + 1), "too long");
  for (size_t cut = 0; cut < good.size(); ++cut) {
    write_file(dir / "a.idx", good.substr(0, cut));
    complaint(dir / "a.idx", token_options(50));
  }
  write_file(dir / "a.idx", good);
  for (size_t cut = 0; cut < tokens.size(); ++cut) {
    write_file(dir / "a.bin", tokens.substr(0, cut));
    expect_complaint(dir / "a.bin", token_options(50), text("byte ", cut), "cut off");
  }
  std::filesystem::remove(dir / "a.bin");
  expect_complaint(dir / "a.idx", token_options(50), "a.bin", "No such file");
}

TEST(BrokenFiles, CompressedTextCutAnywhere) {
  TempFolder dir;
  std::string text;
  for (int i = 0; i < 300; ++i) text += "{\"text\": \"document " + std::to_string(i * 7919) + "\"}\n";
  for (const auto& [name, bytes] :
       {std::pair<std::string, std::string>{"a.jsonl.gz", gzipped(text)}, {"a.jsonl.zst", zstandard(text)}}) {
    for (size_t cut = 0; cut < bytes.size(); cut += cut < 64 || cut + 64 > bytes.size() ? 1 : 37)
      complaint(write_file(dir / name, bytes.substr(0, cut)), byte_options());
    // gzip has a checksum, so no changed byte passes; these zstd frames have none.
    if (name.ends_with(".gz"))
      for (size_t at = 10; at < bytes.size(); at += 41)
        complaint(write_file(dir / name, patched(bytes, at, static_cast<char>(bytes[at] ^ 0x10))),
                  byte_options());
    expect_complaint(write_file(dir / name, bytes + "tail"), byte_options(), "byte", "is not valid");
  }
}

// However often it is asked: several threads share a stream.
TEST(BrokenFiles, CompressedTextStaysCutOff) {
  TempFolder dir;
  const std::string whole = story_corpus(1, 300'000), gzip = gzipped(whole), zstd = zstandard(whole);
  for (const std::string& path : {write_file(dir / "a.gz", gzip.substr(0, gzip.size() - 12)),
                                  write_file(dir / "a.zst", zstd.substr(0, zstd.size() - 5))}) {
    TextStream stream(path);
    std::string line;
    const auto read = [&] {
      while (stream.line(line)) {
      }
    };
    for (int i = 0; i < 3; ++i) EXPECT_EQ(error_of(read).code, Exit::data) << path;
  }
}

TEST(BrokenFiles, Jsonl) {
  TempFolder dir;
  const auto check = [&](const std::string& bytes, const std::string& where, const std::string& what) {
    expect_complaint(write_file(dir / "a.jsonl", bytes), byte_options(), where, what);
  };
  check("{\"text\": \"a\"}\n{\"text\": \"b\n", "a.jsonl:2 (byte 14)", "not valid JSON");
  check("{\"text\": \"a\"}\n\n{\"body\": \"b\"}\n", "a.jsonl:3 (byte 15)", "no string `text`");
  check("{\"text\": 3}\n", "a.jsonl:1 (byte 0)", "no string `text`");
  check("[\"text\"]\n", "a.jsonl:1 (byte 0)", "no string `text`");
  check("{\"text\": \"\xff\"}\n", "a.jsonl:1 (byte 0)", "not valid JSON");
  check("\n\n", "a.jsonl", "no tokens");
}

TEST(BrokenFiles, TextThatIsNone) {
  TempFolder dir;
  expect_complaint(write_file(dir / "a.dat", std::string("ab\nc\0d", 6)), byte_options(), "a.dat:2 (byte 3)",
                   "zero byte");
  expect_complaint(write_file(dir / "a.txt", ""), byte_options(), "a.txt", "no tokens");
  const Error error = error_of([&] { open_source(write_file(dir / "b.txt", "text"), token_options(50)); });
  EXPECT_EQ(error.code, Exit::recipe);  // no tokenizer
  EXPECT_EQ(complaint(dir / "missing.txt", byte_options()),
            (dir / "missing.txt") + ": cannot read: No such file or directory");
  std::filesystem::create_directory(dir / "sub.bin");
  expect_complaint(dir / "sub.bin", token_options(50), "sub.bin", "not a regular file");
}

TEST(BrokenFiles, Hdf5Contents) {
  TempFolder dir;
  const std::string path = dir / "a.h5";
  const auto check_offsets = [&](const std::vector<int64_t>& offsets, const std::string& where,
                                 const std::string& what) {
    write_hdf5(path, {1, 2, 3, 4}, &offsets);
    expect_complaint(path, token_options(50), where, what);
  };
  check_offsets({1, 4}, "/offsets[0]", "is 1");
  check_offsets({0, 3, 2, 4}, "/offsets[2]", "never fall");
  check_offsets({0, 5}, "/offsets[1]", "within 4 tokens");
  check_offsets({0, 3}, "/offsets[1]", "must be the 4 tokens");
  check_offsets({}, "/offsets[0]", "ends at 0");
  write_hdf5(path, {1, 2, 77, 4}, nullptr);
  expect_complaint(path, token_options(50), "/tokens[2]", "token 77");

  const auto create = [&](hid_t type, int rank) {
    const hsize_t dims[2] = {4, 1};
    const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hid_t space = H5Screate_simple(rank, dims, nullptr);
    H5Dclose(H5Dcreate2(file, "tokens", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Sclose(space);
    H5Fclose(file);
  };
  create(H5T_IEEE_F32LE, 1);
  expect_complaint(path, token_options(50), "/tokens", "integers");
  create(H5T_STD_U16LE, 2);
  expect_complaint(path, token_options(50), "/tokens", "2 dimensions");
  H5Fclose(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT));
  expect_complaint(path, token_options(50), "/tokens", "tokens");  // no such dataset
}

TEST(BrokenFiles, Hdf5CutAnywhereOrDamaged) {
  TempFolder dir;
  std::vector<int64_t> tokens(5000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int64_t>(i * 7919 % 50);
  write_hdf5(dir / "good.h5", tokens, nullptr, 512);
  const std::string good = read_file(dir / "good.h5");
  for (size_t cut = 0; cut < good.size(); cut += cut < 128 ? 1 : 211)
    complaint(write_file(dir / "a.h5", good.substr(0, cut)), token_options(50));
  for (size_t at = 0; at < 8; ++at)  // the signature
    complaint(write_file(dir / "a.h5", patched(good, at, 'x')), token_options(50));
  // Every chunk has a checksum: damage in the data is found when it is read.
  complaint(write_file(dir / "a.h5", patched(good, good.size() - 600, good[good.size() - 600] ^ 1)),
            token_options(50));
}

TEST(BrokenFiles, Hdf5WhoseWriterDied) {
  TempFolder dir;
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  const hid_t file = H5Fcreate((dir / "a.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  H5Fflush(file, H5F_SCOPE_GLOBAL);
  std::filesystem::copy(dir / "a.h5", dir / "b.h5");  // as it stands on disk while it is open for writing
  H5Fclose(file);
  H5Pclose(access);
  expect_complaint(dir / "b.h5", token_options(50), "b.h5", "is not a complete HDF5 file");
}

TEST(BrokenFiles, Hdf5WithAFilterThatIsMissing) {
  TempFolder dir;
  const H5Z_filter_t filter = 300;
  const H5Z_class2_t same = {
      H5Z_CLASS_T_VERS,
      filter,
      1,
      1,
      "same",
      nullptr,
      nullptr,
      [](unsigned, size_t, const unsigned[], size_t bytes, size_t*, void**) { return bytes; }};
  H5Zregister(&same);
  const hsize_t count = 4;
  const std::vector<int64_t> tokens = {1, 2, 3, 4};
  const hid_t file = H5Fcreate((dir / "a.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t space = H5Screate_simple(1, &count, nullptr), layout = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(layout, 1, &count);
  H5Pset_filter(layout, filter, H5Z_FLAG_MANDATORY, 0, nullptr);
  const hid_t set = H5Dcreate2(file, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT, layout, H5P_DEFAULT);
  H5Dwrite(set, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens.data());
  H5Dclose(set);
  H5Pclose(layout);
  H5Sclose(space);
  H5Fclose(file);
  EXPECT_EQ(documents_of(dir / "a.h5", token_options(50)).size(), 1u);
  H5Zunregister(filter);
  expect_complaint(dir / "a.h5", token_options(50), "/tokens[0]", "cannot be read");
}

TEST(BrokenFiles, Hdf5ErrorsPrintNothing) {
  TempFolder dir;
  write_file(dir / "a.h5", "no HDF5 at all");
  testing::internal::CaptureStderr();
  complaint(dir / "a.h5", token_options(50));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(BrokenFiles, SkipBadLeavesOutAndCounts) {
  TempFolder dir;
  SourceOptions options = token_options(50, 9);
  options.skip_bad = true;
  const auto tokens =
      open_source(write_file(dir / "a.bin", llmc_file({1, 2, 9, 3, 70, 9, 4, 5}, false)), options);
  EXPECT_EQ(documents_of(*tokens), (Documents{{1, 2, 9}, {4, 5}}));
  EXPECT_EQ(tokens->bad_documents(), 1);

  options = byte_options();
  options.skip_bad = true;
  const auto lines = open_source(
      write_file(dir / "a.jsonl", "{\"text\": \"a\"}\nnot json\n{\"text\": 1}\n{\"text\": \"b\"}"), options);
  EXPECT_EQ(lines->documents(), 2);
  EXPECT_EQ(lines->bad_documents(), 2);
}

TEST(BrokenFiles, ChangedWhileTheRunReadsThem) {
  TempFolder dir;
  const std::vector<uint32_t> tokens(200'000, 7);
  std::vector<int32_t> out(tokens.size());
  const auto open = [&](bool hdf5) {
    if (hdf5)
      write_hdf5(dir / "a.h5", std::vector<int64_t>(200'000, 7), nullptr, 1000);
    else
      write_file(dir / "a.bin", llmc_file(tokens, false));
    auto source = open_source(hdf5 ? dir / "a.h5" : dir / "a.bin", token_options(50));
    source->read(0, 0, 1000, out.data());
    return source;
  };
  const auto read_all = [&](const TokenSource& source) {
    const Error error = error_of([&] { source.read(0, 0, 200'000, out.data()); });
    EXPECT_EQ(error.code, Exit::data) << error.what();
    EXPECT_EQ(error.where.find(source.path()), 0u) << error.where;
    return std::string(error.what());
  };
  for (const bool hdf5 : {false, true}) {
    auto source = open(hdf5);
    std::filesystem::resize_file(source->path(), 5000);  // a mapping would die of SIGBUS here
    const std::string cut = read_all(*source);
    EXPECT_TRUE(cut.find("changed while") != std::string::npos ||
                cut.find("cannot be read") != std::string::npos)
        << cut;

    source.reset();  // HDF5 will not replace a file that is still open
    source = open(hdf5);
    std::ofstream(source->path(), std::ios::app) << "more";
    EXPECT_NE(read_all(*source).find("changed while"), std::string::npos);

    source.reset();
    source = open(hdf5);
    ::usleep(20'000);  // the clock of file times is coarse
    std::fstream(source->path(), std::ios::in | std::ios::out | std::ios::binary).seekp(2000).put('x');
    EXPECT_NE(read_all(*source).find("written to"), std::string::npos);
  }
}

}  // namespace
}  // namespace weft
