#include "autograd/fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "autograd/check.h"
#include "autograd/nearest_name.h"

namespace weft {

namespace {

std::string join(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : ", ") + part;
  return out;
}

// The shortest text that reads back to the same bits: 0.0003, 10000, 1.0e-15 (YAML 1.1 wants the point).
std::string number_text(double value) {
  char buffer[32];
  const double size = std::abs(value);
  const bool fixed = size == 0 || (size >= 1e-4 && size < 1e15);
  const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr);
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text.find('.') == std::string::npos) text.insert(exponent, ".0");
  return text;
}

// The whole text as a number, with an optional plus sign.
template <class Number>
bool parse_number(const std::string& text, Number& number) {
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (text.size() > 1 && *begin == '+' && begin[1] != '-') ++begin;
  const auto [stop, error] = std::from_chars(begin, end, number);
  return begin != end && stop == end && error == std::errc{};
}

// parse_scalar: false when the text is not of the type.

bool parse_scalar(const std::string& text, bool quoted, double& value) {
  if (quoted) return false;
  if (text == ".nan" || text == ".NaN" || text == ".NAN") {
    value = NAN;
    return true;
  }
  if (text == ".inf" || text == "-.inf") {
    value = text[0] == '-' ? -INFINITY : INFINITY;
    return true;
  }
  return parse_number(text, value);
}

bool parse_scalar(const std::string& text, bool quoted, int64_t& value) {
  if (quoted) return false;
  if (parse_number(text, value)) return true;
  double whole = 0;  // 1e6 is an integer too, as far as doubles are exact
  if (!parse_number(text, whole) || std::floor(whole) != whole || std::abs(whole) > 0x1p53) return false;
  value = static_cast<int64_t>(whole);
  return true;
}

bool parse_scalar(const std::string& text, bool quoted, bool& value) {
  if (quoted) return false;
  const auto is_one_of = [&](std::initializer_list<const char*> words) {
    return std::any_of(words.begin(), words.end(), [&](const char* word) { return text == word; });
  };
  value = is_one_of({"true", "True", "yes", "on"});
  return value || is_one_of({"false", "False", "no", "off"});
}

bool parse_scalar(const std::string& text, bool /*quoted*/, std::string& value) {
  value = text;
  return true;
}

const char* type_name(double) { return "float"; }
const char* type_name(int64_t) { return "int"; }
const char* type_name(bool) { return "bool"; }
const char* type_name(const std::string&) { return "string"; }

template <class T>
struct IsList : std::false_type {};
template <class T>
struct IsList<std::vector<T>> : std::true_type {};

std::string type_name(const Field& field) {
  return std::visit(
      [](auto* slot) -> std::string {
        using T = std::remove_pointer_t<decltype(slot)>;
        if constexpr (std::is_same_v<T, CustomField>) {
          return slot->type();
        } else if constexpr (IsList<T>::value) {
          return std::string("list of ") + type_name(typename T::value_type{});
        } else {
          return type_name(T{});
        }
      },
      field.slot);
}

std::string range_text(const FieldTraits& traits) {
  if (!traits.choices.empty()) return "one of " + join(traits.choices);
  const bool low = std::isfinite(traits.min), high = std::isfinite(traits.max);
  const std::string min = number_text(traits.min), max = number_text(traits.max);
  if (low && high) return (traits.above_min ? "above " + min + ", at most " : min + " to ") + max;
  if (low) return traits.above_min ? "above " + min : min + " or more";
  if (high) return "at most " + max;
  return {};
}

// "a float, 0 or more"
std::string wanted(const Field& field) {
  const std::string range = range_text(field.traits), type = type_name(field);
  if (!field.traits.choices.empty()) return range;
  return (type == "int" ? "an " : "a ") + type + (range.empty() ? "" : ", " + range);
}

[[noreturn]] void refuse(const Field& field, const FieldValue& value, const std::string& what) {
  throw Error(Exit::recipe, what, value.place.text(), "give " + wanted(field));
}

template <class T>
T read_scalar(const Field& field, const FieldValue& value, const std::string& name) {
  T result{};
  if (value.kind == FieldValue::Kind::none) refuse(field, value, name + " has no value");
  if (value.kind != FieldValue::Kind::text || !parse_scalar(value.text, value.quoted, result))
    refuse(field, value,
           name + " is " + shown(value) + ", not " + (type_name(T{}) == std::string("int") ? "an " : "a ") +
               type_name(T{}));
  const FieldTraits& traits = field.traits;
  if constexpr (std::is_same_v<T, std::string>) {
    const auto& choices = traits.choices;
    if (!choices.empty() && std::find(choices.begin(), choices.end(), result) == choices.end())
      refuse(field, value, name + " is " + shown(value) + ", not a known choice");
  } else if constexpr (!std::is_same_v<T, bool>) {
    const double number = static_cast<double>(result);
    if (!std::isfinite(number)) refuse(field, value, name + " is " + shown(value) + ", not a finite number");
    if (number < traits.min || (traits.above_min && number == traits.min) || number > traits.max)
      refuse(field, value, name + " is " + shown(value) + ", out of range");
  }
  return result;
}

template <class T>
FieldValue write_scalar(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) return text_value(value, true);
  if constexpr (std::is_same_v<T, bool>) return text_value(value ? "true" : "false");
  if constexpr (std::is_same_v<T, int64_t>) return text_value(std::to_string(value));
  if constexpr (std::is_same_v<T, double>) return text_value(number_text(value));
}

// "a, b" or "[a, b]" cut at commas outside quotes; the quotes go.
FieldValue parse_list(std::string text) {
  FieldValue list;
  list.kind = FieldValue::Kind::list;
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
  if (text.find_first_not_of(' ') == std::string::npos) return list;
  FieldValue item = text_value("");
  char inside = 0;
  for (char c : text + ",") {
    if (inside) {
      if (c == inside)
        inside = 0;
      else
        item.text += c;
    } else if (c == '"' || c == '\'') {
      inside = c;
      item.quoted = true;
    } else if (c == ',') {
      while (!item.quoted && !item.text.empty() && item.text.back() == ' ') item.text.pop_back();
      list.items.push_back(item);
      item = text_value("");
    } else if (c != ' ' || (!item.text.empty() && !item.quoted)) {
      item.text += c;
    }
  }
  return list;
}

std::string section_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

std::string qualified(const std::string& owner, const std::string& name) {
  return owner.empty() ? name : owner + "." + name;
}

[[noreturn]] void unknown_field(const FieldVisitor& visitor, const std::string& name,
                                const std::string& owner, const std::string& where) {
  std::vector<std::string> all;
  for (const Field& field : visitor.fields) all.push_back(field.name);
  for (const FieldSection& section : visitor.sections) all.push_back(section.name);
  std::string near = nearest_name(name, all), section = section_of(name);
  if (!section.empty() && !visitor.find_section(section)) section.clear();
  const std::vector<std::string> here = visitor.names_in(section);
  std::string advice = here.empty() ? "it takes none" : "keys here: " + join(here);
  if (!near.empty()) advice = "did you mean " + qualified(owner, near) + "?";
  throw Error(Exit::recipe, "unknown key " + shown(qualified(owner, name)), where, advice);
}

void read_section(const FieldVisitor& visitor, const FieldValue& map, const std::string& section,
                  const std::string& owner) {
  if (map.kind == FieldValue::Kind::none) return;
  if (map.kind != FieldValue::Kind::map) {
    const std::string name = qualified(owner, section);
    throw Error(Exit::recipe, (name.empty() ? "this" : name) + " is " + shown(map) + ", not a section",
                map.place.text(), "write its keys below it: " + join(visitor.names_in(section)));
  }
  for (const FieldValue& item : map.items) {
    const std::string name = qualified(section, item.key);
    const bool nested = item.key.find('.') != std::string::npos;  // optim.lr: is an override's spelling
    const Field* field = nested ? nullptr : visitor.find(name);
    if (field) {
      read_field(*field, item, qualified(owner, name));
    } else if (!nested && visitor.find_section(name)) {
      read_section(visitor, item, name, owner);
    } else if (nested && visitor.find(name)) {
      throw Error(Exit::recipe, "a key with a dot, " + name, item.key_place.text(),
                  "write " + last_part(name) + " below the section " + section_of(name));
    } else {
      unknown_field(visitor, name, owner, item.key_place.text());
    }
  }
}

}  // namespace

const Field* FieldVisitor::find(const std::string& name) const {
  for (const Field& field : fields)
    if (field.name == name) return &field;
  return nullptr;
}

const FieldSection* FieldVisitor::find_section(const std::string& name) const {
  for (const FieldSection& section : sections)
    if (section.name == name) return &section;
  return nullptr;
}

std::vector<std::string> FieldVisitor::names_in(const std::string& section) const {
  std::vector<std::string> names;
  for (const Field& field : fields)
    if (section_of(field.name) == section) names.push_back(last_part(field.name));
  for (const FieldSection& inner : sections)
    if (section_of(inner.name) == section) names.push_back(last_part(inner.name));
  return names;
}

void read_field(const Field& field, const FieldValue& value, const std::string& name) {
  std::visit(
      [&](auto* slot) {
        using T = std::remove_pointer_t<decltype(slot)>;
        if constexpr (std::is_same_v<T, CustomField>) {
          if (value.kind == FieldValue::Kind::none) refuse(field, value, name + " has no value");
          slot->read(value, name);
        } else if constexpr (IsList<T>::value) {
          T list;
          if (value.kind == FieldValue::Kind::list) {
            for (const FieldValue& item : value.items)
              list.push_back(read_scalar<typename T::value_type>(field, item, name));
          } else {
            list.push_back(read_scalar<typename T::value_type>(field, value, name));  // x is [x]
          }
          *slot = std::move(list);
        } else {
          *slot = read_scalar<T>(field, value, name);
        }
      },
      field.slot);
}

FieldValue write_field(const Field& field) {
  return std::visit(
      [](auto* slot) -> FieldValue {
        using T = std::remove_pointer_t<decltype(slot)>;
        if constexpr (std::is_same_v<T, CustomField>) {
          return slot->write();
        } else if constexpr (IsList<T>::value) {
          FieldValue list;
          list.kind = FieldValue::Kind::list;
          for (const auto& item : *slot) list.items.push_back(write_scalar<typename T::value_type>(item));
          return list;
        } else {
          return write_scalar<T>(*slot);
        }
      },
      field.slot);
}

void read_fields(const FieldVisitor& visitor, const FieldValue& map, const std::string& name) {
  read_section(visitor, map, "", name);
}

void set_field(const FieldVisitor& visitor, const std::string& name, const std::string& text) {
  FieldValue value = text_value(text);
  value.place.source = std::make_shared<const std::string>(name + "=" + text);
  const Field* field = visitor.find(name);
  if (!field) unknown_field(visitor, name, "", *value.place.source);
  const bool list = std::visit(
      [](auto* slot) { return IsList<std::remove_pointer_t<decltype(slot)>>::value; }, field->slot);
  if (list) {
    FieldValue items = parse_list(text);
    for (FieldValue& item : items.items) item.place = value.place;
    read_field(*field, items, name);
  } else {
    read_field(*field, value, name);
  }
}

std::vector<FieldDescription> describe_fields(const FieldVisitor& visitor) {
  std::vector<FieldDescription> descriptions;
  for (const Field& field : visitor.fields) {
    const FieldValue value = write_field(field);
    const std::string text = value.kind == FieldValue::Kind::text ? value.text : to_text(value);
    const char* const speed = field.traits.speed_only ? "; changes speed, not results" : "";
    descriptions.push_back({field.name, type_name(field), text, field.help + speed, field.traits.unit,
                            range_text(field.traits), field.traits});
  }
  return descriptions;
}

}  // namespace weft
