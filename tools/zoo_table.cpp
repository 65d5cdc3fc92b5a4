#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>

#include "autograd/check.h"
#include "tools/zoo.h"

namespace weft {
namespace {

// In the order in which they first come.
template <class F>
std::vector<std::string> names(const std::vector<ZooResult>& results, F name) {
  std::vector<std::string> all;
  for (const ZooResult& r : results)
    if (std::find(all.begin(), all.end(), name(r)) == all.end()) all.push_back(name(r));
  return all;
}

std::string number(const char* format, double value) {
  char out[48];
  std::snprintf(out, sizeof out, format, value);
  return out;
}

std::string cell_text(const ZooSummary& s) {
  std::string out = number("%.3f", s.mean);
  out += s.seeds > 1 ? number(" ± %.3f", s.deviation) : " (1 seed)";
  if (s.diverged > 0) out += text(", ", s.diverged, " diverged");
  return out;
}

std::string row_text(const std::vector<std::string>& cells) {
  std::string out = "|";
  for (const std::string& cell : cells) out += " " + cell + " |";
  return out + "\n";
}

std::string table(const std::vector<ZooResult>& results, int64_t width) {
  const auto tasks = names(results, [](const ZooResult& r) { return r.cell.task; });
  const auto mechanisms = names(results, [](const ZooResult& r) { return r.cell.mechanism; });
  std::vector<std::string> head{"mechanism", "state bytes a layer"}, line{"---", "---:"},
      chance{"chance", ""};
  for (const std::string& task : tasks) {
    for (const ZooResult& r : results) {
      if (r.cell.task != task) continue;
      head.push_back(task + ", " + r.metric);
      chance.push_back(std::isfinite(r.chance) ? number("%.3f", r.chance) : "");
      break;
    }
    line.push_back("---:");
  }
  std::string out = row_text(head) + row_text(line) + row_text(chance);
  for (const std::string& mechanism : mechanisms) {
    std::vector<std::string> cells{mechanism, ""};
    for (const std::string& task : tasks) {
      ZooSummary s;
      const bool there = summarize(results, task, mechanism, width, "", s);
      if (there && cells[1].empty() && s.state_bytes >= 0) cells[1] = text(s.state_bytes);
      cells.push_back(there ? cell_text(s) : "");
    }
    out += row_text(cells);
  }
  return out;
}

}  // namespace

std::string zoo_report(const std::vector<ZooResult>& results, const std::vector<ZooVerdict>& verdicts,
                       const std::string& size) {
  std::set<int64_t> widths, seeds;
  std::set<double> rates;
  double seconds = 0;
  for (const ZooResult& r : results) {
    widths.insert(r.cell.width);
    seeds.insert(r.cell.seed);
    rates.insert(r.cell.rate);
    seconds += r.seconds;
  }
  std::string out = text("# What each mechanism learned, size ", size, "\n\n");
  out += text(results.size(), " runs, ", seeds.size(), seeds.size() == 1 ? " seed, " : " seeds, ",
              rates.size(), rates.size() == 1 ? " rate, " : " rates, ", number("%.0f", seconds / 60),
              " minutes. ", "Mean ± sample deviation over seeds, at each mechanism's best rate.\n");
  if (size == "cpu") out += "This size is a smoke test that shows directions only.\n";
  for (const int64_t width : widths) out += text("\nWidth ", width, "\n\n") + table(results, width);
  out += "\n## Claims\n\n| claim | of | width | verdict | from |\n| --- | --- | ---: | --- | --- |\n";
  for (const ZooVerdict& v : verdicts)
    out += row_text({v.claim.says, v.claim.paper, text(v.width), v.verdict, v.why});
  out +=
      "\nShown: better by more than the smallest effect that counts (0.05 of a share, 0.02 bits a byte, 1 of "
      "a ratio) and by more\nthan three standard errors of the difference, from 3 seeds or more. Refuted: "
      "worse "
      "by as much. A claim of no loss is shown\nwhere the loss is below that effect even with three standard "
      "errors added, and refuted where it is above that effect even\nwith three standard errors taken "
      "away.\n";
  return out;
}

}  // namespace weft
