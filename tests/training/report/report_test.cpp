// `weft report` on real run folders: finished, going on, broken.

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/training/report/well_formed.h"
#include "tests/training/tiny_run.h"
#include "training/log/clock.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// Rows of a CSV file without quotes, by column.
std::vector<std::map<std::string, std::string>> rows_of(const std::string& csv) {
  std::istringstream lines(csv);
  std::vector<std::string> names;
  std::vector<std::map<std::string, std::string>> rows;
  for (std::string line; std::getline(lines, line);) {
    std::vector<std::string> cells{""};
    bool quoted = false;
    for (const char c : line) {
      if (c == '"')
        quoted = !quoted;
      else if (c == ',' && !quoted)
        cells.emplace_back();
      else
        cells.back() += c;
    }
    if (names.empty()) {
      names = cells;
      continue;
    }
    EXPECT_EQ(cells.size(), names.size()) << line;
    rows.emplace_back();
    for (size_t i = 0; i < names.size(); ++i) rows.back()[names[i]] = cells.at(i);
  }
  return rows;
}

// One finished run of the shape that the other tests copy and damage.
const TinyRun& trained() {
  static const TinyRun tiny;
  static const Ran ran = tiny.train({"steps=6", "eval.every=2", "checkpoint.every=0"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  return tiny;
}

class Report : public testing::Test {
 protected:
  Report() { fs::copy(trained().run(), run("done"), fs::copy_options::recursive); }

  std::string run(const std::string& name) {
    fs::create_directories(folder_ / "runs");
    return folder_ / ("runs/" + name);
  }
  void copy(const std::string& name) { fs::copy(trained().run(), run(name), fs::copy_options::recursive); }
  void replace(const std::string& file, const std::string& from, const std::string& to) {
    std::string content = folder_.read(file);
    const size_t at = content.find(from);
    ASSERT_NE(at, std::string::npos) << file << from;
    folder_.write(file, content.replace(at, from.size(), to));
  }
  // The text is where the recipe says, so that FLOPs can be planned.
  Ran report(Words words) {
    folder_.write("stories.txt", trained().folder().read("stories.txt"));
    words.insert(words.begin(), "report");
    return run_weft(words, {.folder = folder_.path()});
  }

  TestFolder folder_;
};

TEST_F(Report, NumbersAreThoseOfTheRun) {
  const Ran ran = report({"runs/done", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json result = ran.json();
  EXPECT_EQ(result["weft"], "report/1");
  EXPECT_EQ(result["path"], "report.html");
  const auto rows = rows_of(folder_.read("report.csv"));
  const std::vector<Json> steps = trained().steps();
  ASSERT_EQ(rows.size(), steps.size());
  const Json plan = trained().weft({"validate", "tiny.yaml", "--json"}).json();
  double seconds = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const char* key : {"step", "tokens", "loss", "grad_norm", "lr", "tokens_per_s", "val_loss",
                            "val_bpb", "val_accuracy", "val_exact"}) {
      const std::string& cell = rows[i].at(key);
      const bool known = steps[i].contains(key) && !steps[i][key].is_null();
      EXPECT_EQ(cell.empty(), !known) << key;
      if (known) {
        EXPECT_EQ(std::stod(cell), steps[i][key].get<double>()) << key;
      }
    }
    seconds += steps[i]["step_s"].get<double>();
    EXPECT_NEAR(std::stod(rows[i].at("hours")), seconds / 3600, 1e-12);
    EXPECT_EQ(std::stod(rows[i].at("flops")),
              plan["flops_per_token"].get<double>() * steps[i]["tokens"].get<double>());
  }
  EXPECT_FALSE(rows[1].at("val_loss").empty());
  const auto runs = rows_of(folder_.read("report-runs.csv"));
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].at("mechanism"), "lightning, softmax");
  EXPECT_EQ(runs[0].at("status"), "done");
  EXPECT_EQ(runs[0].at("comparable"), "yes");
  EXPECT_EQ(std::stod(runs[0].at("val_loss")), steps.back()["val_loss"].get<double>());
  EXPECT_EQ(std::stod(runs[0].at("parameters")), plan["parameters"].get<double>());
  const auto groups = rows_of(folder_.read("report-groups.csv"));
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(std::stod(groups[0].at("val_loss_mean")), steps.back()["val_loss"].get<double>());
  EXPECT_EQ(groups[0].at("val_loss_deviation"), "");
}

TEST_F(Report, OfATask) {
  folder_.write(
      "task.yaml",
      "data: {task: mqar length=32 pairs=2}\nsteps: 2\nbatch_tokens: 64\ncontext: 32\nprecision: f32\n"
      "model: {layers: [linear], width: 16, heads: 2}\neval: {every: 1, batches: 1}\n");
  const Ran sweep =
      run_weft({"sweep", "task.yaml", "data.task=mqar length=32 pairs=2,mqar length=32 pairs=4", "--json"},
               {.folder = folder_.path()});
  ASSERT_EQ(sweep.code, 0) << sweep.err;
  const Json rows = report({"runs/task-sweep", "--json"}).json()["runs"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["comparable"], true) << rows;
  EXPECT_NE(rows[1]["why"].get<std::string>().find("data.task mqar"), std::string::npos) << rows;
  const auto points = rows_of(folder_.read("report.csv"));
  ASSERT_EQ(points.size(), 4u);
  for (const auto& point : points) EXPECT_FALSE(point.at("val_accuracy").empty());
  const std::string page = folder_.read("report.html");
  EXPECT_NE(page.find("Validation accuracy"), std::string::npos);
  EXPECT_EQ(page.find("bits a byte</th>"), std::string::npos) << "nobody measured them";
  EXPECT_EQ(what_is_malformed(page), "");
}

TEST_F(Report, ThePageIsWholeAndWellFormed) {
  copy("other");
  replace("runs/other/recipe.yaml", "seed: 1", "seed: 2");
  ASSERT_EQ(report({"runs", "--out", "here.html", "--title", "A & B"}).out,
            "here.html\nhere.csv\nhere-runs.csv\nhere-groups.csv\n");
  const std::string page = folder_.read("here.html");
  EXPECT_EQ(what_is_malformed(page), "");
  for (const char* part : {"<h1>A &amp; B</h1>", "Best by mechanism", "by-tokens", "by-flops", "by-hours",
                           "Once ", "2 runs, 2 done", "hostname", "whole recipe of", "lightning, softmax"})
    EXPECT_NE(page.find(part), std::string::npos) << part;
  EXPECT_LT(page.size(), 200'000u);
  // A parser that is not ours, where there is one.
  const std::string python = "python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' ";
  if (std::system("python3 -c 'import xml.dom.minidom' 2>/dev/null") == 0) {
    EXPECT_EQ(std::system((python + (folder_ / "here.html")).c_str()), 0);
  }
}

TEST_F(Report, ARunThatGoesOn) {
  copy("on");
  replace("runs/on/recipe.yaml", "steps: 6", "steps: 60");
  std::string lines = folder_.read("runs/on/metrics.jsonl");
  const std::string half = R"({"step":7,"tokens":1792,"loss":4.)";
  folder_.write("runs/on/metrics.jsonl", lines + half);
  const Json result = report({"runs/on", "runs/done", "--json"}).json();
  EXPECT_EQ(result["runs"][0]["step"], 6) << "the half line is none";
  EXPECT_EQ(result["runs"][0]["status"], "running") << "written just now";
  EXPECT_EQ(result["runs"][0]["comparable"], true) << "of two questions asked once the first counts";
  EXPECT_EQ(result["runs"][1]["comparable"], false);
  EXPECT_EQ(result["runs"][1]["why"], "tokens 1,536, not 15,360");
  const std::string page = folder_.read("report.html");
  EXPECT_NE(page.find("No comparable run has finished yet"), std::string::npos);
  EXPECT_EQ(page.find("damaged"), std::string::npos);

  // The same file an hour old.
  std::string old;
  for (Json step : trained().steps("tiny")) {
    step["time"] = wall_seconds() - 3600;
    old += step.dump() + "\n";
  }
  folder_.write("runs/on/metrics.jsonl", old);
  EXPECT_EQ(report({"runs/on", "--json"}).json()["runs"][0]["status"], "stopped");
}

// Steps that changed no weight are no end; those that a rewind took back do not count.
TEST_F(Report, ARunThatEndsInRefusedStepsIsNotDone) {
  copy("refused");
  for (const bool again : {false, true}) {
    std::string lines;
    for (Json step : trained().steps("tiny")) {
      step["time"] = wall_seconds() - 3600;
      if (step["step"] >= 4) lines += Json{{"event", "skip"}, {"step", step["step"]}}.dump() + "\n";
      lines += step.dump() + "\n";
    }
    if (again) {
      lines += Json{{"event", "rewind"}, {"step", 3}}.dump() + "\n";
      for (const Json& step : trained().steps("tiny"))
        if (step["step"] > 3) lines += step.dump() + "\n";
    }
    folder_.write("runs/refused/metrics.jsonl", lines);
    const Json row = report({"runs/refused", "--json"}).json()["runs"][0];
    EXPECT_EQ(row["status"], again ? "done" : "failed") << row;
  }
}

// Losses over other amounts of held-out text are not compared, and what changes no result is no setting.
TEST_F(Report, WhatIsComparableAndWhatIsASetting) {
  copy("more");
  replace("runs/more/recipe.yaml", "  batches: ", "  batches: 1");
  copy("graphs");
  replace("runs/graphs/recipe.yaml", "cuda_graphs: 32", "cuda_graphs: 0");
  const Json rows = report({"runs/done", "runs/graphs", "runs/more", "--json"}).json()["runs"];
  EXPECT_EQ(rows[1]["comparable"], true) << rows;
  EXPECT_EQ(rows[1]["setting"], rows[0]["setting"]);
  EXPECT_EQ(rows[2]["comparable"], false);
  EXPECT_NE(rows[2]["why"].get<std::string>().find("validation tokens"), std::string::npos) << rows;
}

TEST_F(Report, BrokenFoldersAreShownAsSuch) {
  copy("no-recipe");
  fs::remove(run("no-recipe") + "/recipe.yaml");
  copy("no-metrics");
  fs::remove(run("no-metrics") + "/metrics.jsonl");
  const std::string recipe = run("no-metrics") + "/recipe.yaml";
  EXPECT_EQ(report({"runs/no-metrics", "--json"}).json()["runs"][0]["status"], "running")
      << "it has just begun";
  fs::last_write_time(recipe, fs::last_write_time(recipe) - std::chrono::hours(1));
  copy("damaged");
  folder_.write("runs/damaged/recipe.yaml", "steps: [1\n");
  folder_.write("runs/damaged/environment.json", "{");
  fs::remove(run("damaged") + "/samples.txt");
  folder_.write("runs/damaged/metrics.jsonl",
                "\x01\xff\n[]\n{\"step\":1,\"tokens\":\"x\"}\n{\"step\":1,\"tokens\":256,\"loss\":null}\n" +
                    folder_.read("runs/damaged/metrics.jsonl"));
  const Ran ran = report({"runs", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const Json rows = ran.json()["runs"];
  ASSERT_EQ(rows.size(), 4u);
  for (const Json& row : rows) {
    const bool good = row["run"] == "runs/done";
    EXPECT_EQ(row["status"], good ? "done" : "broken") << row;
    EXPECT_EQ(row["comparable"], good || row["run"] == "runs/no-metrics") << row;
  }
  EXPECT_EQ(rows[0]["run"], "runs/damaged");
  EXPECT_EQ(rows[0]["step"], 6);
  const std::string page = folder_.read("report.html");
  EXPECT_EQ(what_is_malformed(page), "");
  for (const char* note :
       {"damaged: 3 lines of metrics.jsonl are damaged", "no-recipe: recipe.yaml is missing",
        "no-metrics: metrics.jsonl is missing", "damaged: environment.json is damaged"})
    EXPECT_NE(page.find(note), std::string::npos) << note;
}

TEST_F(Report, WritesOverReportsOnly) {
  EXPECT_EQ(report({"runs/done"}).code, 0);
  EXPECT_EQ(report({"runs/done"}).code, 0);
  folder_.write("report.html", "<html>mine</html>");
  EXPECT_EQ(report({"runs/done"}).code, 73);
  EXPECT_EQ(folder_.read("report.html"), "<html>mine</html>");
  EXPECT_EQ(report({"runs/missing"}).code, 66);
  fs::create_directory(folder_ / "empty");
  EXPECT_EQ(report({"empty"}).code, 66);
  EXPECT_EQ(report({}).code, 64);
  EXPECT_EQ(report({"runs/done", "--out", "no/such/folder/x.html"}).code, 73);
}

TEST_F(Report, WritesOverItsOwnTablesOnly) {
  for (const char* table : {"mine.csv", "mine-runs.csv", "mine-groups.csv"}) {
    folder_.write(table, "name,measured\n");
    EXPECT_EQ(report({"runs/done", "--out", "mine.html"}).code, 73) << table;
    EXPECT_EQ(folder_.read(table), "name,measured\n") << table;
    EXPECT_FALSE(fs::exists(folder_ / "mine.html")) << "nothing beside it";
    fs::remove(folder_ / table);
  }
  EXPECT_EQ(report({"runs/done", "--out", "mine.html"}).code, 0);
  fs::remove(folder_ / "mine.html");
  EXPECT_EQ(report({"runs/done", "--out", "mine.html"}).code, 0)
      << "tables of a report that has lost its page";
  folder_.write("mine-groups.csv", "name,measured\n");
  EXPECT_EQ(report({"runs/done", "--out", "mine.html"}).code, 73) << "beside a page of ours too";
  EXPECT_EQ(report({"runs/done", "--out", "page.csv"}).code, 64) << "a table would take the page's place";
  EXPECT_FALSE(fs::exists(folder_ / "page.csv"));
}

}  // namespace
}  // namespace weft
