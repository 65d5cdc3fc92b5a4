// Mutated recipes either load, and then write and reload to the same, or end in an Error of Exit::recipe.

#include <gtest/gtest.h>

#include <random>

#include "autograd/check.h"
#include "training/recipe/diff.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

const std::vector<std::string> kSeeds = {
    "# x\nextends: nowhere.yaml\nrun: a\nsteps: 10\n",
    "model:\n  layers: [gla*3, softmax]\n  mechanisms:\n    gla: {chunk: 64, gate: \"v\"}\n  tied: yes\n",
    "optim: {lr: 3e-4, kind: muon}\ndata:\n  train:\n    - {path: a, weight: 2}\n    - 'b c'\n  val: 0.05\n",
    "sample:\n  prompt: |\n    two\n    lines\n  tokens: 3\n? steps\n: 4\nlog: {every: 1, tensorboard: no}\n",
    "a: &x [1, {b: *x}]\n--- !!map\n%TAG ! x\n- - - - ? : >-\n   folded\n...\n"};

const std::vector<std::string> kTokens = {"[",
                                          "]",
                                          "{",
                                          "}",
                                          ": ",
                                          "- ",
                                          "? ",
                                          "\n",
                                          "\n  ",
                                          "'",
                                          "\"",
                                          "&a",
                                          "*a",
                                          "!!int",
                                          "|\n",
                                          ">",
                                          "#",
                                          ",",
                                          "\t",
                                          "\r\n",
                                          "%",
                                          "@",
                                          "`",
                                          "~",
                                          "null",
                                          ".nan",
                                          "-1",
                                          "1e9999",
                                          "\\",
                                          "\\x41",
                                          "\\u00e9",
                                          "---\n",
                                          "...\n",
                                          "<<: ",
                                          "\xFF",
                                          "\xE2\x82\xAC",
                                          "optim:",
                                          "lr: ",
                                          "model: ",
                                          "steps: ",
                                          "18446744073709551616"};

std::string mutate(std::string text, std::mt19937& random) {
  const auto below = [&](size_t n) {
    return n ? std::uniform_int_distribution<size_t>(0, n - 1)(random) : 0;
  };
  for (size_t edits = 1 + below(6); edits > 0; --edits) {
    const size_t at = below(text.size() + 1), length = std::min(below(12), text.size() - at);
    switch (below(5)) {
      case 0: text.erase(at, length); break;
      case 1: text.insert(at, kTokens[below(kTokens.size())]); break;
      case 2: text.insert(below(text.size() + 1), text.substr(at, length)); break;
      case 3:
        if (at < text.size()) text[at] = static_cast<char>(below(256));
        break;
      default: {
        const std::string& other = kSeeds[below(kSeeds.size())];
        text.insert(at, other.substr(below(other.size()), 1 + below(30)));
      }
    }
  }
  return text;
}

TEST(RecipeFuzz, NeverCrashes) {
  std::mt19937 random(1);
  int loaded = 0;
  for (int i = 0; i < 20'000; ++i) {
    const std::string text = mutate(kSeeds[static_cast<size_t>(i) % kSeeds.size()], random);
    try {
      const bool override_too = i % 4 == 0;
      const std::vector<std::string> overrides =
          override_too ? std::vector<std::string>{mutate("model.layers=[a, b]", random)}
                       : std::vector<std::string>{};
      const Recipe recipe = parse_recipe(text, "r.yaml", overrides);
      ++loaded;
      const Recipe again = parse_recipe(resolved_recipe(recipe), "r.yaml");
      ASSERT_TRUE(recipe_diff(recipe, again).empty()) << text;
    } catch (const Error& error) {
      ASSERT_EQ(static_cast<int>(error.code), static_cast<int>(Exit::recipe)) << error.what() << "\n" << text;
      ASSERT_FALSE(error.where.empty()) << error.what() << "\n" << text;
    }
  }
  EXPECT_GT(loaded, 100) << "the mutations are too wild to test what loads";
}

}  // namespace
}  // namespace weft
