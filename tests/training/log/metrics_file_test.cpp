#include "training/log/metrics_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/training/log/log_support.h"

namespace weft {
namespace {

const Warn no_warning = [](const std::string& message) { ADD_FAILURE() << message; };

// "1 2 checkpoint@2 3": steps, and events with theirs.
std::string outline(const std::string& path) {
  std::string out;
  for (const auto& line : json_lines(path)) {
    if (!out.empty()) out += ' ';
    if (line.contains("event")) out += line["event"].get<std::string>() + "@";
    out += line["step"].dump();
  }
  return out;
}

TEST(MetricsFile, HasExactlyTheKeysOfTheContract) {
  const TemporaryFolder folder;
  const std::string path = folder / "metrics.jsonl";
  MetricsFile file(path, {}, no_warning);
  StepRecord record = record_of(10);
  record.max_loss = 4;
  file.step(record);
  EXPECT_EQ(read_bytes(path),
            "{\"step\":10,\"tokens\":81920,\"loss\":3.12341,\"grad_norm\":1.234,\"lr\":0.0003,"
            "\"tokens_per_s\":12345.0,\"mfu\":null,\"step_s\":0.5,\"data_s\":0.05,\"comm_s\":0.1,"
            "\"peak_bytes\":558345748,\"time\":1780000000.25}\n");
  record.mfu = 0.4;
  record.val_loss = 3.5;
  record.val_bpb = 1.25;
  record.loss = INFINITY;
  record.grad_norm = NAN;
  file.step(record);
  const auto line = json_lines(path)[1];
  EXPECT_EQ(line.size(), 14u);
  EXPECT_EQ(line["mfu"], 0.4);
  EXPECT_EQ(line["val_loss"], 3.5);
  EXPECT_EQ(line["val_bpb"], 1.25);
  EXPECT_TRUE(line["loss"].is_null());
  EXPECT_TRUE(line["grad_norm"].is_null());

  record.val_bpb.reset();
  record.val_accuracy = 0.5;
  record.val_exact = 0.25;
  file.step(record);
  const auto task = json_lines(path)[2];
  EXPECT_EQ(task.size(), 15u);
  EXPECT_EQ(task["val_accuracy"], 0.5);
  EXPECT_EQ(task["val_exact"], 0.25);
}

TEST(MetricsFile, Events) {
  const TemporaryFolder folder;
  MetricsFile file(folder / "m", {}, no_warning);
  file.event(Event::checkpoint, 10, {{"path", "a\xff\nb"}, {"seconds", 1.5}, {"bytes", int64_t{1} << 40}});
  EXPECT_EQ(lines_of(read_bytes(folder / "m")).size(), 1u);
  const auto line = json_lines(folder / "m")[0];
  EXPECT_EQ(line["event"], "checkpoint");
  EXPECT_EQ(line["step"], 10);
  EXPECT_EQ(line["path"], "a\xef\xbf\xbd\nb");
  EXPECT_EQ(line["seconds"], 1.5);
  EXPECT_EQ(line["bytes"], int64_t{1} << 40);
  EXPECT_GT(line["time"], 1.6e9);
}

TEST(MetricsFile, AnEvaluationMayComeLate) {
  const TemporaryFolder folder;
  const std::string path = folder / "m";
  {
    MetricsFile file(path, {}, no_warning);
    file.step(record_of(1));
    StepRecord stopped = record_of(2);
    stopped.val_stopped = true;
    file.step(stopped);
    file.event(Event::checkpoint, 2);
  }
  EXPECT_FALSE(evaluation_was_stopped(path, 1));
  EXPECT_TRUE(evaluation_was_stopped(path, 2));
  EXPECT_FALSE(evaluation_was_stopped(path, 3));
  const auto before = json_lines(path);
  MetricsFile file(path, 2, no_warning);
  StepRecord late;
  late.step = 2;
  late.val_loss = 3.5;
  file.measured(late);
  file.step(record_of(3));
  EXPECT_FALSE(evaluation_was_stopped(path, 2));
  auto after = json_lines(path);
  EXPECT_EQ(outline(path), "1 2 checkpoint@2 3");
  EXPECT_EQ(after[1]["val_loss"], 3.5);
  after[1].erase("val_loss");
  after[1]["val_stopped"] = true;
  for (size_t i : {0, 1, 2}) EXPECT_EQ(after[i], before[i]);
  EXPECT_EQ(file.unreadable(), 0);
}

TEST(MetricsFile, LinesThatCannotBeReadAreCounted) {
  const TemporaryFolder folder;
  const std::string path = folder / "m";
  { MetricsFile(path, {}, no_warning).step(record_of(1)); }
  std::ofstream(path, std::ios::app) << "{\"step\":2,\"lo\xff\n";
  { MetricsFile(path, 5, no_warning).step(record_of(3)); }
  EXPECT_EQ(outline(path), "1 3");
  std::ofstream(path) << "{\"step\":1}\n{\"step\":\nnot JSON\n{\"step\":4}\n{\"step\":5,";
  const MetricsFile file(path, 5, no_warning);
  EXPECT_EQ(file.unreadable(), 2) << "what a crash cut off at the end is no damage";
}

TEST(MetricsFile, AFolderInItsPlaceIsAnError) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "m");
  expect_error(Exit::cannot_create, {"m"}, [&] { MetricsFile(folder / "m", 5, no_warning); });
}

TEST(MetricsFile, ANewRunDoesNotWriteOverAnother) {
  const TemporaryFolder folder;
  { MetricsFile(folder / "m", {}, no_warning).step(record_of(1)); }
  expect_error(Exit::cannot_create, {"m", "resume"}, [&] { MetricsFile(folder / "m", {}, no_warning); });
  EXPECT_EQ(outline(folder / "m"), "1");
}

TEST(MetricsFile, ResumeDropsWhatComesAgain) {
  const TemporaryFolder folder;
  const std::string path = folder / "m";
  {
    MetricsFile file(path, {}, no_warning);
    for (int64_t step = 1; step <= 6; ++step) {
      file.step(record_of(step));
      if (step % 2 == 0) file.event(Event::checkpoint, step);
      if (step == 5) file.event(Event::skip, step);
    }
    file.event(Event::fault, 6);
  }
  write_bytes(path, read_bytes(path) + "{\"step\":7,\"tok");  // killed within a line
  {
    MetricsFile file(path, 4, no_warning);
    EXPECT_EQ(outline(path), "1 2 checkpoint@2 3 4 checkpoint@4 fault@6");
    file.event(Event::resume, 4);
    file.step(record_of(5));
  }
  EXPECT_EQ(outline(path), "1 2 checkpoint@2 3 4 checkpoint@4 fault@6 resume@4 5");
  { MetricsFile file(path, 5, no_warning); }
  EXPECT_EQ(outline(path), "1 2 checkpoint@2 3 4 checkpoint@4 fault@6 resume@4 5");
  { MetricsFile file(path, 0, no_warning); }
  EXPECT_EQ(outline(path), "fault@6 resume@4");
}

TEST(MetricsFile, ResumeWithoutAFileBeginsOne) {
  const TemporaryFolder folder;
  MetricsFile(folder / "m", 3, no_warning).step(record_of(4));
  EXPECT_EQ(outline(folder / "m"), "4");
}

TEST(MetricsFile, RewindKeepsEvents) {
  const TemporaryFolder folder;
  const std::string path = folder / "m";
  MetricsFile file(path, {}, no_warning);
  for (int64_t step = 1; step <= 4; ++step) file.step(record_of(step));
  file.event(Event::skip, 4);
  file.rewind(2);
  file.event(Event::rewind, 2, {{"from", int64_t{4}}});
  file.step(record_of(3));
  EXPECT_EQ(outline(path), "1 2 skip@4 rewind@2 3");
}

TEST(MetricsFile, NoRoomToRewriteStillLeavesNoStepTwice) {
  const TemporaryFolder folder;
  const std::string path = folder / "m";
  {
    MetricsFile file(path, {}, no_warning);
    for (int64_t step = 1; step <= 4; ++step) file.step(record_of(step));
    file.event(Event::fault, 4);
  }
  int warnings = 0;
  {
    const FileSizeLimit limit(16);
    MetricsFile file(path, 2, [&](const std::string&) { ++warnings; });
    EXPECT_EQ(outline(path), "1 2");
  }
  EXPECT_EQ(warnings, 1);
}

}  // namespace
}  // namespace weft
