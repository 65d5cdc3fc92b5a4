#include "tools/apply_signature.h"

#include <algorithm>
#include <cstdlib>
#include <map>

#include "tools/apply_states.h"

namespace weft {
namespace {

std::vector<StateInfo> named_states(const std::vector<PartStates>& parts) {
  std::map<std::string, int> uses;
  for (const PartStates& p : parts)
    for (const std::string& name : p.names) ++uses[name];
  std::vector<StateInfo> states;
  for (size_t p = 0; p < parts.size(); ++p)
    for (size_t i = 0; i < parts[p].names.size(); ++i) {
      const std::string& name = parts[p].names[i];
      if (!name.empty())
        states.push_back({uses[name] > 1 ? text(p, ".", name) : name, p, i, parts[p].shapes[i]});
    }
  return states;
}

std::vector<InputInfo> inputs_of(const Mechanism& mechanism) {
  std::vector<InputInfo> out;
  for (const Input& input : mechanism.inputs())
    out.push_back({input, !mechanism.fixed_input(input.name).empty()});
  return out;
}

}  // namespace

Dimensions placeholder_dimensions(const FieldValue& attributes, bool grouped) {
  const FieldValue* said = attributes.find("heads");  // what is no number its own reader refuses
  const int64_t times = said ? std::clamp(std::atoi(said->text.c_str()), 1, 1 << 16) : 1;
  return {
      .heads = 4, .kv_heads = grouped ? 2 : 4, .key = 6 * times, .value = 10 * times, .width = 64 * times};
}

std::vector<InputInfo> inputs_of(const MechanismEntry& entry, const FieldValue& attributes) {
  ParameterStore store(Dtype::f32, Device::meta);
  return inputs_of(*entry.make(attributes, placeholder_dimensions(attributes, false), {store, ""}));
}

Signature signature_of(const MechanismEntry& entry, const FieldValue& attributes, const Dimensions& dims,
                       Dtype dtype) {
  ParameterStore store(dtype, Device::meta);
  const auto mechanism = entry.make(attributes, dims, {store, ""});
  store.commit();
  const Layout layout = whole_documents({1}, Device::meta);
  Signature s;
  s.inputs = inputs_of(*mechanism);
  Block block{{}, layout.position, layout.document};
  for (const InputInfo& info : s.inputs)
    block.x.push_back(empty(input_shape(info.input, dims, 1), dtype, Device::meta));
  std::vector<PartStates> parts;
  LocalCrossing local(layout);
  RecordingCrossing recording(local);
  StatesCrossing cross(recording, {{1, -1}}, parts);
  const Shape output = mechanism->forward(block, cross).shape();
  s.output = Shape(output.begin() + 1, output.end());
  s.states = named_states(parts);
  s.calls = recording.calls();
  s.losses = !cross.losses().empty();
  for (const auto& p : store.entries()) s.parameters.emplace_back(p->info.name, p->info.shape);
  return s;
}

std::string dims_text(const Input& input) {
  static const std::map<char, std::string> names{
      {'h', " H"}, {'g', " Hkv"}, {'k', " Dk"}, {'v', " Dv"}, {'c', " C"}};
  std::string out = "B T";
  for (const char* p = input.dims; *p; ++p)
    if (*p != ' ') out += names.at(*p);
  return out;
}

}  // namespace weft
