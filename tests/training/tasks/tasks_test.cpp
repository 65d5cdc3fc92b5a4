// Every task against a solver that knows nothing of how the example was made.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "autograd/check.h"
#include "training/tasks/listops.h"
#include "training/tasks/registry.h"

namespace weft {
namespace {

const Tokenizer& bytes() {
  static const std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer("byte");
  return *tokenizer;
}

Example example_of(const std::string& text, uint64_t number, uint32_t seed = 1) {
  Draws draws({seed, 7, 0}, number);
  return TaskText::parse(text).make(bytes())->make(draws);
}

Error error_of(const std::string& text) {
  try {
    TaskText::parse(text).make(bytes());
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << text << " was taken";
  return Error(Exit::ok, "");
}

std::vector<int64_t> labelled(const Example& e) {
  std::vector<int64_t> places;
  for (size_t i = 0; i < e.targets.size(); ++i)
    if (e.targets[i] >= 0) places.push_back(static_cast<int64_t>(i));
  return places;
}

// ---- what holds for all

class EveryTask : public testing::TestWithParam<const char*> {};

TEST_P(EveryTask, IsAFunctionOfItsNumber) {
  std::set<std::vector<int32_t>> seen;
  for (uint64_t number = 0; number < 50; ++number) {
    const Example a = example_of(GetParam(), number), b = example_of(GetParam(), number);
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.targets, b.targets);
    seen.insert(a.tokens);
    seen.insert(example_of(GetParam(), number, 2).tokens);
  }
  EXPECT_GT(seen.size(), 95u) << "other numbers and seeds are other examples";
}

TEST_P(EveryTask, StaysInItsVocabularyAndLength) {
  const auto task = TaskText::parse(GetParam()).make(bytes());
  for (uint64_t number = 0; number < 50; ++number) {
    const Example e = example_of(GetParam(), number);
    ASSERT_EQ(e.tokens.size(), e.targets.size());
    ASSERT_LE(static_cast<int64_t>(e.tokens.size()), task->length());
    EXPECT_FALSE(labelled(e).empty());
    for (size_t i = 0; i < e.tokens.size(); ++i) {
      EXPECT_TRUE(e.tokens[i] >= 0 && e.tokens[i] < task->vocab());
      EXPECT_TRUE(e.targets[i] >= -1 && e.targets[i] < task->vocab());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tasks, EveryTask,
                         testing::Values("mqar", "mqar vocab=64 length=128 pairs=16 random_filler=false",
                                         "selective_copy", "induction length=20", "needle",
                                         "needle needles=3 digits=2 length=300", "listops",
                                         "listops length=200 depth=6 nesting=0.5"));

TEST(Tasks, TheRegistryNamesThemAll) {
  EXPECT_EQ(tasks().size(), 5u);
  for (const TaskEntry& entry : tasks()) {
    EXPECT_EQ(&find_task(entry.id), &entry);
    EXPECT_EQ(entry.url.find("https://"), 0u) << entry.id;
    EXPECT_FALSE(entry.describe().empty()) << entry.id;
  }
  try {
    find_task("mqra");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::usage);
    EXPECT_NE(e.advice.find("mqar"), std::string::npos) << e.advice;
  }
}

TEST(Tasks, SettingsAreTyped) {
  for (const char* text :
       {"mqar pairs=none", "mqar pairs=0", "mqar pears=4", "mqar pairs=17", "mqar vocab=8 pairs=4",
        "mqar pairs", "mqar =4", "selective_copy count=40", "needle length=40", "needle depth=101",
        "listops nesting=2", "induction weight=-1"})
    EXPECT_EQ(error_of(text).code, Exit::recipe) << text;
  EXPECT_NE(error_of("mqar pears=4").advice.find("pairs"), std::string::npos);
  EXPECT_EQ(TaskText::parse("mqar pairs=4 weight=2.5").weight, 2.5);
}

TEST(Tasks, GridIsTheProduct) {
  std::vector<std::string> cells;
  for (const TaskText& cell : TaskText::parse("mqar length=64,128 vocab=32 pairs=2,4,8").grid()) {
    std::string line = cell.id;
    for (const FieldValue& item : cell.settings.items) line += " " + item.key + "=" + item.text;
    cells.push_back(line);
  }
  ASSERT_EQ(cells.size(), 6u);
  EXPECT_EQ(cells[0], "mqar length=64 vocab=32 pairs=2");
  EXPECT_EQ(cells[1], "mqar length=64 vocab=32 pairs=4");
  EXPECT_EQ(cells[5], "mqar length=128 vocab=32 pairs=8");
  EXPECT_EQ(TaskText::parse("induction").grid().size(), 1u);
}

TEST(Draws, AreUniformAndWithoutRepeats) {
  std::map<int64_t, int> counts;
  for (uint64_t number = 0; number < 3000; ++number) {
    Draws draws({3, 5, 0}, number);
    const std::vector<int64_t> chosen = draws.choose(3, 5);
    EXPECT_EQ(std::set<int64_t>(chosen.begin(), chosen.end()).size(), 3u);
    for (const int64_t c : chosen) ++counts[c];
  }
  ASSERT_EQ(counts.size(), 5u);
  for (const auto& [value, count] : counts) EXPECT_NEAR(count, 1800, 120) << value;  // 4 deviations
}

TEST(Draws, WeightsAreChances) {
  int first[3] = {0, 0, 0}, pair = 0;
  for (uint64_t number = 0; number < 6000; ++number) {
    Draws draws({3, 5, 0}, number);
    const std::vector<int64_t> chosen = draws.choose(2, {1, 2, 3});
    ++first[chosen[0]];
    pair += chosen[0] == 2 && chosen[1] == 1;
  }
  EXPECT_NEAR(first[0], 1000, 120);
  EXPECT_NEAR(first[1], 2000, 150);
  EXPECT_NEAR(first[2], 3000, 160);
  EXPECT_NEAR(pair, 2000, 150) << "half of the draws, then two of the three parts left";
}

// ---- each against its definition

TEST(Mqar, AnswersAreThoseOfTheDictionary) {
  std::vector<int64_t> distances;
  for (uint64_t number = 0; number < 200; ++number) {
    const int64_t vocab = 100, pairs = 6;
    const Example e = example_of("mqar vocab=100 length=64 pairs=6", number);
    ASSERT_EQ(e.tokens.size(), 64u);
    std::map<int32_t, int32_t> dictionary;
    std::set<int32_t> values;
    for (int64_t i = 0; i < pairs; ++i) {
      const int32_t key = e.tokens[2 * i], value = e.tokens[2 * i + 1];
      EXPECT_TRUE(key >= 1 && key < vocab / 2) << key;
      EXPECT_TRUE(value >= vocab / 2 && value < vocab) << value;
      dictionary[key] = value;
      values.insert(value);
    }
    EXPECT_EQ(dictionary.size(), 6u) << "no key twice";
    EXPECT_EQ(values.size(), 6u);
    std::set<int32_t> asked;
    for (const int64_t i : labelled(e)) {
      EXPECT_GE(i, 2 * pairs);
      EXPECT_EQ(i % 2, 0);
      ASSERT_TRUE(dictionary.count(e.tokens[i]));
      EXPECT_EQ(e.targets[i], dictionary[e.tokens[i]]);
      asked.insert(e.tokens[i]);
      distances.push_back((i - 2 * pairs) / 2);
    }
    EXPECT_EQ(asked.size(), 6u) << "every key once";
    EXPECT_EQ(labelled(e).size(), 6u);
  }
  // Six places of 26 with chances near 1/n: the first is taken nearly always, the last rarely.
  EXPECT_GT(std::count(distances.begin(), distances.end(), 0), 150);
  EXPECT_LT(std::count(distances.begin(), distances.end(), 25), 60);
}

TEST(Mqar, FillerIsZeroWhereItIsNotRandom) {
  const Example e = example_of("mqar pairs=4 length=64 random_filler=false", 0);
  for (size_t i = 8; i < e.tokens.size(); ++i) EXPECT_EQ(e.tokens[i] == 0, e.targets[i] < 0) << i;
}

TEST(SelectiveCopy, TheMarkersAskForTheSymbolsInOrder) {
  for (uint64_t number = 0; number < 100; ++number) {
    const Example e = example_of("selective_copy length=30 count=5 symbols=9", number);
    ASSERT_EQ(e.tokens.size(), 30u);
    std::vector<int32_t> symbols, answers;
    for (size_t i = 0; i < 30; ++i) {
      EXPECT_EQ(e.tokens[i] == 1, i >= 25) << "markers at the end alone";
      EXPECT_EQ(e.targets[i] >= 0, i >= 25);
      if (e.tokens[i] >= 2) symbols.push_back(e.tokens[i]);
      if (e.targets[i] >= 0) answers.push_back(e.targets[i]);
    }
    EXPECT_EQ(symbols.size(), 5u);
    EXPECT_EQ(answers, symbols);
  }
}

TEST(Induction, WhatFollowedTheTrigger) {
  std::set<int64_t> places;
  for (uint64_t number = 0; number < 200; ++number) {
    const Example e = example_of("induction length=10 symbols=4", number);
    ASSERT_EQ(e.tokens.size(), 10u);
    EXPECT_EQ(std::count(e.tokens.begin(), e.tokens.end(), 0), 2);
    const auto trigger = std::find(e.tokens.begin(), e.tokens.end(), 0) - e.tokens.begin();
    places.insert(trigger);
    EXPECT_EQ(e.tokens.back(), 0);
    EXPECT_EQ(labelled(e), std::vector<int64_t>{9});
    EXPECT_EQ(e.targets[9], e.tokens[trigger + 1]);
    EXPECT_GE(e.targets[9], 1);
  }
  EXPECT_EQ(places.size(), 8u) << "from the first token to the one before the last symbol";
}

// The text, and in it the number of each animal.
struct Read {
  std::string text, answer;
  std::map<std::string, std::string> numbers;
};

Read read_needle(const Example& e) {
  Read r;
  r.text = bytes().decode(e.tokens);
  for (const int64_t i : labelled(e)) r.answer += bytes().decode(std::vector<int32_t>{e.targets[i]});
  const std::string start = "The secret number of the ";
  for (size_t at = r.text.find(start); at != r.text.npos; at = r.text.find(start, at + 1)) {
    const size_t owner = at + start.size(), is = r.text.find(" is", owner);
    const size_t dot = r.text.find('.', is);
    if (dot != r.text.npos && at + 60 < r.text.size())
      r.numbers[r.text.substr(owner, is - owner)] = r.text.substr(is + 4, dot - is - 4);
  }
  return r;
}

TEST(Needle, TheTextSaysTheAnswer) {
  for (uint64_t number = 0; number < 60; ++number) {
    const Example e = example_of("needle length=400 digits=5 needles=3", number);
    ASSERT_EQ(e.tokens.size(), 400u);
    const Read r = read_needle(e);
    EXPECT_EQ(r.numbers.size(), 3u) << r.text;
    const size_t asked = r.text.rfind("number of the ") + 14;
    const std::string owner = r.text.substr(asked, r.text.find(" is", asked) - asked);
    ASSERT_TRUE(r.numbers.count(owner)) << r.text;
    EXPECT_EQ(r.answer, r.numbers.at(owner)) << r.text;
    EXPECT_EQ(r.answer.size(), 5u);
    EXPECT_EQ(labelled(e).back(), 399) << "the last digit is asked for, not shown";
  }
}

TEST(Needle, StandsAtItsDepth) {
  for (const int depth : {0, 25, 50, 100}) {
    const Example e = example_of(text("needle length=600 depth=", depth), 3);
    const Read r = read_needle(e);
    const double first = static_cast<double>(r.text.find("The secret")),
                 rest = static_cast<double>(r.text.rfind("\nThe secret")) - 38;
    EXPECT_NEAR(first / rest, depth / 100.0, 0.02) << r.text;
  }
}

// A second evaluator: a stack of open expressions, over the text of the tokens.
int32_t evaluate(const std::vector<int32_t>& tokens) {
  struct Open {
    int32_t op;
    std::vector<int32_t> values;
  };
  std::vector<Open> stack{{-1, {}}};
  for (const int32_t token : tokens) {
    if (token < 10) {
      stack.back().values.push_back(token);
    } else if (token < 14) {
      stack.push_back({token, {}});
    } else if (token == 14) {
      Open done = stack.back();
      stack.pop_back();
      std::vector<int32_t>& v = done.values;
      int32_t value = 0;
      if (done.op == 10) value = *std::min_element(v.begin(), v.end());
      if (done.op == 11) value = *std::max_element(v.begin(), v.end());
      if (done.op == 12) {  // the number with as many below as above, or half way between two
        std::vector<double> around;
        for (const int32_t x : v) around.push_back(x);
        while (around.size() > 2) {
          around.erase(std::min_element(around.begin(), around.end()));
          around.erase(std::max_element(around.begin(), around.end()));
        }
        value = static_cast<int32_t>((around.front() + around.back()) / 2);
      }
      if (done.op == 13)
        for (const int32_t x : v) value = (value + x) % 10;
      stack.back().values.push_back(value);
    }
  }
  EXPECT_EQ(stack.size(), 1u);
  EXPECT_EQ(stack[0].values.size(), 1u);
  return stack[0].values[0];
}

TEST(ListOps, ValuesAreThoseOfASecondEvaluator) {
  std::set<int32_t> ops;
  size_t longest = 0;
  for (uint64_t number = 0; number < 400; ++number) {
    const Example e = example_of("listops length=80 depth=5 arguments=4 nesting=0.4", number);
    EXPECT_EQ(e.tokens.back(), 15);
    EXPECT_EQ(labelled(e), std::vector<int64_t>{static_cast<int64_t>(e.tokens.size()) - 1});
    EXPECT_EQ(e.targets.back(), evaluate(e.tokens));
    for (const int32_t t : e.tokens)
      if (t >= 10) ops.insert(t);
    longest = std::max(longest, e.tokens.size());
  }
  EXPECT_EQ(ops, (std::set<int32_t>{10, 11, 12, 13, 14, 15}));
  EXPECT_GT(longest, 50u) << "expressions nest";
}

TEST(ListOps, ByHand) {
  EXPECT_EQ(ListOps::value_of(ListOps::median, {7, 1, 4}), 4);
  EXPECT_EQ(ListOps::value_of(ListOps::median, {7, 2, 4, 1}), 3);
  EXPECT_EQ(ListOps::value_of(ListOps::sum, {7, 8}), 5);
  // [MAX 2 9 [MIN 4 7 ] 0 ] =
  EXPECT_EQ(evaluate({11, 2, 9, 10, 4, 7, 14, 0, 14, 15}), 9);
}

TEST(ListOps, SettingsThatHardlyFitStillEnd) {
  const Example e = example_of("listops length=5 depth=20 arguments=50 nesting=1", 0);
  EXPECT_EQ(e.tokens.size(), 5u);
  EXPECT_EQ(e.targets.back(), evaluate(e.tokens));
}

}  // namespace
}  // namespace weft
