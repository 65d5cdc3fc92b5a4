// Interrupted runs end as undisturbed ones do, bit for bit.

#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <random>

#include "tests/training/tiny_run.h"
#include "training/checkpoint/hash.h"
#include "training/data/dataset.h"
#include "training/data/stories.h"
#include "training/data/tokenizer.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// Twenty milliseconds a step longer, so that a signal meets a run at work; the numbers are the same.
const RunOptions slow{.environment = {"WEFT_FAULT=slow:20@phase=load"}};

void expect_same_end(const Ran& a, const Ran& b) {
  ASSERT_TRUE(a.json().is_object() && b.json().is_object()) << a.err << b.err;
  for (const char* key : {"step", "tokens", "weights_hash", "order_hash", "loss", "val_loss", "sample"})
    EXPECT_EQ(a.json()[key], b.json()[key]) << key;
}

void expect_each_step_once(const TinyRun& tiny, const std::string& run, size_t count) {
  const auto steps = tiny.steps(run);
  ASSERT_EQ(steps.size(), count);
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i]["step"], i + 1);
}

TEST(Determinism, SeedDecidesAndThreadsDoNot) {
  const TinyRun tiny;
  const Ran one = tiny.train({"run=runs/one"}, {.environment = {"OMP_NUM_THREADS=1"}});
  const Ran two = tiny.train({"run=runs/two"}, {.environment = {"OMP_NUM_THREADS=2"}});
  const Ran again = tiny.train({"run=runs/again"}, {.environment = {"OMP_NUM_THREADS=2"}});
  const Ran other = tiny.train({"run=runs/other", "seed=2"});
  ASSERT_EQ(other.code, 0) << other.err;
  expect_same_end(one, two);
  expect_same_end(two, again);
  EXPECT_NE(other.json()["weights_hash"], one.json()["weights_hash"]);
  EXPECT_NE(other.json()["order_hash"], one.json()["order_hash"]);
}

TEST(Resume, KilledAtAnyMoment) {
  const TinyRun tiny;
  const Words recipe{"steps=60", "optim.kind=muon", "optim.ema=0.9"};
  Words whole_words = recipe;
  whole_words.push_back("run=runs/whole");
  const Ran whole = tiny.train(whole_words);
  ASSERT_EQ(whole.code, 0) << whole.err;

  const int kills = full_tests() ? 20 : 6;
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  Words words = recipe;
  words.insert(words.end(), {"--resume", "auto"});
  Ran ran;
  int killed = 0;
  for (int i = 0; i < kills; ++i) {
    RunOptions options = slow;
    options.stop_signal = SIGKILL;
    options.stop_after_ms = 20 + static_cast<int>(random() % 600);
    ran = tiny.train(words, options);
    ASSERT_TRUE(ran.code == 0 || ran.code == 128 + SIGKILL) << ran.code << ran.err;
    killed += ran.code != 0;
  }
  EXPECT_GT(killed, 0);
  ran = tiny.train(words);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.json()["weights_hash"], whole.json()["weights_hash"]);
  EXPECT_EQ(ran.json()["order_hash"], whole.json()["order_hash"]);
  EXPECT_EQ(ran.json()["val_loss"], whole.json()["val_loss"]);
  expect_each_step_once(tiny, "tiny", 60);
}

TEST(Resume, KilledWhileSaving) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/whole", "steps=12"});
  Words phases{"save.mid", "save.rename", "save.latest"};
  if (full_tests())
    phases = {"save.data", "save.mid", "save.fsync", "save.manifest", "save.rename", "save.latest"};
  for (const std::string& phase : phases) {
    SCOPED_TRACE(phase);
    const Words words{"steps=12", "run=runs/" + phase, "--resume", "auto"};
    const Ran killed = tiny.train(words, {.environment = {"WEFT_FAULT=kill@step=10,phase=" + phase}});
    EXPECT_EQ(killed.code, 128 + SIGKILL);
    const Ran resumed = tiny.train(words);
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    expect_same_end(resumed, whole);
    const auto resumes = tiny.events("resume", phase);
    ASSERT_EQ(resumes.size(), 1u);
    EXPECT_EQ(resumes[0]["step"], 5) << "no more than one interval is lost";
    EXPECT_EQ(tiny.checkpoints(phase), tiny.checkpoints("whole"));
    expect_each_step_once(tiny, phase, 12);
  }
}

TEST(Resume, StoppedBySignal) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/whole", "steps=100", "checkpoint.every=0"});
  const Words words{"steps=100", "checkpoint.every=0", "--resume", "auto"};
  RunOptions options{.environment = {"WEFT_FAULT=slow:30@phase=load"}};
  options.stop_at_file = "runs/tiny/metrics.jsonl";
  const Ran stopped = tiny.train(words, options);
  ASSERT_EQ(stopped.code, 75) << stopped.err;
  const auto json = stopped.json();
  EXPECT_EQ(json["status"], "stopped");
  EXPECT_EQ(json["exit"], 75);
  const int step = json["step"];
  EXPECT_GT(step, 0);
  EXPECT_LT(step, 100);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-" + std::to_string(step)}));
  EXPECT_EQ(json["weights_hash"], tiny.weights_hash_at(step));
  if (step < 10) {
    EXPECT_EQ(json["val_loss"], nullptr);
  }
  const Ran resumed = tiny.train(words);
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  expect_same_end(resumed, whole);
  expect_each_step_once(tiny, "tiny", 100);
}

// A signal does not wait for a long evaluation, of the last step neither, and nothing is missing in the end.
TEST(Resume, AStopEndsAnEvaluation) {
  const TinyRun tiny;
  for (const std::string steps : {"steps=2", "steps=1"}) {
    SCOPED_TRACE(steps);
    const Words words{steps, "eval.every=1", "eval.batches=100", "--resume", "auto"};
    const auto in = [&](const std::string& run) {
      Words all = words;
      all.push_back("run=runs/" + run + steps);
      return all;
    };
    const Ran whole = tiny.train(in("whole"));
    ASSERT_EQ(whole.code, 0) << whole.err;
    RunOptions slow_evaluation{.environment = {"WEFT_FAULT=slow:500@phase=evaluate"}};
    slow_evaluation.stop_at_file = "runs/tiny" + steps + "/recipe.yaml";
    for (int i = 0; i < 2; ++i) {  // the second time in what makes up for the first
      const Ran stopped = tiny.train(in("tiny"), slow_evaluation);
      ASSERT_EQ(stopped.code, 75) << stopped.err;
      EXPECT_EQ(stopped.json()["status"], "stopped");
      EXPECT_EQ(stopped.json()["step"], 1);
      EXPECT_EQ(stopped.json()["val_loss"], nullptr);
      ASSERT_EQ(tiny.steps("tiny" + steps).size(), 1u);
      EXPECT_FALSE(tiny.steps("tiny" + steps)[0].contains("val_loss"));
      EXPECT_EQ(tiny.checkpoints("tiny" + steps), Words{"step-1"});
      slow_evaluation.stop_at_file = "runs/tiny" + steps + "/environment.json";  // made at each start
      fs::remove(tiny.folder() / slow_evaluation.stop_at_file);
    }
    const Ran resumed = tiny.train(in("tiny"));
    ASSERT_EQ(resumed.code, 0) << resumed.err;
    for (const char* key : {"step", "weights_hash", "order_hash", "val_loss", "val_bpb"})
      EXPECT_EQ(resumed.json()[key], whole.json()[key]) << key;
    const auto a = tiny.steps("tiny" + steps), b = tiny.steps("whole" + steps);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(a[i].size(), b[i].size()) << a[i];
      for (const char* key : {"step", "loss", "val_loss", "val_bpb"}) EXPECT_EQ(a[i][key], b[i][key]) << key;
    }
  }
}

TEST(Resume, ByTheNameOfTheRun) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/whole", "steps=20"});
  ASSERT_EQ(tiny.train({"steps=10"}).code, 0);
  const Ran longer = tiny.weft({"train", "--resume", "runs/tiny/", "steps=20", "--json-summary"});
  EXPECT_EQ(longer.code, 0) << longer.err;
  expect_same_end(longer, whole);
}

// A slip of the pen must not train for hours in a new folder.
TEST(Resume, OfNoRunIsRefused) {
  const TinyRun tiny;
  EXPECT_EQ(tiny.train({"--resume", "runs/tinny"}).code, 66);
  EXPECT_FALSE(fs::exists(tiny.run("tinny")));
  EXPECT_EQ(tiny.train({"--resume", "auto", "steps=2"}).code, 0) << "auto starts it";
}

TEST(Resume, FallsBackFromADamagedCheckpointAndStopsWithoutAny) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/whole"});
  ASSERT_EQ(tiny.train({"steps=15"}).code, 0);
  const auto damage = [&](int step) {
    std::fstream file(tiny.run() + "/checkpoints/step-" + std::to_string(step) + "/rank-0000.h5",
                      std::ios::in | std::ios::out);
    file.seekp(5000);
    file.put('\x5a');
    file.put('\x5b');
  };
  damage(15);
  for (const char* command : {"generate", "eval"}) {
    const Ran used = tiny.weft({command, "runs/tiny"});
    EXPECT_EQ(used.code, 0) << used.err;
    EXPECT_NE(used.err.find("weft: warning: checkpoint of step 15 refused"), std::string::npos) << used.err;
  }
  const Ran resumed = tiny.train({"--resume", "auto"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_NE(resumed.err.find("step-15"), std::string::npos) << "says what it passed over: " << resumed.err;
  expect_same_end(resumed, whole);
  expect_each_step_once(tiny, "tiny", 20);

  for (int step : {5, 10, 15, 20}) damage(step);
  for (const char* how : {"auto", "runs/tiny"}) {
    const Ran none = tiny.train({"steps=30", "--resume", how});
    EXPECT_EQ(none.code, 66) << how << none.err;
    EXPECT_EQ(none.json()["exit"], 66) << none.out;
  }
  EXPECT_EQ(tiny.weft({"generate", "runs/tiny", "--prompt", "a"}).code, 66);
  EXPECT_EQ(tiny.checkpoints().size(), 4u) << "nothing was started anew or thrown away";
}

TEST(Resume, KeepsItsRecipe) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=5"}).code, 0);
  for (const char* change : {"model.width=64", "model.layers=[softmax, softmax]", "seed=3", "context=128",
                             "optim.kind=muon", "precision=f64", "data.val=0.1"}) {
    const Ran ran = tiny.train({"steps=8", change, "--resume", "auto"});
    const std::string key = std::string(change).substr(0, std::string(change).find('='));
    EXPECT_EQ(ran.code, 78) << change << ran.err;
    EXPECT_NE(ran.err.find(key), std::string::npos) << ran.err;
  }
  const Ran width = tiny.train({"model.width=64", "--resume", "auto"});
  const std::string what = width.json()["error"]["what"];
  EXPECT_NE(what.find("32"), std::string::npos) << what;
  EXPECT_NE(what.find("64"), std::string::npos) << what;

  const Ran rate = tiny.train({"steps=8", "optim.lr=1e-3", "--resume", "auto"});
  EXPECT_EQ(rate.code, 0) << rate.err;
  ASSERT_EQ(tiny.steps().size(), 8u);
  EXPECT_EQ(tiny.steps().back()["lr"], 1e-3);
}

// What a run cannot follow may not take the place of its recipe: it could never go on.
TEST(Resume, ARefusedChangeLeavesTheRecipeAlone) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=10"}).code, 0);
  const std::string before = tiny.folder().read("runs/tiny/recipe.yaml");
  for (const char* change : {"optim.ema=0.9", "steps=5"}) {
    const Ran ran = tiny.weft({"train", "--resume", "runs/tiny", change});
    EXPECT_EQ(ran.code, 78) << change << ran.err;
    EXPECT_NE(ran.err.find(std::string(change).substr(0, 5)), std::string::npos) << ran.err;
    EXPECT_EQ(tiny.folder().read("runs/tiny/recipe.yaml"), before) << change;
  }
  const Ran elsewhere = tiny.weft({"train", "--resume", "runs/tiny", "run=runs/other"});
  EXPECT_EQ(elsewhere.code, 64) << elsewhere.err;

  const Ran longer = tiny.weft({"train", "--resume", "runs/tiny", "steps=12", "optim.lr=1e-3"});
  EXPECT_EQ(longer.code, 0) << longer.err;
  EXPECT_NE(longer.err.find("changed: optim.lr: 0.003 -> 0.001\n"), std::string::npos) << longer.err;
}

// A recipe that was edited in the run's folder is compared with that of the checkpoint: there is no other to
// compare.
TEST(Resume, AnEditInTheRunFolderIsAChangeToo) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=5"}).code, 0);
  const std::string path = "runs/tiny/recipe.yaml", before = tiny.folder().read(path);
  const auto edited = [&](const std::string& line, const std::string& other) {
    std::string text = before;
    const size_t at = text.find(line);
    EXPECT_NE(at, std::string::npos) << line;
    tiny.folder().write(path, text.replace(at, line.size(), other));
  };
  for (const auto& [line, other, said] :
       {std::array{"norm: rms", "norm: srms", "model.norm: rms -> srms"},
        {"batch_tokens: 256", "batch_tokens: 512", "batch_tokens: 256 -> 512"},
        {"shuffle: true", "shuffle: false", "data.shuffle: true -> false"}}) {
    edited(line, other);
    const Ran resumed = tiny.weft({"train", "--resume", "runs/tiny", "steps=6"});
    EXPECT_EQ(resumed.code, 78) << resumed.err;
    EXPECT_NE(resumed.err.find(said), std::string::npos) << resumed.err;
    const bool model = std::string(said).starts_with("model.");
    EXPECT_EQ(tiny.weft({"generate", "runs/tiny", "--tokens", "2"}).code, model ? 78 : 0) << said;
  }
  // What may change is said, here too.
  edited("lr: 0.003", "lr: 0.001");
  const Ran slower = tiny.weft({"train", "--resume", "runs/tiny", "steps=6"});
  EXPECT_EQ(slower.code, 0) << slower.err;
  EXPECT_NE(slower.err.find("changed: optim.lr: 0.003 -> 0.001\n"), std::string::npos) << slower.err;
  // Text that moved is told by what it holds.
  std::filesystem::rename(tiny.folder() / "stories.txt", tiny.folder() / "moved.txt");
  edited("stories.txt", "moved.txt");
  const Ran moved = tiny.weft({"train", "--resume", "runs/tiny", "steps=7"});
  EXPECT_EQ(moved.code, 0) << moved.err;
}

// Only the recipe's name is missing then, no checkpoint.
TEST(Resume, ALostRecipeCanBeNamed) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=5"}).code, 0);
  fs::remove(tiny.run() + "/recipe.yaml");
  const Ran lost = tiny.weft({"train", "--resume", "runs/tiny", "steps=6"});
  EXPECT_EQ(lost.code, 66) << lost.err;
  EXPECT_NE(
      lost.err.find("the run has no recipe.yaml any more (runs/tiny); name its recipe: weft train RECIPE "
                    "--resume runs/tiny"),
      std::string::npos)
      << lost.err;
  EXPECT_EQ(tiny.train({"--resume", "runs/tiny", "steps=6"}).code, 0);
}

// A checkpoint that was found damaged is none of those to keep.
TEST(Resume, KeepsGoodCheckpointsInPlaceOfADamagedOne) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=15", "checkpoint.keep=2"}).code, 0);
  fs::resize_file(tiny.run() + "/checkpoints/step-15/rank-0000.h5", 1000);
  ASSERT_EQ(tiny.train({"steps=20", "checkpoint.every=20", "checkpoint.keep=2", "--resume", "auto"}).code, 0);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-10", "step-15", "step-20"}));
  ASSERT_EQ(tiny.train({"steps=30", "checkpoint.every=5", "checkpoint.keep=2", "--resume", "auto"}).code, 0);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-25", "step-30"}));
}

TEST(Resume, KeepsItsText) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=5"}).code, 0);
  const std::string text = tiny.folder().read("stories.txt"),
                    recipe = tiny.folder().read("runs/tiny/recipe.yaml");
  std::string other = text;
  std::swap(other[20'000], other[20'001]);
  ASSERT_NE(other, text);
  for (const std::string& changed :
       {other, text + "more words\n", text + text.substr(0, 2000), text.substr(0, text.size() / 2)}) {
    tiny.folder().write("stories.txt", changed);
    const Ran ran = tiny.train({"steps=8", "--resume", "auto"});
    EXPECT_EQ(ran.code, 65) << ran.err;
    EXPECT_NE(ran.err.find("not the one that the run was trained on"), std::string::npos) << ran.err;
    EXPECT_EQ(tiny.folder().read("runs/tiny/recipe.yaml"), recipe);
  }
  tiny.folder().write("stories.txt", text);
  const Ran ran = tiny.train({"steps=8", "--resume", "auto"});
  EXPECT_EQ(ran.code, 0) << ran.err;
}

// Runs of earlier versions kept a hash of some samples.
TEST(Resume, KeepsItsTextAsFarAsAnEarlierVersionKnewIt) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=5"}).code, 0);
  const auto tokenizer = load_tokenizer("byte");
  SourceOptions options;
  options.tokenizer = tokenizer.get();
  options.vocab_size = tokenizer->vocab_size();
  options.eos = tokenizer->eos_id();
  const Datasets sets = open_datasets({{{tiny.folder() / "stories.txt"}}, 0.05, {}}, 64, options);
  const std::string name = "runs/tiny/checkpoints/step-5/MANIFEST", now = sets.fingerprint();
  std::string manifest = tiny.folder().read(name);
  manifest.resize(manifest.rfind("\nxxh3-128 "));
  const size_t at = manifest.find(now);
  ASSERT_NE(at, std::string::npos) << manifest;
  manifest.replace(at, now.size(), sets.sampled_fingerprint());
  tiny.folder().write(name, manifest + "\nxxh3-128 " + hash128(manifest.data(), manifest.size()) + "\n");

  const std::string text = tiny.folder().read("stories.txt");
  std::string other = text;
  std::swap(other[20'000], other[20'001]);
  tiny.folder().write("stories.txt", other);
  EXPECT_EQ(tiny.train({"steps=8", "--resume", "auto"}).code, 65);
  tiny.folder().write("stories.txt", text);
  const Ran ran = tiny.train({"steps=8", "--resume", "auto"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(tiny.folder().read("runs/tiny/checkpoints/step-8/MANIFEST").find(now), std::string::npos);
}

TEST(Resume, KeepsItsHeldOutText) {
  const TinyRun tiny;
  const std::string text = story_corpus(11, 8000);
  tiny.folder().write("held.txt", text);
  const Words words{"data.val=held.txt", "steps=8", "--resume", "auto"};
  const Ran killed = tiny.train(words, {.environment = {"WEFT_FAULT=kill@step=7,phase=backward"}});
  ASSERT_EQ(killed.code, 128 + SIGKILL) << killed.err;
  std::string other = text;
  std::swap(other[4000], other[4001]);
  ASSERT_NE(other, text);
  tiny.folder().write("held.txt", other);
  const Ran refused = tiny.train(words);
  EXPECT_EQ(refused.code, 65) << refused.err;
  EXPECT_NE(refused.err.find("the held-out text is not the one"), std::string::npos) << refused.err;
  EXPECT_NE(refused.json()["error"]["where"].get<std::string>().find("data.val"), std::string::npos)
      << refused.out;
  tiny.folder().write("held.txt", text);
  EXPECT_EQ(tiny.train(words).code, 0);
}

// A folder of token shards that is not what it was: one shard less, one of other tokens, another corpus.
TEST(Resume, KeepsItsFolderOfTokens) {
  const TinyRun tiny;
  const auto tokenize = [&](const char* from, const char* to) {
    const Ran ran = tiny.weft({"tokenize", from, "--out", to, "--shard-tokens", "20000"});
    ASSERT_EQ(ran.code, 0) << ran.err;
  };
  tiny.folder().write("other.txt", story_corpus(8, 60'000));
  tokenize("stories.txt", "tokens");
  tokenize("other.txt", "others");
  const auto train = [&](const char* steps) {
    return tiny.train({"data.train=tokens", steps, "--resume", "auto"});
  };
  ASSERT_EQ(train("steps=5").code, 0);
  const fs::path folder = tiny.folder() / "tokens", kept = tiny.folder() / "kept",
                 others = tiny.folder() / "others";
  const std::string shard = "corpus_train_000001.bin";
  const auto refused = [&](const char* how) {
    const Ran ran = train("steps=8");
    EXPECT_EQ(ran.code, 65) << how << ran.err;
    EXPECT_EQ(tiny.steps().size(), 5u) << how;
  };
  fs::copy(folder, kept);
  fs::remove(folder / shard);
  refused("a shard less");
  fs::copy_file(others / shard, folder / shard);
  refused("a shard of other tokens");
  fs::remove_all(folder);
  fs::copy(others, folder);
  refused("another corpus");
  fs::remove_all(folder);
  fs::rename(kept, folder);
  EXPECT_EQ(train("steps=8").code, 0);
}

TEST(Resume, ACheckpointOfAnotherSeedIsRefused) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train({"steps=5"}).code, 0);
  ASSERT_EQ(tiny.train({"steps=10", "seed=2", "run=runs/other"}).code, 0);
  const std::string copied = tiny.run() + "/checkpoints/step-10";
  fs::copy(tiny.run("other") + "/checkpoints/step-10", copied);
  tiny.folder().write("runs/tiny/latest", "checkpoints/step-10\n");
  const Ran refused = tiny.train({"steps=12", "--resume", "auto"});
  EXPECT_EQ(refused.code, 65) << refused.err;
  EXPECT_NE(refused.err.find("is of a run with seed 2, this one has 1"), std::string::npos) << refused.err;
  EXPECT_NE(refused.json()["error"]["where"].get<std::string>().find("step-10"), std::string::npos);
  fs::remove_all(copied);
  EXPECT_EQ(tiny.train({"steps=12", "--resume", "auto"}).code, 0);
}

// As if this version had another default than the one that saved: the recipe of the run says nothing of it.
TEST(Resume, KeepsWhatMechanismsAreSetTo) {
  const TinyRun tiny;
  const std::string said = "{linear: {feature_map: relu}}";
  ASSERT_EQ(tiny.train({"steps=5", "model.layers=[linear*2]", "model.mechanisms=" + said}).code, 0);
  const std::string recipe = tiny.folder().read("runs/tiny/recipe.yaml");
  const size_t at = recipe.find(said);
  ASSERT_NE(at, std::string::npos) << recipe;
  const auto say = [&](const char* other) {
    tiny.folder().write("runs/tiny/recipe.yaml", std::string(recipe).replace(at, said.size(), other));
  };
  say("{}");
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"train", "--resume", "runs/tiny", "steps=6"},
        {"generate", "runs/tiny", "--prompt", "a"}}) {
    const Ran ran = tiny.weft(words);
    EXPECT_EQ(ran.code, 78) << ran.err;
    EXPECT_NE(ran.err.find("linear's feature_map was relu when this was saved, now it is identity"),
              std::string::npos)
        << ran.err;
    EXPECT_NE(ran.err.find("write mechanisms: " + said + " under model in recipe.yaml of its run"),
              std::string::npos)
        << ran.err;
  }
  // Not behind the command: a resumed run keeps its recipe.
  EXPECT_EQ(tiny.weft({"train", "--resume", "runs/tiny", "steps=6", "model.mechanisms=" + said}).code, 78);
  // The same in other words: a default said, a number spelt in another way.
  say("{linear: {feature_map: relu, scale: 0.0, normalize: no}}");
  const Ran same = tiny.weft({"generate", "runs/tiny", "--prompt", "a"});
  EXPECT_EQ(same.code, 0) << same.err;
  tiny.folder().write("runs/tiny/recipe.yaml", recipe);
  EXPECT_EQ(tiny.weft({"train", "--resume", "runs/tiny", "steps=6"}).code, 0);
}

// Even if the checkpoint knows it, as those of earlier versions do.
TEST(Resume, MayChangeWhatChangesSpeedAlone) {
  const TinyRun tiny;
  const std::string chunk = "model.mechanisms={linear: {chunk: 16}}";
  ASSERT_EQ(tiny.train({"steps=5", "model.layers=[linear*2]", chunk}).code, 0);
  const std::string manifest = "runs/tiny/checkpoints/step-5/manifest.json";
  EXPECT_EQ(tiny.folder().read(manifest).find("chunk"), std::string::npos);
  const Ran other = tiny.weft(
      {"train", "--resume", "runs/tiny", "steps=6", "model.mechanisms={linear: {chunk: 8, scale: 0.0}}"});
  EXPECT_EQ(other.code, 0) << other.err;
  EXPECT_NE(other.err.find("changed: model.mechanisms: "), std::string::npos) << other.err;
  const Ran more = tiny.weft(
      {"train", "--resume", "runs/tiny", "steps=7", "model.mechanisms={linear: {chunk: 8, scale: 0.5}}"});
  EXPECT_EQ(more.code, 78) << more.err;
}

TEST(Resume, KeepsItsTokenizer) {
  const TinyRun tiny;
  const std::string other = std::string(WEFT_SOURCE) + "/recipes/tokenizers/english-2048/tokenizer.json";
  fs::create_directories(tiny.folder() / "tok");
  fs::copy_file(other, tiny.folder() / "tok/tokenizer.json");
  const Words words{"steps=2", "data.tokenizer=tok/tokenizer.json"};
  ASSERT_EQ(tiny.train(words).code, 0);
  EXPECT_EQ(tiny.train({"steps=4", "data.tokenizer=bytes", "--resume", "auto"}).code, 78);
  // The same file name with other content: the last merge of the vocabulary is another.
  auto json = nlohmann::json::parse(tiny.folder().read("tok/tokenizer.json"));
  auto& merges = json["model"]["merges"];
  std::swap(merges[merges.size() - 1], merges[merges.size() - 2]);
  tiny.folder().write("tok/tokenizer.json", json.dump());
  const Ran changed = tiny.train({"steps=4", "data.tokenizer=tok/tokenizer.json", "--resume", "auto"});
  EXPECT_EQ(changed.code, 78) << changed.err;
  EXPECT_NE(changed.err.find("tokenizer"), std::string::npos) << changed.err;
  EXPECT_EQ(tiny.weft({"generate", "runs/tiny", "--prompt", "a"}).code, 78);
}

}  // namespace
}  // namespace weft
