#include "training/log/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/training/log/log_support.h"

namespace weft {
namespace {

// The events of a file, with every length and checksum checked.
std::vector<std::string> records_of(const std::string& content) {
  std::vector<std::string> out;
  const auto masked = [](std::string_view bytes) {
    const uint32_t crc = crc32c(bytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  };
  for (size_t at = 0; at < content.size();) {
    uint64_t length;
    uint32_t length_crc, crc;
    std::memcpy(&length, &content.at(at), 8);
    std::memcpy(&length_crc, &content.at(at + 8), 4);
    EXPECT_EQ(length_crc, masked(std::string_view(content).substr(at, 8)));
    out.push_back(content.substr(at + 12, length));
    EXPECT_EQ(out.back().size(), length);
    std::memcpy(&crc, &content.at(at + 12 + length), 4);
    EXPECT_EQ(crc, masked(out.back()));
    at += 16 + length;
  }
  return out;
}

std::string only_file_in(const TemporaryFolder& folder) {
  std::string path;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    EXPECT_TRUE(path.empty());
    path = entry.path();
  }
  return path;
}

TEST(TensorBoard, Crc32cKnownAnswers) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(TensorBoard, RecordFraming) {
  const std::string record = tensorboard_record("abc");
  ASSERT_EQ(record.size(), 19u);
  EXPECT_EQ(record.substr(0, 8), std::string("\x03\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(record.substr(12, 3), "abc");
  EXPECT_EQ(records_of(record + tensorboard_record("")), (std::vector<std::string>{"abc", ""}));
}

TEST(TensorBoard, FileBeginsWithItsVersionAndHoldsScalarsAndText) {
  const TemporaryFolder folder;
  TensorBoardFile file(folder.path(), {}, [](const auto& m) { ADD_FAILURE() << m; });
  file.step(record_of(300));
  file.text("sample", 300, "In\nthe");
  const std::string path = only_file_in(folder);
  EXPECT_NE(path.find("/events.out.tfevents.1"), std::string::npos) << path;
  const auto records = records_of(read_bytes(path));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[0].substr(9), std::string("\x10\0\x1a\rbrain.Event:2", 17));

  const std::string& scalars = records[1];
  double time;
  std::memcpy(&time, &scalars[1], 8);
  EXPECT_EQ(scalars[0], '\x09');
  EXPECT_EQ(time, 1780000000.25);
  EXPECT_EQ(scalars.substr(9, 3), "\x10\xac\x02");  // step 300
  const float grad_norm = 1.234f;
  std::string value = "\x0a\x10\x0a\tgrad_norm\x15";  // Value{tag, simple_value}
  value.append(reinterpret_cast<const char*>(&grad_norm), 4);
  EXPECT_NE(scalars.find(value), std::string::npos);
  for (const char* tag : {"loss_metrics/global_avg_loss", "optimizer/lr", "throughput(tps)",
                          "time_metrics/data_loading(%)", "memory/max_reserved(GiB)"})
    EXPECT_NE(scalars.find(tag), std::string::npos) << tag;
  EXPECT_EQ(scalars.find("mfu"), std::string::npos);  // unknown
  EXPECT_NE(records[2].find("    In\n    the"), std::string::npos);
}

TEST(TensorBoard, ResumeAndRewindWithdrawLaterSteps) {
  const TemporaryFolder folder;
  TensorBoardFile file(folder.path(), 4, [](const auto& m) { ADD_FAILURE() << m; });
  file.rewind(2);
  const auto records = records_of(read_bytes(only_file_in(folder)));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[1].substr(9), "\x10\x05\x3a\x02\x08\x01");
  EXPECT_EQ(records[2].substr(9), "\x10\x03\x3a\x02\x08\x01");
}

TEST(TensorBoard, TheVersionComesFirstEvenAfterAFullDisk) {
  const TemporaryFolder folder;
  int warnings = 0;
  {
    const FileSizeLimit limit(8);
    const TensorBoardFile file(folder.path(), {}, warn_once([&](const auto&) { ++warnings; }));
    EXPECT_EQ(read_bytes(only_file_in(folder)), "");
  }
  EXPECT_EQ(warnings, 1);
  std::filesystem::remove(only_file_in(folder));
  auto limit = std::make_unique<FileSizeLimit>(8);
  TensorBoardFile file(folder.path(), {}, [](const auto&) {});
  limit.reset();
  file.step(record_of(1));
  const auto records = records_of(read_bytes(only_file_in(folder)));
  ASSERT_EQ(records.size(), 2u);
  EXPECT_NE(records[0].find("brain.Event:2"), std::string::npos);
}

}  // namespace
}  // namespace weft
