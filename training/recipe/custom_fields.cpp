// The recipe's fields with a syntax of their own: data.train, data.val, model.mechanisms.

#include <algorithm>

#include "autograd/check.h"
#include "training/recipe/recipe.h"

namespace weft {

namespace {

using Kind = FieldValue::Kind;

[[noreturn]] void refuse(const FieldValue& value, const std::string& name, const std::string& advice) {
  throw Error(Exit::recipe, name + " is " + shown(value) + ", which it does not accept", value.place.text(),
              advice);
}

// A path, given as text that is not empty.
std::string read_path(const FieldValue& value, const std::string& name) {
  if (value.kind != Kind::text || value.text.empty())
    refuse(value, name, "give the path of a file, folder or glob");
  return value.text;
}

bool looks_like_number(const FieldValue& value) {
  const std::string& text = value.text;
  if (value.kind != Kind::text || value.quoted) return false;
  if (text == "nan" || text == ".nan" || text == "inf" || text == ".inf" || text == "-inf") return true;
  return text.find_first_of("0123456789") != std::string::npos &&
         text.find_first_not_of("0123456789.eE+-") == std::string::npos;
}

// By key, so that two recipes that say the same are written the same.
void sort_map(FieldValue& map) {
  std::sort(map.items.begin(), map.items.end(),
            [](const FieldValue& a, const FieldValue& b) { return a.key < b.key; });
}

// The item of a map with the key of `wanted`, added if it is new.
FieldValue& entry(FieldValue& map, const FieldValue& wanted) {
  for (FieldValue& item : map.items)
    if (item.key == wanted.key) return item;
  map.items.emplace_back();
  map.items.back().key = wanted.key;
  map.items.back().place = wanted.place;
  map.items.back().key_place = wanted.key_place;
  return map.items.back();
}

FieldValue list_value() {
  FieldValue list;
  list.kind = Kind::list;
  return list;
}

FieldValue keyed(std::string key, FieldValue value) {
  value.key = std::move(key);
  return value;
}

}  // namespace

void Recipe::Sources::read(const FieldValue& value, const std::string& name) {
  const std::vector<FieldValue> items =
      value.kind == Kind::list ? value.items : std::vector<FieldValue>{value};
  std::vector<Source> sources;
  for (const FieldValue& item : items) {
    Source source;
    if (item.kind == Kind::map) {
      read_config(source, item, name);
      if (source.path.empty())
        throw Error(Exit::recipe, name + " has a source without a path", item.place.text(),
                    "write {path: FILE, weight: 1}");
    } else {
      source.path = read_path(item, name);
    }
    sources.push_back(source);
  }
  list = std::move(sources);
}

FieldValue Recipe::Sources::write() const {
  FieldValue out = list_value();
  for (Source source : list) {
    const FieldVisitor visitor = visit_fields(source);
    const FieldValue path = write_field(*visitor.find("path"));
    if (source.weight == 1) {
      out.items.push_back(path);
      continue;
    }
    FieldValue map;
    map.kind = Kind::map;
    map.items = {keyed("path", path), keyed("weight", write_field(*visitor.find("weight")))};
    out.items.push_back(map);
  }
  return out;
}

const char* Recipe::Sources::schema() const {
  return R"({"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"anyOf": [
    {"type": "string", "minLength": 1},
    {"type": "object", "properties": {"path": {"type": "string", "minLength": 1},
     "weight": {"type": "number", "exclusiveMinimum": 0}}, "required": ["path"], "additionalProperties": false}]}}]})";
}

void Recipe::Validation::read(const FieldValue& value, const std::string& name) {
  if (looks_like_number(value)) {
    double read = 0;
    const Field field{name, &read, "", {.min = 0, .max = 0.999}};
    read_field(field, value, name);
    share = read;
    paths.clear();
    return;
  }
  std::vector<std::string> given;
  if (value.kind == Kind::list)
    for (const FieldValue& item : value.items) given.push_back(read_path(item, name));
  else
    given.push_back(read_path(value, name));
  paths = std::move(given);
  share = 0;
}

FieldValue Recipe::Validation::write() const {
  FieldValue list = list_value();
  for (const std::string& path : paths) list.items.push_back(text_value(path, true));
  double copy = share;
  return paths.empty() ? write_field({"", &copy, "", {}}) : list;
}

const char* Recipe::Validation::schema() const {
  return R"({"anyOf": [{"type": "number", "minimum": 0, "maximum": 0.999}, {"type": "string", "minLength": 1},
    {"type": "array", "items": {"type": "string", "minLength": 1}}]})";
}

void Recipe::Mechanisms::read(const FieldValue& value, const std::string& name) {
  const char* advice = "write {ID: {ATTRIBUTE: VALUE}}; `weft ls` lists the ids";
  constexpr size_t kMaxEntries = 1000;  // merging is quadratic
  if (value.kind != Kind::map || value.items.size() > kMaxEntries) refuse(value, name, advice);
  for (const FieldValue& item : value.items) {
    const bool attributes = item.kind == Kind::map || item.kind == Kind::none;
    if (!attributes || item.items.size() > kMaxEntries) refuse(item, name + "." + item.key, advice);
  }
  map.kind = Kind::map;
  for (const FieldValue& item : value.items) {
    FieldValue& attributes = entry(map, item);
    attributes.kind = Kind::map;
    for (const FieldValue& attribute : item.items) entry(attributes, attribute) = attribute;
  }
}

FieldValue Recipe::Mechanisms::write() const {
  FieldValue out = map;
  out.kind = Kind::map;
  sort_map(out);
  for (FieldValue& attributes : out.items) sort_map(attributes);
  return out;
}

const char* Recipe::Mechanisms::schema() const {
  return R"({"type": "object", "additionalProperties": {"type": ["object", "null"]}})";
}

}  // namespace weft
