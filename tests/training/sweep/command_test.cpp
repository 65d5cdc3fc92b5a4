// `weft sweep` as a person runs it.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/training/tiny_run.h"
#include "training/checkpoint/lock.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Words joined(Words first, const Words& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

Ran sweep(const TinyRun& tiny, const Words& words, RunOptions options = {}) {
  return tiny.weft(joined({"sweep", "tiny.yaml"}, words), std::move(options));
}

std::vector<std::string> statuses(const Json& sweep) {
  std::vector<std::string> all;
  for (const Json& run : sweep["runs"]) all.push_back(run["status"]);
  return all;
}

TEST(Sweep, TrainsTheProductAndSkipsWhatIsFinished) {
  const TinyRun tiny;
  const Words words{"model.layers=[lightning,softmax],linear*2", "seed=1..2", "steps=4", "--json"};
  const Ran ran = sweep(tiny, words);
  EXPECT_EQ(ran.code, 0) << ran.err;
  const Json result = ran.json();
  EXPECT_EQ(result["weft"], "sweep/1");
  ASSERT_EQ(statuses(result), Words(4, "done"));
  EXPECT_EQ(result["runs"][1]["run"], "runs/tiny-sweep/layers-lightning-softmax_seed-2");
  EXPECT_EQ(result["runs"][2]["run"], "runs/tiny-sweep/layers-linearx2_seed-1");
  EXPECT_NE(ran.err.find("run 4 of 4  layers-linearx2_seed-2: done, loss"), std::string::npos) << ran.err;

  // The same as the run alone.
  const Json alone = tiny.train({"model.layers=linear*2", "seed=2", "steps=4", "run=runs/alone"}).json();
  for (const char* key : {"loss", "val_loss", "val_bpb", "step"})
    EXPECT_EQ(result["runs"][3][key], alone[key]) << key;

  const std::string metrics = "runs/tiny-sweep/layers-linearx2_seed-2/metrics.jsonl";
  const std::string before = tiny.folder().read(metrics);
  const Json again = sweep(tiny, words).json();
  EXPECT_EQ(statuses(again), Words(4, "finished before"));
  EXPECT_EQ(again["runs"][3]["loss"], alone["loss"]);
  EXPECT_EQ(tiny.folder().read(metrics), before);

  // The loss of a run is that of its last step that was applied.
  std::string refused = before;
  refused.insert(refused.find("{\"step\":4,"), "{\"event\":\"skip\",\"step\":4}\n");
  tiny.folder().write(metrics, refused);
  const Json third = tiny.steps("tiny-sweep/layers-linearx2_seed-2")[2];
  EXPECT_EQ(sweep(tiny, words).json()["runs"][3]["loss"], third["loss"]);
  tiny.folder().write(metrics, before);

  // More seeds: the old runs count.
  const Json more =
      sweep(tiny, {"model.layers=[lightning,softmax],linear*2", "seed=2..3", "steps=4", "--json"}).json();
  EXPECT_EQ(statuses(more), (Words{"finished before", "done", "finished before", "done"}));

  // A finished run of another recipe is no result of this one.
  const Ran other = sweep(tiny, joined(words, {"optim.warmup=3"}));
  EXPECT_EQ(other.code, 78);
  EXPECT_NE(other.err.find("optim.warmup: 4 -> 3"), std::string::npos) << other.err;

  // A setting that changes speed alone does not make it another recipe, for each mechanism of each run.
  EXPECT_EQ(statuses(sweep(tiny, joined(words, {"model.mechanisms={linear: {chunk: 32}}"})).json()),
            Words(4, "finished before"));
}

TEST(Sweep, ASignalStopsItAndItGoesOn) {
  const TinyRun tiny;
  const Words words{"seed=1,2", "steps=150", "checkpoint.every=1000", "--json"};
  const Ran stopped = sweep(tiny, words, {.stop_at_file = "runs/tiny-sweep/seed-1/metrics.jsonl"});
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_EQ(statuses(stopped.json()), (Words{"stopped", "not started"}));
  EXPECT_FALSE(fs::exists(tiny.folder() / "runs/tiny-sweep/seed-2"));
  const Ran ran = sweep(tiny, words);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(statuses(ran.json()), (Words{"done", "done"}));
  EXPECT_EQ(tiny.events("resume", "tiny-sweep/seed-1").size(), 1u);
  EXPECT_EQ(tiny.steps("tiny-sweep/seed-1").size(), 150u);
}

// At the end of a run, when it has said its result and is leaving, or has left.
TEST(Sweep, ASignalBetweenTwoRunsStopsIt) {
  const TinyRun tiny;
  const Words words{"seed=1,2", "steps=4", "--json"};
  const Ran stopped = sweep(tiny, words, {.stop_at_file = "runs/tiny-sweep/seed-1/log/summary.json"});
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  EXPECT_EQ(statuses(stopped.json()).back(), "not started");
  EXPECT_FALSE(fs::exists(tiny.folder() / "runs/tiny-sweep/seed-2"));
  EXPECT_EQ(statuses(sweep(tiny, words).json()), (Words{"finished before", "done"}));
}

TEST(Sweep, AFailedRunDoesNotEndIt) {
  const TinyRun tiny;
  const Words words{"optim.lr=1e30,1e-3", "steps=30", "numerics.max_skips=1", "numerics.rewind=0"};
  const Ran ran = sweep(tiny, joined(words, {"--json"}));
  EXPECT_EQ(ran.code, 80) << ran.err;
  const Json result = ran.json();
  EXPECT_EQ(result["exit"], 80);
  EXPECT_EQ(statuses(result), (Words{"failed", "done"}));
  EXPECT_TRUE(result["runs"][0]["error"].get<std::string>().starts_with("weft: ")) << result;
  EXPECT_EQ(result["error"]["what"], "1 of 2 runs failed") << "as of any command that fails: " << result;
  EXPECT_NE(ran.err.find("weft: 1 of 2 runs failed (runs/tiny-sweep); "), std::string::npos) << ran.err;
  const Json report = tiny.weft({"report", "runs/tiny-sweep", "--json"}).json();
  EXPECT_EQ(report["runs"][0]["status"], "done") << report;
  EXPECT_EQ(report["runs"][1]["status"], "failed") << report;
  const Ran unread = sweep(tiny, joined(words, {"--json"}), {.out = "/dev/full"});
  EXPECT_EQ(unread.code, 80) << unread.err;
  EXPECT_NE(unread.err.find("1 of 2 runs failed"), std::string::npos) << unread.err;
  const std::string table = sweep(tiny, words).out;
  EXPECT_NE(table.find("FAILED\n  lr-1e30: weft: "), std::string::npos) << table;
}

// Another sweep over the same folder, or a run started by hand.
TEST(Sweep, LeavesARunThatIsInUseAlone) {
  const TinyRun tiny;
  const std::string used = "runs/tiny-sweep/seed-1";
  tiny.folder().write(used + "/log/summary.json", "the other's");
  const ckpt::RunLock lock(tiny.folder() / used);
  const Ran ran = sweep(tiny, {"seed=1,2", "steps=4", "--json"});
  EXPECT_EQ(ran.code, 73) << ran.err;
  const Json result = ran.json();
  EXPECT_EQ(statuses(result), (Words{"failed", "done"}));
  EXPECT_NE(result["runs"][0]["error"].get<std::string>().find("is in use by pid"), std::string::npos)
      << result;
  EXPECT_EQ(tiny.folder().read(used + "/log/summary.json"), "the other's");
}

TEST(Sweep, AKilledRunDoesNotEndIt) {
  const TinyRun tiny;
  const Ran ran = sweep(tiny, {"seed=1,2", "steps=4", "--json"},
                        {.environment = {"WEFT_FAULT=kill@rank=0,step=3,phase=forward"}});
  EXPECT_EQ(ran.code, 70) << ran.err;
  const Json result = ran.json();
  ASSERT_EQ(statuses(result), (Words{"failed", "failed"}));
  for (const Json& run : result["runs"])
    EXPECT_NE(run["error"].get<std::string>().find("ended by signal 9"), std::string::npos) << run;
}

TEST(Sweep, ChecksAllRecipesBeforeTheFirstRun) {
  const TinyRun tiny;
  for (const auto& [word, code] :
       std::vector<std::pair<std::string, int>>{{"model.layers=linear,softmx", 64},
                                                {"optim.lr=1e-3,fast", 78},
                                                {"model.heads=2,3", 78},
                                                {"data.train=stories.txt,tales.txt", 65},
                                                {"optim.lrr=1,2", 78},
                                                {"run=a,b", 64},
                                                {"--match=size", 64},
                                                {"--device=abacus", 64},
                                                {"--match-by=model.ffn", 64}}) {
    const Ran ran = sweep(tiny, {word, "seed=1..2"});
    EXPECT_EQ(ran.code, code) << word << ran.err;
    EXPECT_FALSE(fs::exists(tiny.folder() / "runs")) << word;
  }
}

TEST(Sweep, AMistakeNamesTheRunWhereThereAreSeveral) {
  const TinyRun tiny;
  const Ran one = sweep(tiny, {"steps=few"}), several = sweep(tiny, {"steps=few", "seed=1,2"});
  EXPECT_EQ(one.code, 78);
  EXPECT_EQ(one.err.find("weft: steps is "), 0u) << one.err;
  EXPECT_EQ(several.code, 78);
  EXPECT_EQ(several.err.find("weft: seed-1: steps is "), 0u) << several.err;
}

// Each line is a command of its own, from any folder.
TEST(Sweep, PrintedLinesRun) {
  const TinyRun tiny;
  const Words words{"model.layers=[lightning,softmax],linear*2", "sample.prompt=don't go", "steps=2",
                    "run=runs/a b", "--match=parameters"};
  const Ran ran = sweep(tiny, joined(words, {"--print"}));
  EXPECT_EQ(ran.code, 0) << ran.err;
  const std::vector<std::string> lines = ran.out_lines();
  ASSERT_EQ(lines.size(), 2u) << ran.out;
  EXPECT_FALSE(fs::exists(tiny.folder() / "runs"));
  EXPECT_EQ(lines[0].find("model.ffn="), std::string::npos) << "the first is the measure";
  tiny.folder().write("jobs", ran.out);
  for (const char* line : {"1", "2"}) {
    const std::string command = std::string("cd / && export SLURM_ARRAY_TASK_ID=") + line +
                                " && sh -c \"$(sed -n ${SLURM_ARRAY_TASK_ID}p " + (tiny.folder() / "jobs") +
                                ")\" >/dev/null 2>&1";
    EXPECT_EQ(std::system(command.c_str()), 0) << lines[0];
  }
  EXPECT_EQ(tiny.steps("a b/layers-linearx2").size(), 2u);
  EXPECT_TRUE(tiny.folder().read("runs/a b/layers-linearx2/samples.txt").find("don't go") !=
              std::string::npos);
  const Ran done = sweep(tiny, joined(words, {"--print"}));
  EXPECT_EQ(done.out, "");
  EXPECT_NE(done.err.find("2 of 2 runs are finished"), std::string::npos) << done.err;
  const Ran ranks = sweep(tiny, {"seed=5,6", "-n", "2", "--device", "cpu", "--print"});
  EXPECT_NE(
      ranks.out.find(
          " launch -n 2 train tiny.yaml seed=5 run=runs/tiny-sweep/seed-5 --device cpu --resume auto\n"),
      std::string::npos)
      << ranks.out << ranks.err;
}

TEST(Sweep, SaysWhatItMatched) {
  const TinyRun tiny;
  const Ran ran = sweep(tiny, {"model.layers=lightning*2,titans*2", "--match", "flops", "--print"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("layers-lightningx2: the size to match: "), std::string::npos) << ran.err;
  EXPECT_NE(ran.err.find("layers-titansx2: model.ffn="), std::string::npos) << ran.err;
  EXPECT_NE(ran.out_lines().at(1).find(" model.ffn="), std::string::npos) << ran.out;
  EXPECT_NE(ran.err.find(" % of the first\n"), std::string::npos) << ran.err;
  const Ran far =
      sweep(tiny, {"model.layers=lightning*2,softmax*30", "--match=parameters", "--match-by=model.ffn"});
  EXPECT_EQ(far.code, 78);
  EXPECT_NE(far.err.find("the nearest is"), std::string::npos) << far.err;
}

}  // namespace
}  // namespace weft
