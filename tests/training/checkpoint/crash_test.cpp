// A writer that dies at any moment, and a machine that loses its power.
#include <chrono>
#include <csignal>
#include <random>

#include "autograd/fault.h"
#include "tests/training/checkpoint/saving.h"
#include "training/checkpoint/files.h"

namespace weft::ckpt {
namespace {

namespace fs = std::filesystem;

constexpr const char* save_phases[] = {"save.data",     "save.mid",    "save.fsync",
                                       "save.manifest", "save.rename", "save.latest"};

class CrashTest : public testing::Test {
 protected:
  // What a restart does: the newest good step is complete, the leftovers go, the run continues and ends well.
  static void expect_recovery(const std::string& run_folder, int64_t at_least, int64_t at_most,
                              const std::string& when) {
    const Loaded loaded = load(run_folder);
    const int64_t step = loaded.checkpoint.manifest().step;
    EXPECT_GE(step, at_least) << when;
    EXPECT_LE(step, at_most) << when;
    State(step).expect_equal(loaded.checkpoint);
    clean(run_folder);
    for (const std::string& name : entries(run_folder)) EXPECT_EQ(name.find('.'), std::string::npos) << when;
    save_step(run_folder, step + 1, 2);
    const Loaded after = load(run_folder, {.strict = true});
    EXPECT_TRUE(after.warnings.empty()) << when;
    State(step + 1).expect_equal(after.checkpoint);
  }
};

TEST_F(CrashTest, KilledAtEverySavePhase) {
  for (const int64_t world : {1, 2})
    for (const char* phase : save_phases)
      for (int64_t victim = 0; victim < world; ++victim)
        for (const bool again : {false, true}) {  // the step is new, or saved a second time
          if (again && world > 1) continue;
          TemporaryFolder run;
          save_step(run.path(), 1, world);
          if (again) {
            save_step(run.path(), 2, world);
            write_latest(run.path(), 1);
          }
          const pid_t child = in_child([&] {
            fault::configure(text("kill@rank=", victim, ",step=2,phase=", phase));
            const State state(2);
            on_ranks(world, [&](const Peers& peers) {
              fault::set_position(static_cast<int>(peers.rank), 2);
              SaveRequest request = request_for(run.path(), 2);
              request.pieces = state.pieces(peers.rank, peers.size);
              save(request, peers);
            });
          });
          const int status = wait_for(child);
          ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << phase;
          expect_recovery(run.path(), 1, 2,
                          text(phase, " rank ", victim, " of ", world, again ? " again" : ""));
        }
}

// Stops the writer at every fault point, takes the disk as it is then, and lets every file that is not yet
// synced have lost some or all of its bytes, as after a power failure.
TEST_F(CrashTest, PowerLossAfterEveryPrefixOfTheOperations) {
  TemporaryFolder run;
  save_step(run.path(), 1);
  const pid_t child = in_child([&] {
    fault::configure("stop");
    fault::set_position(0, 2);
    const State state(2);
    SaveRequest request = request_for(run.path(), 2, 1);
    request.pieces = state.pieces(0, 1);
    save(request);
  });
  const std::string temporary = "checkpoints/step-2.tmp-" + std::string(test_run);
  for (const char* phase : save_phases) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
    ASSERT_TRUE(WIFSTOPPED(status)) << phase;
    const bool synced = phase == save_phases[3] || phase == save_phases[4];
    for (const double kept : {0.0, 0.5, 1.0})
      for (const bool folder_lost : {false, true}) {
        TemporaryFolder disk;
        fs::copy(run.path(), disk.path(), fs::copy_options::recursive);
        const std::string writing = disk / temporary;
        if (fs::exists(writing)) {
          for (const auto& file : fs::directory_iterator(writing)) {
            const bool safe =
                synced && (file.path().extension() == ".h5" || file.path().filename() == "MANIFEST");
            if (!safe)
              fs::resize_file(file.path(),
                              static_cast<uintmax_t>(kept * static_cast<double>(file.file_size())));
          }
          // Also the order that may not happen: the rename, or `latest`, reaches the disk before its time.
          if (folder_lost) write_bytes(disk / "latest", "checkpoints/step-2\n");
          if (folder_lost && kept < 1) fs::rename(writing, step_folder(disk.path(), 2));
        }
        expect_recovery(disk.path(), 1, 2, text(phase, " kept ", kept, folder_lost ? " reordered" : ""));
      }
    ::kill(child, SIGCONT);
  }
  EXPECT_EQ(wait_for(child), 0);
  EXPECT_EQ(load(run.path(), {.strict = true}).checkpoint.manifest().step, 2);
  EXPECT_EQ(entries(run.path()), std::vector<std::string>{"step-2"});
}

// Kills at random moments, retention's deletions included. What the child said it had saved is never lost.
TEST_F(CrashTest, KilledAtRandomMoments) {
  TemporaryFolder run;
  const auto before = std::chrono::steady_clock::now();
  save_step(run.path(), 1);
  const std::chrono::nanoseconds one_save = std::chrono::steady_clock::now() - before;
  std::mt19937 random(3);
  int64_t reported = 1;
  for (int round = 0; round < 60; ++round) {
    clean(run.path());
    const int64_t start = load(run.path()).checkpoint.manifest().step;
    ASSERT_GE(start, reported) << "round " << round;
    State(start).expect_equal(load(run.path(), {.strict = true}).checkpoint);
    int pipe[2];
    ASSERT_EQ(::pipe(pipe), 0);
    const pid_t child = in_child([&] {
      for (int64_t step = start + 1;; ++step) {
        save_step(run.path(), step, 1, 1 + step % 2);
        if (::write(pipe[1], &step, sizeof step) != sizeof step) ::_exit(1);
      }
    });
    ::close(pipe[1]);
    std::this_thread::sleep_for(one_save * (random() % 1000) / 250);
    ::kill(child, SIGKILL);
    wait_for(child);
    for (int64_t step; ::read(pipe[0], &step, sizeof step) == sizeof step;) reported = step;
    ::close(pipe[0]);
  }
  EXPECT_GT(reported, 1);
}

TEST_F(CrashTest, KilledWhileDeletingAnOldStep) {
  TemporaryFolder run;
  for (const int64_t step : {1, 2, 3}) save_step(run.path(), step, 2);
  // As rename-to-trash and a deletion cut short leave it, for the newest step too.
  for (const int64_t step : {1, 3}) {
    const std::string trash = step_folder(run.path(), step) + ".trash-x";
    fs::rename(step_folder(run.path(), step), trash);
    fs::remove(trash + "/rank-0000.h5");
  }
  EXPECT_EQ(list_steps(run.path()), std::vector<int64_t>{2});
  EXPECT_EQ(load(run.path()).checkpoint.manifest().step, 2);
  EXPECT_EQ(clean(run.path()).size(), 2u);
  EXPECT_EQ(entries(run.path()), std::vector<std::string>{"step-2"});
}

TEST_F(CrashTest, CleaningTakesOnlyLeftovers) {
  TemporaryFolder run;
  save_step(run.path(), 1);
  for (const char* name : {"step-2.tmp-abc", "step-0.trash-x", "notes.tmp-1", "step-x"})
    fs::create_directory(run / (std::string("checkpoints/") + name));
  write_bytes(run / "latest.tmp-17", "");
  write_bytes(run / "metrics.jsonl", "");
  EXPECT_EQ(clean(run.path()).size(), 3u);
  EXPECT_EQ(entries(run.path()), (std::vector<std::string>{"notes.tmp-1", "step-1", "step-x"}));
  EXPECT_TRUE(fs::exists(run / "metrics.jsonl"));
  EXPECT_TRUE(clean(run / "nowhere").empty());
}

}  // namespace
}  // namespace weft::ckpt
