#include "tests/attention/conformance.h"

namespace weft {

std::vector<ConformanceCase> conformance_cases() {
  std::vector<ConformanceCase> cases;
  for (const MechanismEntry& entry : mechanisms()) {
    cases.push_back({entry.id, ""});
    for (const std::string& settings : entry.variants) cases.push_back({entry.id, settings});
  }
  return cases;
}

void PrintTo(const ConformanceCase& c, std::ostream* out) { *out << c.id << " " << c.settings; }

std::string case_name(const testing::TestParamInfo<ConformanceCase>& info) {
  std::string name = info.param.id + "_" + info.param.settings;
  for (char& ch : name)
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  while (name.back() == '_') name.pop_back();
  return name;
}

Dimensions small_dimensions(const MechanismEntry& entry) {
  const auto refuses = [&](Dimensions dims) {
    ParameterStore store;
    try {
      entry.make({}, dims, {store, ""});
    } catch (const Error&) {
      return true;
    }
    return false;
  };
  const Dimensions grouped{.heads = 4, .kv_heads = 2, .key = 4, .value = 6, .width = 8};
  const Dimensions plain{.heads = 3, .kv_heads = 3, .key = 4, .value = 6, .width = 8};
  return refuses(grouped) ? plain : grouped;
}

namespace {

Subject::Make make_of(const ConformanceCase& c, const std::vector<std::string>& more) {
  std::vector<std::string> settings = split_settings(c.settings);
  for (const std::string& s : more) {  // overrides what the case says
    const std::string name = s.substr(0, s.find('=') + 1);
    std::erase_if(settings, [&](const std::string& old) { return old.starts_with(name); });
    settings.push_back(s);
  }
  return [id = c.id, settings](const Dimensions& dims, const ParameterScope& scope) {
    return find_mechanism(id).make(parse_attributes(settings), dims, scope);
  };
}

}  // namespace

Subject::Subject(const ConformanceCase& c, Dtype dtype, const std::vector<std::string>& more)
    : Subject(small_dimensions(find_mechanism(c.id)), dtype, make_of(c, more)) {}

Subject::Subject(const Dimensions& sizes, Dtype dtype, const Make& make)
    : dims(sizes), store(dtype, default_device(), 3) {
  mechanism = make(dims, {store, ""});
  store.commit();
  // Gains of one and sinks of zero would hide mistakes: every parameter is moved by a random amount.
  uint32_t seed = 77;
  for (const auto& entry : store.entries()) {
    const Tensor shift = random_tensor(entry->info.shape, seed++, entry->master.dtype(), 0.3);
    entry->master.copy_from(add(entry->master, shift).value());
  }
  store.refresh_working();
}

void Subject::take_parameters(const Subject& other) {
  for (size_t i = 0; i < store.entries().size(); ++i)
    store.entries()[i]->master.copy_from(other.store.entries()[i]->working);
  store.refresh_working();
}

Block block_of(const std::vector<Variable>& inputs, const Layout& layout) {
  return {inputs, layout.position, layout.document};
}

Variable run_whole(const Mechanism& mechanism, const Layout& layout, const std::vector<Variable>& inputs) {
  LocalCrossing cross(layout);
  return mechanism.forward(block_of(inputs, layout), cross);
}

std::vector<Variable> with_losses(const Variable& y, const Crossing& cross) {
  std::vector<Variable> all{y};
  for (const AuxiliaryLoss& loss : cross.losses()) all.push_back(loss.value);
  return all;
}

std::vector<Variable> run_with_losses(const Mechanism& mechanism, const Layout& layout,
                                      const std::vector<Variable>& inputs) {
  LocalCrossing cross(layout);
  const Variable y = mechanism.forward(block_of(inputs, layout), cross);
  return with_losses(y, cross);
}

Tensor random_adjoint(const Shape& output, Dtype dtype) { return random_tensor(output, 99, dtype); }

Outcome run_with_gradients(Subject& subject, const Layout& layout, const std::vector<Tensor>& inputs,
                           const Function& wrap, const Tensor& adjoint, double share) {
  Outcome outcome;
  subject.store.begin_step();
  Tape tape;
  std::vector<Variable> leaves;
  for (const Tensor& x : inputs) leaves.push_back(tape.input(x));
  const std::vector<Variable> outputs =
      wrap ? wrap(leaves) : std::vector{run_whole(*subject.mechanism, layout, leaves)};
  const Variable& y = outputs[0];
  outcome.output = y.value();
  std::vector<Tensor> seeds{adjoint.defined() ? adjoint : random_adjoint(y.shape(), y.dtype())};
  for (size_t i = 1; i < outputs.size(); ++i) {
    outcome.losses.push_back(to_values(outputs[i])[0]);
    seeds.push_back(full(outputs[i].shape(), share, outputs[i].dtype()));
  }
  tape.backward(outputs, seeds);
  subject.store.finish_step();
  for (const Variable& leaf : leaves) outcome.gradients.push_back(tape.gradient(leaf));
  for (const auto& entry : subject.store.entries()) {
    if (!entry->info.trainable) continue;
    const Tensor copy = empty_like(entry->gradient);
    copy.copy_from(entry->gradient);
    outcome.gradients.push_back(copy);
  }
  return outcome;
}

}  // namespace weft
