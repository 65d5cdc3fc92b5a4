#include "training/plan.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace weft {
namespace {

// What a device is good for: FLOP/s that training reaches on it, and its memory.
struct DeviceModel {
  const char* name;
  double flops;
  int64_t bytes;
};
constexpr DeviceModel kDevices[] = {
    {"cpu", NAN, 0},
    // Half of the 741 TFLOP/s that a large bf16 product reached on an H100 80GB.
    {"h100-80", 370e12, int64_t{80} << 30},
};

Batch made_up_batch(int64_t samples, int64_t context) {
  Batch batch;
  batch.tokens.assign(static_cast<size_t>(samples * context), 0);
  batch.targets.assign(batch.tokens.size(), 0);
  for (int64_t i = 0; i <= samples; ++i) batch.offsets.push_back(i * context);
  for (int64_t i = 0; i < samples; ++i) batch.samples.push_back(i);
  return batch;
}

}  // namespace

RunPlan plan_run(const Recipe& recipe, int ranks, const std::string& device) {
  const DeviceModel* model = nullptr;
  for (const DeviceModel& d : kDevices)
    if (device == d.name) model = &d;
  if (model == nullptr)
    throw Error(Exit::usage, text("unknown device ", device), "--device", "cpu or h100-80");
  const std::shared_ptr<const Tokenizer> tokenizer = open_tokenizer(recipe);
  RunPlan plan;
  plan.mesh = plan_mesh(ranks, static_cast<int>(recipe.mesh.cp), static_cast<int>(recipe.mesh.dp));
  if (!plan.mesh.note.empty()) plan.warnings.push_back(plan.mesh.note);
  // One rank of the mesh: its share of the samples, its share of each sample's tokens.
  Recipe rank = recipe;
  rank.mesh = {};
  rank.context = std::max<int64_t>(1, recipe.context / plan.mesh.cp);
  const int64_t samples = recipe.batch_tokens / recipe.context;
  const Slice own = slice_of(samples, 0, plan.mesh.dp);
  rank.batch_tokens = std::max<int64_t>(1, own.end - own.begin) * rank.context;
  if (rank.micro_tokens > 0)
    rank.micro_tokens = std::max<int64_t>(rank.context, rank.micro_tokens / plan.mesh.cp);
  if (plan.mesh.cp > 1)
    plan.warnings.push_back("memory of several ranks a sequence does not count what they exchange");

  reset_peak(Device::meta);
  const int64_t before = memory_report(Device::meta).bytes;
  Trainer trainer(rank, *tokenizer, nullptr, Device::meta);
  trainer.step(0, made_up_batch(rank.batch_tokens / rank.context, rank.context));
  const MemoryReport memory = memory_report(Device::meta);
  plan.parameters = trainer.store().numel();
  plan.active_parameters = plan.parameters;
  plan.flops_per_token = trainer.step_flops() / static_cast<double>(rank.batch_tokens);
  plan.tokens_per_step = samples * recipe.context;
  plan.steps = recipe.steps;
  plan.tokens = plan.tokens_per_step * plan.steps;
  plan.peak_bytes = memory.peak_bytes - before;
  plan.scopes = memory.peak_by_scope;
  int64_t gradient_bytes = 0;
  for (const ParameterGroup& g : trainer.store().groups()) {
    plan.checkpoint_bytes += g.master.bytes();
    if (g.trainable) gradient_bytes += g.gradient.bytes();
  }
  for (const StateTensor& s : trainer.optimizer().state()) plan.checkpoint_bytes += s.values.bytes();
  // All-reduce of the gradients: a reduce-scatter and an all-gather of slices.
  plan.wire.reduce_scatter = plan.wire.all_gather = gradient_bytes * (ranks - 1) / ranks;
  plan.step_s = plan.flops_per_token * static_cast<double>(rank.batch_tokens) / model->flops;
  plan.eta_s = plan.step_s * static_cast<double>(plan.steps);
  if (model->bytes > 0 && plan.peak_bytes > model->bytes)
    plan.warnings.push_back(text("needs ", plan.peak_bytes >> 20, " MiB, the device has ", model->bytes >> 20,
                                 "; the largest part is ", plan.scopes[0].first,
                                 "; set model.checkpointing=block, or a smaller micro_tokens"));
  return plan;
}

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
  const auto line = [&](const char* name, double value, const char* unit) {
    char buffer[128];
    std::snprintf(buffer, sizeof buffer, "%-22s %14.2f %s\n", name, value, unit);
    out += buffer;
  };
  line("parameters", static_cast<double>(p.parameters) / 1e6, "M");
  line("work per token", p.flops_per_token / 1e6, "MFLOP, forward and backward");
  line("tokens per step", static_cast<double>(p.tokens_per_step), "");
  line("tokens in all", static_cast<double>(p.tokens) / 1e6, "M");
  line("ranks per sequence", p.mesh.cp, "");
  line("sequence groups", p.mesh.dp, "");
  line("memory of a rank", static_cast<double>(p.peak_bytes) / (1 << 20), "MiB at its peak, of it:");
  for (size_t i = 0; i < p.scopes.size() && i < 6; ++i)
    line(("  " + p.scopes[i].first).c_str(), static_cast<double>(p.scopes[i].second) / (1 << 20), "MiB");
  line("sent by a rank", static_cast<double>(p.wire.all_gather + p.wire.reduce_scatter) / (1 << 20),
       "MiB a step");
  line("a checkpoint", static_cast<double>(p.checkpoint_bytes) / (1 << 20), "MiB");
  if (std::isfinite(p.step_s)) {
    line("a step", p.step_s, "s");
    line("the run", p.eta_s / 3600, "h");
  }
  for (const std::string& w : p.warnings) out += "note: " + w + "\n";
  return out;
}

}  // namespace weft
