#pragma once
// Cutting a text into the pieces inside which byte-pair merges happen.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace weft {

// Radford et al. 2019; Llama 3; Qwen 2 (as Llama 3 with one digit a piece).
extern const std::string gpt2_pattern, llama3_pattern, qwen2_pattern;

struct SplitRule {
  // What becomes of a match and of the text between matches.
  enum class Keep { isolated, removed, merged_with_previous, merged_with_next, contiguous };
  std::string pattern;   // a regular expression in Oniguruma's Ruby syntax, as in tokenizer.json, or
  bool literal = false;  // characters to be taken as they are
  Keep keep = Keep::isolated;
  bool invert = false;  // matches and the text between them change roles
  bool operator==(const SplitRule&) const = default;
};

// A reference to a function void(string_view); it must outlive the call that it is passed to.
class PieceSink {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, PieceSink>) PieceSink(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* object, std::string_view piece) {
          (*static_cast<std::remove_reference_t<F>*>(object))(piece);
        }) {}
  void operator()(std::string_view piece) const { call_(object_, piece); }

 private:
  void* object_;
  void (*call_)(void*, std::string_view);
};

// Immutable; safe from several threads.
class Splitter {
 public:
  virtual ~Splitter() = default;
  // Hands over the pieces of valid UTF-8 in order; none is empty.
  virtual void split(std::string_view text, PieceSink sink) const = 0;
};

// The three patterns above have hand-written splitters; allow_fast = false takes the regular expression all
// the same. Errors: Exit::data for a pattern that PCRE2 refuses or reads differently.
std::unique_ptr<Splitter> make_splitter(const SplitRule& rule, bool allow_fast = true);

}  // namespace weft
