// When a claim counts as shown. With left and right the means of at least 3 seeds each, at the best rate of
// each, d how much better left is, and e the standard error of the difference, sqrt(s^2/n + s^2/n):
//
//   better   shown: d > effect and d > 3 e        refuted: d < -effect and d < -3 e
//   equal    shown: d - 3 e > -effect             refuted: d + 3 e < -effect
//
// and not decided in between. Three standard errors are about the 95 % point of Student's t with 4 degrees of
// freedom. `effect` keeps a difference that is certain and tiny from counting.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>

#include "autograd/check.h"
#include "tools/zoo.h"

namespace weft {
namespace {

constexpr int64_t kSeeds = 3;
constexpr double kErrors = 3;

bool lower_is_better(const std::string& metric) { return metric == "bits_per_byte" || metric == "grad_peak"; }

double effect_of(const std::string& metric) {
  if (metric == "bits_per_byte") return 0.02;
  if (metric == "grad_peak") return 1;
  return 0.05;
}

std::string shown_number(const ZooSummary& s) {
  char out[64];
  std::snprintf(out, sizeof out, "%.3f ± %.3f", s.mean, s.deviation);
  return out;
}

ZooVerdict judge(const ZooClaim& claim, int64_t width, const ZooSummary& left, const ZooSummary& right) {
  ZooVerdict v{claim, width, "not decided", ""};
  v.why = text(claim.left, " ", shown_number(left), ", ", claim.right, " ", shown_number(right), " ",
               left.metric, ", ", left.seeds, " and ", right.seeds, " seeds");
  if (std::min(left.seeds, right.seeds) < kSeeds) {
    v.why += text(": fewer than ", kSeeds, " seeds");
    return v;
  }
  const double effect = effect_of(left.metric);
  const double d = lower_is_better(left.metric) ? right.mean - left.mean : left.mean - right.mean;
  const double e = kErrors * std::sqrt(left.deviation * left.deviation / static_cast<double>(left.seeds) +
                                       right.deviation * right.deviation / static_cast<double>(right.seeds));
  if (claim.relation == ZooClaim::Relation::better) {
    if (d > effect && d > e) v.verdict = "shown";
    if (d < -effect && d < -e) v.verdict = "refuted";
  } else {
    if (d - e > -effect) v.verdict = "shown";
    if (d + e < -effect) v.verdict = "refuted";
  }
  return v;
}

}  // namespace

bool summarize(const std::vector<ZooResult>& results, const std::string& task, const std::string& mechanism,
               int64_t width, const std::string& metric, ZooSummary& summary) {
  std::set<double> rates;
  for (const ZooResult& r : results)
    if (r.cell.task == task && r.cell.mechanism == mechanism && r.cell.width == width)
      rates.insert(r.cell.rate);
  if (rates.empty()) return false;
  bool any = false;
  for (const double rate : rates) {
    ZooSummary s;
    std::vector<double> values;
    for (const ZooResult& r : results) {
      if (r.cell.task != task || r.cell.mechanism != mechanism || r.cell.width != width ||
          r.cell.rate != rate)
        continue;
      values.push_back(metric == "grad_peak" ? r.grad_peak : r.value);
      s.metric = metric == "grad_peak" ? metric : r.metric;
      s.chance = r.chance;
      s.state_bytes = r.state_bytes;
      s.diverged += r.diverged;
    }
    s.rate = rate;
    s.seeds = static_cast<int64_t>(values.size());
    for (const double v : values) s.mean += v / static_cast<double>(values.size());
    for (const double v : values) s.deviation += (v - s.mean) * (v - s.mean);
    s.deviation = values.size() > 1 ? std::sqrt(s.deviation / static_cast<double>(values.size() - 1)) : 0;
    const bool more = s.seeds > summary.seeds, fewer = s.seeds < summary.seeds;
    const bool better = lower_is_better(s.metric) ? s.mean < summary.mean : s.mean > summary.mean;
    const bool highest = metric == "grad_peak";  // rates come in rising order
    if (!any || more || (!fewer && (highest || better))) summary = s;
    any = true;
  }
  return any;
}

std::vector<ZooVerdict> judge(const std::vector<ZooResult>& results, const std::vector<ZooClaim>& claims) {
  std::set<int64_t> widths;
  for (const ZooResult& r : results) widths.insert(r.cell.width);
  std::vector<ZooVerdict> verdicts;
  for (const ZooClaim& claim : claims)
    for (const int64_t width : widths) {
      ZooSummary left, right;
      const bool there = summarize(results, claim.task, claim.left, width, claim.metric, left) &&
                         summarize(results, claim.task, claim.right, width, claim.metric, right);
      verdicts.push_back(there ? judge(claim, width, left, right)
                               : ZooVerdict{claim, width, "not decided", "not run"});
    }
  return verdicts;
}

}  // namespace weft
