// What is made of a recipe: the resolved text, differences, help, schema, the mesh.

#include "training/recipe/recipe.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/training/recipe/expect_error.h"
#include "training/recipe/diff.h"
#include "training/recipe/help.h"
#include "training/recipe/load.h"
#include "training/recipe/mesh.h"

namespace weft {
namespace {

// A recipe in which no field that may vary has its default.
Recipe unusual() {
  return parse_recipe(
      "model: {layers: [gla*3, softmax], heads: 8, kv_heads: 2, mechanisms: {z: {}, gla: {b: [1, x y], "
      "a: 'off'}}}\noptim: {lr: 0.1, eps: 1e-15, beta1: 0.3333333333333333}\n",
      "r.yaml",
      {"sample.prompt=\"\\\"quoted\\\"\\n\\ttwo: lines # \\\\ \xE2\x82\xAC\"", "data.val=[off, '3', 'a b']",
       "data.train=[{path: '*.bin', weight: 0.1}, null.txt, 'null']", "steps=1125899906842623",
       "determinism=off", "run=-x y"});
}

TEST(ResolvedRecipe, ReloadsToTheSame) {
  for (const Recipe& recipe : {parse_recipe("", "r.yaml"), unusual()}) {
    const std::string text = resolved_recipe(recipe);
    const Recipe again = parse_recipe(text, "other.yaml");
    for (const RecipeDifference& difference : recipe_diff(recipe, again)) ADD_FAILURE() << difference.line();
    EXPECT_EQ(resolved_recipe(again), text);
  }
  EXPECT_EQ(unusual().sample.prompt, "\"quoted\"\n\ttwo: lines # \\ \xE2\x82\xAC");
}

TEST(ResolvedRecipe, HasEveryKey) {
  Recipe recipe = unusual();
  const Recipe again = parse_recipe(resolved_recipe(recipe), "r.yaml");
  for (const Field& field : visit_fields(recipe).fields)
    EXPECT_TRUE(again.places.count(field.name)) << field.name << " is not in the resolved recipe";
}

TEST(Fields, EveryKeyIsDocumentedAndItsDefaultIsValid) {
  Recipe recipe;
  const FieldVisitor visitor = visit_fields(recipe);
  EXPECT_NO_THROW(check_recipe(recipe));
  for (const Field& field : visitor.fields) {
    EXPECT_GT(field.help.size(), 5u) << field.name;
    EXPECT_NO_THROW(read_field(field, write_field(field), field.name)) << field.name;
  }
}

TEST(RecipeDiff, NamesKeysInOrder) {
  const Recipe before = parse_recipe("", "r.yaml");
  const Recipe after = parse_recipe("", "r.yaml", {"steps=5", "optim.lr=1e-3", "data.train=[a, b]"});
  const std::vector<RecipeDifference> differences = recipe_diff(before, after);
  ASSERT_EQ(differences.size(), 3u);
  EXPECT_EQ(differences[0].line(), "steps: 1000 -> 5");
  EXPECT_EQ(differences[1].line(), "optim.lr: 0.0003 -> 0.001");
  EXPECT_EQ(differences[2].line(), "data.train: [] -> [a, b]");
  EXPECT_TRUE(recipe_diff(after, after).empty());
}

TEST(CheckResume, AllowsSoftChangesOnly) {
  const Recipe saved = parse_recipe("", "r.yaml");
  const auto resume = [&](const std::vector<std::string>& overrides) {
    return check_resume(saved, parse_recipe("", "r.yaml", overrides));
  };
  EXPECT_EQ(resume({"steps=9", "optim.lr=1e-3", "log.every=7", "checkpoint.every=3", "eval.every=2",
                    "sample.every=5", "mesh.cp=2", "model.checkpointing=block", "run=x"})
                .size(),
            9u);
  for (const char* hard :
       {"model.width=512", "model.layers=gla*4", "model.mechanisms.softmax.window=3", "precision=f32",
        "data.tokenizer=x", "data.train=[a]", "seed=2", "optim.kind=muon", "context=256", "optim.ema=0.9"})
    EXPECT_ERROR(resume({"steps=9", hard}), recipe, std::string("override ") + hard, " -> ",
                 "start a new run");
  const Error error = error_of([&] { resume({"seed=2", "model.width=512"}); });
  EXPECT_TRUE(contains(error.what(), "seed: 1 -> 2; model.width: 256 -> 512")) << error.what();
}

TEST(RecipeHelp, TellsMeaningUnitRangeAndDefault) {
  const std::string warmup = recipe_help("optim.warmup");
  for (const char* part :
       {"optim.warmup: steps from zero to lr", "unit     steps", "default  100", "range    0 or more"})
    EXPECT_TRUE(contains(warmup, part)) << warmup;
  EXPECT_TRUE(contains(recipe_help("sample.prompt"), "default  \"\""));
  EXPECT_TRUE(contains(recipe_help("seed"), "has to keep it"));
  EXPECT_TRUE(contains(recipe_help("optim"), "optim.muon_lr"));
  EXPECT_TRUE(contains(recipe_help(""), "optim.*"));
  EXPECT_TRUE(contains(recipe_help("model.mechanisms"), "`weft help ID`")) << "weft ls takes no id";
  EXPECT_ERROR(recipe_help("optim.wramup"), usage, "", "there is no key optim.wramup", "optim.warmup");
  EXPECT_ERROR(recipe_help("zzzzzzzz"), usage, "", "", "weft help");
}

TEST(RecipeSchema, HasEveryKeyWithRangeAndDefault) {
  const auto schema = nlohmann::json::parse(recipe_schema());
  Recipe recipe;
  for (const Field& field : visit_fields(recipe).fields) {
    const size_t dot = field.name.find('.');
    const auto& top = schema.at("properties").at(field.name.substr(0, dot));
    const auto& key = dot == std::string::npos ? top : top.at("properties").at(field.name.substr(dot + 1));
    EXPECT_TRUE(contains(key.at("description"), field.help)) << field.name;
  }
  const auto& optim = schema["properties"]["optim"];
  EXPECT_EQ(optim["additionalProperties"], false);
  EXPECT_EQ(optim["properties"]["lr"]["minimum"], 0);
  EXPECT_EQ(optim["properties"]["eps"]["exclusiveMinimum"], 0);
  EXPECT_EQ(optim["properties"]["kind"]["enum"], (nlohmann::json{"adamw", "muon"}));
  EXPECT_EQ(schema["properties"]["steps"]["default"], 1000);
}

TEST(ResolveMesh, DerivesFromTheWorld) {
  const auto mesh = [](int64_t world, int64_t dp, int64_t cp) {
    Recipe::Mesh wish;
    wish.dp = dp, wish.cp = cp;
    return resolve_mesh(world, wish);
  };
  EXPECT_EQ(mesh(8, 0, 2).dp, 4);
  EXPECT_EQ(mesh(8, 0, 2).notice, "");
  EXPECT_EQ(mesh(6, 0, 4).cp, 3);
  EXPECT_EQ(mesh(6, 0, 4).dp, 2);
  EXPECT_EQ(mesh(6, 0, 4).notice, "mesh.cp 4 does not divide the 6 ranks here: runs with cp 3, dp 2");
  EXPECT_EQ(mesh(1, 0, 8).cp, 1);
  EXPECT_EQ(mesh(7, 0, 6).cp, 1);
  EXPECT_EQ(mesh(2, 0, 8).cp, 2);
  EXPECT_EQ(mesh(8, 4, 2).dp, 4);
  EXPECT_ERROR(mesh(8, 4, 4), recipe, "mesh", "mesh.dp 4 times mesh.cp 4 is 16, and the world has 8 ranks",
               "16 ranks");
  EXPECT_ERROR(mesh(1, 2, 1), recipe, "mesh", "the world has 1 rank", "mesh.dp to 0");
}

}  // namespace
}  // namespace weft
