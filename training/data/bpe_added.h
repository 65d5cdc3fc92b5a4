#pragma once
// Finding added tokens in a text: the leftmost first, of several at one place the longest.

#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "training/data/bpe.h"

namespace weft {

class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  struct Match {
    size_t begin, end;  // bytes of the text that the token takes
    size_t next;        // where the next may start: white space that this one takes along can be a token, too
    int32_t id;
  };
  // The first match that starts at or after `from`; it takes nothing along from before `done`.
  std::optional<Match> find(std::string_view text, size_t from, size_t done, SpecialText special) const;

 private:
  const AddedToken* longest_at(std::string_view text, SpecialText special) const;

  std::vector<AddedToken> tokens_;
  // A trie: (node, byte) to the next node; the token that ends at a node, or -1.
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> ends_{-1};
  std::vector<bool> starts_ = std::vector<bool>(256);
  char only_start_ = 0;
  int start_count_ = 0;
};

}  // namespace weft
