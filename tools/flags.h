#pragma once
// The words of one command, declared once and used to read, check and document them.
//
//   Flags flags("corpus", "", "Writes text.");
//   flags.add("--bytes", bytes, "N", "at least so many", {.required = true});
//   if (!flags.parse(words)) return 0;  // --help was asked for and answered
//
// A value is written `--bytes 10` or `--bytes=10`; words after `--` are not flags. Only a flag
// that gathers values may be given twice. Every mistake is an Error (usage) that names the flag.

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace weft {

struct FlagTraits {
  bool required = false;
  bool may_be_empty = false;  // of a text; else `--out "$X"` without an X would be as if it were not there
  int64_t min = std::numeric_limits<int64_t>::min();
  int64_t max = std::numeric_limits<int64_t>::max();
};

class Flags {
 public:
  // arguments: what the command takes besides flags, as its usage line shows it: "NAME [FILE]". A name in
  // brackets may be left out, one with "..." may be repeated.
  Flags(std::string command, std::string arguments, std::string summary);

  void add(const char* name, bool& value, const char* help);
  void add(const char* name, int64_t& value, const char* unit, const char* help, FlagTraits traits = {});
  void add(const char* name, std::string& value, const char* unit, const char* help, FlagTraits traits = {});
  // One that may be given more than once; its values in order.
  void add(const char* name, std::vector<std::string>& values, const char* unit, const char* help,
           FlagTraits traits = {});
  // Flags end at the first argument: everything from there on belongs to another command.
  void end_at_first_argument() { ends_early_ = true; }

  // Of a command whose words are also overrides of a recipe (KEY=VALUE, --KEY VALUE): takes these out of
  // `words`, which keeps the flags declared here and the first other word, the recipe.
  std::vector<std::string> take_overrides(std::vector<std::string>& words) const;

  bool parse(const std::vector<std::string>& words);
  const std::vector<std::string>& arguments() const { return arguments_; }
  // The i-th argument, or `absent` where it was left out.
  std::string argument(size_t i, const std::string& absent = {}) const;

  std::string usage() const;  // "weft corpus --bytes N [--json]"
  std::string help() const;

 private:
  using Slot = std::variant<bool*, int64_t*, std::string*, std::vector<std::string>*>;
  struct Flag {
    std::string name, unit, help;
    Slot slot;
    FlagTraits traits;
    bool given = false;
  };

  Flag& find(const std::string& name);
  void check_arguments() const;

  std::string command_, shown_arguments_, summary_;
  std::vector<Flag> flags_;
  std::vector<std::string> arguments_;
  bool ends_early_ = false;
};

// A whole number in [least, most], and what one of several words stands for: values that come as parts of a
// flag's text. Errors: Exit::usage, with what there is to give.
int64_t flag_number(const std::string& flag, const std::string& value, int64_t least, int64_t most);
[[noreturn]] void refuse_flag(const std::string& flag, const std::string& value, const std::string& advice);
template <class T>
T flag_choice(const std::string& flag, const std::string& value,
              const std::vector<std::pair<std::string, T>>& choices) {
  std::string names;
  for (const auto& [name, meaning] : choices) {
    if (name == value) return meaning;
    names += (names.empty() ? "" : ", ") + name;
  }
  refuse_flag(flag, value, "one of " + names);
}

}  // namespace weft
