#include "tools/flags.h"

#include <algorithm>
#include <charconv>
#include <sstream>

#include "autograd/check.h"
#include "autograd/field_value.h"
#include "autograd/nearest_name.h"
#include "tools/command.h"

namespace weft {
namespace {

int64_t read_number(const std::string& flag, const std::string& word, const FlagTraits& traits) {
  int64_t number = 0;
  const auto [end, failure] = std::from_chars(word.data(), word.data() + word.size(), number);
  if (failure != std::errc() || end != word.data() + word.size())
    throw Error(Exit::usage, text(flag, " is ", shown(word), ", not a whole number"), flag);
  if (number < traits.min || number > traits.max)
    throw Error(Exit::usage, text(flag, " is ", number, ", out of range"), flag,
                number < traits.min ? text(traits.min, " or more") : text(traits.max, " at most"));
  return number;
}

}  // namespace

Flags::Flags(std::string command, std::string arguments, std::string summary)
    : command_(std::move(command)), shown_arguments_(std::move(arguments)), summary_(std::move(summary)) {}

void Flags::add(const char* name, bool& value, const char* help) {
  flags_.push_back({name, "", help, &value, {}});
}
void Flags::add(const char* name, int64_t& value, const char* unit, const char* help, FlagTraits traits) {
  flags_.push_back({name, unit, help, &value, traits});
}
void Flags::add(const char* name, std::string& value, const char* unit, const char* help, FlagTraits traits) {
  flags_.push_back({name, unit, help, &value, traits});
}

void Flags::add(const char* name, std::vector<std::string>& values, const char* unit, const char* help,
                FlagTraits traits) {
  flags_.push_back({name, unit, help, &values, traits});
}

Flags::Flag& Flags::find(const std::string& name) {
  std::vector<std::string> names{"--help"};
  for (Flag& flag : flags_) {
    if (flag.name == name) return flag;
    names.push_back(flag.name);
  }
  throw Error(Exit::usage, "unknown flag " + shown(name), "weft " + command_,
              suggest_name(name, names, "flags"));
}

std::vector<std::string> Flags::take_overrides(std::vector<std::string>& words) const {
  std::vector<std::string> own, overrides;
  bool recipe = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string &word = words[i], name = word.substr(0, word.find('='));
    const auto flag =
        std::find_if(flags_.begin(), flags_.end(), [&](const Flag& f) { return f.name == name; });
    // The beginning of a flag is one misspelt: --rank is no key of a recipe.
    const bool begun =
        name.size() > 3 && name.starts_with("--") &&
        std::any_of(flags_.begin(), flags_.end(), [&](const Flag& f) { return f.name.starts_with(name); });
    const bool known = flag != flags_.end() || begun || name == "--help" || name == "-h";
    const bool is_recipe = !recipe && name == word && !word.starts_with("-");
    recipe |= is_recipe;
    std::vector<std::string>& to = known || is_recipe ? own : overrides;
    to.push_back(word);
    const bool alone = known ? flag == flags_.end() || std::holds_alternative<bool*>(flag->slot)
                             : i + 1 < words.size() && words[i + 1].starts_with("--");
    if (name == word && !alone && word.starts_with("-") && i + 1 < words.size()) to.push_back(words[++i]);
  }
  words = own;
  return overrides;
}

bool Flags::parse(const std::vector<std::string>& words) {
  bool flags_over = false;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (flags_over || word.size() < 2 || word[0] != '-') {
      arguments_.push_back(word);
      flags_over |= ends_early_;
      continue;
    }
    if (word == "--") {
      flags_over = true;
      continue;
    }
    if (word == "--help" || word == "-h") {
      print(help());
      return false;
    }
    const size_t equals = word.find('=');
    Flag& flag = find(word.substr(0, equals));
    // The one given first would be ignored without a word.
    if (flag.given && !std::holds_alternative<std::vector<std::string>*>(flag.slot))
      throw Error(Exit::usage, flag.name + " is given twice", flag.name, "keep one");
    flag.given = true;
    if (bool** value = std::get_if<bool*>(&flag.slot)) {
      if (equals != word.npos)
        throw Error(Exit::usage, flag.name + " takes no value", flag.name, "write " + flag.name + " alone");
      **value = true;
      continue;
    }
    if (equals == word.npos && i + 1 == words.size())
      throw Error(Exit::usage, flag.name + " has no value", flag.name,
                  "write " + flag.name + " " + flag.unit);
    const std::string value = equals == word.npos ? words[++i] : word.substr(equals + 1);
    if (int64_t** number = std::get_if<int64_t*>(&flag.slot))
      **number = read_number(flag.name, value, flag.traits);
    else if (std::vector<std::string>** values = std::get_if<std::vector<std::string>*>(&flag.slot))
      (*values)->push_back(value);
    else if (value.empty() && !flag.traits.may_be_empty)
      refuse_flag(flag.name, value,
                  text("write ", flag.name, " ", flag.unit, flag.traits.required ? "" : ", or leave it out"));
    else
      *std::get<std::string*>(flag.slot) = value;
  }
  for (const Flag& flag : flags_)
    if (flag.traits.required && !flag.given)
      throw Error(Exit::usage, flag.name + " is missing", "weft " + command_, "usage: " + usage());
  check_arguments();
  return true;
}

void Flags::check_arguments() const {
  size_t least = 0, most = 0;
  std::istringstream names(shown_arguments_);
  for (std::string name; names >> name;) {
    least += name[0] != '[';
    most = name.find("...") == name.npos ? most + 1 : SIZE_MAX;
    if (most == SIZE_MAX) break;
  }
  const std::string advice = "usage: " + usage();
  if (arguments_.size() < least)
    throw Error(Exit::usage, "an argument is missing", "weft " + command_, advice);
  if (arguments_.size() > most)
    throw Error(Exit::usage, "unexpected argument " + shown(arguments_[most]), "weft " + command_, advice);
}

std::string Flags::argument(size_t i, const std::string& absent) const {
  return i < arguments_.size() ? arguments_[i] : absent;
}

std::string Flags::usage() const {
  std::string line = "weft " + command_;
  const auto add_flags = [&](bool required) {
    for (const Flag& flag : flags_) {
      if (flag.traits.required != required) continue;
      const std::string shown = flag.unit.empty() ? flag.name : flag.name + " " + flag.unit;
      line += required ? " " + shown : " [" + shown + "]";
    }
  };
  add_flags(true);
  if (!ends_early_ && !shown_arguments_.empty()) line += " " + shown_arguments_;
  add_flags(false);
  if (ends_early_) line += " " + shown_arguments_;
  return line;
}

std::string Flags::help() const {
  std::string out = "usage: " + usage() + "\n\n" + summary_ + "\n";
  constexpr size_t wide = 24;  // a longer one has its help on the next line
  size_t width = 0;
  for (const Flag& flag : flags_)
    if (const size_t own = flag.name.size() + 1 + flag.unit.size(); own <= wide) width = std::max(width, own);
  if (!flags_.empty()) out += "\n";
  for (const Flag& flag : flags_) {
    const std::string left = flag.name + " " + flag.unit;
    const bool fits = left.size() <= width;
    out += "  " + left + (fits ? "" : "\n  ") + std::string(width + 2 - (fits ? left.size() : 0), ' ') +
           flag.help + "\n";
  }
  return out;
}

void refuse_flag(const std::string& flag, const std::string& value, const std::string& advice) {
  throw Error(Exit::usage, text(flag, " is ", value.empty() ? "empty" : value), flag, advice);
}

int64_t flag_number(const std::string& flag, const std::string& value, int64_t least, int64_t most) {
  int64_t number = 0;
  const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc{} || stop != value.data() + value.size() || number < least || number > most)
    refuse_flag(flag, value, text("give a whole number, ", least, " to ", most));
  return number;
}

}  // namespace weft
