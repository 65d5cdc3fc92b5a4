#include "training/data/pretokenize_regex.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <vector>

#include "autograd/check.h"
#include "training/data/pretokenize_classes.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

// Those that only gained code points since Unicode 14.0, so that newer_runs() can be added to PCRE2's own.
// Mn, Cn, and C with it, also lost some; Cs is in no text.
constexpr std::array<std::string_view, 33> categories = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mc", "Me", "N", "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "Cc", "Cf", "Co"};

// Where case does not count, one character equals each of these for Oniguruma (CaseFolding.txt, status F),
// and never for PCRE2. The others have a letter or a mark beyond ASCII in them.
constexpr std::array<std::string_view, 5> multi_folds = {"ss", "st", "ff", "fi", "fl"};

class Translator {
 public:
  Translator(std::string_view pattern, bool newer) : in_(pattern), newer_(newer) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\')
        escape(false);
      else if (c == '[')
        char_class();
      else if (c == '{')
        interval();
      else if (c == '(')
        group();
      else if (c == ')')
        end_group();
      else
        literal();
    }
    return out_;
  }

 private:
  std::string_view rest() const { return in_.substr(at_); }
  void copy(size_t bytes) {
    out_ += in_.substr(at_, bytes);
    at_ += bytes;
  }
  [[noreturn]] void refuse(const std::string& construct) const {
    throw Error(Exit::data, "the tokenizer's pattern uses " + construct + ", which is not supported",
                text("pattern ", in_, ", character ", at_), "use a tokenizer with one of the usual patterns");
  }

  bool caseless() const { return !caseless_.empty() && caseless_.back(); }

  // The character at at_ and its bytes.
  char32_t look(size_t& length) const {
    if (utf8_length(rest()) == 0) refuse("bytes that are not UTF-8");
    const char32_t c = code_point(in_.data() + at_, length);
    if (caseless() && c >= 0x80 && (char_classes()[c] == CharClass::letter || (c >= 0x300 && c < 0x370)))
      refuse("a letter or a mark beyond ASCII inside (?i:)");
    return c;
  }

  // A character that stands for itself, or an operator.
  void literal() {
    size_t length;
    const char32_t c = look(length);
    if (caseless()) {
      literals_ += c < 0x80 ? static_cast<char>(std::tolower(static_cast<int>(c))) : ' ';
      for (std::string_view fold : multi_folds)
        if (literals_.ends_with(fold))
          refuse(text(fold, " inside (?i:) (it would also match one character, as ss does ß)"));
    }
    copy(length);
  }

  void class_character() {
    size_t length;
    const char32_t c = look(length);
    const bool range = in_[at_ - 1] == '-' || rest().substr(length).starts_with('-');
    if (caseless() && c >= 0x80 && range) refuse("a range beyond ASCII inside (?i:)");
    copy(length);
  }

  // White space and digits are spelled out, because the engines' shorthands differ (PCRE2's \s has U+180E in
  // it).
  void escape(bool in_class) {
    literals_.clear();
    if (at_ + 1 == in_.size()) refuse("a backslash at its end");
    const char c = in_[at_ + 1];
    const std::string_view spaces = R"(\t-\r\x{85}\p{Z})";
    if (c == 's') {
      out_ += in_class ? std::string(spaces) : text('[', spaces, ']');
    } else if (c == 'S' && !in_class) {
      out_ += text("[^", spaces, ']');
    } else if (c == 'd' || c == 'D') {
      category("Nd", c == 'D', in_class);
    } else if (c == 'p' || c == 'P') {
      return property(c == 'P', in_class);
    } else if (c == 'u' && at_ + 6 <= in_.size() && !caseless()) {
      out_ += text("\\x{", in_.substr(at_ + 2, 4), '}');
      at_ += 4;
    } else if (std::strchr("rntfae", c) || std::ispunct(static_cast<unsigned char>(c))) {
      return copy(2);
    } else {
      refuse(text('\\', c, in_class ? " inside []" : "", caseless() ? " inside (?i:)" : ""));
    }
    at_ += 2;
  }

  // A bare name means the script to Oniguruma; to PCRE2, from 10.40, the scripts that use the character.
  void property(bool negated, bool in_class) {
    const size_t end = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || end == in_.npos) refuse("\\p without {}");
    if (caseless()) refuse("\\p inside (?i:)");
    std::string name(in_.substr(at_ + 3, end - at_ - 3));
    if (name.starts_with('^')) negated = !negated, name.erase(0, 1);
    if (std::ranges::find(categories, name) != categories.end()) {
      category(name, negated, in_class);
    } else if (name.size() < 3) {
      refuse(text("\\p{", name, "} (no script, and no general category that is sure on every machine)"));
    } else {
      out_ += text(negated ? "\\P" : "\\p", "{sc:", name, '}');
    }
    at_ = end + 1;
  }

  // With newer_, a category of Unicode 16.0, whatever the version of PCRE2's.
  void category(std::string_view name, bool negated, bool in_class) {
    if (negated && in_class) refuse("\\D or \\P inside []");
    if (!newer_) {
      out_ += text(negated ? "\\P" : "\\p", '{', name, '}');
      return;
    }
    std::string newer;
    for (const NewerRun& run : newer_runs())
      if (run.category.starts_with(name)) newer += text(character(run.first), '-', character(run.last));
    if (!in_class) out_ += negated ? "[^" : "[";
    out_ += text("\\p{", name, '}', newer);
    if (!in_class) out_ += ']';
  }
  static std::string character(uint32_t c) {
    char hex[16];
    std::snprintf(hex, sizeof hex, "\\x{%x}", c);
    return hex;
  }

  // Ruby nests classes and intersects them with &&; PCRE2 takes both as plain characters.
  void char_class() {
    literals_.clear();
    copy(1);
    if (at_ < in_.size() && in_[at_] == '^') copy(1);
    if (at_ < in_.size() && in_[at_] == ']') refuse("[]...]");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') refuse("[ inside []");
      if (rest().starts_with("&&")) refuse("&& inside []");
      if (in_[at_] == '\\')
        escape(true);
      else
        class_character();
    }
    if (at_ == in_.size()) refuse("[ without ]");
    copy(1);
  }

  // After {n,m}, a + is one more repetition for Ruby and forbids backtracking for PCRE2.
  void interval() {
    const size_t end = in_.find('}', at_);
    if (end == in_.npos || end == at_ + 1 || !std::isdigit(static_cast<unsigned char>(in_[at_ + 1])))
      refuse("{ that does not start {n}, {n,} or {n,m}");
    literals_.clear();
    copy(end + 1 - at_);
    if (at_ < in_.size() && (in_[at_] == '+' || in_[at_] == '?')) refuse(text('}', in_[at_]));
  }

  // Oniguruma joins what (?:...) and its neighbours spell: literals_ goes on through it.
  void group() {
    constexpr std::array<std::string_view, 7> known = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    const std::string_view* start =
        std::ranges::find_if(known, [&](auto k) { return rest().starts_with(k); });
    if (start == known.end() && rest().starts_with("(?")) refuse(std::string(in_.substr(at_, 4)));
    const bool turns_on = start != known.end() && *start == "(?i:" && !caseless();
    if (turns_on) literals_.clear();
    caseless_.push_back(caseless() || turns_on);
    copy(start == known.end() ? 1 : start->size());
  }
  void end_group() {
    if (!caseless_.empty()) caseless_.pop_back();
    copy(1);
  }

  std::string_view in_;
  bool newer_;
  size_t at_ = 0;
  std::string out_;
  std::vector<bool> caseless_;  // of each group that is open
  std::string literals_;        // where case does not count, what was spelled since the last class or escape
};

}  // namespace

std::string ruby_to_pcre2(const std::string& pattern, bool newer) { return Translator(pattern, newer).run(); }

}  // namespace weft
