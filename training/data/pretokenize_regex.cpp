#include "training/data/pretokenize_regex.h"

#include <array>
#include <cstring>
#include <string_view>

#include "autograd/check.h"

namespace weft {
namespace {

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\')
        escape(false);
      else if (c == '[')
        char_class();
      else if (c == '{')
        interval();
      else if (rest().starts_with("(?"))
        group();
      else
        copy(1);
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

  // White space and digits are spelled out, because the engines' shorthands differ (PCRE2's \s has U+180E in
  // it).
  void escape(bool in_class) {
    if (at_ + 1 == in_.size()) refuse("a backslash at its end");
    const char c = in_[at_ + 1];
    const std::string_view spaces = R"(\t-\r\x{85}\p{Z})";
    if (c == 's') {
      out_ += in_class ? std::string(spaces) : text('[', spaces, ']');
    } else if (c == 'S' && !in_class) {
      out_ += text("[^", spaces, ']');
    } else if (c == 'd') {
      out_ += R"(\p{Nd})";
    } else if (c == 'D') {
      out_ += R"(\P{Nd})";
    } else if (c == 'p' || c == 'P') {
      const size_t end = in_.find('}', at_);
      if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || end == in_.npos) refuse("\\p without {}");
      return copy(end + 1 - at_);
    } else if (c == 'u' && at_ + 6 <= in_.size()) {
      out_ += text("\\x{", in_.substr(at_ + 2, 4), '}');
      at_ += 4;
    } else if (std::strchr("rntfae", c) || std::ispunct(static_cast<unsigned char>(c))) {
      return copy(2);
    } else {
      refuse(text('\\', c, in_class ? " inside []" : ""));
    }
    at_ += 2;
  }

  // Ruby nests classes and intersects them with &&; PCRE2 takes both as plain characters.
  void char_class() {
    copy(1);
    if (at_ < in_.size() && in_[at_] == '^') copy(1);
    if (at_ < in_.size() && in_[at_] == ']') refuse("[]...]");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') refuse("[ inside []");
      if (rest().starts_with("&&")) refuse("&& inside []");
      if (in_[at_] == '\\')
        escape(true);
      else
        copy(1);
    }
    if (at_ == in_.size()) refuse("[ without ]");
    copy(1);
  }

  // After {n,m}, a + is one more repetition for Ruby and forbids backtracking for PCRE2.
  void interval() {
    const size_t end = in_.find('}', at_);
    if (end == in_.npos || end == at_ + 1 || !std::isdigit(static_cast<unsigned char>(in_[at_ + 1])))
      refuse("{ that does not start {n}, {n,} or {n,m}");
    copy(end + 1 - at_);
    if (at_ < in_.size() && (in_[at_] == '+' || in_[at_] == '?')) refuse(text('}', in_[at_]));
  }

  void group() {
    constexpr std::array<std::string_view, 7> known = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
    for (std::string_view start : known)
      if (rest().starts_with(start)) return copy(start.size());
    refuse(std::string(in_.substr(at_, 4)));
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string ruby_to_pcre2(const std::string& pattern) { return Translator(pattern).run(); }

}  // namespace weft
