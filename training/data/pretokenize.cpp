#include "training/data/pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "autograd/check.h"
#include "training/data/pretokenize_classes.h"
#include "training/data/pretokenize_fast.h"
#include "training/data/pretokenize_regex.h"
#include "training/data/tokenizer_utf8.h"

namespace weft {
namespace {

using Keep = SplitRule::Keep;

// Joins or drops the alternating matches and gaps of one text. A part may be empty: a match of no characters
// still separates what lies around it.
class Folder {
 public:
  Folder(Keep keep, bool invert, PieceSink sink) : keep_(keep), invert_(invert), sink_(sink) {}
  ~Folder() { flush(); }

  void part(std::string_view piece, bool matched) {
    const bool is_match = matched != invert_;
    if (joins(is_match)) {
      held_ = std::string_view(held_.data(), held_.size() + piece.size());
    } else {
      flush();
      if (keep_ != Keep::removed || !is_match) held_ = piece;
    }
    last_is_match_ = is_match;
  }

 private:
  bool joins(bool is_match) const {
    if (held_.data() == nullptr) return false;
    switch (keep_) {
      case Keep::merged_with_previous: return is_match && !last_is_match_;
      case Keep::merged_with_next: return last_is_match_ && !is_match;
      case Keep::contiguous: return last_is_match_ == is_match;
      default: return false;
    }
  }
  void flush() {
    if (!held_.empty()) sink_(held_);
    held_ = {};
  }

  Keep keep_;
  bool invert_;
  PieceSink sink_;
  std::string_view held_;
  bool last_is_match_ = false;
};

class LiteralSplitter : public Splitter {
 public:
  explicit LiteralSplitter(SplitRule rule) : rule_(std::move(rule)) {}
  void split(std::string_view text, PieceSink sink) const override {
    Folder folder(rule_.keep, rule_.invert, sink);
    size_t done = 0;
    for (size_t at; (at = text.find(rule_.pattern, done)) != text.npos; done = at + rule_.pattern.size()) {
      if (at > done) folder.part(text.substr(done, at - done), false);
      folder.part(text.substr(at, rule_.pattern.size()), true);
    }
    if (done < text.size()) folder.part(text.substr(done), false);
  }

 private:
  SplitRule rule_;
};

// What one thread needs to match: any pattern may use it, one at a time.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 64 << 20, nullptr);

  MatchState() {
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_match_limit(context, UINT32_MAX);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

std::string pcre2_message(int code) {
  char message[256] = "";
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof message);
  return message;
}

class RegexSplitter : public Splitter {
 public:
  explicit RegexSplitter(SplitRule rule)
      : rule_(std::move(rule)), usual_(compile(false)), newer_(compile(true)) {}

  void split(std::string_view text, PieceSink sink) const override {
    Folder folder(rule_.keep, rule_.invert, sink);
    size_t done = 0, from = 0;
    bool after_match = false;
    const pcre2_code* code = (has_newer(text) ? newer_ : usual_).get();
    for (Match m; from <= text.size() && find(code, text, from, m);) {
      // Oniguruma's iteration: an empty match right after another match does not count.
      if (m.begin == m.end && after_match && m.end == done) {
        from = m.end + std::max<size_t>(1, utf8_length(text.substr(m.end)));
        continue;
      }
      if (m.begin > done) folder.part(text.substr(done, m.begin - done), false);
      folder.part(text.substr(m.begin, m.end - m.begin), true);
      done = from = m.end;
      after_match = true;
    }
    if (done < text.size()) folder.part(text.substr(done), false);
  }

 private:
  struct Match {
    size_t begin, end;
  };
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };

  using Code = std::unique_ptr<pcre2_code, Free>;

  Code compile(bool newer) const {
    const std::string translated = ruby_to_pcre2(rule_.pattern, newer);
    int code = 0;
    PCRE2_SIZE at = 0;
    Code compiled(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &code, &at, nullptr));
    if (code == PCRE2_ERROR_UNKNOWN_UNICODE_PROPERTY)
      throw Error(Exit::data,
                  "the tokenizer's pattern uses a property that is neither a general category nor a script, "
                  "which is not supported",
                  text("pattern ", rule_.pattern), "use a tokenizer with one of the usual patterns");
    if (!compiled)
      throw Error(Exit::data, "the tokenizer's pattern is not understood: " + pcre2_message(code),
                  text("pattern ", translated, ", character ", at));
    pcre2_jit_compile(compiled.get(), PCRE2_JIT_COMPLETE);  // without JIT, pcre2_match interprets
    return compiled;
  }

  bool find(const pcre2_code* code, std::string_view text, size_t from, Match& match) const {
    thread_local MatchState state;
    const int rc = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                               PCRE2_NO_UTF_CHECK, state.data, state.context);
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0)
      throw Error(Exit::data, "the tokenizer's pattern fails on this text: " + pcre2_message(rc),
                  rule_.pattern);
    const PCRE2_SIZE* found = pcre2_get_ovector_pointer(state.data);
    match = {found[0], found[1]};
    return true;
  }

  SplitRule rule_;
  Code usual_, newer_;  // for texts without and with code points that PCRE2 may not know
};

}  // namespace

std::unique_ptr<Splitter> make_splitter(const SplitRule& rule, bool allow_fast) {
  if (rule.pattern.empty()) throw Error(Exit::data, "the tokenizer splits by an empty pattern");
  if (rule.literal) return std::make_unique<LiteralSplitter>(rule);
  if (allow_fast)
    if (auto fast = make_fast_splitter(rule)) return fast;
  return std::make_unique<RegexSplitter>(rule);
}

}  // namespace weft
