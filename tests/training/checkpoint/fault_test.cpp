#include "autograd/fault.h"

#include <chrono>
#include <csignal>

#include "tests/training/checkpoint/support.h"

namespace weft::fault {
namespace {

class FaultTest : public testing::Test {
 protected:
  void SetUp() override { set_position(0, 0); }
  void TearDown() override {
    configure("");
    ::unsetenv("WEFT_FAULT");
  }
};

TEST_F(FaultTest, FiresOnlyAtItsRankStepAndPhase) {
  configure("nan@rank=1,step=3,phase=backward");
  for (const int rank : {0, 1})
    for (const int step : {2, 3})
      for (const Phase phase : {Phase::forward, Phase::backward}) {
        set_position(rank, step);
        EXPECT_EQ(wants(Kind::nan, phase), rank == 1 && step == 3 && phase == Phase::backward);
        EXPECT_FALSE(wants(Kind::flip, phase));
      }
}

TEST_F(FaultTest, KeysLeftOutMatchEverything) {
  configure("flip@step=5;skip_exchange");
  EXPECT_TRUE(wants(Kind::skip_exchange, Phase::load));
  EXPECT_FALSE(wants(Kind::flip, Phase::load));
  set_position(7, 5);
  EXPECT_TRUE(wants(Kind::flip, Phase::save_latest));
}

TEST_F(FaultTest, InputOutputErrorsAreThrown) {
  configure("enospc@phase=save.mid;eio@phase=save.fsync");
  EXPECT_NO_THROW(point(Phase::save_data));
  expect_error(Exit::io, {"no space left", "save.mid"}, [] { point(Phase::save_mid); });
  expect_error(Exit::io, {"input/output", "save.fsync"}, [] { point(Phase::save_fsync); });
}

TEST_F(FaultTest, EveryPhaseHasItsName) {
  const std::vector<std::string> names = {"load",          "forward",     "backward",    "collective",
                                          "optimizer",     "save.data",   "save.mid",    "save.fsync",
                                          "save.manifest", "save.rename", "save.latest", "evaluate"};
  for (size_t i = 0; i < names.size(); ++i) {
    configure("nan@phase=" + names[i]);
    for (size_t j = 0; j < names.size(); ++j) EXPECT_EQ(wants(Kind::nan, static_cast<Phase>(j)), i == j);
  }
}

TEST_F(FaultTest, KillStopAndSlow) {
  const pid_t killed = in_child([] {
    configure("kill@phase=forward");
    point(Phase::load);
    point(Phase::forward);
  });
  EXPECT_EQ(WTERMSIG(wait_for(killed)), SIGKILL);

  const pid_t stopped = in_child([] {
    configure("stop@phase=forward");
    point(Phase::forward);
  });
  int status = 0;
  ::waitpid(stopped, &status, WUNTRACED);
  EXPECT_TRUE(WIFSTOPPED(status));
  ::kill(stopped, SIGCONT);
  EXPECT_EQ(wait_for(stopped), 0);

  configure("slow:30@phase=load");
  const auto start = std::chrono::steady_clock::now();
  point(Phase::load);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(30));
}

TEST_F(FaultTest, MalformedIsAUsageError) {
  for (const char* spec : {"boom", "kill@rank", "kill@rank=", "kill@rank=x", "kill@rank=-1", "kill@rank=1x",
                           "kill@phase=lunch", "kill@colour=red", "slow", "slow:", "slow:x", "kill:3",
                           "kill:", "nan@step=99999999999999999999", "kill@rank=1,,step=2", "nan;boom"})
    expect_error(Exit::usage, {"WEFT_FAULT"}, [&] { configure(spec); });
}

TEST_F(FaultTest, ReadsTheEnvironmentAndAMalformedSpecKeepsTheOldFaults) {
  ::setenv("WEFT_FAULT", "nan@phase=load", 1);
  configure_from_environment();
  EXPECT_TRUE(wants(Kind::nan, Phase::load));
  ::setenv("WEFT_FAULT", "nonsense", 1);
  EXPECT_THROW(configure_from_environment(), Error);
  EXPECT_TRUE(wants(Kind::nan, Phase::load));
  ::unsetenv("WEFT_FAULT");
  configure_from_environment();
  EXPECT_FALSE(wants(Kind::nan, Phase::load));
}

}  // namespace
}  // namespace weft::fault
