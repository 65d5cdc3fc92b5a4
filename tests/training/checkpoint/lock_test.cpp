#include "training/checkpoint/lock.h"

#include <unistd.h>

#include <csignal>
#include <optional>

#include "tests/training/checkpoint/support.h"

namespace weft::ckpt {
namespace {

TEST(RunLock, ASecondJobIsRefusedAndToldWhoHoldsIt) {
  TemporaryFolder run;
  std::optional<RunLock> lock(run.path());
  EXPECT_EQ(lock->note(), "");
  const pid_t other = in_child([&] { RunLock second(run.path()); });
  EXPECT_EQ(WEXITSTATUS(wait_for(other)), static_cast<int>(Exit::cannot_create));
  expect_error(Exit::cannot_create, {text("pid ", ::getpid()), "lock", "in use"},
               [&] { RunLock second(run.path()); });
  lock.reset();
  EXPECT_EQ(RunLock(run.path()).note(), "") << "released, not stale";
}

TEST(RunLock, TheLockOfADeadJobIsStale) {
  TemporaryFolder run;
  const pid_t job = in_child([&] {
    RunLock lock(run.path());
    ::kill(::getpid(), SIGKILL);
  });
  wait_for(job);
  const RunLock lock(run.path());
  EXPECT_NE(lock.note().find(text("pid ", job)), std::string::npos) << lock.note();
}

// A job that was killed keeps its lock until the kernel has taken its memory back; here a child of it lives
// on a little.
TEST(RunLock, ADyingJobIsWaitedFor) {
  TemporaryFolder run;
  const pid_t job = in_child([&] {
    RunLock lock(run.path());
    if (::fork() == 0) {
      ::usleep(600'000);
      ::_exit(0);
    }
    ::kill(::getpid(), SIGKILL);
  });
  wait_for(job);
  const RunLock lock(run.path());
  EXPECT_NE(lock.note().find(text("pid ", job)), std::string::npos) << lock.note();
}

TEST(RunLock, GarbageInTheFileIsNoObstacle) {
  TemporaryFolder run;
  for (const char* content : {"garbage", "{}", "{\"host\":5}", "[", "{\"host\":\"h\",\"pid\":\"x\"}"}) {
    write_bytes(run / "lock", content);
    EXPECT_NE(RunLock(run.path()).note(), "") << content;
  }
}

TEST(RunLock, MovesItsHold) {
  TemporaryFolder run;
  RunLock first(run.path());
  RunLock second(std::move(first));
  EXPECT_THROW(RunLock third(run.path()), Error);
}

TEST(RunLock, KnowsWhenItsFolderIsAnother) {
  const TemporaryFolder folder;
  const std::string run = folder / "run";
  std::filesystem::create_directory(run);
  const RunLock lock(run);
  EXPECT_TRUE(lock.holds());
  std::filesystem::rename(run, folder / "moved");
  EXPECT_FALSE(lock.holds());
  std::filesystem::create_directory(run);
  const RunLock other(run);
  EXPECT_TRUE(other.holds());
  EXPECT_FALSE(lock.holds());
}

TEST(RunLock, NeedsAFolder) {
  TemporaryFolder run;
  expect_error(Exit::cannot_create, {"nowhere"}, [&] { RunLock lock(run / "nowhere"); });
}

}  // namespace
}  // namespace weft::ckpt
