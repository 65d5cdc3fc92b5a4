#include "training/report/compare.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "attention/registry.h"
#include "autograd/check.h"
#include "layers/model.h"
#include "training/log/console_text.h"
#include "training/plan.h"
#include "training/recipe/diff.h"

namespace weft {
namespace {

std::string mechanism_of(const Recipe& recipe) {
  std::vector<std::string> layers = expand_layers(recipe.model.layers);
  for (std::string& layer : layers) {
    try {
      layer = find_mechanism(layer).id;
    } catch (const Error&) {  // of another version; it keeps the name that it has
    }
  }
  return short_pattern(layers);
}

// Name and value of what has to be equal.
using Question = std::vector<std::pair<std::string, std::string>>;

Question question_of(const Recipe& recipe) {
  const int64_t step_tokens = recipe.batch_tokens / recipe.context * recipe.context;
  const std::string tokens = grouped(static_cast<double>(recipe.steps) * static_cast<double>(step_tokens));
  std::string tasks;
  for (const std::string& task : recipe.data.task) tasks += (tasks.empty() ? "" : "; ") + task;
  return {{"context", std::to_string(recipe.context)},
          {"tokens", tokens},
          {"data.train", to_text(recipe.data.train.write())},
          {"data.task", tasks},
          {"data.val", to_text(recipe.data.val.write())},
          {"data.tokenizer", recipe.data.tokenizer},
          {"data.skip_bad", recipe.data.skip_bad ? "true" : "false"},
          {"validation tokens",
           grouped(static_cast<double>(recipe.eval.batches) * static_cast<double>(step_tokens))}};
}

// 0 stands for a size that follows from others; beside sizes that were set it would read as none at all.
std::string size_meant(const std::string& key, const std::string& value, const Recipe::Model& m) {
  if (value != "0") return value;
  if (key == "model.ffn") return std::to_string(derived_ffn(m.ffn_kind, m.width));
  if (key == "model.kv_heads") return std::to_string(m.heads);
  if (key == "model.head_size") return std::to_string(m.width / m.heads);
  return value;
}

void find_differing_keys(Comparison& all) {
  const Recipe* first = nullptr;
  std::map<std::string, std::string> of_first;
  std::vector<std::map<std::string, std::string>> others(all.runs.size());
  for (size_t i = 0; i < all.runs.size(); ++i) {
    const auto& recipe = all.runs[i].data.recipe;
    if (!recipe) continue;
    if (first == nullptr) first = &*recipe;
    for (const RecipeDifference& d : recipe_diff(*first, *recipe)) {
      if (d.key == "run") continue;
      if (of_first.emplace(d.key, d.before).second) all.keys.push_back(d.key);
      others[i][d.key] = d.after;
    }
  }
  std::sort(all.keys.begin(), all.keys.end());
  for (size_t i = 0; i < all.runs.size(); ++i) {
    ComparedRun& run = all.runs[i];
    for (const std::string& key : all.keys) {
      const auto own = others[i].find(key);
      const std::string written = own != others[i].end() ? own->second : of_first[key];
      const std::string value = run.data.recipe ? size_meant(key, written, run.data.recipe->model) : "";
      run.values.push_back(value);
      if (!run.data.recipe || key == "model.layers" || is_housekeeping(key)) continue;
      run.setting += (run.setting.empty() ? "" : ", ") + key + " " + value;
    }
  }
}

void mark_incomparable(Comparison& all) {
  std::map<Question, size_t> asked;
  const Question* usual = nullptr;
  for (const ComparedRun& run : all.runs)
    if (run.data.recipe) ++asked[question_of(*run.data.recipe)];
  for (const ComparedRun& run : all.runs) {  // the first of the most common
    if (!run.data.recipe) continue;
    const auto own = asked.find(question_of(*run.data.recipe));
    if (usual == nullptr || own->second > asked[*usual]) usual = &own->first;
  }
  for (ComparedRun& run : all.runs) {
    if (!run.data.recipe) {
      run.apart = "no recipe";
      continue;
    }
    const Question own = question_of(*run.data.recipe);
    for (size_t i = 0; i < own.size(); ++i)
      if (own[i].second != (*usual)[i].second)
        run.apart += (run.apart.empty() ? "" : "; ") + own[i].first + " " + own[i].second + ", not " +
                     (*usual)[i].second;
  }
  if (usual == nullptr) return;
  const auto of = [&](const std::string& name) {
    return std::find_if(usual->begin(), usual->end(), [&](const auto& part) { return part.first == name; })
        ->second;
  };
  all.common = text("context ", of("context"), ", ", of("tokens"), " tokens of ",
                    of("data.task").empty() ? of("data.train") : of("data.task"));
}

// Recipes with one model over one text have one plan.
void plan_models(Comparison& all) {
  std::map<std::string, std::pair<double, double>> plans;
  for (ComparedRun& run : all.runs) {
    if (!run.data.recipe) continue;
    Recipe recipe = *run.data.recipe;
    recipe.mesh = {};  // a token's work is the same on any number of ranks
    const auto [plan, fresh] = plans.emplace(plan_key(recipe), std::pair<double, double>{NAN, NAN});
    if (fresh) {
      try {
        const RunPlan planned = plan_run(recipe, 1, "cpu");
        plan->second = {static_cast<double>(planned.parameters), planned.flops_per_token};
      } catch (const Error& error) {
        all.notes.push_back(text(run.data.name, ": its FLOPs are not known: ", error.what()));
      }
    }
    std::tie(run.parameters, run.flops_per_token) = plan->second;
  }
}

void take_last_values(ComparedRun& run) {
  const std::vector<RunPoint>& points = run.data.points;
  for (const RunPoint& point : points) {
    if (std::isfinite(point.val_loss)) run.val_loss = point.val_loss;
    if (std::isfinite(point.val_bpb)) run.val_bpb = point.val_bpb;
    if (std::isfinite(point.val_accuracy)) run.val_accuracy = point.val_accuracy;
    if (std::isfinite(point.val_exact)) run.val_exact = point.val_exact;
  }
  // A single step says more of its batch than of the run.
  std::vector<double> losses;
  const size_t end = std::max<size_t>(1, points.size() / 20);
  for (size_t i = points.size() - std::min(points.size(), end); i < points.size(); ++i)
    losses.push_back(points[i].loss);
  run.loss = Spread(losses).mean;
}

void group_runs(Comparison& all) {
  for (size_t i = 0; i < all.runs.size(); ++i) {
    ComparedRun& run = all.runs[i];
    const auto same = std::find_if(all.groups.begin(), all.groups.end(), [&](const RunGroup& group) {
      return group.mechanism == run.mechanism && group.setting == run.setting;
    });
    run.group = static_cast<size_t>(same - all.groups.begin());
    if (same == all.groups.end()) all.groups.push_back({run.mechanism, run.setting, {}, {}});
    all.groups[run.group].runs.push_back(i);
    if (run.apart.empty() && run.data.status == RunStatus::done) all.groups[run.group].counted.push_back(i);
  }
}

void rank_groups(Comparison& all) {
  const auto score = [&](size_t group) {
    const double validated = spread_of(all, all.groups[group], &ComparedRun::val_loss).mean;
    return std::isfinite(validated) ? validated : spread_of(all, all.groups[group], &ComparedRun::loss).mean;
  };
  for (size_t g = 0; g < all.groups.size(); ++g) {
    if (!std::isfinite(score(g))) continue;
    const auto rival = std::find_if(all.best.begin(), all.best.end(), [&](size_t other) {
      return all.groups[other].mechanism == all.groups[g].mechanism;
    });
    if (rival == all.best.end())
      all.best.push_back(g);
    else if (score(g) < score(*rival))
      *rival = g;
  }
  std::stable_sort(all.best.begin(), all.best.end(), [&](size_t a, size_t b) { return score(a) < score(b); });
}

}  // namespace

bool is_housekeeping(const std::string& key) {
  for (const char* section : {"log.", "checkpoint.", "sample.", "mesh."})
    if (key.starts_with(section)) return true;
  for (const char* name : {"run", "seed", "determinism", "micro_tokens", "data.prefetch", "eval.grid",
                           "cuda_graphs", "model.checkpointing", "eval.every"})
    if (key == name) return true;
  return false;
}

Spread::Spread(const std::vector<double>& values) {
  double sum = 0, squares = 0, count = 0;
  for (const double x : values)
    if (std::isfinite(x)) sum += x, ++count;
  if (count == 0) return;
  mean = sum / count;
  for (const double x : values)
    if (std::isfinite(x)) squares += (x - mean) * (x - mean);
  if (count > 1) deviation = std::sqrt(squares / (count - 1));
}

bool measured(const Comparison& all, double ComparedRun::*number) {
  return std::any_of(all.runs.begin(), all.runs.end(),
                     [&](const ComparedRun& run) { return std::isfinite(run.*number); });
}

Spread spread_of(const Comparison& all, const RunGroup& group, double ComparedRun::*number) {
  std::vector<double> values;
  for (const size_t run : group.counted) values.push_back(all.runs[run].*number);
  return Spread(values);
}

std::string short_pattern(const std::vector<std::string>& layers) {
  const size_t n = layers.size();
  for (size_t period = 1; period <= n; ++period) {
    bool repeats = n % period == 0;
    for (size_t i = period; repeats && i < n; ++i) repeats = layers[i] == layers[i - period];
    if (!repeats) continue;
    std::string out;
    for (size_t i = 0; i < period;) {
      size_t run = 1;
      while (i + run < period && layers[i + run] == layers[i]) ++run;
      out += (i > 0 ? ", " : "") + layers[i] + (run > 1 ? "*" + std::to_string(run) : "");
      i += run;
    }
    if (period == n) return out;
    return (period > 1 ? "(" + out + ")" : out) + "*" + std::to_string(n / period);
  }
  return "";
}

Comparison compare_runs(std::vector<RunData> runs) {
  Comparison all;
  for (RunData& data : runs) {
    ComparedRun run;
    run.data = std::move(data);
    run.mechanism = run.data.recipe ? mechanism_of(*run.data.recipe) : "unknown";
    take_last_values(run);
    for (const std::string& problem : run.data.problems) all.notes.push_back(run.data.name + ": " + problem);
    all.runs.push_back(std::move(run));
  }
  find_differing_keys(all);
  mark_incomparable(all);
  plan_models(all);
  group_runs(all);
  rank_groups(all);
  return all;
}

}  // namespace weft
