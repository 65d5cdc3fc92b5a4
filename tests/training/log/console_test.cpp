#include <gtest/gtest.h>

#include "tests/training/log/log_support.h"
#include "training/log/console_text.h"
#include "training/log/progress.h"

namespace weft {
namespace {

const Pace pace{12345.2, 98, 80};

TEST(ConsoleText, StepLine) {
  StepRecord r = record_of(10);
  EXPECT_EQ(step_line(r, 300, {12345.2, 80, 3}),
            "step: 10/300  loss: 3.1234  grad_norm: 1.23  lr: 3.0e-04  tok/s: 12,345  mfu: -  mem: 0.52GiB  "
            "eta: 1m20s");
  r.loss = StepRecord::unknown;
  r.mfu = 0.3251;
  r.val_loss = 3.2;
  r.val_bpb = 1.1;
  EXPECT_EQ(step_line(r, 300, {StepRecord::unknown, StepRecord::unknown, 3}),
            "step: 10/300  loss: nan  grad_norm: 1.23  lr: 3.0e-04  tok/s: -  mfu: 32.5%  mem: 0.52GiB  "
            "eta: -  val_loss: 3.2000  val_bpb: 1.1000");
  r.val_bpb.reset();
  r.val_accuracy = 0.75;
  r.val_exact = 0.5;
  EXPECT_TRUE(
      step_line(r, 300, {1, 1, 3}).ends_with("  val_loss: 3.2000  val_accuracy: 0.7500  val_exact: 0.5000"));
}

TEST(ConsoleText, NumbersAndDurations) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999.4), "999");
  EXPECT_EQ(grouped(999.6), "1,000");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(grouped(-123456), "-123,456");
  EXPECT_EQ(duration_text(0.4), "0s");
  EXPECT_EQ(duration_text(59.6), "1m00s");
  EXPECT_EQ(duration_text(7500), "2h05m");
  EXPECT_EQ(duration_text(3 * 86400 + 4 * 3600), "3d04h");
  EXPECT_EQ(duration_text(-1), "-");
  EXPECT_EQ(duration_text(1e300), "-");
}

TEST(ConsoleText, Bar) {
  const StepRecord r = record_of(135);
  EXPECT_EQ(bar_line(r, 300, pace, 81), " 45%|" + std::string(11, '#') + std::string(14, ' ') +
                                            "| 135/300 [01:20<01:38, loss 3.1234, 12,345 tok/s]");
  EXPECT_EQ(bar_line(r, 300, pace, 56), " 45% 135/300 [01:20<01:38, loss 3.1234, 12,345 tok/s]");
  for (int width = 0; width < 200; ++width) {
    const size_t size = bar_line(r, 300, pace, width).size();
    EXPECT_LT(size, std::max<size_t>(static_cast<size_t>(width), 1)) << width;
  }
  EXPECT_EQ(bar_line(record_of(299), 300, pace, 80).substr(0, 4), " 99%");
  EXPECT_EQ(bar_line(record_of(300), 300, pace, 80).substr(0, 12), "100%|#######");
  EXPECT_EQ(bar_line(record_of(301), 300, pace, 80).substr(0, 4), "100%");
  EXPECT_EQ(bar_line(record_of(0), 0, pace, 80).substr(0, 4), "  0%");
  EXPECT_NE(bar_line(r, 300, {1, 1e300, 3700}, 100).find("[1:01:40<?, "), std::string::npos);
}

TEST(Progress, OffATerminalPrintsLinesOfEveryNthStep) {
  const TemporaryFolder folder;
  const int fd = ::open((folder / "out").c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
  {
    Progress progress(11, 5, fd);
    progress.message("weft: a \x1b[1mmessage\n of two");
    for (int64_t step = 1; step <= 11; ++step) {
      StepRecord r = record_of(step);
      if (step == 7) r.val_loss = 3;
      progress.step(r, pace);
    }
    progress.finish();
  }
  ::close(fd);
  const std::string out = read_bytes(folder / "out");
  EXPECT_EQ(out.find_first_of("\r\x1b"), std::string::npos);
  const auto lines = lines_of(out);
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[0], "weft: a  [1mmessage  of two");
  const std::vector<std::string> steps{"step: 1/11 ", "step: 5/11 ", "step: 7/11 ", "step: 10/11 ",
                                       "step: 11/11 "};
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(lines[i + 1].find(steps[i]), 0u) << lines[i + 1];
}

class OnTerminal : public testing::Test {
 protected:
  void SetUp() override { ::setenv("TERM", "xterm", 1); }
};

TEST_F(OnTerminal, TheBarIsRedrawnAndMessagesStandAboveIt) {
  PseudoTerminal terminal(80);
  Progress progress(300, 1, terminal.fd());
  progress.message("before");
  progress.step(record_of(1), pace);
  progress.message("a message that is longer than the bar: " + std::string(30, 'x'));
  std::string bytes = terminal.read();
  auto screen = screen_of(bytes);
  ASSERT_EQ(screen.size(), 3u) << bytes;
  EXPECT_EQ(screen[0], "before");
  EXPECT_EQ(screen[1], "a message that is longer than the bar: " + std::string(30, 'x'));
  EXPECT_EQ(screen[2], bar_line(record_of(1), 300, pace, 80));

  terminal.resize(60);
  progress.step(record_of(2), pace);  // too soon to be drawn
  progress.step(record_of(300), pace);
  progress.finish();
  progress.message("after");
  screen = screen_of(bytes += terminal.read());
  ASSERT_EQ(screen.size(), 5u) << bytes;
  EXPECT_EQ(screen[2], bar_line(record_of(300), 300, pace, 60));
  EXPECT_EQ(screen[3], "after");
  EXPECT_EQ(bytes.find(" 2/300"), std::string::npos);
}

TEST_F(OnTerminal, AStepWithAValidationLossLeavesItsLine) {
  PseudoTerminal terminal(80);
  StepRecord r = record_of(2);
  r.val_loss = 3.25;
  {
    Progress progress(300, 1, terminal.fd());
    progress.step(record_of(1), pace);
    progress.step(r, pace);
  }
  const std::string bytes = terminal.read();
  const auto screen = screen_of(bytes);
  ASSERT_EQ(screen.size(), 3u) << bytes;
  EXPECT_NE(screen[0].find("val_loss: 3.2500"), std::string::npos);
  EXPECT_EQ(screen[1], bar_line(r, 300, pace, 80));
}

TEST_F(OnTerminal, ADumbOneGetsLines) {
  ::setenv("TERM", "dumb", 1);
  PseudoTerminal terminal(80);
  Progress(300, 1, terminal.fd()).step(record_of(1), pace);
  const std::string bytes = terminal.read();
  EXPECT_EQ(bytes.find("step: 1/300"), 0u) << bytes;
  EXPECT_EQ(bytes.find('\x1b'), std::string::npos);
}

TEST(Progress, AClosedConsoleIsNoFailure) {
  Progress progress(10, 1, -1);
  progress.message("x");
  progress.step(record_of(1), pace);
}

}  // namespace
}  // namespace weft
