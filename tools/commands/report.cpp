// `weft report`: runs laid side by side, on one page.

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "training/checkpoint/files.h"
#include "training/log/clock.h"
#include "training/report/page.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

bool begins_with(const std::string& path, const std::string& start) {
  std::ifstream file(path, std::ios::binary);
  std::string there(start.size(), '\0');
  file.read(there.data(), static_cast<std::streamsize>(there.size()));
  return there == start;
}

// A report is made again and again while runs go on, but nothing else is written over: a page is known by its
// mark, a table by its first column (which others follow depends on the runs).
void refuse_other_files(const Words& paths, const Words& contents) {
  for (size_t i = 0; i < paths.size(); ++i) {
    const std::string start = i == 0 ? kReportMark : contents[i].substr(0, contents[i].find(',') + 1);
    if (exists(paths[i]) && !begins_with(paths[i], start))
      throw Error(Exit::cannot_create, "the file already exists and is not of a report", paths[i],
                  "name another one with --out");
  }
}

Json described(const Comparison& all) {
  Json rows = Json::array();
  for (const ComparedRun& run : all.runs) {
    Json row = {{"run", run.data.folder},
                {"status", name_of(run.data.status)},
                {"mechanism", run.mechanism},
                {"setting", run.setting},
                {"comparable", run.apart.empty()},
                {"why", run.apart.empty() ? Json() : Json(run.apart)},
                {"step", run.data.points.empty() ? Json() : Json(run.data.points.back().step)},
                {"loss", number_or_null(run.loss)},
                {"val_loss", number_or_null(run.val_loss)},
                {"val_bpb", number_or_null(run.val_bpb)}};
    rows.push_back(row);
  }
  return rows;
}

}  // namespace

int run_report(const Words& words) {
  Flags flags(
      "report", "RUN...",
      "Compares runs, finished or still in progress, on one page of HTML that opens offline, and writes\n"
      "its numbers as CSV. RUN is a run folder, or a folder of runs such as a sweep's.");
  std::string out = "report.html", title = "Runs compared";
  bool json = false;
  flags.add("--out", out, "FILE", "the page, by default report.html; the CSV files are written beside it");
  flags.add("--title", title, "TEXT", "heading of the page", {.may_be_empty = true});
  flags.add("--json", json, "one line of JSON, report/1");
  if (!flags.parse(words)) return 0;
  const std::string stem = fs::path(out).replace_extension().string();
  const Words csv{stem + ".csv", stem + "-runs.csv", stem + "-groups.csv"};
  if (out == csv[0])
    refuse_flag("--out", out, "name the page, as report.html: the tables beside it end in .csv");
  std::vector<RunData> runs;
  std::vector<std::string> seen;
  for (const std::string& argument : flags.arguments())
    for (const std::string& folder : run_folders(argument)) {
      const std::string path = fs::weakly_canonical(folder).string();
      if (std::find(seen.begin(), seen.end(), path) != seen.end()) continue;
      seen.push_back(path);
      runs.push_back(read_run(folder, wall_seconds()));
    }
  const std::string made = iso_time(wall_seconds()).replace(10, 1, " ").substr(0, 16) + " UTC";
  const Comparison all = compare_runs(std::move(runs));
  const Words contents{report_page(all, title, "made " + made), curves_csv(all), runs_csv(all),
                       groups_csv(all)};
  const Words paths{out, csv[0], csv[1], csv[2]};
  refuse_other_files(paths, contents);
  for (size_t i = 0; i < paths.size(); ++i) write_file_atomically(paths[i], contents[i]);
  if (json) {
    print_line({{"weft", "report/1"}, {"exit", 0}, {"path", out}, {"csv", csv}, {"runs", described(all)}});
    return 0;
  }
  print(out + "\n");
  for (const std::string& path : csv) print(path + "\n");
  return 0;
}

}  // namespace weft
