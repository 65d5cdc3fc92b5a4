#include "training/log/append_file.h"

#include <gtest/gtest.h>

#include <thread>

#include "tests/training/log/log_support.h"
#include "training/log/text_logs.h"

namespace weft {
namespace {

TEST(AppendFile, AddsToWhatIsThereAndCreatesWhatIsNot) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.txt";
  const Warn none = [](const std::string& m) { ADD_FAILURE() << m; };
  { EXPECT_TRUE(AppendFile(path, AppendFile::Open::append, none).append("one\n")); }
  { EXPECT_TRUE(AppendFile(path, AppendFile::Open::append, none).append("two\n")); }
  EXPECT_EQ(read_bytes(path), "one\ntwo\n");
  expect_error(Exit::cannot_create, {path, "resume"},
               [&] { AppendFile(path, AppendFile::Open::create, none); });
  expect_error(Exit::cannot_create, {"no/such", "No such file"},
               [&] { AppendFile("no/such/folder", AppendFile::Open::append, none); });
}

TEST(AppendFile, FullDiskCostsWholeLinesOnlyAndIsForgottenWhenThereIsRoom) {
  const TemporaryFolder folder;
  const std::string path = folder / "a.txt";
  std::vector<std::string> warnings;
  AppendFile file(path, AppendFile::Open::append, warn_once([&](const auto& m) { warnings.push_back(m); }));
  {
    const FileSizeLimit limit(10);
    EXPECT_TRUE(file.append("1234567\n"));
    EXPECT_FALSE(file.append("abcdefg\n"));  // two bytes of it fit
    EXPECT_EQ(read_bytes(path), "1234567\n");
    EXPECT_FALSE(file.append("hijklmn\n"));
    EXPECT_TRUE(file.append("z\n"));
  }
  EXPECT_TRUE(file.append("more\n"));
  EXPECT_EQ(read_bytes(path), "1234567\nz\nmore\n");
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find(path), std::string::npos) << warnings[0];
}

TEST(AppendFile, DeviceWithoutRoomIsAWarning) {
  if (::access("/dev/full", W_OK) != 0) GTEST_SKIP() << "no /dev/full here";
  int warnings = 0;
  AppendFile file("/dev/full", AppendFile::Open::append, [&](const std::string& m) {
    ++warnings;
    EXPECT_NE(m.find("No space left"), std::string::npos) << m;
  });
  EXPECT_FALSE(file.append("x\n"));
  EXPECT_EQ(warnings, 1);
}

TEST(AppendFile, LinesOfThreadsDoNotMix) {
  const TemporaryFolder folder;
  AppendFile file(folder / "a.txt", AppendFile::Open::append, [](const auto&) {});
  std::vector<std::thread> threads;
  for (char c = 'a'; c < 'e'; ++c)
    threads.emplace_back([&file, c] {
      for (int i = 0; i < 200; ++i) file.append(std::string(50, c) + "\n");
    });
  for (std::thread& t : threads) t.join();
  const std::vector<std::string> lines = lines_of(read_bytes(folder / "a.txt"));
  EXPECT_EQ(lines.size(), 800u);
  for (const std::string& line : lines) EXPECT_EQ(line, std::string(50, line.at(0)));
}

TEST(RankLog, OneLineAMessage) {
  const TemporaryFolder folder;
  const Warn none = [](const auto&) {};
  RankLog(folder.path(), 3, none).write(Level::info, "began");
  RankLog(folder.path(), 3, none).write(Level::warning, "two\nlines");
  const std::vector<std::string> lines = lines_of(read_bytes(folder / "rank-0003.txt"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].substr(24), " info began");
  EXPECT_EQ(lines[1].substr(24), " warning two lines");
  EXPECT_EQ(lines[0][10], 'T');
  EXPECT_EQ(lines[0][23], 'Z');
}

TEST(SamplesFile, KeepsLinesButNoControlCharacters) {
  const TemporaryFolder folder;
  SamplesFile samples(folder / "samples.txt", [](const auto&) {});
  samples.write(250, "In the beginning\n\x1b[31mred");
  EXPECT_EQ(read_bytes(folder / "samples.txt"), "=== step 250\nIn the beginning\n [31mred\n\n");
}

}  // namespace
}  // namespace weft
