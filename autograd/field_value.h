#pragma once
// What a person wrote, before anything knows its type.

#include <memory>
#include <string>
#include <vector>

namespace weft {

// Where a value was written. line and column count from 1; line 0 means the source has no lines (an
// override).
struct Place {
  std::shared_ptr<const std::string> source;
  int line = 0;
  int column = 0;

  std::string text() const;  // "file:line:column", "override a.b=c", or empty
};

// What was written for a field before its type is known. A map is a list whose items carry keys.
struct FieldValue {
  enum class Kind { none, text, list, map };

  Kind kind = Kind::none;
  std::string text;     // Kind::text
  bool quoted = false;  // text in quotes is never a number or a bool
  std::vector<FieldValue> items;
  Place place;
  std::string key;  // set on the items of a map
  Place key_place;

  const FieldValue* find(const std::string& key) const;  // an item of this map, or null
};

FieldValue text_value(std::string text, bool quoted = false);

// One line of YAML in flow style: 3, "off", [a, b], {path: x, weight: 2}.
std::string to_text(const FieldValue& value);

// The same for messages: one line, no control characters, cut where it is long.
std::string shown(const FieldValue& value);
std::string shown(std::string text);

}  // namespace weft
