#include "training/log/stop_request.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "tests/training/log/log_support.h"

namespace weft {
namespace {

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

TEST(StopRequest, TheFirstSignalSetsAFlag) {
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGHUP}) {
    const StopRequest stop(false);
    EXPECT_FALSE(stop.requested());
    EXPECT_STREQ(stop.name(), "");
    ::raise(signal);
    EXPECT_TRUE(stop.requested());
    EXPECT_EQ(stop.signal(), signal);
    EXPECT_STREQ(stop.name(), (std::string("SIG") + sigabbrev_np(signal)).c_str());
  }
}

TEST(StopRequest, AReaderThatLeavesEndsNothing) {
  const int status = wait_for(in_child([] {
    const StopRequest stop(false);
    int ends[2];
    if (::pipe(ends) != 0 || ::close(ends[0]) != 0) throw Error(Exit::internal, "no pipe");
    if (::write(ends[1], "x", 1) != -1 || stop.requested()) throw Error(Exit::internal, "written");
  }));
  ASSERT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(StopRequest, TheSecondLeavesAtOnce) {
  const int status = wait_for(in_child([] {
    const StopRequest stop(false);
    ::raise(SIGTERM);
    sleep_ms(300);
    ::raise(SIGINT);
    throw Error(Exit::internal, "still here");
  }));
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 75);
}

TEST(StopRequest, ARepetitionIsNotASecond) {
  const int status = wait_for(in_child([] {
    const StopRequest stop(false);
    ::raise(SIGTERM);
    ::raise(SIGTERM);  // as timeout(1) does
  }));
  EXPECT_EQ(status, 0);
}

TEST(StopRequest, ALongWriteIsNotInterrupted) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  const pid_t child = in_child([&] {
    const StopRequest stop(false);
    char byte = 0;
    const ssize_t got = ::read(pipe_ends[0], &byte, 1);
    throw Error(got == 1 && stop.requested() ? Exit::ok : Exit::internal, "");
  });
  sleep_ms(100);
  ::kill(child, SIGTERM);
  sleep_ms(50);
  ASSERT_EQ(::write(pipe_ends[1], "x", 1), 1);
  EXPECT_EQ(wait_for(child), 0);
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
}

TEST(StopRequest, PutsBackWhatWasThere) {
  struct sigaction before {};
  struct sigaction after {};
  ::sigaction(SIGTERM, nullptr, &before);
  {
    const StopRequest stop(false);
    ::sigaction(SIGTERM, nullptr, &after);
    EXPECT_NE(before.sa_handler, after.sa_handler);
  }
  ::sigaction(SIGTERM, nullptr, &after);
  EXPECT_EQ(before.sa_handler, after.sa_handler);
  const int status = wait_for(in_child([] {
    { const StopRequest stop(false); }
    ::raise(SIGTERM);
  }));
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

// As of a command with several runs, and one of them.
TEST(StopRequest, OneInsideAnotherSharesItsFlag) {
  const StopRequest outer(false);
  {
    const StopRequest inner(false);
    EXPECT_FALSE(inner.requested());
    ::raise(SIGTERM);
    EXPECT_TRUE(inner.requested());
  }
  EXPECT_EQ(outer.signal(), SIGTERM) << "and its handlers are still there:";
  ::raise(SIGTERM);  // at once, so the same request
  const StopRequest next(false);
  EXPECT_TRUE(next.requested()) << "the next run is not to begin";
}

// A starter that blocks signals leaves them blocked: whoever asks for an end would be heard after it.
TEST(StopRequest, IsHeardWhereItsStarterBlocksSignals) {
  const int status = wait_for(in_child([] {
    sigset_t all, after;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, nullptr);
    {
      const StopRequest stop(false);
      ::raise(SIGTERM);
      if (!stop.requested()) throw Error(Exit::internal, "unheard");
    }
    ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
    if (sigismember(&after, SIGTERM) != 1) throw Error(Exit::internal, "not put back");
  }));
  EXPECT_EQ(status, 0);
}

TEST(StopRequest, NohupStaysNohup) {
  const int status = wait_for(in_child([] {
    std::signal(SIGHUP, SIG_IGN);
    const StopRequest stop(false);
    ::raise(SIGHUP);
    if (stop.requested()) throw Error(Exit::internal, "");
  }));
  EXPECT_EQ(status, 0);
}

TEST(StopRequest, AFileSizeLimitIsAnErrorOfTheWrite) {
  const TemporaryFolder folder;
  const int status = wait_for(in_child([&] {
    const StopRequest stop(false);
    const rlimit limit{1, 1};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const int fd = ::open((folder / "a").c_str(), O_CREAT | O_WRONLY, 0600);
    if (::write(fd, "a", 1) != 1 || ::write(fd, "a", 1) != -1) throw Error(Exit::internal, "");
  }));
  EXPECT_EQ(status, 0);
}

TEST(StopRequest, SaysWhatHappens) {
  testing::internal::CaptureStderr();
  {
    const StopRequest stop;
    ::raise(SIGTERM);
  }
  EXPECT_NE(testing::internal::GetCapturedStderr().find("saving after this step"), std::string::npos);
  testing::internal::CaptureStderr();
  {
    const StopRequest all(false);
    { const StopRequest run; }
    ::raise(SIGTERM);
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "") << "between runs nothing is saved";
}

}  // namespace
}  // namespace weft
