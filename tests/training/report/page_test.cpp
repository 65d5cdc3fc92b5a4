// Comparing runs and drawing them, from runs made by hand.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/training/report/well_formed.h"
#include "training/recipe/load.h"
#include "training/report/chart.h"
#include "training/report/page.h"
#include "training/report/tables.h"

namespace weft {
namespace {

using Words = std::vector<std::string>;

RunData made(const std::string& name, const Words& overrides, double val_loss, int64_t steps = 10) {
  RunData run;
  run.folder = "runs/" + name;
  run.name = name;
  Words all{"data.train=missing.txt", "steps=10",       "batch_tokens=64", "context=32",
            "precision=f32",          "model.width=16", "model.heads=2",   "run=runs/" + name};
  all.insert(all.end(), overrides.begin(), overrides.end());
  run.recipe = parse_recipe("", "r.yaml", all);
  for (int64_t step = 1; step <= steps; ++step) {
    RunPoint point;
    point.step = step;
    point.tokens = 64 * step;
    point.hours = 0.01 * static_cast<double>(step);
    point.loss = 5 - 0.1 * static_cast<double>(step);
    if (step == steps) point.val_loss = val_loss, point.val_bpb = val_loss / 2;
    run.points.push_back(point);
  }
  run.status = steps == 10 ? RunStatus::done : RunStatus::stopped;
  return run;
}

TEST(ShortPattern, SaysWhatRepeats) {
  EXPECT_EQ(short_pattern({"a", "a", "a"}), "a*3");
  EXPECT_EQ(short_pattern({"a", "b", "a", "b"}), "(a, b)*2");
  EXPECT_EQ(short_pattern({"a", "a", "b", "a", "a", "b"}), "(a*2, b)*2");
  EXPECT_EQ(short_pattern({"a", "a", "b"}), "a*2, b");
  EXPECT_EQ(short_pattern({"a"}), "a");
}

TEST(Compare, MeanAndSpreadOverSeeds) {
  const Comparison all =
      compare_runs({made("a1", {"model.layers=linear*2", "seed=1", "optim.lr=1e-3"}, 2.0),
                    made("a2", {"model.layers=linear*2", "seed=2", "optim.lr=1e-3"}, 2.2),
                    made("a3", {"model.layers=linear*2", "seed=1", "optim.lr=3e-3"}, 1.5),
                    made("b1", {"model.layers=softmax*2", "seed=1", "optim.lr=1e-3"}, 1.0),
                    made("b2", {"model.layers=softmax*2", "seed=2", "optim.lr=1e-3"}, 9.0, 4)});
  EXPECT_EQ(all.keys, (Words{"model.layers", "optim.lr", "seed"}));
  ASSERT_EQ(all.groups.size(), 3u);
  EXPECT_EQ(all.groups[0].mechanism, "linear*2");
  EXPECT_EQ(all.groups[0].setting, "optim.lr 0.001");
  const Spread spread = spread_of(all, all.groups[0], &ComparedRun::val_loss);
  EXPECT_DOUBLE_EQ(spread.mean, 2.1);
  EXPECT_NEAR(spread.deviation, 0.2 / std::sqrt(2), 1e-12);
  EXPECT_TRUE(std::isnan(spread_of(all, all.groups[1], &ComparedRun::val_loss).deviation))
      << "one run has no spread";
  // Of each mechanism the best setting, the best first; a run that is not done counts in neither.
  EXPECT_EQ(all.best, (std::vector<size_t>{2, 1}));
  EXPECT_EQ(all.groups[2].counted, std::vector<size_t>{3});
  EXPECT_DOUBLE_EQ(spread_of(all, all.groups[2], &ComparedRun::val_loss).mean, 1.0);
  EXPECT_GT(all.runs[0].flops_per_token, 0);
  EXPECT_EQ(all.runs[0].parameters, all.runs[2].parameters);
}

TEST(Compare, ASizeThatFollowsFromOthersIsANumber) {
  const Comparison all = compare_runs({made("a", {}, 1), made("b", {"model.ffn=80"}, 1)});
  EXPECT_EQ(all.runs[0].setting, "model.ffn 64") << "8/3 of the width, to a multiple of 64";
  EXPECT_EQ(all.runs[1].setting, "model.ffn 80");
}

TEST(Compare, TrainingLossIsThatOfTheLastTwentieth) {
  const Comparison all = compare_runs({made("a", {}, 1, 40), made("b", {}, 1)});
  EXPECT_NEAR(all.runs[0].loss, 5 - 0.1 * 39.5, 1e-12);
  EXPECT_NEAR(all.runs[1].loss, 4, 1e-12) << "one step at least";
}

TEST(Compare, OtherDataTokensOrContextAreMarked) {
  const Comparison all = compare_runs({made("odd", {"context=64"}, 1), made("a", {}, 1),
                                       made("b", {"optim.lr=1e-2"}, 1), made("long", {"steps=20"}, 1),
                                       made("text", {"data.train=other.txt", "data.val=0.1"}, 1)});
  EXPECT_EQ(all.runs[0].apart, "context 64, not 32") << "most count, not the first";
  EXPECT_EQ(all.runs[1].apart, "");
  EXPECT_EQ(all.runs[2].apart, "");
  EXPECT_EQ(all.runs[3].apart, "tokens 1,280, not 640");
  EXPECT_NE(all.runs[4].apart.find("data.train [other.txt], not [missing.txt]"), std::string::npos)
      << all.runs[4].apart;
  EXPECT_NE(all.runs[4].apart.find("data.val"), std::string::npos);
  for (const size_t g : all.best)
    for (const size_t run : all.groups[g].counted) EXPECT_TRUE(run == 1 || run == 2) << run;
  const std::string page = report_page(all, "t", "now");
  EXPECT_NE(page.find("not comparable: context 64, not 32"), std::string::npos);
  EXPECT_NE(page.find("dotted"), std::string::npos);
}

TEST(Page, IsWellFormedWhateverTheRunsSay) {
  const std::string bad = "<script>alert(\"x\")</script> & 'b' ]]> \x01\xff é";
  RunData run = made("<b>&\"'", {"sample.prompt=<i>&"}, 1);
  run.sample = bad;
  run.sample_step = 10;
  run.environment = {{"host<name>", bad}};
  run.problems = {bad};
  RunData nothing;
  nothing.name = "broken & empty";
  nothing.problems = {"no <recipe>"};
  const std::string page = report_page(compare_runs({run, nothing, made("plain", {}, 2)}), bad, "now");
  EXPECT_EQ(what_is_malformed(page), "");
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_EQ(page.find("<b>"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;alert"), std::string::npos);
  EXPECT_NE(page.find("é"), std::string::npos);
  EXPECT_EQ(what_is_malformed(report_page(compare_runs({nothing}), "t", "now")), "");
}

// The only addresses in the page name formats; nothing is fetched.
TEST(Page, AsksNothingOfAnyone) {
  std::string page = report_page(compare_runs({made("a", {}, 1), made("b", {"seed=2"}, 1)}), "t", "now");
  for (const std::string format :
       {"xmlns=\"http://www.w3.org/1999/xhtml\"", "xmlns=\"http://www.w3.org/2000/svg\""})
    for (size_t at; (at = page.find(format)) != std::string::npos;) page.erase(at, format.size());
  for (const char* word :
       {"http:", "https:", "//", "src=", "url(h", "@import", "<script", "<iframe", "onclick", "onload"})
    EXPECT_EQ(page.find(word), std::string::npos) << word;
  size_t links = 0;
  for (size_t at = 0; (at = page.find("href=", at)) != std::string::npos; ++at, ++links)
    EXPECT_EQ(page.compare(at, 12, "href=\"data:,"), 0);
  EXPECT_EQ(links, 1u);
}

TEST(WellFormed, IsNoRubberStamp) {
  const std::string head = "<!DOCTYPE html>\n";
  EXPECT_EQ(what_is_malformed(head + "<html a=\"b\"><br/>x &amp; y</html>\n"), "");
  for (const char* wrong : {"<html>", "<html></p></html>", "<html>a & b</html>", "<html>1 < 2</html>",
                            "<html a=b></html>", "<html><br></html>", "<html a=\"<\"></html>",
                            "<html></html>x", "<html><p id=\"a\"/><p id=\"a\"/></html>"})
    EXPECT_NE(what_is_malformed(head + wrong), "") << wrong;
}

TEST(Chart, SmoothsWithoutBiasAndDrawsGaps) {
  const std::vector<double> even = smoothed(std::vector<double>(100, 3.0));
  for (const double y : even) EXPECT_DOUBLE_EQ(y, 3);
  EXPECT_EQ(smoothed({9, 5, 2, 1}), (std::vector<double>{9, 5, 2, 1})) << "a short run ends where it ended";
  std::vector<double> steps(150, 1);
  steps[120] = NAN;
  steps[121] = 5;
  steps = smoothed(steps);
  EXPECT_TRUE(std::isnan(steps[120]));
  EXPECT_GT(steps[121], 1);
  EXPECT_LT(steps[121], 5);

  Chart chart{"a", "t", "tokens", 1, {}};
  EXPECT_NE(svg(chart).find("nothing to draw"), std::string::npos);
  Curve curve;
  curve.x = {1, 2, 3, 4, 5};
  curve.y = {4, 3, NAN, 2, 1};
  chart.curves.push_back(curve);
  const std::string picture = svg(chart);
  const size_t line = picture.find("class=\"line c0\" d=\"M");
  ASSERT_NE(line, std::string::npos);
  const std::string path = picture.substr(line + 18, picture.find('"', line + 20) - line - 18);
  EXPECT_EQ(std::count(path.begin(), path.end(), 'M'), 2) << path;
  EXPECT_EQ(std::count(path.begin(), path.end(), 'L'), 2) << path;
}

TEST(Chart, MarksOfASinglePointAreShort) {
  for (const double y : {0.02898, 5.5, 0.0}) {
    Chart chart{"a", "t", "tokens", 1, {}};
    Curve curve;
    curve.x = {1000};
    curve.y = {y};
    chart.curves.push_back(curve);
    std::string picture = svg(chart);
    const std::string mark = "<text class=\"left\"";
    EXPECT_NE(picture.find(mark), std::string::npos);
    for (size_t at = picture.find(mark); at != std::string::npos; at = picture.find(mark, at + 1)) {
      const size_t begin = picture.find('>', at) + 1;
      EXPECT_LE(picture.find('<', begin) - begin, 6u) << picture.substr(begin, 12) << " beside " << y;
    }
  }
}

TEST(Chart, ShowsAllOfAnAccuracy) {
  Chart chart{"a", "t", "tokens", 1, {}, true};
  for (const double top : {0.01, 0.01, 1.0}) {  // one run learns it
    Curve curve;
    curve.x = {1, 2, 3};
    curve.y = {0, top / 2, top};
    chart.curves.push_back(curve);
  }
  const std::string picture = svg(chart);
  for (const char* mark : {">0.0<", ">1.0<"}) EXPECT_NE(picture.find(mark), std::string::npos) << picture;
  EXPECT_EQ(picture.find(">-0"), std::string::npos);
  chart.whole = false;
  EXPECT_EQ(svg(chart).find(">1.0<"), std::string::npos);
}

// However long a run is, its picture stays small, and its extremes stay visible.
TEST(Chart, ThinsLongRuns) {
  Curve curve;
  for (int i = 1; i <= 100'000; ++i) {
    curve.x.push_back(i);
    curve.faint_y.push_back(i == 50'000 ? 9.0 : 1.0 + (i % 2));
  }
  curve.y = smoothed(curve.faint_y);
  const Chart chart{"a", "t", "tokens", 1, {curve}};
  EXPECT_LT(svg(chart).size(), 20'000u);
  EXPECT_GT(svg(chart).size(), 4'000u);
}

TEST(Tables, NumbersForPeopleAndForPrograms) {
  EXPECT_EQ(with_prefix(0), "0");
  EXPECT_EQ(with_prefix(999), "999");
  EXPECT_EQ(with_prefix(999.6), "1 k");
  EXPECT_EQ(with_prefix(12345), "12.3 k");
  EXPECT_EQ(with_prefix(4.56e15), "4.56 P");
  EXPECT_EQ(csv_number(0.1), "0.1");
  EXPECT_EQ(csv_number(NAN), "");
  EXPECT_EQ(csv_field("a,\"b\"\nc"), "\"a,\"\"b\"\"\nc\"");
  const Table table{{{"n", "n", Shown::fixed}, {"t", "t"}}, {{1.0 / 3, "x,y"}, {NAN, "<"}}};
  EXPECT_EQ(csv(table), "n,t\n0.3333333333333333,\"x,y\"\n,<\n");
  EXPECT_NE(html_table(table).find("<td class=\"number\">0.3333</td><td>x,y</td>"), std::string::npos);
  EXPECT_NE(html_table(table).find("<td class=\"number\">–</td><td>&lt;</td>"), std::string::npos);
}

}  // namespace
}  // namespace weft
