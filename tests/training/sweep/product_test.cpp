// Values of a sweep, their product, and the names of its runs.

#include "training/sweep/product.h"

#include <gtest/gtest.h>

#include <set>

#include "autograd/check.h"

namespace weft {
namespace {

using Words = std::vector<std::string>;

Words values_of(const std::string& override_) { return sweep_axes({override_})[0].values; }

TEST(Product, ValuesArePartedAtCommasOutsideBracketsAndQuotes) {
  EXPECT_EQ(values_of("optim.lr=1e-3,3e-3"), (Words{"1e-3", "3e-3"}));
  EXPECT_EQ(values_of("model.layers=gla,[lightning*3,softmax],titans_mac*2"),
            (Words{"gla", "[lightning*3,softmax]", "titans_mac*2"}));
  EXPECT_EQ(values_of("model.mechanisms={gla: {chunk: 16, x: [1,2]}},{gla: {chunk: 32}}"),
            (Words{"{gla: {chunk: 16, x: [1,2]}}", "{gla: {chunk: 32}}"}));
  EXPECT_EQ(values_of("sample.prompt=\"Hello, world\",'a,b'"), (Words{"\"Hello, world\"", "'a,b'"}));
  EXPECT_EQ(values_of("sample.prompt=don't,won't"), (Words{"don't", "won't"}));
  EXPECT_EQ(values_of("data.train=[{path: 'a,b', weight: 2}]"), (Words{"[{path: 'a,b', weight: 2}]"}));
  EXPECT_EQ(values_of("sample.prompt="), (Words{""}));
  EXPECT_EQ(values_of("sample.prompt=a=b,c"), (Words{"a=b", "c"}));
}

TEST(Product, RangesOfWholeNumbers) {
  EXPECT_EQ(values_of("seed=1..3"), (Words{"1", "2", "3"}));
  EXPECT_EQ(values_of("seed=7,-1..1,9..9"), (Words{"7", "-1", "0", "1", "9"}));
  EXPECT_EQ(values_of("seed=9223372036854775806..9223372036854775807"),
            (Words{"9223372036854775806", "9223372036854775807"}));
  for (const char* other : {"data.train=../x..txt", "seed=1..", "seed=..3", "seed=1..2..3", "seed=1.5..2"})
    EXPECT_EQ(values_of(other).size(), 1u) << other;
}

TEST(Product, MistakesAreUsageErrors) {
  for (const Words& wrong : std::vector<Words>{{"seed=3..1"},
                                               {"seed=1,,2"},
                                               {"seed=1,"},
                                               {"seed=1,1"},
                                               {"seed=1..3,2"},
                                               {"seed=0..9223372036854775807"},
                                               {"seed=-9223372036854775808..9223372036854775807"},
                                               {"seed=1..1000", "steps=1..1000"},
                                               {"seed=1", "seed=2"},
                                               {"model.layers=[gla,softmax"},
                                               {"model.layers=gla]"},
                                               {"model.layers=[gla}"},
                                               {"sample.prompt=\"a,b"}}) {
    try {
      sweep_axes(wrong);
      ADD_FAILURE() << wrong[0];
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Exit::usage) << wrong[0];
      EXPECT_NE(error.where.find("override"), std::string::npos) << wrong[0];
    }
  }
}

TEST(Product, TheLastKeyChangesFastestAndNamesSayWhatVaries) {
  const auto points = sweep_points(sweep_axes(
      {"model.layers=gla*2,[lightning*3, softmax]", "steps=9", "seed=1..2", "optim.lr=1e-3,3e-3"}));
  ASSERT_EQ(points.size(), 8u);
  EXPECT_EQ(points[0].name, "layers-glax2_seed-1_lr-1e-3");
  EXPECT_EQ(points[0].overrides, (Words{"model.layers=gla*2", "steps=9", "seed=1", "optim.lr=1e-3"}));
  EXPECT_EQ(points[1].name, "layers-glax2_seed-1_lr-3e-3");
  EXPECT_EQ(points[2].name, "layers-glax2_seed-2_lr-1e-3");
  EXPECT_EQ(points[7].name, "layers-lightningx3-softmax_seed-2_lr-3e-3");
  EXPECT_EQ(points[7].overrides,
            (Words{"model.layers=[lightning*3, softmax]", "steps=9", "seed=2", "optim.lr=3e-3"}));
  EXPECT_EQ(sweep_points(sweep_axes({"steps=9"}))[0].name, "run");
  EXPECT_EQ(sweep_points({})[0].overrides, Words{});
}

TEST(Product, NamesAreApartAndFitAFolder) {
  // Keys that end alike keep their sections; values that look alike, a hash that depends on nothing else.
  const auto alike = sweep_points(sweep_axes({"seed=1,2", "sample.seed=1,2", "sample.prompt=a b,a/b,c"}));
  std::set<std::string> names;
  for (const SweepPoint& point : alike) {
    EXPECT_TRUE(names.insert(point.name).second) << point.name;
    EXPECT_NE(point.name.find("sample.seed-"), std::string::npos) << point.name;
    EXPECT_EQ(point.name.find_first_of(" /=,[]{}*\"'"), std::string::npos) << point.name;
  }
  const auto fewer = sweep_points(sweep_axes({"seed=1,2", "sample.seed=1,2", "sample.prompt=a/b,a b"}));
  for (const SweepPoint& point : fewer) EXPECT_EQ(names.count(point.name), 1u) << point.name;

  const std::string much(300, 'x');
  std::set<std::string> cut;
  for (const SweepPoint& point : sweep_points(sweep_axes({"data.train=" + much + "1," + much + "2"}))) {
    EXPECT_LE(point.name.size(), 200u);
    cut.insert(point.name);
  }
  EXPECT_EQ(cut.size(), 2u);
}

}  // namespace
}  // namespace weft
