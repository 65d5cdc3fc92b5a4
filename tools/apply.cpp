#include "tools/apply.h"

#include <algorithm>

#include "tools/apply_run.h"
#include "tools/command.h"
#include "tools/device_flag.h"
#include "training/checkpoint/safetensors.h"

namespace weft {
namespace {

ApplyOutcome compute(const ApplyTask& task, const ApplyOptions& o) {
  if (o.reference) return apply_reference(task);
  if (o.prefill) return apply_decode(task, *o.prefill, o.chunk);
  if (o.segments.ranks > 0)
    return apply_segments(task, o.segments.ranks, o.segments.plan, o.segments.strategy, o.chunk);
  return apply_full(task, o.chunk);
}

// Arrays of the output file, and the tensors that own them.
class Output {
 public:
  void add(const std::string& name, const Tensor& value, const std::vector<int64_t>& leading = {}) {
    std::vector<int64_t> shape = leading;
    const int from = leading.empty() ? 0 : 1;  // leading axes stand for the token line
    shape.insert(shape.end(), value.shape().begin() + from, value.shape().end());
    tensors_.push_back(value.contiguous().to(Device::cpu));
    arrays_.push_back({name, value.dtype(), shape, tensors_.back().raw()});
  }
  void write(const std::string& path, const StringMap& metadata) const {
    write_safetensors(path, arrays_, metadata);
  }

 private:
  std::vector<Tensor> tensors_;
  std::vector<NamedArray> arrays_;
};

// How y was computed. Over ranks a scan is derived from chunks, unless whole documents are gathered.
const char* path_of(const ApplyTask& task, const ApplyOptions& o) {
  if (o.reference) return "reference";
  const std::vector<PartCall>& calls = task.signature.calls;
  const bool cut = o.segments.ranks > 1 && o.segments.strategy != CrossingStrategy::gather;
  if (cut &&
      std::any_of(calls.begin(), calls.end(), [](const PartCall& c) { return c.kind == PartKind::scan; }))
    return "derived";
  return form_on(default_device(), calls);
}

void write_outcome(const ApplyTask& task, const ApplyOptions& o, const ApplyOutcome& outcome) {
  const std::vector<int64_t> batch{task.rows, task.tokens};
  Output out;
  out.add("y", outcome.y, batch);
  for (const auto& [name, value] : outcome.losses) out.add("aux." + name, value.to(task.wide));
  for (size_t i = 0; i < task.signature.states.size(); ++i) {
    const std::string& name = task.signature.states[i].name;
    out.add("state." + name, outcome.states[i]);
    if (outcome.d_given[i].defined()) out.add("grad.state0." + name, outcome.d_given[i]);
  }
  for (size_t i = 0; i < task.inputs.size(); ++i)
    if (outcome.d_inputs[i].defined())
      out.add(std::string("grad.") + task.signature.inputs[i].input.name, outcome.d_inputs[i],
              task.inputs[i].per_head ? std::vector<int64_t>{} : batch);
  for (const auto& [name, value] : outcome.d_parameters) out.add("grad.p." + name, value);
  for (const auto& [name, value] : outcome.parameters)
    if (task.parameters.count(name) == 0) out.add("p." + name, value);  // drawn here
  out.write(o.out, {{"format", "pt"},
                    {"weft", "apply/1"},
                    {"mechanism", task.mechanism->id},
                    {"attributes", attributes_json(*task.mechanism, task.attributes)},
                    {"path", path_of(task, o)}});
}

void describe(const ApplyOptions& o) {
  const MechanismEntry& entry = find_mechanism(o.id);
  const FieldValue attributes = parse_attributes(o.attributes);
  print(o.json ? describe_json(entry, attributes) + "\n" : describe_text(entry, attributes));
}

}  // namespace

int run_apply(const std::vector<std::string>& words) {
  const std::optional<ApplyOptions> options = parse_apply(words);
  if (!options) return 0;
  if (options->describe) {
    describe(*options);
    return 0;
  }
  compute_on(options->device);
  const ApplyTask task = read_task(*options);
  write_outcome(task, *options, compute(task, *options));
  if (options->json) print("{\"weft\":\"apply/1\",\"exit\":0}\n");
  return 0;
}

}  // namespace weft
