// When a claim counts as shown, on results made by hand.

#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "attention/registry.h"
#include "tools/command.h"
#include "tools/zoo.h"
#include "training/recipe/load.h"

namespace weft {

const std::vector<Command>& commands() {
  static const std::vector<Command> none;
  return none;
}

namespace {

void add(std::vector<ZooResult>& results, const std::string& mechanism, const std::vector<double>& values,
         double rate = 1e-3, const std::string& metric = "accuracy") {
  for (size_t i = 0; i < values.size(); ++i) {
    ZooResult r;
    r.cell = {"t", mechanism, 64, rate, static_cast<int64_t>(i)};
    r.metric = metric;
    r.value = values[i];
    r.grad_peak = 10 * values[i];
    results.push_back(r);
  }
}

std::string verdict(const std::vector<double>& left, const std::vector<double>& right,
                    ZooClaim::Relation relation = ZooClaim::Relation::better,
                    const std::string& metric = "accuracy") {
  std::vector<ZooResult> results;
  add(results, "a", left, 1e-3, metric);
  add(results, "b", right, 1e-3, metric);
  const auto verdicts = judge(results, {{"says", "paper", "t", "a", "b", relation}});
  EXPECT_EQ(verdicts.size(), 1u);
  return verdicts.at(0).verdict;
}

TEST(Claims, BetterNeedsMoreThanSpread) {
  EXPECT_EQ(verdict({0.9, 0.91, 0.92}, {0.5, 0.52, 0.51}), "shown");
  EXPECT_EQ(verdict({0.5, 0.52, 0.51}, {0.9, 0.91, 0.92}), "refuted");
  EXPECT_EQ(verdict({0.9, 0.3, 0.6}, {0.5, 0.2, 0.35}), "not decided") << "within the spread";
  EXPECT_EQ(verdict({1, 1, 1}, {0.99, 0.99, 0.99}), "not decided") << "certain, and too small to count";
  EXPECT_EQ(verdict({0.9, 0.91}, {0.5, 0.52, 0.51}), "not decided") << "two seeds";
  EXPECT_EQ(verdict({0.9}, {0.1}), "not decided");
}

TEST(Claims, OfBitsLessIsBetter) {
  const auto better = ZooClaim::Relation::better;
  EXPECT_EQ(verdict({1.5, 1.51, 1.52}, {1.7, 1.71, 1.72}, better, "bits_per_byte"), "shown");
  EXPECT_EQ(verdict({1.7, 1.71, 1.72}, {1.5, 1.51, 1.52}, better, "bits_per_byte"), "refuted");
}

TEST(Claims, NoLossIsShownWhereOneIsExcluded) {
  const auto equal = ZooClaim::Relation::equal;
  EXPECT_EQ(verdict({1.500, 1.501, 1.502}, {1.500, 1.502, 1.501}, equal, "bits_per_byte"), "shown");
  EXPECT_EQ(verdict({1.4, 1.401, 1.402}, {1.500, 1.502, 1.501}, equal, "bits_per_byte"), "shown")
      << "better even";
  EXPECT_EQ(verdict({1.6, 1.601, 1.602}, {1.500, 1.502, 1.501}, equal, "bits_per_byte"), "refuted");
  EXPECT_EQ(verdict({1.4, 1.5, 1.6}, {1.45, 1.5, 1.55}, equal, "bits_per_byte"), "not decided")
      << "noise that hides a loss shows nothing";
}

TEST(Claims, WhatDidNotRunIsNotDecided) {
  std::vector<ZooResult> results;
  add(results, "a", {1, 1, 1});
  EXPECT_EQ(judge(results, {{"says", "paper", "t", "a", "b"}}).at(0).why, "not run");
}

TEST(Summary, TakesTheBestRateOfTheMean) {
  std::vector<ZooResult> results;
  add(results, "a", {0.5, 0.6, 0.7}, 1e-3);
  add(results, "a", {0.9, 0.1, 0.2}, 3e-3);
  add(results, "a", {0.99}, 1e-2);
  ZooSummary s;
  ASSERT_TRUE(summarize(results, "t", "a", 64, "", s));
  EXPECT_EQ(s.rate, 1e-3) << "not the one of the best seed, nor of the fewest";
  EXPECT_NEAR(s.mean, 0.6, 1e-12);
  EXPECT_NEAR(s.deviation, 0.1, 1e-12);
  EXPECT_EQ(s.seeds, 3);
  ZooSummary peak;
  ASSERT_TRUE(summarize(results, "t", "a", 64, "grad_peak", peak));
  EXPECT_EQ(peak.rate, 3e-3) << "the highest rate of as many seeds";
  EXPECT_NEAR(peak.mean, 4, 1e-12);
  EXPECT_FALSE(summarize(results, "t", "a", 128, "", s));
}

TEST(Report, ShowsMeanSpreadStateAndVerdict) {
  std::vector<ZooResult> results;
  add(results, "a", {0.5, 0.6, 0.7});
  results[0].state_bytes = results[1].state_bytes = results[2].state_bytes = 4096;
  const std::string report =
      zoo_report(results, judge(results, {{"a beats b", "paper", "t", "a", "b"}}), "cpu");
  for (const char* part :
       {"| a | 4096 | 0.600 ± 0.100 |", "smoke test", "| a beats b | paper | 64 | not decided | not run |"})
    EXPECT_NE(report.find(part), std::string::npos) << part << "\n" << report;
}

// Every model of the zoo is a model, and every claim speaks of one, on every size's recipes.
TEST(Lists, HoldTogether) {
  std::set<std::string> mechanisms;
  for (const ZooMechanism& m : zoo_mechanisms()) EXPECT_TRUE(mechanisms.insert(m.name).second) << m.name;
  for (const ZooSize& size : zoo_sizes()) {
    std::set<std::string> tasks;
    for (const auto& file : std::filesystem::directory_iterator("recipes/" + size.recipes)) {
      tasks.insert(file.path().stem());
      for (const ZooMechanism& m : zoo_mechanisms())
        for (const int64_t width : size.widths) {
          std::vector<std::string> overrides = m.overrides;
          overrides.push_back("model.width=" + std::to_string(width));
          const Recipe recipe = load_recipe(file.path(), overrides);
          for (const std::string& layer : expand_layers(recipe.model.layers)) find_mechanism(layer);
        }
    }
    for (const ZooClaim& claim : zoo_claims()) {
      EXPECT_TRUE(tasks.count(claim.task)) << claim.says << ", " << size.name;
      EXPECT_TRUE(mechanisms.count(claim.left)) << claim.left;
      EXPECT_TRUE(mechanisms.count(claim.right)) << claim.right;
    }
  }
}

}  // namespace
}  // namespace weft
