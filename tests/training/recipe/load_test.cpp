#include "training/recipe/load.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/training/recipe/expect_error.h"
#include "training/recipe/find.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

Recipe parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_recipe(text, "r.yaml", overrides);
}

class RecipeFiles : public testing::Test {
 protected:
  RecipeFiles() {
    folder_ = fs::path(testing::TempDir()) / ("weft_" + std::string(test_name()));
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "recipes");
  }
  ~RecipeFiles() override { fs::remove_all(folder_); }

  static const char* test_name() { return testing::UnitTest::GetInstance()->current_test_info()->name(); }

  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }

  fs::path folder_;
};

TEST(LoadRecipe, EmptyIsTheDefaults) {
  const Recipe r = parse("");
  EXPECT_EQ(r.run, "runs/r");
  EXPECT_EQ(r.steps, 1000);
  EXPECT_EQ(r.where("steps"), "steps (default)");
}

TEST(LoadRecipe, ReadsEveryKind) {
  const Recipe r = parse(
      "run: out/x\n"
      "steps: 2e4\n"
      "determinism: off\n"
      "model:\n"
      "  layers: [lightning*3, softmax]\n"
      "  qk_norm: yes\n"
      "  mechanisms:\n"
      "    gla: {chunk: 64, gate: vector}\n"
      "    moh:\n"
      "optim: {lr: 3e-4, kind: muon}\n"
      "data:\n"
      "  train: [a.bin, {path: 'b/*.bin', weight: 2.5}]\n"
      "  val: 0.1\n"
      "eval:\n");
  EXPECT_EQ(r.run, "out/x");
  EXPECT_EQ(r.steps, 20000);
  EXPECT_EQ(r.determinism, "off");
  EXPECT_EQ(expand_layers(r.model.layers),
            (std::vector<std::string>{"lightning", "lightning", "lightning", "softmax"}));
  EXPECT_TRUE(r.model.qk_norm);
  ASSERT_NE(r.model.mechanisms.find("gla"), nullptr);
  const FieldValue& chunk = *r.model.mechanisms.find("gla")->find("chunk");
  EXPECT_EQ(chunk.text, "64");
  EXPECT_EQ(chunk.key_place.text(), "r.yaml:8:11");
  EXPECT_NE(r.model.mechanisms.find("moh"), nullptr);
  ASSERT_EQ(r.data.train.list.size(), 2u);
  EXPECT_EQ(r.data.train.list[0].path, "a.bin");
  EXPECT_EQ(r.data.train.list[1].weight, 2.5);
  EXPECT_EQ(r.data.val.share, 0.1);
  EXPECT_EQ(r.where("model.layers"), "r.yaml:5:11");
  EXPECT_EQ(parse("data: {train: x.txt, val: [v.txt]}").data.val.paths, std::vector<std::string>{"v.txt"});
  EXPECT_EQ(parse("data: {val: \"0.5\"}").data.val.paths, std::vector<std::string>{"0.5"});
}

TEST(LoadRecipe, RefusesUnknownKeysWithTheNearest) {
  EXPECT_ERROR(parse("optim:\n  lrr: 1\n"), recipe, "r.yaml:2:3", "unknown key optim.lrr",
               "did you mean optim.lr?");
  EXPECT_ERROR(parse("lr: 1\n"), recipe, "r.yaml:1:1", "unknown key lr", "did you mean optim.lr?");
  EXPECT_ERROR(parse("optimizer: {lr: 1}\n"), recipe, "r.yaml:1:1", "unknown key optimizer",
               "did you mean optim?");
  EXPECT_ERROR(parse("log: {frobnicate: 1}\n"), recipe, "r.yaml:1:7", "unknown key log.frobnicate",
               "keys here: every, tensorboard");
  EXPECT_ERROR(parse("optim.lr: 1\n"), recipe, "r.yaml:1:1", "a key with a dot",
               "write lr below the section optim");
  EXPECT_ERROR(parse("data: {train: [{path: a, wieght: 2}]}"), recipe, "r.yaml:1:26",
               "unknown key data.train.wieght", "data.train.weight");
}

TEST(LoadRecipe, RefusesWrongValues) {
  EXPECT_ERROR(parse("steps: ten\n"), recipe, "r.yaml:1:8", "steps is ten, not an int", "0 or more");
  EXPECT_ERROR(parse("steps: '10'\n"), recipe, "r.yaml:1:8", "steps is \"10\", not an int", "");
  EXPECT_ERROR(parse("steps: [1]\n"), recipe, "r.yaml:1:8", "steps is [1], not an int", "");
  EXPECT_ERROR(parse("steps:\n"), recipe, "r.yaml:1:1", "steps has no value", "give an int");
  EXPECT_ERROR(parse("optim: {lr: -1}\n"), recipe, "r.yaml:1:13", "optim.lr is -1, out of range",
               "0 or more");
  EXPECT_ERROR(parse("optim: {lr: .nan}\n"), recipe, "r.yaml:1:13", "not a finite number", "");
  EXPECT_ERROR(parse("optim: {lr: nan}\n"), recipe, "r.yaml:1:13", "not a finite number", "");
  EXPECT_ERROR(parse("optim: {beta2: 1}\n"), recipe, "r.yaml:1:16", "out of range", "0 to 0.999999");
  EXPECT_ERROR(parse("sample: {top_p: 0}\n"), recipe, "r.yaml:1:17", "sample.top_p is 0, out of range",
               "above 0");
  EXPECT_ERROR(parse("sample: {top_p: 1.1}\n"), recipe, "r.yaml:1:17", "out of range", "1");
  EXPECT_ERROR(parse("precision: fp16\n"), recipe, "r.yaml:1:12", "not a known choice",
               "one of bf16, f32, f64");
  EXPECT_ERROR(parse("data: {prefetch: 0}\n"), recipe, "r.yaml:1:18", "data.prefetch is 0, out of range",
               "1 to");
  for (const char* seed : {"seed: 4294967296\n", "sample: {seed: 4294967296}\n"})  // draws take 32 bits of it
    EXPECT_EQ(error_of([&] { parse(seed); }).code, Exit::recipe) << seed;
  EXPECT_ERROR(parse("optim: 3\n"), recipe, "r.yaml:1:8", "optim is 3, not a section", "kind, lr");
  EXPECT_ERROR(parse("- a\n"), recipe, "r.yaml:1:1", "not a section", "");
  EXPECT_ERROR(parse("version: 2\n"), recipe, "r.yaml:1:10", "version is 2, out of range", "1 to 1");
  EXPECT_ERROR(parse("data: {val: 1.5}\n"), recipe, "r.yaml:1:13", "data.val is 1.5, out of range",
               "0 to 0.999");
  EXPECT_ERROR(parse("data: {val: nan}\n"), recipe, "r.yaml:1:13", "not a finite number", "");
  EXPECT_ERROR(parse("data: {train: [{weight: 1}]}\n"), recipe, "r.yaml:1:16", "a source without a path", "");
  EXPECT_ERROR(parse("data: {train: [{path: a, weight: 0}]}\n"), recipe, "r.yaml:1:34", "out of range",
               "above 0");
  EXPECT_ERROR(parse("data: {train: ''}\n"), recipe, "r.yaml:1:15", "data.train", "path");
  EXPECT_ERROR(parse("model: {mechanisms: {gla: 64}}\n"), recipe, "r.yaml:1:27", "model.mechanisms.gla is 64",
               "ID");
  EXPECT_ERROR(parse("model: {mechanisms: gla}\n"), recipe, "r.yaml:1:21", "model.mechanisms is gla", "ID");
}

TEST(LoadRecipe, RefusesCombinations) {
  EXPECT_ERROR(parse("model:\n  width: 250\n  heads: 4\n"), recipe, "r.yaml:3:10",
               "250 does not divide into 4 heads", "head_size");
  EXPECT_ERROR(parse("model: {heads: 6, width: 384, kv_heads: 4}\n"), recipe, "r.yaml:1:41", "not a multiple",
               "same number");
  EXPECT_ERROR(parse("model: {heads: 2, kv_heads: 4}\n"), recipe, "r.yaml:1:29", "not a multiple", "");
  EXPECT_ERROR(parse("model: {head_size: 33}\n"), recipe, "r.yaml:1:20", "33 features, odd", "even");
  EXPECT_NO_THROW(parse("model: {head_size: 33, position: none}\n"));
  EXPECT_NO_THROW(parse("model: {width: 250, head_size: 32}\n"));
  EXPECT_ERROR(parse("context: 16384\n"), recipe, "r.yaml:1:10", "less than one context", "16384");
  EXPECT_ERROR(parse("batch_tokens: 1000\ncontext: 300\n"), recipe, "r.yaml:1:15", "not a multiple",
               "set batch_tokens to 900 or 1200");
  EXPECT_ERROR(parse("optim: {lr: 1e-4, min_lr: 1e-3}\n"), recipe, "r.yaml:1:27", "min_lr 0.001 is above",
               "lower");
  EXPECT_ERROR(parse("micro_tokens: 16384\n"), recipe, "r.yaml:1:15", "more than batch_tokens 8192", "");
  EXPECT_ERROR(parse("steps: 9223372036854775807\n"), recipe, "r.yaml:1:8", "more than can be counted",
               "set fewer steps");
  EXPECT_ERROR(parse("model: {layers: [gla*0]}\n"), recipe, "r.yaml:1:17", "gla*0", "NAME*COUNT");
  EXPECT_ERROR(parse("model: {layers: [gla*x]}\n"), recipe, "r.yaml:1:17", "malformed", "");
  EXPECT_ERROR(parse("model: {layers: [\"*3\"]}\n"), recipe, "r.yaml:1:17", "malformed", "");
  EXPECT_ERROR(parse("model: {layers: [a b]}\n"), recipe, "r.yaml:1:17", "malformed", "");
  EXPECT_ERROR(parse("model: {layers: []}\n"), recipe, "r.yaml:1:17", "empty", "");
  EXPECT_ERROR(parse("model: {layers: [a*9999, b*2]}\n"), recipe, "r.yaml:1:17", "more than 10000 layers",
               "");
  EXPECT_ERROR(parse("model: {layers: [a*9223372036854775807]}\n"), recipe, "r.yaml:1:17", "more than 10000",
               "");
}

TEST(Overrides, WinOverTheFileAndNameThemselves) {
  const std::string text = "optim: {lr: 1e-3}\nmodel: {mechanisms: {gla: {chunk: 64, gate: vector}}}\n";
  const Recipe r = parse(text, {"optim.lr=2e-4", "model.layers=[gla*2, softmax]", "data.train=*.bin",
                                "model.mechanisms.gla.chunk=32", "sample.prompt=Once: a = b",
                                "optim={warmup: 7}", "data.val=[a, 'b c']", "run=2024"});
  EXPECT_EQ(r.optim.lr, 2e-4);
  EXPECT_EQ(r.optim.warmup, 7);
  EXPECT_EQ(r.model.layers, (std::vector<std::string>{"gla*2", "softmax"}));
  EXPECT_EQ(r.data.train.list[0].path, "*.bin");
  EXPECT_EQ(r.data.val.paths, (std::vector<std::string>{"a", "b c"}));
  EXPECT_EQ(r.model.mechanisms.find("gla")->find("chunk")->text, "32");
  EXPECT_EQ(r.model.mechanisms.find("gla")->find("gate")->text, "vector");
  EXPECT_EQ(r.sample.prompt, "Once: a = b");
  EXPECT_EQ(r.run, "2024");
  EXPECT_EQ(r.where("optim.lr"), "override optim.lr=2e-4");
  EXPECT_EQ(parse("sample: {prompt: x}", {"sample.prompt="}).sample.prompt, "");
}

TEST(Overrides, AreRefusedLikeTheFile) {
  EXPECT_ERROR(parse("", {"optim.lrr=1"}), recipe, "override optim.lrr=1", "unknown key optim.lrr",
               "optim.lr?");
  EXPECT_ERROR(parse("", {"optim.lr=-1"}), recipe, "override optim.lr=-1", "out of range", "");
  EXPECT_ERROR(parse("", {"optim.lr=nan"}), recipe, "override optim.lr=nan", "not a finite", "");
  EXPECT_ERROR(parse("", {"model.layers=[a"}), recipe, "override model.layers=[a", "a key that is a list",
               "close every bracket");
  EXPECT_ERROR(parse("", {"model=3"}), recipe, "override model=3", "not a section", "");
  EXPECT_ERROR(parse("", {"model..width=3"}), recipe, "override model..width=3", "unknown key", "");
  EXPECT_ERROR(parse("", {"=3"}), recipe, "override =3", "without a key", "KEY=VALUE");
  EXPECT_ERROR(parse("", {"steps"}), recipe, "override steps", "without a key or a value", "");
  EXPECT_ERROR(parse("", {"run=\xFF"}), recipe, "override:1:5", "not UTF-8", "");
  EXPECT_ERROR(parse_recipe("steps: 1\n", "caf\xE9.yaml"), recipe, "run, from the name of the recipe:1:9",
               "not UTF-8", "");
  EXPECT_ERROR(parse("", {"run=~/x"}), recipe, "override run=~/x", "only a shell replaces",
               "write the path out");
  EXPECT_ERROR(parse("", {"model.heads=3"}), recipe, "override model.heads=3", "does not divide", "");
}

TEST(Overrides, ThreeSpellingsAreOne) {
  EXPECT_EQ(split_overrides({"a.b=c", "--optim.lr", "1e-3", "--optim.lr=-2", "--steps", "-1", "--x.y", ""}),
            (std::vector<std::string>{"a.b=c", "optim.lr=1e-3", "optim.lr=-2", "steps=-1", "x.y="}));
  EXPECT_ERROR(split_overrides({"--optim.lr"}), usage, "", "--optim.lr without a value", "");
  EXPECT_ERROR(split_overrides({"--optim.lr", "--steps", "3"}), usage, "", "without a value", "");
  EXPECT_ERROR(split_overrides({"word"}), usage, "", "unexpected argument word", "KEY=VALUE");
  EXPECT_ERROR(split_overrides({"--step", "3"}), usage, "", "unknown flag --step", "did you mean steps?");
}

TEST_F(RecipeFiles, ExtendEachOtherInChains) {
  write("base.yaml", "steps: 5\nseed: 9\noptim: {lr: 1e-3, warmup: 3}\n");
  write("recipes/middle.yaml", "extends: ../base.yaml\nsteps: 6\n");
  const Recipe r =
      load_recipe(write("recipes/top.yaml", "extends: middle.yaml\noptim: {lr: 2e-3}\n"), {"seed=4"});
  EXPECT_EQ(r.steps, 6);
  EXPECT_EQ(r.seed, 4);
  EXPECT_EQ(r.optim.lr, 2e-3);
  EXPECT_EQ(r.optim.warmup, 3);
  EXPECT_EQ(r.run, "runs/top");
  EXPECT_EQ(r.where("optim.warmup"), (folder_ / "base.yaml:3:27").string());
}

TEST_F(RecipeFiles, RefuseBadChains) {
  const std::string a = write("a.yaml", "extends: b.yaml\n"),
                    b = write("b.yaml", "steps: 1\nextends: ./a.yaml\n");
  EXPECT_ERROR(load_recipe(a), recipe, b + ":2:10", "extend each other", "remove one");
  const std::string self = write("self.yaml", "extends: self.yaml\n");
  EXPECT_ERROR(load_recipe(self), recipe, self + ":1:10", "extend each other", "");
  const std::string lost = write("lost.yaml", "extends: none.yaml\n");
  EXPECT_ERROR(load_recipe(lost), recipe, lost + ":1:10", "there is no recipe file", "relative to this file");
  const std::string folder = write("folder.yaml", "extends: recipes\n");
  EXPECT_ERROR(load_recipe(folder), recipe, folder + ":1:10", "there is no recipe file", "");
  const std::string list = write("list.yaml", "extends: [a.yaml]\n");
  EXPECT_ERROR(load_recipe(list), recipe, list + ":1:10", "not a path", "");
  for (int i = 0; i < 20; ++i) write(text("c", i, ".yaml"), text("extends: c", i + 1, ".yaml\n"));
  EXPECT_ERROR(load_recipe((folder_ / "c0.yaml").string()), recipe, (folder_ / "c15.yaml:1:10").string(),
               "more than 16", "");
  EXPECT_ERROR(load_recipe((folder_ / "none.yaml").string()), usage, "", "there is no recipe file",
               "weft ls");
  const std::string big = write("big.yaml", "# " + std::string(10'000'000, 'x'));
  EXPECT_ERROR(load_recipe(big), recipe, big, "more than 10 MB", "");
}

TEST_F(RecipeFiles, AreFoundByName) {
  write("recipes/quickstart.yaml", "#\n# Trains a small model.\n# More.\nsteps: 1\n");
  write("recipes/big.yaml", "steps: 1\n# not a summary\n");
  write("recipes/notes.txt", "");
  const std::string root = folder_.string();
  const std::vector<RecipeEntry> recipes = list_recipes(root);
  ASSERT_EQ(recipes.size(), 2u);
  EXPECT_EQ(recipes[0].name, "big");
  EXPECT_EQ(recipes[0].summary, "");
  EXPECT_EQ(recipes[1].summary, "Trains a small model.");
  EXPECT_EQ(find_recipe("quickstart", root), recipes[1].path);
  EXPECT_EQ(find_recipe("quickstart.yaml", root), recipes[1].path);
  EXPECT_EQ(find_recipe(recipes[0].path, "nowhere"), recipes[0].path);
  EXPECT_ERROR(find_recipe("quikstart", root), usage, "quikstart", "there is no recipe",
               "did you mean quickstart?");
  EXPECT_ERROR(find_recipe("recipes/quickstat.yaml", root), usage, "recipes/quickstat.yaml",
               "there is no recipe", "quickstart");
  EXPECT_ERROR(find_recipe("zzzzzzzzz", root), usage, "zzzzzzzzz", "", "known recipes: big, quickstart");
  EXPECT_ERROR(find_recipe("x", "nowhere"), usage, "x", "", "there are no recipes");
}

TEST_F(RecipeFiles, AreFoundInTheirFolders) {
  write("recipes/quickstart.yaml", "steps: 1\n");
  for (const char* name : {"recipes/124m/softmax.yaml", "recipes/tasks/mqar.yaml", "recipes/zoo/mqar.yaml"}) {
    fs::create_directories((folder_ / name).parent_path());
    write(name, "steps: 1\n");
  }
  const std::string root = folder_.string();
  EXPECT_EQ(list_recipes(root).size(), 1u);
  EXPECT_EQ(recipes_in_folders(root), (std::vector<std::string>{"124m/softmax", "tasks/mqar", "zoo/mqar"}));
  EXPECT_EQ(find_recipe("124m/softmax", root), (folder_ / "recipes/124m/softmax.yaml").string());
  EXPECT_EQ(find_recipe("tasks/mqar.yaml", root), (folder_ / "recipes/tasks/mqar.yaml").string());
  EXPECT_ERROR(find_recipe("mqar", root), usage, "mqar", "", "did you mean tasks/mqar?");
  EXPECT_ERROR(find_recipe("124m/sofmax", root), usage, "124m/sofmax", "", "did you mean 124m/softmax?");
  EXPECT_ERROR(find_recipe("../recipes/quickstart", root), usage, "../recipes/quickstart",
               "there is no recipe", "quickstart");
}

}  // namespace
}  // namespace weft
