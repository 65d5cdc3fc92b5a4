#include "training/plan.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "autograd/planned_device.h"
#include "training/log/console_text.h"
#include "training/recipe/diff.h"

namespace weft {
namespace {

// What a device is good for: FLOP/s that training reaches on it, and its memory.
struct DeviceModel {
  const char* name;
  Device device;
  double flops;
  int64_t bytes;
};
constexpr DeviceModel kDevices[] = {
    {"cpu", Device::cpu, NAN, 0},
    {"cuda", Device::cuda, NAN, 0},
    // Half of the 741 TFLOP/s that a large bf16 product reached on an H100 80GB.
    {"h100-80", Device::cuda, 370e12, int64_t{80} << 30},
};

// In force while a plan for another device is made.
struct PlanFor {
  explicit PlanFor(Device device) { plan_for(device); }
  ~PlanFor() { plan_for(Device::meta); }
  PlanFor(const PlanFor&) = delete;
};

// The documents of a step decide what crosses ranks and how much is padded, so the plan reads them where that
// is quick: of more text than this it would take longer than anybody waits for a plan.
constexpr uintmax_t kReadBytes = uintmax_t{256} << 20;

std::string why_not_read(const Recipe& recipe) {
  uintmax_t bytes = 0;
  std::vector<std::string> paths;
  for (const Recipe::Source& s : recipe.data.train.list) paths.push_back(s.path);
  for (const std::string& file : expand_paths(paths)) bytes += std::filesystem::file_size(file);
  return bytes > kReadBytes ? text("data.train has ", bytes >> 20, " MiB, too much to read for a plan") : "";
}

}  // namespace

// The global batch of the first step. Without the data: samples of one document each.
class FirstBatch {
 public:
  FirstBatch(const Recipe& recipe, const Tokenizer& tokenizer, std::vector<std::string>& warnings)
      : context_(recipe.context) {
    std::string reason;
    try {
      reason = why_not_read(recipe);
      if (reason.empty())
        data_.emplace(open_recipe_data(recipe, tokenizer, vocabulary_of(recipe, tokenizer)));
    } catch (const Error& e) {
      if (e.code != Exit::data) throw;
      reason = text(e.what(), " (", e.where, ")");
    }
    if (!reason.empty()) warnings.push_back(reason + "; every sample is taken for one document");
    if (data_) order_.emplace(data_->train.order(static_cast<uint64_t>(recipe.seed), recipe.data.shuffle));
  }

  Batch samples(Slice own) const {
    Batch batch;
    for (int64_t i = own.begin; i < own.end; ++i) batch.samples.push_back(order_ ? (*order_)(i) : i);
    if (data_) return data_->train.batch(batch.samples);
    for (int64_t i = own.begin; i <= own.end; ++i) batch.offsets.push_back((i - own.begin) * context_);
    batch.tokens.assign(static_cast<size_t>(batch.offsets.back()), 0);
    batch.targets = batch.tokens;
    return batch;
  }

 private:
  int64_t context_;
  std::optional<Datasets> data_;
  std::optional<SampleOrder> order_;
};

namespace {

// Of one step, over these samples, on one rank: ranks that share a sequence share its work unevenly.
double step_flops_alone(Recipe recipe, const Tokenizer& tokenizer, const Batch& samples, int64_t tokens) {
  recipe.mesh = {};
  recipe.batch_tokens = tokens;
  Trainer trainer(recipe, tokenizer, nullptr, Device::meta);
  trainer.step(0, samples);
  return trainer.step_flops();
}

void dry_run(RunPlan& plan, const Recipe& recipe, const Tokenizer& tokenizer, const FirstBatch& batch,
             int ranks) {
  // Where samples do not divide, the last rank has one more than the first.
  for (const int r : ranks == 1 ? std::vector{0} : std::vector{0, ranks - 1}) {
    reset_peak(Device::meta);
    const int64_t before = memory_report(Device::meta).bytes;
    const std::unique_ptr<Communicator> world = planned_communicator(r, ranks);
    Trainer trainer(recipe, tokenizer, world.get(), Device::meta);
    const Slice own = trainer.samples_of_step();
    const Batch samples = batch.samples(own);
    trainer.step(0, samples);
    const MemoryReport memory = memory_report(Device::meta);
    if (memory.peak_bytes - before > plan.peak_bytes) {
      plan.peak_bytes = memory.peak_bytes - before;
      plan.scopes = memory.peak_by_scope;
    }
    if (const int64_t tokens = (own.end - own.begin) * recipe.context; tokens > 0 && r == ranks - 1)
      plan.flops_per_token =
          (plan.mesh.cp > 1 ? step_flops_alone(recipe, tokenizer, samples, tokens) : trainer.step_flops()) /
          static_cast<double>(tokens);
    plan.step_flops = std::max(plan.step_flops, trainer.step_flops());
    plan.micro_tokens = std::max(plan.micro_tokens, trainer.micro_samples() * recipe.context);
    if (r > 0) continue;
    plan.wire = trainer.wire();
    plan.parameters = plan.active_parameters = trainer.store().numel();
    for (const ParameterGroup& g : trainer.store().groups()) plan.checkpoint_bytes += g.master.bytes();
    for (const StateTensor& s : trainer.optimizer().state()) plan.checkpoint_bytes += s.values.bytes();
    if (const std::string idle = trainer.idle_ranks(); !idle.empty()) plan.warnings.push_back(idle);
  }
}

// Changes that save memory, the cheapest first: less at a time costs nothing but the width of products;
// computing again costs a part of the forward pass, of a whole block the most.
std::string cheapest_that_fits(const Recipe& recipe, const Tokenizer& tokenizer, const FirstBatch& batch,
                               int ranks, int64_t micro_tokens, int64_t bytes) {
  std::vector<std::string> again{recipe.model.checkpointing};
  for (const char* more : {"ffn", "attention", "block"})
    if (recipe.model.checkpointing != "block" && recipe.model.checkpointing != more) again.emplace_back(more);
  for (const std::string& checkpointing : again)
    for (int64_t micro = micro_tokens; micro >= recipe.context; micro /= 2) {
      Recipe changed = recipe;
      changed.micro_tokens = micro;
      changed.model.checkpointing = checkpointing;
      RunPlan plan;
      plan.mesh = plan_mesh(ranks, static_cast<int>(recipe.mesh.cp), static_cast<int>(recipe.mesh.dp));
      dry_run(plan, changed, tokenizer, batch, ranks);
      if (plan.peak_bytes > bytes) continue;
      std::string change = "set";
      if (micro < micro_tokens) change += text(" micro_tokens=", micro);
      if (checkpointing != recipe.model.checkpointing) change += " model.checkpointing=" + checkpointing;
      return text(change, ", which needs ", plan.peak_bytes >> 20, " MiB");
    }
  return "use more ranks with mesh.cp, a shorter context or a smaller model";
}

}  // namespace

Planner::Planner(const Recipe& recipe)
    : tokenizer_(open_tokenizer(recipe)),
      batch_(std::make_shared<FirstBatch>(recipe, *tokenizer_, unread_)) {}

RunPlan Planner::plan(const Recipe& recipe, int ranks, const std::string& device) const {
  const DeviceModel* model = nullptr;
  for (const DeviceModel& d : kDevices)
    if (device == d.name) model = &d;
  if (model == nullptr)
    throw Error(Exit::usage, text("unknown device ", device), "--device", "cpu, cuda or h100-80");
  const PlanFor planned(model->device);
  RunPlan plan;
#ifndef WEFT_CUDA
  if (model->device == Device::cuda)
    plan.warnings.emplace_back(
        "this build has no CUDA kernels: where a mechanism has one, a GPU needs less memory than this");
#endif
  plan.mesh = plan_mesh(ranks, static_cast<int>(recipe.mesh.cp), static_cast<int>(recipe.mesh.dp));
  if (!plan.mesh.note.empty()) plan.warnings.push_back(plan.mesh.note);
  for (const std::string& warning : recipe_warnings(recipe)) plan.warnings.push_back(warning);
  plan.warnings.insert(plan.warnings.end(), unread_.begin(), unread_.end());
  const int64_t samples = recipe.batch_tokens / recipe.context;
  plan.tokens_per_step = samples * recipe.context;
  plan.steps = recipe.steps;
  plan.tokens = plan.tokens_per_step * plan.steps;
  dry_run(plan, recipe, *tokenizer_, *batch_, ranks);
  plan.step_s = plan.step_flops / model->flops;
  plan.eta_s = plan.step_s * static_cast<double>(plan.steps);
  if (model->bytes > 0 && plan.peak_bytes > model->bytes)
    plan.warnings.push_back(
        text("needs ", plan.peak_bytes >> 20, " MiB, the device has ", model->bytes >> 20,
             "; the largest part is ", plan.scopes[0].first, "; ",
             cheapest_that_fits(recipe, *tokenizer_, *batch_, ranks, plan.micro_tokens, model->bytes)));
  return plan;
}

std::string plan_key(Recipe recipe) {
  recipe.run.clear();
  recipe.init.clear();
  recipe.seed = recipe.steps = 1;
  recipe.optim = {};
  return resolved_recipe(recipe);
}

RunPlan plan_run(const Recipe& recipe, int ranks, const std::string& device) {
  return Planner(recipe).plan(recipe, ranks, device);
}

std::string change_that_fits(const Recipe& recipe, int ranks, int64_t bytes) {
  const std::shared_ptr<const Tokenizer> tokenizer = open_tokenizer(recipe);
  std::vector<std::string> unread;
  const FirstBatch batch(recipe, *tokenizer, unread);
  RunPlan plan;
  plan.mesh = plan_mesh(ranks, static_cast<int>(recipe.mesh.cp), static_cast<int>(recipe.mesh.dp));
  dry_run(plan, recipe, *tokenizer, batch, ranks);
  return cheapest_that_fits(recipe, *tokenizer, batch, ranks, plan.micro_tokens, bytes);
}

namespace {

// 12.34 MiB: in the largest unit of which there is one.
std::string scaled(double amount, double step, const std::vector<const char*>& units) {
  size_t unit = 0;
  while (amount >= step && unit + 1 < units.size()) amount /= step, ++unit;
  char out[64];
  std::snprintf(out, sizeof out, "%.*f %s", unit == 0 && amount == std::floor(amount) ? 0 : 2, amount,
                units[unit]);
  return out;
}

}  // namespace

std::string to_json(const RunPlan& p) {
  using nlohmann::ordered_json;
  ordered_json scopes = ordered_json::object();
  for (const auto& [name, bytes] : p.scopes) scopes[name] = bytes;
  const auto number = [](double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json(nullptr); };
  return ordered_json{{"weft", "validate/1"},
                      {"exit", 0},
                      {"parameters", p.parameters},
                      {"active_parameters", p.active_parameters},
                      {"flops_per_token", number(p.flops_per_token)},
                      {"tokens_per_step", p.tokens_per_step},
                      {"steps", p.steps},
                      {"tokens", p.tokens},
                      {"mesh", {{"dp", p.mesh.dp}, {"cp", p.mesh.cp}}},
                      {"memory", {{"peak_bytes", p.peak_bytes}, {"scopes", scopes}}},
                      {"wire",
                       {{"all_gather", p.wire.all_gather},
                        {"reduce_scatter", p.wire.reduce_scatter},
                        {"send_recv", p.wire.send_recv},
                        {"all_to_all", p.wire.all_to_all}}},
                      {"checkpoint_bytes", p.checkpoint_bytes},
                      {"step_s", number(p.step_s)},
                      {"eta_s", number(p.eta_s)},
                      {"warnings", p.warnings}}
      .dump();
}

std::string to_table(const RunPlan& p) {
  std::string out;
  const auto line = [&](const std::string& name, const std::string& value, const char* more = "") {
    char buffer[160];
    std::snprintf(buffer, sizeof buffer, "%-22s %14s%s%s\n", name.c_str(), value.c_str(), *more ? " " : "",
                  more);
    out += buffer;
  };
  const auto count = [](double n) { return grouped(n); };
  const auto bytes = [](double n) { return scaled(n, 1024, {"B", "KiB", "MiB", "GiB", "TiB"}); };
  line("parameters", count(static_cast<double>(p.parameters)));
  line("work per token", scaled(p.flops_per_token, 1000, {"FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"}),
       "forward and backward");
  line("tokens per step", count(static_cast<double>(p.tokens_per_step)));
  line("tokens in total", count(static_cast<double>(p.tokens)));
  line("ranks per sequence", count(p.mesh.cp));
  line("sequence groups", count(p.mesh.dp));
  line("memory of a rank", bytes(static_cast<double>(p.peak_bytes)), "at its peak, of which:");
  for (size_t i = 0; i < p.scopes.size() && i < 6; ++i)
    line("  " + p.scopes[i].first, bytes(static_cast<double>(p.scopes[i].second)));
  const WireBytes& w = p.wire;
  line("sent by a rank",
       bytes(static_cast<double>(w.all_gather + w.reduce_scatter + w.send_recv + w.all_to_all)), "a step");
  line("a checkpoint", bytes(static_cast<double>(p.checkpoint_bytes)));
  if (std::isfinite(p.step_s)) {
    line("a step", scaled(1e6 * p.step_s, 1000, {"us", "ms", "s"}));
    line("the run", duration_text(p.eta_s));
  }
  for (const std::string& warning : p.warnings) out += "note: " + warning + "\n";
  return out;
}

}  // namespace weft
