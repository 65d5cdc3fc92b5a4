// Command lines for each launcher, what ends a job, and real jobs whose rank 1 misbehaves.
#include "tools/launch.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "distributed/environment.h"
#include "distributed/exit_code.h"
#include "distributed/mpi_comm.h"
#include "tools/child_process.h"
#include "tools/launcher_notes.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

LaunchHost open_mpi(int major) {
  LaunchHost host;
  host.mpi = LaunchHost::Mpi::open_mpi;
  host.mpi_major = major;
  host.cores = 8;
  return host;
}

std::string shown(const LaunchOptions& options, const LaunchHost& host) {
  return launch_command(options, host, "weft", {"train", "r.yaml", "run=a b"}).shown();
}

Exit code_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.code;
  }
  return Exit::ok;
}

class Folder {
 public:
  Folder() {
    std::string name = fs::temp_directory_path() / "weft-test-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(LauncherNotes, OnlyThoseOfAProcessThatEndedAreLeftOut) {
  const std::string rule(74, '-');
  const std::string note =
      rule + "\nprterun noticed that process rank 0 with PID 7 on node n exited on\nsignal 9.\n" + rule +
      "\n";
  const std::string improper =
      rule + "\nprterun has exited due to process rank 1 with PID 7 on node n exiting\n\n1. this\n" + rule +
      "\n";
  const std::string of_open_mpi_4[] = {
      "Primary job  terminated normally, but 1 process returned\na non-zero exit code. Per user-direction, "
      "the "
      "job has been aborted.\n",
      "mpirun noticed that process rank 1 with PID 0 on node n exited on signal 9 (Killed).\n",
      "mpirun detected that one or more processes exited with non-zero status, thus causing\nthe job to be "
      "terminated. The first process to do so was:\n\n  Process name: [[1,1],0]\n  Exit code:    78\n",
      "mpirun has exited due to process rank 1 with PID 0 on\nnode n exiting improperly.\n\n1. this\n"};
  std::string older;
  for (const std::string& words : of_open_mpi_4) older += rule + "\n" + words + rule + "\n";
  const std::string other = rule + "\nThere are not enough slots available in the system.\n" + rule + "\n";
  const std::string said = "step: 1\n--help\n\nweft: the loss is nan\n";
  for (const size_t piece : {1, 7, 1000}) {
    LauncherNotes notes;
    const std::string all = said + note + older + improper + other + "no newline\r50%\n" + note + "-----";
    std::string shown;
    for (size_t i = 0; i < all.size(); i += piece)
      shown += notes.pass(std::string_view(all).substr(i, piece));
    EXPECT_EQ(shown + notes.rest(), said + other + "no newline\r50%\n-----") << piece;
  }
  LauncherNotes notes;
  EXPECT_EQ(notes.pass("50%"), "50%") << "a line that is no note does not wait for its end";
  EXPECT_EQ(notes.pass("\n" + rule + "\nleft open"), "\n");
  EXPECT_EQ(notes.rest(), rule + "\nleft open");
}

TEST(LaunchCommand, OpenMpi4And5) {
  LaunchHost host = open_mpi(4);
  EXPECT_EQ(shown({4, "auto", {}, ""}, host),
            "OMP_NUM_THREADS=2 mpirun -n 4 --bind-to none --oversubscribe -x OMP_NUM_THREADS -x "
            "WEFT_LAUNCH "
            "weft train r.yaml 'run=a b'");
  host = open_mpi(5);
  host.root = true;
  EXPECT_EQ(shown({3, "mpirun", {"--hostfile", "h"}, ""}, host),
            "OMP_NUM_THREADS=2 mpirun -n 3 --bind-to none --map-by :OVERSUBSCRIBE --allow-run-as-root "
            "-x OMP_NUM_THREADS -x WEFT_LAUNCH --hostfile h weft train r.yaml 'run=a b'");
}

TEST(LaunchCommand, MpichAndSlurm) {
  LaunchHost host;
  host.mpi = LaunchHost::Mpi::mpich;
  host.cores = 4;
  EXPECT_EQ(shown({4, "auto", {}, ""}, host),
            "OMP_NUM_THREADS=1 mpirun -n 4 -bind-to none weft train r.yaml 'run=a b'");
  host = open_mpi(4);
  host.srun = true;
  host.nodes = 2;
  EXPECT_EQ(shown({8, "auto", {}, ""}, host),
            "OMP_NUM_THREADS=2 srun -n 8 --kill-on-bad-exit=1 --cpu-bind=none --mpi=pmix weft train r.yaml "
            "'run=a b'");
  EXPECT_EQ(launch_command({8, "mpirun", {}, ""}, host, "weft", {}).words[0], "mpirun");
}

TEST(LaunchCommand, ThreadsAreSharedOutAndTheUsersWin) {
  LaunchHost host = open_mpi(4);
  EXPECT_EQ(launch_command({16, "auto", {}, ""}, host, "weft", {}).environment[0], "OMP_NUM_THREADS=1");
  EXPECT_EQ(launch_command({1, "auto", {}, ""}, host, "weft", {}).environment[0], "OMP_NUM_THREADS=8");
  host.omp_threads = 3;
  EXPECT_EQ(launch_command({4, "auto", {}, ""}, host, "weft", {}).environment[0], "OMP_NUM_THREADS=3");
}

TEST(LaunchCommand, NonsenseIsAUsageError) {
  const LaunchHost host = open_mpi(4), bare;
  EXPECT_EQ(code_of([&] { shown({0, "auto", {}, ""}, host); }), Exit::usage);
  EXPECT_EQ(code_of([&] { shown({2, "ssh", {}, ""}, host); }), Exit::usage);
  EXPECT_EQ(code_of([&] { shown({2, "auto", {}, ""}, bare); }), Exit::usage);
}

TEST(LaunchHost, ReadsVersions) {
  LaunchHost host;
  read_mpi_version("mpirun (Open MPI) 4.1.4\n\nReport bugs to ...", host);
  EXPECT_EQ(host.mpi, LaunchHost::Mpi::open_mpi);
  EXPECT_EQ(host.mpi_major, 4);
  read_mpi_version("mpirun (Open MPI) 5.0.7\n", host);
  EXPECT_EQ(host.mpi_major, 5);
  read_mpi_version("HYDRA build details:\n    Version: 4.0.2\n", host);
  EXPECT_EQ(host.mpi, LaunchHost::Mpi::mpich);
  read_mpi_version("", host);
  EXPECT_EQ(host.mpi, LaunchHost::Mpi::none);
}

TEST(LauncherStatus, IsMappedOnTheContract) {
  const auto exited = [](int code) { return code << 8; };
  EXPECT_EQ(read_launcher_status(exited(0), false).code, Exit::ok);
  EXPECT_EQ(read_launcher_status(exited(78), false).code, Exit::recipe);
  EXPECT_EQ(read_launcher_status(exited(137), false).code, Exit::peer_lost);
  EXPECT_EQ(read_launcher_status(exited(139), false).code, Exit::peer_lost);
  EXPECT_EQ(read_launcher_status(exited(1), false).code, Exit::internal);
  EXPECT_EQ(read_launcher_status(exited(255), false).code, Exit::internal) << "there is no signal 127";
  EXPECT_EQ(read_launcher_status(exited(127), false).code, Exit::internal);
  EXPECT_EQ(read_launcher_status(exited(1), true).code, Exit::stopped);
  EXPECT_EQ(read_launcher_status(exited(138), true).code, Exit::stopped);
  EXPECT_EQ(read_launcher_status(exited(0), true).code, Exit::ok);
  EXPECT_EQ(read_launcher_status(SIGKILL, false).code, Exit::peer_lost);
}

TEST(ExitCode, IsLeftAndRead) {
  const Folder run;
  setenv(launch_variable, "", 1);
  leave_exit_code(run.path(), 12, Exit::recipe, 7, "unknown key\noptim.lrr");
  leave_exit_code(run.path(), 3, Exit::ok, 3, "", false);
  std::ofstream(run.path() + "/log/exit-0004") << "not one\n";
  const auto records = read_exit_codes(run.path() + "/log");
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].rank, 3);
  EXPECT_FALSE(records[0].said);
  EXPECT_EQ(records[1].rank, 12);
  EXPECT_TRUE(records[1].said);
  EXPECT_EQ(records[1].culprit, 7);
  EXPECT_EQ(records[1].code, Exit::recipe);
  EXPECT_EQ(records[1].what, "unknown key optim.lrr");
  EXPECT_EQ(records[1].launch, "-");
  EXPECT_GT(records[1].time, 1e9);
  EXPECT_TRUE(read_exit_codes(run.path() + "/log", "/tmp/another").empty());
  EXPECT_TRUE(fs::exists(run.path() + "/log/exit-0012"));
  unsetenv(launch_variable);
}

TEST(ExitCode, GoesToTheLaunchersFolderToo) {
  const Folder launch;
  setenv(launch_variable, launch.path().c_str(), 1);
  leave_exit_code("", 0, Exit::io, 0, "disk full");
  leave_exit_code("/nonexistent/run", 1, Exit::io, 1, "disk full");  // never throws, makes nothing
  unsetenv(launch_variable);
  EXPECT_EQ(read_exit_codes(launch.path(), launch.path()).size(), 2u);
  EXPECT_FALSE(fs::exists("/nonexistent"));
  EXPECT_TRUE(read_exit_codes("/nonexistent").empty());
}

TEST(ExitCode, TheFirstCauseIsNotAConsequence) {
  const auto cause = [](std::vector<ExitRecord> records) {
    const auto first = first_cause(records);
    return first ? static_cast<int>(first->code) * 100 + first->rank : 0;
  };
  const ExitRecord lost{0, Exit::peer_lost, 1, "", ""}, late{1, Exit::numerics, 3, "", ""},
      early{2, Exit::io, 2, "", ""}, stopped{3, Exit::stopped, 0, "", ""}, good{4, Exit::ok, 0, "", ""},
      hang{5, Exit::hang, 4, "", ""};
  EXPECT_EQ(cause({}), 0);
  EXPECT_EQ(cause({good}), 0);
  EXPECT_EQ(cause({good, stopped}), 7503);
  EXPECT_EQ(cause({stopped, lost, good}), 6900);
  EXPECT_EQ(cause({lost, hang}), 8105);
  EXPECT_EQ(cause({lost, late, early, stopped}), 7402);
}

Launched detect(const std::map<std::string, std::string>& variables) {
  return detect_launch([&](const char* name) -> const char* {
    const auto it = variables.find(name);
    return it == variables.end() ? nullptr : it->second.c_str();
  });
}

TEST(Environment, KnowsTheLaunchers) {
  EXPECT_FALSE(detect({}).under_mpi());
  const Launched ompi = detect({{"OMPI_COMM_WORLD_SIZE", "4"},
                                {"OMPI_COMM_WORLD_RANK", "3"},
                                {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                {"PMIX_NAMESPACE", "job7"}});
  EXPECT_EQ(ompi.by, Launched::By::open_mpi);
  EXPECT_EQ(ompi.rank, 3);
  EXPECT_EQ(ompi.local_rank, 1);
  EXPECT_EQ(ompi.local_size, 2);
  EXPECT_EQ(ompi.job, "job7");
  EXPECT_FALSE(detect({{"OMPI_COMM_WORLD_SIZE", "1"}, {"OMPI_COMM_WORLD_RANK", "0"}}).under_mpi());

  const std::map<std::string, std::string> batch = {
      {"SLURM_JOB_ID", "9"}, {"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}};
  EXPECT_FALSE(detect(batch).under_mpi()) << "a batch script is not a step";
  auto step = batch;
  step.insert({{"SLURM_STEP_NUM_TASKS", "8"}, {"SLURM_STEP_NUM_NODES", "2"}, {"SLURM_STEP_ID", "0"}});
  step["SLURM_PROCID"] = "5";
  EXPECT_EQ(detect(step).by, Launched::By::slurm);
  EXPECT_EQ(detect(step).rank, 5);
  EXPECT_EQ(detect(step).local_size, 4);
  EXPECT_EQ(detect(step).job, "9.0");

  EXPECT_EQ(detect({{"PMI_SIZE", "2"}, {"PMI_RANK", "1"}}).by, Launched::By::pmi);
  EXPECT_EQ(detect({{"PMI_SIZE", "2"}, {"PMI_RANK", "1"}}).rank, 1);
}

TEST(Environment, TorchrunIsRefusedUnlessAlone) {
  std::map<std::string, std::string> torch = {{"WORLD_SIZE", "4"}, {"RANK", "0"}, {"LOCAL_RANK", "0"}};
  EXPECT_EQ(code_of([&] { detect(torch); }), Exit::usage);
  torch["WORLD_SIZE"] = "1";
  EXPECT_FALSE(detect(torch).under_mpi());
  EXPECT_FALSE(detect({{"WORLD_SIZE", "4"}}).under_mpi()) << "some images set it always";
}

TEST(Environment, AloneNeedsNoMpi) {
  EXPECT_STREQ(world_communicator(Launched{})->name(), "self");
  if (!built_with_mpi()) {
    EXPECT_EQ(code_of([] { world_communicator({Launched::By::open_mpi, 0, 2, 0, 2, "j"}); }), Exit::usage);
  }
}

// Of a starter that ignores its children (SIGCHLD) the system keeps no exit status, and tells nobody of their
// end.
TEST(ChildProcess, IsWaitedForWhereChildrenAreIgnored) {
  const pid_t starter = fork();
  ASSERT_GE(starter, 0);
  if (starter == 0) {
    std::signal(SIGCHLD, SIG_IGN);
    alarm(20);
    const ChildEnd end = run_child({.words = {"sh", "-c", "exit 7"}});
    struct sigaction after {};
    sigaction(SIGCHLD, nullptr, &after);
    _exit(WIFEXITED(end.wait_status) && after.sa_handler == SIG_IGN ? WEXITSTATUS(end.wait_status) : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(starter, &status, 0), starter);
  ASSERT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

// --- real jobs

LaunchResult run_job(const std::string& how, int ranks = 3) {
  return launch({ranks, "mpirun", {}, ""}, {how}, MPI_TEST_PROGRAM);
}

class Job : public testing::Test {
 protected:
  void SetUp() override {
    if (!built_with_mpi() || detect_launch_host().mpi == LaunchHost::Mpi::none)
      GTEST_SKIP() << "no MPI on this machine";
  }
};

TEST_F(Job, EndsWellWhenAllDo) {
  EXPECT_EQ(run_job("good").code, Exit::ok);
  EXPECT_EQ(run_job("good", 1).code, Exit::ok);
}

TEST_F(Job, ReturnsTheFirstCause) {
  testing::internal::CaptureStderr();
  const LaunchResult result = run_job("fail");
  EXPECT_EQ(result.code, Exit::numerics);
  EXPECT_EQ(result.rank, 1);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 2) << said;  // the command, and the failure once
}

TEST_F(Job, NamesADeadRankOnceAndQuickly) {
  for (const char* how : {"die", "exit"}) {
    const auto start = std::chrono::steady_clock::now();
    testing::internal::CaptureStderr();
    const LaunchResult result = run_job(how);
    EXPECT_EQ(result.code, Exit::peer_lost) << how;
    EXPECT_EQ(result.rank, 1) << "which two others have noticed";
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("rank 1 (process "), std::string::npos) << said;
    EXPECT_NE(said.find("is gone, last at step 7 in forward"), std::string::npos) << said;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 2) << said;
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
  }
}

TEST_F(Job, NamesTheRankWhoseMessageFailed) {
  testing::internal::CaptureStderr();
  const LaunchResult result = run_job("mpi");
  EXPECT_EQ(result.code, Exit::peer_lost);
  EXPECT_EQ(result.rank, 1);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("rank 2: MPI_Waitall from rank 1: MPI_ERR_OTHER"), std::string::npos) << said;
}

TEST_F(Job, NamesAStoppedRank) {
  testing::internal::CaptureStderr();
  const LaunchResult result = run_job("hang");
  EXPECT_EQ(result.code, Exit::hang);
  EXPECT_EQ(result.rank, 1);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("rank 1 is stopped"), std::string::npos) << said;
}

// Rank 1 takes longer than the limit for something that it gives signs of; the others wait for it.
TEST_F(Job, WaitsForARankThatIsNotStuck) { EXPECT_EQ(run_job("slow").code, Exit::ok); }

TEST_F(Job, NoticesOneThatStaysStopped) {
  testing::internal::CaptureStderr();
  const LaunchResult result = run_job("sleep");
  EXPECT_EQ(result.code, Exit::hang);
  EXPECT_EQ(result.rank, 1);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("rank 1 is stopped"), std::string::npos) << said;
}

TEST_F(Job, NamesAMissingRank) {
  testing::internal::CaptureStderr();
  const LaunchResult result = run_job("late");
  EXPECT_EQ(result.code, Exit::peer_lost);
  EXPECT_EQ(result.rank, 1);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("missing: 1"), std::string::npos) << said;
}

TEST_F(Job, ASignalAsksTheRanksToLeave) {
  setenv("WEFT_TEST_LAUNCHER", std::to_string(getpid()).c_str(), 1);
  EXPECT_EQ(run_job("stop").code, Exit::stopped);
  unsetenv("WEFT_TEST_LAUNCHER");
}

// `weft launch -n 1` of a shell, with a script in the place of mpirun: $program and "$@" are the rank.
LaunchResult launch_by(const std::string& script, const std::string& rank) {
  const std::string folder = testing::TempDir() + "other-mpirun";
  fs::create_directory(folder);
  std::ofstream(folder + "/mpirun") << R"(#!/bin/sh
case $* in *--version*) echo 'mpirun (Open MPI) 4.1.6'; exit ;; esac
for word; do [ "$word" = -c ] && break; program=$word; shift; done
)" << script;
  fs::permissions(folder + "/mpirun", fs::perms::owner_all);
  const std::string path = std::getenv("PATH");
  setenv("PATH", (folder + ":" + path).c_str(), 1);
  const LaunchResult result = launch({1, "mpirun", {}, ""}, {"-c", rank}, "/bin/sh");
  setenv("PATH", path.c_str(), 1);
  fs::remove_all(folder);
  return result;
}

const char* const start_and_wait = R"(
OMPI_COMM_WORLD_RANK=0 "$program" "$@" &
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
exit $code
)";
const char* const five_seconds = "for i in $(seq 100); do sleep 0.05; done; exit 0";

// Stands for Ubuntu 24.04's Open MPI 4.1.6, which takes SIGUSR1 and passes it to nobody.
TEST_F(Job, ASignalReachesRanksThatMpirunDoesNotTell) {
  const std::string rank = text("trap 'exit 75' USR1; kill -TERM ", getpid(), "; ", five_seconds);
  EXPECT_EQ(launch_by(text("trap : USR1", start_and_wait), rank).code, Exit::stopped);
}

// Before there are any, and before they listen.
TEST_F(Job, ASignalReachesRanksThatStillStart) {
  const std::string call = text("trap : USR1; kill -TERM ", getpid(), "; sleep 0.3");
  EXPECT_EQ(launch_by(text(call, start_and_wait), text("sleep 1; trap 'exit 75' USR1; ", five_seconds)).code,
            Exit::stopped);
}

// Open MPI 4 may miss that its ranks have died while it started them.
TEST_F(Job, EndsWhereMpirunMissesTheEndOfItsRanks) {
  const LaunchResult result = launch_by("\"$program\" \"$@\" &\nexec sleep 60\n", "sleep 0.2; exit 3");
  EXPECT_EQ(result.code, Exit::peer_lost);
}

// mpirun knows why it starts no rank.
TEST_F(Job, SaysWhyThereAreNoRanks) {
  testing::internal::CaptureStderr();
  const LaunchResult result =
      launch({2, "mpirun", {"--hostfile", "no-such-hosts"}, ""}, {"good"}, MPI_TEST_PROGRAM);
  EXPECT_EQ(result.code, Exit::internal);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("no-such-hosts"), said.rfind("no-such-hosts")) << "not in the command alone: " << said;
}

TEST_F(Job, AProgramThatIsNotThereIsAnError) {
  EXPECT_EQ(code_of([] { launch({2, "mpirun", {}, ""}, {}, "/nonexistent/weft"); }), Exit::usage);
}

}  // namespace
}  // namespace weft
