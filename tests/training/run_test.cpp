// What `weft train` promises to scripts: its line of JSON, its exit codes, and the folder it leaves.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <sstream>
#include <thread>

#include "tests/training/tiny_run.h"
#include "training/recipe/diff.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::set<std::string> keys_of(const nlohmann::json& json) {
  std::set<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.insert(key);
  return keys;
}

TEST(Run, FinishedOneKeepsItsContract) {
  const TinyRun tiny;
  const Ran ran = tiny.train();
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto json = ran.json();
  EXPECT_EQ(keys_of(json),
            (std::set<std::string>{"weft",         "exit",         "run",          "status",    "step",
                                   "steps",        "tokens",       "loss",         "val_loss",  "val_bpb",
                                   "baseline_bpb", "grad_norm",    "tokens_per_s", "mfu",       "seconds",
                                   "first_step_s", "peak_bytes",   "val_accuracy", "val_exact", "world",
                                   "mesh",         "weights_hash", "order_hash",   "wire",      "sample"}))
      << ran.out;
  EXPECT_EQ(json["weft"], "train/1");
  EXPECT_EQ(json["exit"], 0);
  EXPECT_EQ(json["run"], "runs/tiny");
  EXPECT_EQ(json["status"], "done");
  EXPECT_EQ(json["step"], 20);
  EXPECT_EQ(json["tokens"], 20 * 256);
  EXPECT_EQ(json["world"], 1);
  EXPECT_EQ(json["mesh"], (nlohmann::json{{"dp", 1}, {"cp", 1}}));
  EXPECT_LT(json["loss"], 4.5) << "5.55 without learning";
  EXPECT_LT(json["val_loss"], 4.5);
  EXPECT_GT(json["val_bpb"], 1);
  EXPECT_GT(json["baseline_bpb"], 0);
  EXPECT_GT(json["peak_bytes"], 1e6);
  EXPECT_EQ(json["weights_hash"].get<std::string>().size(), 32u);
  EXPECT_EQ(json["order_hash"].get<std::string>().size(), 32u);
  EXPECT_EQ(json["sample"].get<std::string>().substr(0, 5), "Once ");

  for (const char* name :
       {"recipe.yaml", "environment.json", "metrics.jsonl", "log/rank-0000.txt", "samples.txt", "latest"})
    EXPECT_TRUE(fs::exists(tiny.run() + "/" + name)) << name;
  int event_files = 0;
  for (const auto& entry : fs::directory_iterator(tiny.run()))
    event_files += entry.path().filename().string().starts_with("events.out.tfevents.");
  EXPECT_EQ(event_files, 1);
  EXPECT_EQ(tiny.checkpoints(), (Words{"step-10", "step-15", "step-20", "step-5"}));
  EXPECT_NE(tiny.folder().read("runs/tiny/samples.txt").find("Once "), std::string::npos);
  const auto environment = nlohmann::json::parse(tiny.folder().read("runs/tiny/environment.json"));
  for (const char* key : {"commit", "versions", "device", "world", "command_line"})
    EXPECT_TRUE(environment.contains(key)) << key;

  const auto steps = tiny.steps();
  ASSERT_EQ(steps.size(), 20u);
  const std::set<std::string> always{"step", "tokens", "loss",   "grad_norm", "lr",         "tokens_per_s",
                                     "mfu",  "step_s", "data_s", "comm_s",    "peak_bytes", "time"};
  std::set<std::string> measured = always;
  measured.insert({"val_loss", "val_bpb"});
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i]["step"], i + 1);
    EXPECT_EQ(keys_of(steps[i]), (i + 1) % 10 == 0 ? measured : always) << i;
  }
  EXPECT_EQ(steps.back()["loss"], json["loss"]);
  EXPECT_EQ(steps.back()["val_bpb"], json["val_bpb"]);
  EXPECT_EQ(tiny.events("checkpoint").size(), 4u);
  EXPECT_EQ(tiny.events("sample").size(), 1u);
  EXPECT_EQ(json["weights_hash"], tiny.weights_hash_at(20));

  // The resolved recipe is a recipe, and the same one.
  const Recipe resolved = load_recipe(tiny.run() + "/recipe.yaml");
  EXPECT_EQ(resolved_recipe(resolved), tiny.folder().read("runs/tiny/recipe.yaml"));
  EXPECT_EQ(resolved.steps, 20);

  // It is there: refused, or found finished.
  const Ran again = tiny.train();
  EXPECT_EQ(again.code, 73);
  EXPECT_EQ(again.json()["exit"], 73) << again.out;
  EXPECT_EQ(again.json()["error"]["where"], "runs/tiny");
  EXPECT_NE(again.json()["error"]["do"].get<std::string>().find("--resume"), std::string::npos);
  const Ran resumed = tiny.train({"--resume", "auto"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(resumed.json()["weights_hash"], json["weights_hash"]);
  EXPECT_EQ(resumed.json()["loss"], json["loss"]);
  EXPECT_EQ(resumed.json()["grad_norm"], json["grad_norm"]);
  EXPECT_EQ(resumed.json()["val_loss"], json["val_loss"]);
  EXPECT_EQ(tiny.steps().size(), 20u);
}

TEST(Run, FailuresAreOneLineOfJsonToo) {
  const TinyRun tiny;
  struct Case {
    Words words;
    int code;
    std::string where;
  };
  tiny.folder().write("bad.yaml", "extends: tiny.yaml\nmodel:\n  widht: 3\n");
  tiny.folder().write("empty.txt", "");
  const std::vector<Case> cases{
      {{"train", "bad.yaml"}, 78, "bad.yaml:3:3"},
      {{"train", "tiny.yaml", "optim.lr=nan"}, 78, "override optim.lr=nan"},
      {{"train", "tiny.yaml", "optim.lr=-1"}, 78, "override optim.lr=-1"},
      {{"train", "tiny.yaml", "model.heads=3"}, 78, "model.heads"},
      {{"train", "tiny.yaml", "model.layers=[sofmax]"}, 64, "model.layers"},
      {{"train", "tiny.yaml", "mesh.dp=2"}, 78, ""},
      {{"train", "tiny.yaml", "data.train=absent.txt"}, 65, "absent.txt"},
      {{"train", "tiny.yaml", "data.train=empty.txt"}, 65, ""},
      {{"train", "tiny.yaml", "data.tokenizer=absent"}, 65, "data.tokenizer=absent"},
      {{"train", "absent.yaml"}, 64, "absent.yaml"},
      {{"train"}, 64, ""},
      {{"train", "--resume", "nowhere"}, 66, "nowhere"},
      {{"train", "tiny.yaml", "--resume", "auto", "--resume=runs/x"}, 64, "--resume"},
      {{"train", "tiny.yaml", "--device", "cpu", "--device", "cpu"}, 64, "--device"},
      {{"train", "tiny.yaml", "--resume="}, 64, "--resume"},
      {{"train", "tiny.yaml", "run=stories.txt/x"}, 73, "stories.txt/x"},
      {{"train", "tiny.yaml", "run=" + std::string(300, 'x')}, 73, "xxx"},
  };
  for (const Case& c : cases) {
    Words words = c.words;
    words.push_back("--json-summary");
    const Ran ran = tiny.weft(words);
    SCOPED_TRACE(words[words.size() - 2] + ": " + ran.out + ran.err);
    EXPECT_EQ(ran.code, c.code);
    EXPECT_NE(ran.code, 0);
    const auto json = ran.json();
    ASSERT_TRUE(json.is_object());
    EXPECT_EQ(json["weft"], "train/1");
    EXPECT_EQ(json["exit"], ran.code);
    EXPECT_EQ(keys_of(json["error"]), (std::set<std::string>{"what", "where", "do", "rank", "step"}));
    EXPECT_NE(json["error"]["where"].get<std::string>().find(c.where), std::string::npos);
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << "one line says what is wrong";
    EXPECT_FALSE(fs::exists(tiny.run())) << "nothing started";
  }
}

TEST(Run, BadDataStopsItOrIsLeftOut) {
  const TinyRun tiny;
  std::string lines;
  for (int i = 0; i < 200; ++i)
    lines += i % 50 == 7 ? "{\"text\": \n" : "{\"text\": \"the rain and the sea \"}\n";
  tiny.folder().write("lines.jsonl", lines);
  const Words words{"data.train=lines.jsonl", "data.val=0", "steps=2", "context=32", "batch_tokens=64"};
  const Ran stopped = tiny.train(words);
  EXPECT_EQ(stopped.code, 65) << stopped.err;
  EXPECT_NE(stopped.err.find("lines.jsonl"), std::string::npos) << stopped.err;
  Words skipping = words;
  skipping.push_back("data.skip_bad=true");
  const Ran ran = tiny.train(skipping);
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("4 documents or lines"), std::string::npos) << ran.err;
}

// Address space in which the program starts: the libraries of a CUDA build alone take a gigabyte of it.
long space_of_program() {
  constexpr long kStep = 32L << 20, kMost = 16L << 30;
  long bytes = kStep;
  while (bytes < kMost && run_weft({"--help"}, {.memory_limit = bytes}).code != 0) bytes += kStep;
  return bytes;
}

// The line names what held most and a change that fits; with it the run goes through.
TEST(Run, OutOfMemorySaysWhatWouldFit) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the address sanitizer itself needs more address space than any limit leaves";
#endif
  const TinyRun tiny;
  const Words words{"model.layers=[lightning*8]",
                    "model.width=128",
                    "context=512",
                    "batch_tokens=4096",
                    "steps=1",
                    "data.val=0",
                    "sample.tokens=0"};
  const RunOptions narrow{.memory_limit = space_of_program() + (336L << 20)};
  const Ran ran = tiny.train(words, narrow);
  ASSERT_EQ(ran.code, 70) << ran.err;
  const auto error = ran.json()["error"];
  const std::string what = error["what"], advice = error["do"];
  EXPECT_EQ(what.find("out of memory: "), 0u) << what;
  EXPECT_NE(what.find("MiB, by layer "), std::string::npos) << what;
  ASSERT_EQ(advice.find("set micro_tokens="), 0u) << advice;
  Words changed = words;
  const size_t begin = std::string("set ").size();
  changed.push_back(advice.substr(begin, advice.find_first_of(" ,", begin) - begin));
  changed.push_back("run=runs/changed");
  const Ran again = tiny.train(changed, narrow);
  EXPECT_EQ(again.code, 0) << again.err;
}

TEST(Run, SaysWhatARecipeHardlyMeans) {
  const TinyRun tiny;
  const Words words{"steps=2", "data.val=stories.txt", "optim.schedule=wsd"};
  for (const bool meant : {true, false}) {
    const Words more = meant ? Words{} : words;
    Words validate{"validate", "tiny.yaml", "--json"};
    validate.insert(validate.end(), more.begin(), more.end());
    const std::string said[] = {tiny.weft(validate).json()["warnings"].dump(), tiny.train(more).err};
    for (const std::string& s : said)
      for (const char* warning : {"never arrives at optim.lr", "validation on text that is learned",
                                  "the learning rate stays at optim.lr"})
        EXPECT_EQ(s.find(warning) == std::string::npos, meant) << s;
    fs::remove_all(tiny.run());
  }
}

TEST(Run, SaysWhichKeysChangeNothing) {
  const TinyRun tiny;
  const auto idle = [&](const Words& keys) {
    Words words{"validate", "tiny.yaml", "--json"};
    words.insert(words.end(), keys.begin(), keys.end());
    const Ran ran = tiny.weft(words);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.json()["warnings"].dump();
  };
  const Words nothing[] = {
      {"optim.schedule=cosine", "optim.decay=3"}, {"optim.schedule=constant", "optim.min_lr=1e-5"},
      {"optim.kind=adamw", "optim.muon_lr=0.1"},  {"optim.kind=adamw", "optim.muon_momentum=0.5"},
      {"model.layers=gla", "model.qk_norm=true"}, {"model.layers=mega", "model.short_conv=3"}};
  for (const Words& keys : nothing)
    EXPECT_NE(idle(keys).find(keys[1].substr(0, keys[1].find('=')) + " changes nothing"), std::string::npos)
        << keys[1];
  EXPECT_EQ(
      idle({"optim.schedule=wsd", "optim.decay=3", "optim.min_lr=1e-5", "optim.kind=muon",
            "optim.muon_lr=0.1", "model.layers=[gla,softmax]", "model.qk_norm=true", "model.short_conv=3"})
          .find("changes nothing"),
      std::string::npos);
}

TEST(Run, WarnsOfAMemoryWhoseStepsAreNotBounded) {
  const TinyRun tiny;
  const auto warnings = [&](const std::string& mechanisms) {
    return tiny.weft({"validate", "tiny.yaml", "--json", "model.layers=[softmax,titans_mag]", mechanisms})
        .json()["warnings"]
        .dump();
  };
  EXPECT_NE(warnings("model.mechanisms={}").find("titans_mag: nothing bounds"), std::string::npos);
  EXPECT_EQ(warnings("model.mechanisms={titans_mag: {step_limit: 1}}").find("nothing bounds"),
            std::string::npos);
}

TEST(Run, RefusesAWrongAttributeAlsoOfAMechanismThatNoLayerHas) {
  const TinyRun tiny;
  const Ran ran = tiny.train({"model.layers=softmax", "model.mechanisms={gla: {chunkk: 8}}"});
  EXPECT_EQ(ran.code, 78) << ran.err;
  EXPECT_NE(ran.err.find("did you mean gla.chunk?"), std::string::npos) << ran.err;
  EXPECT_EQ(tiny.train({"model.layers=softmax", "model.mechanisms={gla: {chunk: 8}}", "steps=1"}).code, 0);
}

TEST(Run, MoreBatchesThanTheHeldOutTextHasAreAllOfIt) {
  const TinyRun tiny;
  const Ran all = tiny.train({"run=runs/all", "steps=2", "eval.batches=1000"});
  const Ran most = tiny.train({"run=runs/most", "steps=2", "eval.batches=9223372036854775807"});
  EXPECT_GT(all.json()["val_loss"], 1.0) << all.err;
  EXPECT_EQ(most.json()["val_loss"], all.json()["val_loss"]) << most.err;
}

TEST(Run, ItsSampleHonoursTheRecipe) {
  const TinyRun tiny;
  const auto sample = [&](const std::string& run, Words words) {
    words.insert(words.end(), {"steps=2", "run=runs/" + run});
    return tiny.train(words).json()["sample"];
  };
  const auto likeliest = sample("likeliest", {"sample.temperature=0"});
  EXPECT_NE(sample("all", {}), likeliest);
  EXPECT_EQ(sample("top-k", {"sample.top_k=1"}), likeliest);
  EXPECT_EQ(sample("top-p", {"sample.top_p=1e-9"}), likeliest);
}

TEST(Run, NoTokensAreNoSample) {
  const TinyRun tiny;
  const Ran ran = tiny.train({"steps=2", "sample.every=1", "sample.tokens=0"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(tiny.events("sample").size(), 0u);
  EXPECT_EQ(tiny.folder().read("runs/tiny/samples.txt"), "");
  EXPECT_EQ(ran.json()["sample"], "");
}

TEST(Run, OutlivesItsFolder) {
  const TinyRun tiny;
  Ran ran;
  std::thread training([&] { ran = tiny.train({}, {.environment = {"WEFT_FAULT=slow:100@phase=load"}}); });
  for (int i = 0; i < 1000 && !fs::exists(tiny.run() + "/checkpoints/step-5"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  fs::rename(tiny.run(), tiny.run("moved"));
  training.join();
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("was moved or removed while the run used it"), std::string::npos) << ran.err;
  for (const char* run : {"runs/tiny", "runs/moved"}) EXPECT_EQ(tiny.weft({"generate", run}).code, 0) << run;
}

// Moved away, a folder may give its place to another run: its checkpoints are not written over.
TEST(Run, LeavesARunInItsPlaceAlone) {
  const TinyRun tiny;
  for (const bool finished : {true, false}) {
    SCOPED_TRACE(finished);
    Ran ran, other;
    const std::string name = finished ? "a" : "b", run = "run=runs/" + name;
    std::thread training(
        [&] { ran = tiny.train({run}, {.environment = {"WEFT_FAULT=slow:300@phase=load"}}); });
    while (!fs::exists(tiny.run(name) + "/latest"))
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    fs::rename(tiny.run(name), tiny.run("moved-" + name));
    std::thread second([&] {
      other = tiny.train({run, "steps=5"},
                         {.environment = {finished ? "A=b" : "WEFT_FAULT=slow:1000@phase=load"}});
    });
    if (finished) second.join();
    training.join();
    EXPECT_EQ(ran.code, 73) << ran.err;
    EXPECT_NE(ran.err.find(finished ? "another run has taken the place" : "the run is in use by pid"),
              std::string::npos)
        << ran.err;
    if (!finished) second.join();
    EXPECT_EQ(other.code, 0) << other.err;
    EXPECT_EQ(tiny.checkpoints(name), Words{"step-5"}) << "of the other alone";
    EXPECT_EQ(tiny.train({"--resume", "runs/moved-" + name}).code, 0) << "from where the folder is now";
  }
}

// Nor does it go back to the other's checkpoint.
TEST(Run, GoesBackToNoOtherRunsCheckpoint) {
  const TinyRun tiny;
  Ran ran;
  std::thread training([&] {
    ran =
        tiny.train({"numerics.max_skips=0"}, {.environment = {"WEFT_FAULT=slow:600@phase=load;nan@step=9"}});
  });
  // Not `latest`, which is there while the save still goes on.
  const auto saved = [&] {
    return tiny.folder().read("runs/tiny/metrics.jsonl").find("\"checkpoint\"") != std::string::npos;
  };
  while (!saved()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  fs::rename(tiny.run(), tiny.run("moved"));
  EXPECT_EQ(tiny.train({"steps=5"}).code, 0);
  const size_t lines = tiny.steps().size();
  training.join();
  EXPECT_EQ(ran.code, 73) << ran.err;
  EXPECT_NE(ran.err.find("another run has taken the place"), std::string::npos) << ran.err;
  EXPECT_FALSE(fs::exists(tiny.run() + "/rewind.json"));
  EXPECT_EQ(tiny.steps().size(), lines);
}

// `weft train ... | head -1`, with either stream: the reader is gone after a line, the run goes on to its
// end.
TEST(Run, OutlivesItsReader) {
  const TinyRun tiny;
  const auto piped = [&](const std::string& run, const std::string& streams) {
    const std::string line = "cd " + tiny.folder().path() + " && { " + WEFT_PROGRAM +
                             " train tiny.yaml run=runs/" + run + " " + streams + "; echo $? >" + run +
                             ".code; } | head -1 >" + run + ".line";
    EXPECT_EQ(std::system(("bash -c '" + line + "'").c_str()), 0);
    EXPECT_EQ(tiny.folder().read(run + ".code"), "0\n") << streams;
    EXPECT_EQ(tiny.steps(run).size(), 20u) << streams;
    EXPECT_EQ(tiny.checkpoints(run).size(), 4u) << streams;
    return tiny.folder().read(run + ".line");
  };
  EXPECT_NE(piped("all", "2>&1"), "") << "the line that was read";
  EXPECT_NE(piped("err", "2>&1 >/dev/null"), "");
  EXPECT_NE(piped("out", "2>/dev/null").find("done: 20 of 20 steps"), std::string::npos);
}

// What a closed stream leaves free must not be the number of a file of the run, which would then get what is
// said.
TEST(Run, ClosedStreamsAreNoFiles) {
  const TinyRun tiny;
  const auto closed = [&](const std::string& run, const std::string& streams) {
    const std::string line = "cd " + tiny.folder().path() + " && " + WEFT_PROGRAM +
                             " train tiny.yaml run=runs/" + run + " " + streams;
    const int status = std::system(("bash -c '" + line + "'").c_str());
    EXPECT_EQ(WEXITSTATUS(status), 0) << streams;
    std::istringstream metrics(tiny.folder().read("runs/" + run + "/metrics.jsonl"));
    for (std::string row; std::getline(metrics, row);)
      ASSERT_TRUE(nlohmann::json::accept(row)) << streams << ": " << row;
    EXPECT_EQ(tiny.steps(run).size(), 20u) << streams;
    EXPECT_EQ(tiny.folder().read("runs/" + run + "/samples.txt").find("=== step 20"), 0u) << streams;
  };
  closed("all", "<&- >&- 2>&-");
  closed("err", "<&- 2>&-");
  const Ran told = tiny.weft({"train", "tiny.yaml", "run=runs/told"}, {.out = "/dev/null"});
  EXPECT_EQ(tiny.weights_hash_at(20, "all"), tiny.weights_hash_at(20, "told")) << told.err;
}

TEST(Run, OneJobAFolder) {
  const TinyRun tiny;
  Ran first;
  std::thread job([&] { first = tiny.train({}, {.environment = {"WEFT_FAULT=slow:150@phase=load"}}); });
  while (!fs::exists(tiny.run() + "/metrics.jsonl"))
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const Ran second = tiny.train({"--resume", "auto"});
  const Ran third = tiny.train();
  job.join();
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(second.code, 73) << second.err;
  EXPECT_NE(second.err.find("pid"), std::string::npos) << second.err;
  EXPECT_EQ(third.code, 73);
  EXPECT_EQ(tiny.steps().size(), 20u) << "undisturbed by the others";
}

}  // namespace
}  // namespace weft
