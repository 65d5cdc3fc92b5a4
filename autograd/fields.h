#pragma once
// The fields of a configuration, listed once and used to read, write, document and check it.
//
//   struct ScanConfig {
//     int64_t chunk = 64;
//     void fields(FieldVisitor& f) { f("chunk", chunk, "tokens at once", {.unit = "tokens", .min = 1}); }
//   };
//   ScanConfig config;
//   set_from_text(config, "chunk", "128");
//
// A wrong value is an Error with Exit::recipe that names the field, where it was written, and what would be
// accepted.

#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "autograd/field_value.h"

namespace weft {

// A field with a syntax of its own, such as a list that takes paths or maps.
class CustomField {
 public:
  virtual ~CustomField() = default;
  virtual void read(const FieldValue& value, const std::string& name) = 0;
  virtual FieldValue write() const = 0;
  virtual const char* type() const = 0;    // for people: "path or list of paths"
  virtual const char* schema() const = 0;  // a JSON Schema object
};

struct FieldTraits {
  std::string unit = {};
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;                 // min itself is refused
  std::vector<std::string> choices = {};  // the only texts accepted
  bool fixed = false;                     // a resumed run has to keep it
  bool speed_only = false;                // its value changes results by no more than rounding
};

using FieldSlot = std::variant<int64_t*, double*, bool*, std::string*, std::vector<int64_t>*,
                               std::vector<double>*, std::vector<std::string>*, CustomField*>;

struct Field {
  std::string name;  // dotted: "optim.lr"
  FieldSlot slot;
  std::string help;
  FieldTraits traits;
};

struct FieldSection {
  std::string name;
  std::string help;
};

// Handed to `void fields(FieldVisitor&)` of a configuration, keeps what that function lists. It points into
// the configuration and must not outlive it.
class FieldVisitor {
 public:
  template <class T>
  void operator()(const char* name, T& value, const char* help, FieldTraits traits = {}) {
    if constexpr (std::is_base_of_v<CustomField, T>) {
      add(name, static_cast<CustomField*>(&value), help, std::move(traits));
    } else {
      static_assert(std::is_constructible_v<FieldSlot, T*>,
                    "a field is int64_t, double, bool, std::string, a vector of these, or a CustomField");
      add(name, &value, help, std::move(traits));
    }
  }

  template <class Config>
  void section(const char* name, Config& config, const char* help) {
    const std::string outer = prefix_;
    sections.push_back({prefix_ + name, help});
    prefix_ += std::string(name) + ".";
    config.fields(*this);
    prefix_ = outer;
  }

  const Field* find(const std::string& name) const;
  const FieldSection* find_section(const std::string& name) const;
  // Names of the fields and sections directly in a section; "" is the top.
  std::vector<std::string> names_in(const std::string& section) const;

  std::vector<Field> fields;
  std::vector<FieldSection> sections;

 private:
  void add(const char* name, FieldSlot slot, const char* help, FieldTraits traits) {
    fields.push_back({prefix_ + name, slot, help, std::move(traits)});
  }

  std::string prefix_;
};

template <class Config>
FieldVisitor visit_fields(Config& config) {
  FieldVisitor visitor;
  config.fields(visitor);
  return visitor;
}

// One field. `name` is what the error calls it. Checks type, range and choices.
void read_field(const Field& field, const FieldValue& value, const std::string& name);
FieldValue write_field(const Field& field);

// All entries of a map, sections included; fields that it leaves out keep their values. `name` says what the
// map belongs to ("model.mechanisms.gla") and may be empty.
void read_fields(const FieldVisitor& visitor, const FieldValue& map, const std::string& name);
// `text` as in attr=value: lists as "a,b" or "[a, b]".
void set_field(const FieldVisitor& visitor, const std::string& name, const std::string& text);

template <class Config>
void read_config(Config& config, const FieldValue& map, const std::string& name = {}) {
  read_fields(visit_fields(config), map, name);
}

template <class Config>
void set_from_text(Config& config, const std::string& name, const std::string& text) {
  set_field(visit_fields(config), name, text);
}

// What a person or a program may want to know about a field.
struct FieldDescription {
  std::string name;
  std::string type;           // int, float, bool, string, list of ..., or the words of a CustomField
  std::string default_value;  // the value now, as text
  std::string help;
  std::string unit;
  std::string range;  // "1 or more", "above 0", "one of a, b", or empty
  FieldTraits traits;
};

std::vector<FieldDescription> describe_fields(const FieldVisitor& visitor);

template <class Config>
std::vector<FieldDescription> describe(Config&& config) {
  return describe_fields(visit_fields(config));
}

}  // namespace weft
