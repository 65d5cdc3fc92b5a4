// Models made equally large, measured by what `weft validate` and `weft ls` say of them.

#include "training/sweep/match.h"

#include <gtest/gtest.h>

#include "tools/describe_mechanism.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

// No text is there: every sample counts as one document.
constexpr const char* kRecipe =
    "data: {train: missing.txt}\nbatch_tokens: 256\ncontext: 128\nprecision: f32\n"
    "model: {layers: [softmax*2], width: 64, heads: 4}\n";

Recipe with(const std::string& layers, const std::vector<std::string>& more) {
  std::vector<std::string> overrides{"model.layers=" + layers};
  overrides.insert(overrides.end(), more.begin(), more.end());
  return parse_recipe(kRecipe, "r.yaml", overrides);
}

// The two layers' state as `weft ls` counts it.
double state_of(const Recipe& recipe) {
  const ModelConfig config = model_config(recipe, 257);
  const MechanismEntry& entry = find_mechanism(config.layers[0]);
  return 2.0 * static_cast<double>(learn(entry, {.attributes = config.attributes(entry.id),
                                                 .dims = {.heads = config.heads,
                                                          .kv_heads = config.kv_heads,
                                                          .key = config.head_size,
                                                          .value = config.head_size,
                                                          .width = config.width},
                                                 .dtype = Dtype::f32,
                                                 .tokens = recipe.context})
                                       .state_bytes);
}

double measured(const Recipe& recipe, MatchBy by) {
  if (by == MatchBy::state) return state_of(recipe);
  const RunPlan plan = plan_run(recipe, 1, "cpu");
  return by == MatchBy::parameters ? static_cast<double>(plan.parameters) : plan.flops_per_token;
}

class Matching : public testing::TestWithParam<std::tuple<MatchBy, const char*>> {};

TEST_P(Matching, IsWithinTwoPercentOfTheFirst) {
  const auto [by, layers] = GetParam();
  const Recipe first = by == MatchBy::state ? with("softmax*2", {}) : with("gla*2", {"model.ffn=512"});
  const Planner planner(first);
  const double target = model_size(first, by, planner);
  EXPECT_DOUBLE_EQ(target, measured(first, by));
  const std::string name = layers;
  const Match match = match_size([&](const auto& more) { return with(name, more); }, by, "", target, planner);
  const double size = measured(with(name, match.overrides), by);
  EXPECT_DOUBLE_EQ(size, match.size);
  EXPECT_NEAR(size / target, 1, 0.02);
  for (const std::string& override_ : match.overrides)
    EXPECT_TRUE(override_.starts_with(by == MatchBy::state ? "model.head" : "model.ffn=")) << override_;
}

INSTANTIATE_TEST_SUITE_P(Sizes, Matching,
                         testing::Combine(testing::Values(MatchBy::parameters, MatchBy::flops,
                                                          MatchBy::state),
                                          testing::Values("softmax*2", "titans_mac*2", "lightning*2",
                                                          "yaad*2", "sliding_window*2")));

TEST(Match, ASecondKeyHelpsWhereOneDoesNotReachIt) {
  const Recipe first = with("linear*2", {"model.ffn=8"});
  const Planner planner(first);
  const double target = model_size(first, MatchBy::flops, planner);
  const auto titans = [&](const auto& more) { return with("titans_mac*2", more); };
  EXPECT_THROW(match_size(titans, MatchBy::flops, "model.ffn", target, planner), Error)
      << "its memory costs more";
  const Match match = match_size(titans, MatchBy::flops, "", target, planner);
  ASSERT_EQ(match.overrides.size(), 2u);
  EXPECT_TRUE(match.overrides[0].starts_with("model.width=")) << match.overrides[0];
  EXPECT_TRUE(match.overrides[1].starts_with("model.ffn=")) << match.overrides[1];
  EXPECT_NEAR(measured(titans(match.overrides), MatchBy::flops) / target, 1, 0.02);
}

TEST(Match, OfTheSameModelChangesNothing) {
  const Recipe first = with("gla*2", {});
  const Planner planner(first);
  for (const MatchBy by : {MatchBy::parameters, MatchBy::flops, MatchBy::state}) {
    const Match match = match_size([&](const auto& more) { return with("gla*2", more); }, by, "",
                                   model_size(first, by, planner), planner);
    EXPECT_TRUE(match.overrides.empty());
  }
}

TEST(Match, RoundValuesComeFirst) {
  const Recipe first = with("softmax*2", {"model.ffn=640"});
  const Planner planner(first);
  const Match match =
      match_size([&](const auto& more) { return with("softmax*2", more); }, MatchBy::parameters, "",
                 model_size(first, MatchBy::parameters, planner), planner);
  EXPECT_EQ(match.overrides, (std::vector<std::string>{"model.ffn=640"}));
}

TEST(Match, ByAKeyOfOnesOwnWithValuesThatTheRecipeRefuses) {
  // Rotary heads: a width has to divide by 8. The target's is 200.
  const Recipe first = with("softmax*2", {"model.width=200"});
  const Planner planner(first);
  const Match match =
      match_size([&](const auto& more) { return with("softmax*2", more); }, MatchBy::parameters,
                 "model.width", model_size(first, MatchBy::parameters, planner), planner);
  EXPECT_EQ(match.overrides, (std::vector<std::string>{"model.width=200"}));
}

TEST(Match, WhatCannotBeReachedNamesTheNearest) {
  const Recipe first = with("softmax*2", {});
  const Planner planner(first);
  const auto refused = [&](const std::string& key, double target) -> std::string {
    try {
      match_size([&](const auto& more) { return with("softmax*2", more); }, MatchBy::parameters, key, target,
                 planner);
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Exit::recipe);
      return error.what();
    }
    ADD_FAILURE() << key;
    return "";
  };
  // 257 x 64 of embedding alone are more; at a width of 8, 257 x 8.
  for (const char* key : {"", "model.ffn"}) {
    EXPECT_NE(refused(key, 1000).find("the nearest is"), std::string::npos) << refused(key, 1000);
    EXPECT_NE(refused(key, 1000).find("model.ffn=1"), std::string::npos) << refused(key, 1000);
  }
  EXPECT_NE(refused("seed", 1e6).find("no seed brings"), std::string::npos);  // has no influence
  EXPECT_NE(refused("model.widht", 1e6).find("no value of it is accepted"), std::string::npos);
}

}  // namespace
}  // namespace weft
