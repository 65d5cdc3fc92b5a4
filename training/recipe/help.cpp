#include "training/recipe/help.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "autograd/nearest_name.h"
#include "training/recipe/recipe.h"

namespace weft {

namespace {

using Json = nlohmann::ordered_json;

std::string section_help(const FieldVisitor& visitor, const std::string& section) {
  std::vector<std::pair<std::string, std::string>> lines;
  for (const std::string& name : visitor.names_in(section)) {
    const std::string full = section.empty() ? name : section + "." + name;
    const Field* field = visitor.find(full);
    lines.emplace_back(field ? full : full + ".*", field ? field->help : visitor.find_section(full)->help);
  }
  size_t width = 0;
  for (const auto& [name, help] : lines) width = std::max(width, name.size());
  std::string out = section.empty() ? "" : section + ": " + visitor.find_section(section)->help + "\n";
  for (const auto& [name, help] : lines)
    out += "  " + name + std::string(width + 2 - name.size(), ' ') + help + "\n";
  return out;
}

std::string field_help(const FieldDescription& field) {
  std::string out = field.name + ": " + field.help + "\n";
  const auto line = [&](const char* label, const std::string& value) {
    if (!value.empty())
      out += "  " + std::string(label) + std::string(9 - std::string(label).size(), ' ') + value + "\n";
  };
  line("type", field.type);
  line("unit", field.unit);
  line("range", field.range);
  line("default", field.default_value.empty() ? "\"\"" : field.default_value);
  if (field.traits.fixed) line("resume", "a resumed run has to keep it");
  return out;
}

template <class T>
Json scalar_schema(const FieldTraits& traits) {
  Json schema;
  if constexpr (std::is_same_v<T, bool>) schema["type"] = "boolean";
  if constexpr (std::is_same_v<T, std::string>) {
    schema["type"] = "string";
    if (!traits.choices.empty()) schema["enum"] = traits.choices;
  }
  if constexpr (std::is_same_v<T, int64_t> || std::is_same_v<T, double>) {
    schema["type"] = std::is_same_v<T, double> ? "number" : "integer";
    if (std::isfinite(traits.min)) schema[traits.above_min ? "exclusiveMinimum" : "minimum"] = traits.min;
    if (std::isfinite(traits.max)) schema["maximum"] = traits.max;
  }
  return schema;
}

Json field_schema(const Field& field) {
  Json schema = std::visit(
      [&](auto* slot) -> Json {
        using T = std::remove_pointer_t<decltype(slot)>;
        if constexpr (std::is_same_v<T, CustomField>) {
          return Json::parse(slot->schema());
        } else if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string>) {
          const Json item = scalar_schema<typename T::value_type>(field.traits);
          return {{"anyOf", {item, {{"type", "array"}, {"items", item}}}}, {"default", *slot}};
        } else {
          Json scalar = scalar_schema<T>(field.traits);
          scalar["default"] = *slot;
          return scalar;
        }
      },
      field.slot);
  schema["description"] = field.help + (field.traits.unit.empty() ? "" : " [" + field.traits.unit + "]");
  return schema;
}

Json section_schema(const FieldVisitor& visitor, const std::string& section) {
  Json properties = Json::object();
  for (const std::string& name : visitor.names_in(section)) {
    const std::string full = section.empty() ? name : section + "." + name;
    if (const Field* field = visitor.find(full)) {
      properties[name] = field_schema(*field);
    } else {
      properties[name] = section_schema(visitor, full);
      properties[name]["description"] = visitor.find_section(full)->help;
    }
  }
  return {{"type", {"object", "null"}}, {"properties", properties}, {"additionalProperties", false}};
}

}  // namespace

std::vector<std::string> recipe_names() {
  Recipe defaults;
  const FieldVisitor visitor = visit_fields(defaults);
  std::vector<std::string> names;
  for (const FieldDescription& field : describe_fields(visitor)) names.push_back(field.name);
  for (const FieldSection& section : visitor.sections) names.push_back(section.name);
  return names;
}

std::string recipe_help(const std::string& key) {
  Recipe defaults;
  const FieldVisitor visitor = visit_fields(defaults);
  if (key.empty() || visitor.find_section(key)) return section_help(visitor, key);
  for (const FieldDescription& field : describe_fields(visitor))
    if (field.name == key) return field_help(field);
  const std::string nearest = nearest_name(key, recipe_names());
  throw Error(Exit::usage, "there is no key " + shown(key), "",
              nearest.empty() ? "`weft help` lists the sections" : "did you mean " + nearest + "?");
}

std::string recipe_schema() {
  Recipe defaults;
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"}, {"title", "weft recipe"}};
  schema.update(section_schema(visit_fields(defaults), ""));
  schema["properties"]["extends"] = {
      {"type", "string"},
      {"minLength", 1},
      {"description", "another recipe that this one builds on, relative to this file"}};
  return schema.dump(2) + "\n";
}

}  // namespace weft
