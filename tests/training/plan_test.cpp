// `weft validate`: what it foretells is what the run then does.

#include <gtest/gtest.h>

#include <filesystem>

#include "attention/registry.h"
#include "tests/training/tiny_run.h"

namespace weft {
namespace {

nlohmann::json validate(const TinyRun& tiny, const Words& words) {
  Words all{"validate"};
  all.insert(all.end(), words.begin(), words.end());
  all.push_back("--json");
  const Ran ran = tiny.weft(all);
  EXPECT_EQ(ran.code, 0) << ran.err;
  return ran.json();
}

TEST(Plan, HasItsKeys) {
  const TinyRun tiny;
  const auto plan = validate(tiny, {"tiny.yaml"});
  for (const char* key :
       {"weft", "exit", "parameters", "active_parameters", "flops_per_token", "tokens_per_step", "steps",
        "tokens", "mesh", "memory", "wire", "checkpoint_bytes", "step_s", "eta_s", "warnings"})
    EXPECT_TRUE(plan.contains(key)) << key;
  EXPECT_EQ(plan["weft"], "validate/1");
  EXPECT_EQ(plan["tokens_per_step"], 256);
  EXPECT_EQ(plan["tokens"], 20 * 256);
  EXPECT_GT(plan["flops_per_token"], 6 * plan["parameters"].get<double>() * 0.5);
  EXPECT_LT(plan["flops_per_token"], 6 * plan["parameters"].get<double>() * 3);
  EXPECT_GT(plan["checkpoint_bytes"], 12 * plan["parameters"].get<int64_t>() - 1)
      << "masters and two moments of f32";
  EXPECT_EQ(plan["wire"]["all_gather"], 0);
  EXPECT_EQ(plan["step_s"], nullptr) << "the speed of a CPU is not foretold";
  int64_t scopes = 0;
  for (const auto& [name, bytes] : plan["memory"]["scopes"].items()) scopes += bytes.get<int64_t>();
  EXPECT_EQ(scopes, plan["memory"]["peak_bytes"]);

  const auto split = validate(tiny, {"tiny.yaml", "--ranks", "2"});
  EXPECT_EQ(split["mesh"], (nlohmann::json{{"dp", 2}, {"cp", 1}}));
  EXPECT_GT(split["wire"]["all_gather"], 0);
  EXPECT_LT(split["memory"]["peak_bytes"], plan["memory"]["peak_bytes"]);
  const auto sequence = validate(tiny, {"tiny.yaml", "mesh.cp=2", "--ranks=2"});
  EXPECT_EQ(sequence["mesh"], (nlohmann::json{{"dp", 1}, {"cp", 2}}));
  EXPECT_EQ(sequence["tokens_per_step"], 256);
  const auto device = validate(tiny, {"tiny.yaml", "--device", "h100-80"});
  EXPECT_GT(device["step_s"], 0);
  EXPECT_GT(device["eta_s"], device["step_s"]);
  EXPECT_EQ(tiny.weft({"validate", "tiny.yaml", "--device", "abacus"}).code, 64);
  const std::string table = tiny.weft({"validate", "tiny.yaml", "--device", "h100-80"}).out;
  for (const char* line :
       {"tokens per step                   256\n", "ranks per sequence                  1\n",
        "tokens in total                 5,120\n", "sent by a rank                    0 B a step\n"})
    EXPECT_NE(table.find(line), std::string::npos) << "counts are whole: " << table;
  EXPECT_EQ(table.find(" 0.00 "), std::string::npos) << "each in a unit that shows it: " << table;
#ifdef WEFT_CUDA
  const auto peak_on = [&](const char* where) {
    const Words words{"tiny.yaml", "model.layers=[lightning*2]", "precision=bf16", "--device", where};
    return validate(tiny, words)["memory"]["peak_bytes"].get<int64_t>();
  };
  EXPECT_LT(peak_on("cuda"), peak_on("cpu")) << "a kernel keeps nothing of its chunks";
#else
  EXPECT_NE(device["warnings"].dump().find("no CUDA kernels"), std::string::npos);
#endif
  EXPECT_EQ(tiny.weft({"validate", "tiny.yaml", "mesh.dp=3", "--ranks", "2"}).code, 78);
}

TEST(Plan, PeakMemoryIsThatOfTheRun) {
  const TinyRun tiny;
  const Words shape{"context=256", "batch_tokens=1024", "model.width=64"};
  struct Case {
    const char* name;
    Words words;
  };
  const std::vector<Case> cases{
      {"plain", {}},
      {"block", {"model.checkpointing=block"}},
      {"attention",
       {"model.checkpointing=attention", "model.layers=[softmax*3]", "model.ffn_kind=gelu",
        "optim.kind=muon"}},
      {"ffn",
       {"model.checkpointing=ffn", "model.layers=[delta_rule, lightning]", "model.short_conv=4",
        "micro_tokens=256"}},
      {"ema", {"optim.ema=0.9", "model.tied=false", "precision=bf16"}},
      {"evaluation", {"model.layers=[based, softmax]", "data.val=0.1"}},  // a step has 1024 tokens
      {"whole layers", {"model.layers=[mega*2]", "model.mechanisms.mega={attention_chunk: 64}"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Words words = shape;
    words.insert(words.end(), c.words.begin(), c.words.end());
    Words planned{"tiny.yaml"};
    planned.insert(planned.end(), words.begin(), words.end());
    const double plan = validate(tiny, planned)["memory"]["peak_bytes"];
    words.insert(words.end(), {"steps=2", "eval.every=0", std::string("run=runs/") + c.name});
    const Ran ran = tiny.train(words);
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_NEAR(ran.json()["peak_bytes"].get<double>() / plan, 1, 0.1);
  }
}

// However ranks share a sequence, a token's work is the same; and gathered rows have a backward.
TEST(Plan, WorkOfATokenAndOfAStepOverRanks) {
  const TinyRun tiny;
  const auto plan = [&](const Words& more) {
    Words words{"tiny.yaml",        "model.layers=[titans, softmax]",
                "context=512",      "batch_tokens=1024",
                "micro_tokens=512", "data.train=none.txt",
                "--device=h100-80"};
    words.insert(words.end(), more.begin(), more.end());
    return validate(tiny, words);
  };
  const auto one = plan({});
  for (const char* layout : {"contiguous", "zigzag"})
    for (const char* strategy : {"native", "gather"}) {
      const auto two = plan({"mesh.cp=2", "--ranks=2", std::string("mesh.layout=") + layout,
                             std::string("mesh.strategy=") + strategy});
      EXPECT_EQ(two["flops_per_token"], one["flops_per_token"]) << layout << " " << strategy;
      // Ranks that gather attend over all keys, and some work is everybody's: never less than a half each.
      const double alone = one["eta_s"], shared = two["eta_s"];
      EXPECT_GE(shared, 0.499 * alone) << layout << " " << strategy;
    }
}

TEST(Plan, RefusesStepsThatNoRankCanHold) {
  const TinyRun tiny;
  const Ran ran = tiny.weft({"validate", "tiny.yaml", "batch_tokens=1000000000000", "context=1000000"});
  EXPECT_EQ(ran.code, 78);
  EXPECT_NE(ran.err.find("more for each than 32 bits count"), std::string::npos) << ran.err;
}

TEST(Plan, EveryMechanism) {
  const TinyRun tiny;
  for (const MechanismEntry& entry : mechanisms()) {
    const auto plan =
        validate(tiny, {"tiny.yaml", "model.layers=[" + entry.id + "]", "--ranks=2", "mesh.cp=2"});
    EXPECT_GT(plan["memory"]["peak_bytes"], 0) << entry.id;
  }
}

// Recipes of the repository, whole: with their evaluation and their sample.
TEST(Plan, PeakMemoryOfEveryRecipe) {
  namespace fs = std::filesystem;
  const std::string root = WEFT_SOURCE;
  std::vector<fs::path> recipes{root + "/recipes/quickstart.yaml"};
  for (const auto& entry : fs::directory_iterator(root + "/recipes/mechanisms")) recipes.push_back(entry);
  ASSERT_GT(recipes.size(), 5u);
  const TinyRun tiny;
  for (const fs::path& path : recipes) {
    SCOPED_TRACE(path);
    const Words recipe{path, "data.train=stories.txt", "run=runs/" + path.stem().string(), "eval.batches=1",
                       "data.tokenizer=" + root + "/recipes/tokenizers/english-2048/tokenizer.json"};
    const auto plan = validate(tiny, recipe);
    Words words{"train", "--json-summary", "steps=1", "sample.tokens=1"};
    words.insert(words.begin() + 1, recipe.begin(), recipe.end());
    const Ran ran = tiny.weft(words);
    ASSERT_EQ(ran.code, 0) << ran.err;
    EXPECT_NEAR(ran.json()["peak_bytes"].get<double>() / plan["memory"]["peak_bytes"].get<double>(), 1, 0.1);
  }
}

}  // namespace
}  // namespace weft
