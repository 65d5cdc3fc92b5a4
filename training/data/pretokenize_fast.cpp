#include "training/data/pretokenize_fast.h"

#include <array>

#include "training/data/pretokenize_classes.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {

const std::string gpt2_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string llama3_pattern = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
                                   R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string qwen2_pattern = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
                                  R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

// Positions are byte offsets of character starts in valid UTF-8; classes are asked for inside the text only.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text), classes_(char_classes()) {}

  size_t size() const { return text_.size(); }
  char byte(size_t at) const { return at < text_.size() ? text_[at] : '\0'; }

  // The class of the character at `at`, and where the next one starts.
  CharClass look(size_t at, size_t& next) const {
    size_t length;
    const CharClass c = classes_[code_point(text_.data() + at, length)];
    next = at + length;
    return c;
  }
  bool is(CharClass c, size_t at) const {
    size_t next;
    return at < size() && look(at, next) == c;
  }
  // The end of the run of characters of class c that starts at `at`, of at most `most` characters.
  size_t run(CharClass c, size_t at, size_t most = std::string_view::npos) const {
    size_t next;
    for (; most > 0 && at < size() && look(at, next) == c; --most) at = next;
    return at;
  }
  size_t newlines(size_t at) const {
    while (at < size() && is_newline(text_[at])) ++at;
    return at;
  }
  static bool is_newline(char c) { return c == '\n' || c == '\r'; }

  // The piece `\s+(?!\S)|\s+` at white space: all of the run at the end of the text, else without its last
  // character, which belongs to what follows; a single character is a piece.
  size_t white_space(size_t at) const {
    size_t last = at, end = at, next;
    while (end < size() && look(end, next) == CharClass::space) last = end, end = next;
    return end == size() || last == at ? end : last;
  }

 private:
  std::string_view text_;
  const CharClass* classes_;
};

// The end of 's 't 're 've 'm 'll 'd at an apostrophe, or `at`. Ignoring case, s is also U+017F, the long s.
template <bool ignore_case>
size_t contraction(const Scanner& scan, size_t at) {
  const auto letter = [&](size_t i) {
    const char c = scan.byte(at + i);
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  };
  const char first = letter(1), second = letter(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  if ((first == 'r' || first == 'v') && second == 'e') return at + 3;
  if (first == 'l' && second == 'l') return at + 3;
  if (ignore_case && first == '\xc5' && second == '\xbf') return at + 3;
  return at;
}

struct Gpt2 {
  size_t piece_end(const Scanner& scan, size_t at) const {
    if (scan.byte(at) == '\'') {
      const size_t end = contraction<false>(scan, at);
      if (end > at) return end;
    }
    size_t next;
    CharClass first = scan.look(at, next);
    if (scan.byte(at) == ' ' && next < scan.size()) {
      size_t after;
      const CharClass second = scan.look(next, after);
      if (second != CharClass::space) first = second, next = after;
    }
    return first == CharClass::space ? scan.white_space(at) : scan.run(first, next);
  }
};

struct Llama3 {
  size_t digits;  // in one piece, at most

  size_t piece_end(const Scanner& scan, size_t at) const {
    if (scan.byte(at) == '\'') {
      const size_t end = contraction<true>(scan, at);
      if (end > at) return end;
    }
    size_t next;
    const CharClass first = scan.look(at, next);
    if (first == CharClass::letter) return scan.run(first, next);
    if (first == CharClass::number) return scan.run(first, at, digits);
    if (!Scanner::is_newline(scan.byte(at)) && scan.is(CharClass::letter, next))
      return scan.run(CharClass::letter, next);
    if (first == CharClass::other) return scan.newlines(scan.run(first, next));
    if (scan.byte(at) == ' ' && scan.is(CharClass::other, next))
      return scan.newlines(scan.run(CharClass::other, next));
    size_t after_newline = at;
    for (size_t end = at; end < scan.size() && scan.look(end, next) == CharClass::space; end = next)
      if (Scanner::is_newline(scan.byte(end))) after_newline = next;
    return after_newline > at ? after_newline : scan.white_space(at);
  }
};

template <class Grammar>
class FastSplitter : public Splitter {
 public:
  explicit FastSplitter(Grammar grammar) : grammar_(grammar) {}
  void split(std::string_view text, PieceSink sink) const override {
    const Scanner scan(text);
    for (size_t at = 0; at < text.size();) {
      const size_t end = grammar_.piece_end(scan, at);
      sink(text.substr(at, end - at));
      at = end;
    }
  }

 private:
  Grammar grammar_;
};

}  // namespace

std::unique_ptr<Splitter> make_fast_splitter(const SplitRule& rule) {
  if (rule.literal || rule.keep != SplitRule::Keep::isolated) return nullptr;
  if (rule.pattern == gpt2_pattern) return std::make_unique<FastSplitter<Gpt2>>(Gpt2{});
  if (rule.pattern == llama3_pattern) return std::make_unique<FastSplitter<Llama3>>(Llama3{3});
  if (rule.pattern == qwen2_pattern) return std::make_unique<FastSplitter<Llama3>>(Llama3{1});
  return nullptr;
}

}  // namespace weft
