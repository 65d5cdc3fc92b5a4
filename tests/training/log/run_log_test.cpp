#include "training/log/run_log.h"

#include <gtest/gtest.h>

#include "tests/training/log/log_support.h"

namespace weft {
namespace {

const Pace steady_pace{1000, 10, 1};

TEST(RunLog, WritesTheFilesOfTheRunFolder) {
  const TemporaryFolder folder;
  const std::string run = folder / "runs/x";
  testing::internal::CaptureStderr();
  {
    RunLog log({.folder = run, .steps = 4});
    log.environment({.command_line = {"weft", "train", "a\xff"},
                     .device = "cpu",
                     .world = 2,
                     .versions = {{"mpi", "4.1"}}});
    log.info("two\nlines");
    for (int64_t step = 1; step <= 4; ++step) log.step(record_of(step), steady_pace);
    log.rewind(4, 3);
    StepRecord untimed = record_of(4);
    untimed.time = StepRecord::unknown;
    log.step(untimed, steady_pace);
    log.sample(4, "In the\nbeginning");
    log.event(Event::checkpoint, 4);
    log.finish();
  }
  {
    RunLog other({.folder = run, .rank = 12, .steps = 4});
    other.step(record_of(1), steady_pace);
    other.sample(1, "x");
    other.event(Event::skip, 1);
    other.rewind(1, 0);
    other.environment({});
    other.warning("careful");
    other.finish();
  }
  const auto console = lines_of(testing::internal::GetCapturedStderr());
  ASSERT_EQ(console.size(), 7u);
  EXPECT_EQ(console[0], "weft: two lines");
  EXPECT_EQ(console[1].find("step: 1/4  loss: 3.1234"), 0u);
  EXPECT_EQ(console[6], "sample after step 4: In the beginning");

  const auto metrics = json_lines(run + "/metrics.jsonl");
  ASSERT_EQ(metrics.size(), 7u);
  EXPECT_EQ(metrics[3]["event"], "rewind");
  EXPECT_EQ(metrics[3]["from"], 4);
  EXPECT_EQ(metrics[4]["step"], 4);
  EXPECT_GT(metrics[4]["time"], 1.6e9);
  EXPECT_EQ(metrics[5]["event"], "sample");
  EXPECT_EQ(metrics[6]["event"], "checkpoint");

  const auto environment = nlohmann::json::parse(read_bytes(run + "/environment.json"));
  EXPECT_EQ(environment["command_line"][1], "train");
  EXPECT_EQ(environment["device"], "cpu");
  EXPECT_EQ(environment["world"], 2);
  EXPECT_EQ(environment["versions"]["mpi"], "4.1");
  EXPECT_TRUE(environment["versions"].contains("weft"));
  EXPECT_TRUE(environment["versions"].contains("compiler"));
  EXPECT_EQ(environment["commit"], build_commit());
  EXPECT_FALSE(environment["hostname"].get<std::string>().empty());

  EXPECT_NE(read_bytes(run + "/log/rank-0000.txt").find(" info two lines\n"), std::string::npos);
  EXPECT_NE(read_bytes(run + "/log/rank-0012.txt").find(" warning careful\n"), std::string::npos);
  EXPECT_EQ(read_bytes(run + "/samples.txt"), "=== step 4\nIn the\nbeginning\n\n");
}

TEST(RunLog, ResumesAndRefuses) {
  const TemporaryFolder folder;
  testing::internal::CaptureStderr();
  {
    RunLog log({.folder = folder.path(), .steps = 4, .tensorboard = false});
    for (int64_t step = 1; step <= 3; ++step) log.step(record_of(step), steady_pace);
  }
  expect_error(Exit::cannot_create, {"metrics.jsonl", "resume"},
               [&] { RunLog({.folder = folder.path(), .steps = 4}); });
  {
    RunLog log({.folder = folder.path(), .steps = 4, .tensorboard = false, .resume_step = 2});
    log.event(Event::resume, 2);
    log.step(record_of(3), steady_pace);
  }
  testing::internal::GetCapturedStderr();
  const auto metrics = json_lines(folder / "metrics.jsonl");
  ASSERT_EQ(metrics.size(), 4u);
  EXPECT_EQ(metrics[2]["event"], "resume");
  EXPECT_EQ(metrics[3]["step"], 3);
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    EXPECT_EQ(entry.path().string().find("tfevents"), std::string::npos) << entry.path();
}

TEST(RunLog, AFullDiskIsOneWarningAndTheRunGoesOn) {
  const TemporaryFolder folder;
  testing::internal::CaptureStderr();
  {
    RunLog log({.folder = folder.path(), .steps = 50, .every = 50});
    // Standard error is captured in a file too.
    const FileSizeLimit limit(4096);
    for (int64_t step = 1; step <= 50; ++step) {
      log.step(record_of(step), steady_pace);
      log.sample(step, std::string(20, 'x'));
    }
  }
  const std::string console = testing::internal::GetCapturedStderr();
  size_t warnings = 0;
  for (const std::string& line : lines_of(console)) warnings += line.find("weft: warning: ") == 0;
  EXPECT_EQ(warnings, 1u) << console;
  const auto metrics = json_lines(folder / "metrics.jsonl");  // every line whole
  EXPECT_GT(metrics.size(), 5u);
  EXPECT_LT(metrics.size(), 50u);
}

}  // namespace
}  // namespace weft
