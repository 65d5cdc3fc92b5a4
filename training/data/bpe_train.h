#pragma once
// Training a byte-level BPE vocabulary: Sennrich, Haddow, Birch 2016. The pair that occurs most often is
// merged, again and again; of pairs with equal counts the one with the smaller ids (left, then right) comes
// first. The result depends on the word counts alone, not on threads or on the order of the texts.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "training/data/bpe.h"

namespace weft {

// How often each piece of a splitting pattern occurs. Memory grows with the number of different pieces.
class WordCounts {
 public:
  explicit WordCounts(std::string pattern = gpt2_pattern);

  void add(std::string_view text);
  void add(const WordCounts& other);  // of the same pattern

  const std::string& pattern() const { return rule_.pattern; }
  int64_t words() const { return words_; }
  // Different words with their counts, in the order of their bytes.
  std::vector<std::pair<std::string, int64_t>> sorted() const;

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  SplitRule rule_;
  std::shared_ptr<const Splitter> splitter_;
  std::unordered_map<std::string, int64_t, Hash, std::equal_to<>> counts_;
  int64_t words_ = 0;
};

// Counts the words of many texts with `threads` threads.
WordCounts count_words(std::span<const std::string> texts, const std::string& pattern, int threads);

// A vocabulary of vocab_size ids: 256 bytes in GPT-2's order, merges, and last the document end token, which
// is eos. Training ends early when no pair occurs min_count times; the vocabulary is smaller then. Errors:
// Exit::recipe when vocab_size leaves no room for the bytes and the end token.
BpeDefinition train_bpe(const WordCounts& counts, int32_t vocab_size, int64_t min_count = 2);

}  // namespace weft
