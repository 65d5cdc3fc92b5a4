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

// A report is made again and again while runs go on, but nothing else is written over.
void refuse_other_file(const std::string& path) {
  if (!exists(path)) return;
  std::ifstream file(path, std::ios::binary);
  std::string start(std::string(kReportMark).size(), '\0');
  file.read(start.data(), static_cast<std::streamsize>(start.size()));
  if (start != kReportMark)
    throw Error(Exit::cannot_create, "the file exists already and is not a report", path,
                "name another one with --out");
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
  flags.add("--title", title, "TEXT", "heading of the page");
  flags.add("--json", json, "one line, report/1");
  if (!flags.parse(words)) return 0;
  std::vector<RunData> runs;
  std::vector<std::string> seen;
  for (const std::string& argument : flags.arguments())
    for (const std::string& folder : run_folders(argument)) {
      const std::string path = fs::weakly_canonical(folder).string();
      if (std::find(seen.begin(), seen.end(), path) != seen.end()) continue;
      seen.push_back(path);
      runs.push_back(read_run(folder, wall_seconds()));
    }
  refuse_other_file(out);
  const std::string made = iso_time(wall_seconds()).replace(10, 1, " ").substr(0, 16) + " UTC";
  const Comparison all = compare_runs(std::move(runs));
  const std::string stem = fs::path(out).replace_extension().string();
  write_file_atomically(out, report_page(all, title, "made " + made));
  const Words csv{stem + ".csv", stem + "-runs.csv", stem + "-groups.csv"};
  write_file_atomically(csv[0], curves_csv(all));
  write_file_atomically(csv[1], runs_csv(all));
  write_file_atomically(csv[2], groups_csv(all));
  if (json) {
    print_line({{"weft", "report/1"}, {"exit", 0}, {"path", out}, {"csv", csv}, {"runs", described(all)}});
    return 0;
  }
  print(out + "\n");
  for (const std::string& path : csv) print(path + "\n");
  return 0;
}

}  // namespace weft
