#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/apply_signature.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;

// A value as the field's own reader takes it.
Json typed_value(const FieldDescription& field, const FieldValue& value) {
  const auto read = [&]<class T>(T slot) {
    read_field({field.name, &slot, field.help, field.traits}, value, field.name);
    return Json(slot);
  };
  if (field.type == "int") return read(int64_t{});
  if (field.type == "float") return read(double{});
  if (field.type == "bool") return read(bool{});
  return value.text;
}

// Sizes on which the shapes of a mechanism are seen: a base, and each letter doubled once.
struct SizeTrials {
  struct Letter {
    std::string name;
    int64_t Dimensions::*size;
  };
  std::vector<Letter> letters;
  std::vector<Dimensions> dims;  // base, then one a letter
};

SizeTrials size_trials(const std::vector<InputInfo>& inputs, const FieldValue& attributes) {
  const bool grouped = std::any_of(inputs.begin(), inputs.end(), [](const InputInfo& info) {
    return std::string_view(info.input.dims).find('g') != std::string_view::npos;
  });
  SizeTrials trials;
  trials.letters = {{"H", &Dimensions::heads},
                    {"Dk", &Dimensions::key},
                    {"Dv", &Dimensions::value},
                    {"C", &Dimensions::width}};
  if (grouped) trials.letters.insert(trials.letters.begin() + 1, {"Hkv", &Dimensions::kv_heads});
  const Dimensions base = placeholder_dimensions(attributes, grouped);
  trials.dims.push_back(base);
  for (const auto& letter : trials.letters) {
    Dimensions d = base;
    d.*letter.size *= 2;
    if (!grouped) d.kv_heads = d.heads;
    trials.dims.push_back(d);
  }
  return trials;
}

// An extent as a formula of sizes: "Dk", "Dv+1", "2*H*Dk", or, where none fits, what it depends on: "f(Dk)".
// extents: one a trial.
std::string extent_text(const SizeTrials& trials, const std::vector<int64_t>& extents) {
  std::string product, list;
  int64_t value = 1, sum = 1;
  bool proportional = true, plus_one = true;
  for (size_t i = 0; i < trials.letters.size(); ++i) {
    if (extents[i + 1] == extents[0]) continue;
    const auto& [name, size] = trials.letters[i];
    product += (product.empty() ? "" : "*") + name;
    list += (list.empty() ? "" : ", ") + name;
    value *= trials.dims[0].*size;
    sum = trials.dims[0].*size + 1;
    proportional = proportional && extents[i + 1] == 2 * extents[0];
    plus_one = plus_one && list == name && extents[i + 1] == 2 * extents[0] - 1;
  }
  if (list.empty()) return text(extents[0]);
  if (plus_one && extents[0] == sum) return list + "+1";
  if (!proportional || extents[0] % value != 0) return "f(" + list + ")";
  return extents[0] == value ? product : text(extents[0] / value, "*", product);
}

std::string shape_text(const SizeTrials& trials, const std::vector<Shape>& shapes, std::string before) {
  for (int axis = 0; axis < shapes[0].rank(); ++axis) {
    std::vector<int64_t> extents;
    for (const Shape& s : shapes) extents.push_back(s[axis]);
    if (!before.empty()) before += " ";
    before += extent_text(trials, extents);
  }
  return before;
}

// Shapes of everything, as formulas.
struct Shapes {
  std::vector<std::pair<std::string, std::string>> inputs, parameters, states;
  std::vector<std::string> optional;
};

Shapes shapes_of(const MechanismEntry& entry, const FieldValue& attributes) {
  const SizeTrials trials = size_trials(inputs_of(entry, attributes), attributes);
  std::vector<Signature> signatures;
  for (const Dimensions& d : trials.dims) signatures.push_back(signature_of(entry, attributes, d));
  const auto formula = [&](const auto& shape_in, const std::string& before) {
    std::vector<Shape> shapes;
    for (const Signature& s : signatures) shapes.push_back(shape_in(s));
    return shape_text(trials, shapes, before);
  };
  const Signature& base = signatures[0];
  Shapes out;
  for (const auto& [input, optional] : base.inputs) {
    out.inputs.emplace_back(input.name, dims_text(input));
    if (optional) out.optional.push_back(input.name);
  }
  out.optional.push_back("doc");
  for (size_t i = 0; i < base.parameters.size(); ++i)
    out.parameters.emplace_back(base.parameters[i].first,
                                formula([i](const Signature& s) { return s.parameters[i].second; }, ""));
  for (size_t i = 0; i < base.states.size(); ++i) {
    out.states.emplace_back(base.states[i].name,
                            formula([i](const Signature& s) { return s.states[i].shape; }, "B"));
    out.optional.push_back("state0." + base.states[i].name);
  }
  return out;
}

Json object_of(const std::vector<std::pair<std::string, std::string>>& pairs) {
  Json out = Json::object();
  for (const auto& [name, value] : pairs) out[name] = value;
  return out;
}

}  // namespace

std::string attributes_json(const MechanismEntry& entry, const FieldValue& attributes) {
  Json out = Json::object();
  for (const FieldDescription& field : entry.describe({})) {
    const FieldValue* said = attributes.find(field.name);
    out[field.name] = typed_value(field, said ? *said : text_value(field.default_value));
  }
  return out.dump();
}

std::string describe_json(const MechanismEntry& entry, const FieldValue& attributes) {
  const Shapes shapes = shapes_of(entry, attributes);
  Json fields = Json::object();
  for (const FieldDescription& f : entry.describe({}))
    fields[f.name] = {
        {"type", f.type}, {"default", typed_value(f, text_value(f.default_value))}, {"help", f.help}};
  return Json{{"weft", "describe/1"},
              {"id", entry.id},
              {"aliases", entry.aliases},
              {"attributes", fields},
              {"inputs", object_of(shapes.inputs)},
              {"optional", shapes.optional},
              {"parameters", object_of(shapes.parameters)},
              {"states", object_of(shapes.states)}}
      .dump();
}

std::string describe_text(const MechanismEntry& entry, const FieldValue& attributes) {
  const Shapes shapes = shapes_of(entry, attributes);
  std::string out = entry.id + ": " + entry.title + ", " + entry.url + "\n";
  const auto list = [&](const char* title, const auto& pairs) {
    if (!pairs.empty()) out += std::string(title) + "\n";
    for (const auto& [name, value] : pairs) out += "  " + name + "  " + value + "\n";
  };
  std::vector<std::pair<std::string, std::string>> fields;
  for (const FieldDescription& f : entry.describe({}))
    fields.emplace_back(f.name + "=" + f.default_value, f.help + (f.range.empty() ? "" : "; " + f.range));
  list("attributes", fields);
  list("inputs", shapes.inputs);
  list("parameters", shapes.parameters);
  list("states", shapes.states);
  out += "optional\n ";
  for (const std::string& name : shapes.optional) out += " " + name;
  return out + "\n";
}

}  // namespace weft
