#include "training/report/tables.h"

#include <algorithm>
#include <map>

#include "autograd/check.h"
#include "training/report/page.h"

namespace weft {
namespace {

struct TableColumn {
  const char *title, *name;
  double ComparedRun::*number;
};
constexpr TableColumn kTableColumns[] = {{"validation loss", "val_loss", &ComparedRun::val_loss},
                                         {"bits a byte", "val_bpb", &ComparedRun::val_bpb},
                                         {"accuracy", "val_accuracy", &ComparedRun::val_accuracy},
                                         {"exact", "val_exact", &ComparedRun::val_exact},
                                         {"training loss", "loss", &ComparedRun::loss}};

// What no run has measured stands in the CSV file alone.
std::string title_of(const TableColumn& m, const Comparison& all) {
  return measured(all, m.number) ? m.title : "";
}

// Values with the runs that have them, in the order in which they come.
struct Holders {
  std::string value;
  std::vector<std::string> runs;
};

void note(std::vector<Holders>& all, const std::string& value, const std::string& run) {
  const auto same = std::find_if(all.begin(), all.end(), [&](const Holders& h) { return h.value == value; });
  if (same == all.end())
    all.push_back({value, {run}});
  else
    same->runs.push_back(run);
}

// Few names, or how many there are: which run has which value is in the table of runs.
std::string holders(const std::vector<std::string>& runs, const Comparison& all) {
  if (runs.size() == all.runs.size()) return "all";
  if (runs.size() > 3) return text(runs.size(), " of ", all.runs.size());
  std::string out;
  for (const std::string& run : runs) out += (out.empty() ? "" : ", ") + run;
  return out;
}

}  // namespace

Table runs_table(const Comparison& all) {
  Table table;
  table.columns = {{"run", "run"}, {"mechanism", "mechanism"}};
  for (const std::string& key : all.keys)
    if (key != "model.layers") table.columns.push_back({key, key});
  for (const Column& column : std::vector<Column>{{"", "status"},
                                                  {"", "step", Shown::whole},
                                                  {"", "steps", Shown::whole},
                                                  {"status", ""},
                                                  {"comparable", "comparable"},
                                                  {"tokens", "tokens", Shown::short_},
                                                  {"FLOPs", "flops", Shown::short_},
                                                  {"time", "hours", Shown::time},
                                                  {"tokens/s", "tokens_per_s", Shown::short_},
                                                  {"parameters", "parameters", Shown::short_}})
    table.columns.push_back(column);
  for (const TableColumn& m : kTableColumns)
    table.columns.push_back({title_of(m, all), m.name, Shown::fixed});
  for (const ComparedRun& run : all.runs) {
    std::vector<Cell> row{run.data.name, run.mechanism};
    for (size_t k = 0; k < all.keys.size(); ++k)
      if (all.keys[k] != "model.layers") row.emplace_back(run.values[k]);
    const RunPoint none{-1, -1, NAN};
    const RunPoint& last = run.data.points.empty() ? none : run.data.points.back();
    const auto known = [](int64_t n) { return n < 0 ? NAN : static_cast<double>(n); };
    const std::string status = name_of(run.data.status);
    const bool part = run.data.recipe && last.step >= 0 && run.data.status != RunStatus::done;
    row.emplace_back(status);
    row.emplace_back(known(last.step));
    row.emplace_back(run.data.recipe ? known(run.data.recipe->steps) : NAN);
    row.emplace_back(part ? text(status, ", ", last.step, " of ", run.data.recipe->steps) : status);
    row.emplace_back(run.apart.empty() ? "yes" : "not comparable: " + run.apart);
    for (const double number :
         {known(last.tokens), known(last.tokens) * run.flops_per_token, last.hours,
          last.hours > 0 ? known(last.tokens) / last.hours / 3600 : NAN, run.parameters})
      row.emplace_back(number);
    for (const TableColumn& m : kTableColumns) row.emplace_back(run.*m.number);
    table.rows.push_back(row);
  }
  return table;
}

Table groups_table(const Comparison& all, const std::vector<size_t>& groups) {
  Table table;
  table.columns = {{"mechanism", "mechanism"},
                   {"setting", "setting"},
                   {"runs", ""},
                   {"", "runs", Shown::whole},
                   {"", "all_runs", Shown::whole}};
  for (const TableColumn& m : kTableColumns) {
    const std::string title = title_of(m, all), name = m.name;
    table.columns.push_back({title, name + "_mean", Shown::fixed});
    table.columns.push_back({title.empty() ? "" : "±", name + "_deviation", Shown::fixed});
  }
  table.columns.push_back({"parameters", "parameters", Shown::short_});
  table.columns.push_back({"FLOPs a token", "flops_per_token", Shown::short_});
  for (const size_t g : groups) {
    const RunGroup& group = all.groups[g];
    const size_t counted = group.counted.size(), runs = group.runs.size();
    std::vector<Cell> row{group.mechanism, group.setting,
                          counted == runs ? text(runs) : text(counted, " of ", runs),
                          static_cast<double>(counted), static_cast<double>(runs)};
    for (const TableColumn& m : kTableColumns) {
      const Spread spread = spread_of(all, group, m.number);
      row.emplace_back(spread.mean);
      row.emplace_back(spread.deviation);
    }
    const ComparedRun& first = all.runs[group.runs[0]];
    row.emplace_back(first.parameters);
    row.emplace_back(first.flops_per_token);
    table.rows.push_back(row);
  }
  return table;
}

Table environment_table(const Comparison& all) {
  Table table{{{"key", "key"}, {"value", "value"}, {"runs", "runs"}}, {}};
  std::vector<std::string> keys;
  for (const ComparedRun& run : all.runs)
    for (const auto& [key, value] : run.data.environment)
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  // What all share first, what each has of its own last.
  std::multimap<size_t, std::pair<std::string, std::vector<Holders>>> by_count;
  for (const std::string& key : keys) {
    std::vector<Holders> values;
    for (const ComparedRun& run : all.runs)
      for (const auto& [own, value] : run.data.environment)
        if (own == key) note(values, value, run.data.name);
    by_count.emplace(values.size(), std::pair{key, values});
  }
  for (const auto& [count, of_key] : by_count)
    for (const Holders& h : of_key.second)
      table.rows.push_back({&h == of_key.second.data() ? of_key.first : "", h.value, holders(h.runs, all)});
  return table;
}

Table differences_table(const Comparison& all) {
  Table table{{{"key", "key"}, {"value", "value"}, {"runs", "runs"}}, {}};
  for (size_t k = 0; k < all.keys.size(); ++k) {
    std::vector<Holders> values;
    for (const ComparedRun& run : all.runs)
      if (run.data.recipe) note(values, run.values[k], run.data.name);
    for (size_t i = 0; i < values.size(); ++i)
      table.rows.push_back({i == 0 ? all.keys[k] : "", values[i].value, holders(values[i].runs, all)});
  }
  return table;
}

std::string runs_csv(const Comparison& all) { return csv(runs_table(all)); }

std::string groups_csv(const Comparison& all) {
  std::vector<size_t> groups(all.groups.size());
  for (size_t g = 0; g < groups.size(); ++g) groups[g] = g;
  return csv(groups_table(all, groups));
}

std::string curves_csv(const Comparison& all) {
  std::string out =
      "run,step,tokens,flops,hours,loss,grad_norm,lr,tokens_per_s,val_loss,val_bpb,val_accuracy,val_exact\n";
  for (const ComparedRun& run : all.runs)
    for (const RunPoint& p : run.data.points) {
      out += text(csv_field(run.data.name), ",", p.step, ",", p.tokens);
      for (const double number :
           {run.flops_per_token * static_cast<double>(p.tokens), p.hours, p.loss, p.grad_norm, p.lr,
            p.tokens_per_s, p.val_loss, p.val_bpb, p.val_accuracy, p.val_exact})
        out += "," + csv_number(number);
      out += "\n";
    }
  return out;
}

}  // namespace weft
