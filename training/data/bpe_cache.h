#pragma once
// The ids of words met lately. A word has one place; a newcomer takes it over.

#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace weft {

class WordCache {
 public:
  // Appends the ids of the word to out; false when it is not here.
  bool find(std::string_view word, std::vector<int32_t>& out) const {
    if (word.size() > sizeof(Entry::word)) return false;
    const Entry& entry = entries_[slot(word)];
    if (entry.bytes != word.size() || std::memcmp(entry.word, word.data(), word.size()) != 0) return false;
    out.insert(out.end(), entry.ids, entry.ids + entry.count);
    return true;
  }

  void insert(std::string_view word, std::span<const int32_t> ids) {
    if (word.size() > sizeof(Entry::word) || ids.size() > std::size(Entry{}.ids)) return;
    Entry& entry = entries_[slot(word)];
    entry.bytes = static_cast<uint8_t>(word.size());
    entry.count = static_cast<uint8_t>(ids.size());
    std::memcpy(entry.word, word.data(), word.size());
    std::memcpy(entry.ids, ids.data(), ids.size_bytes());
  }

  void clear() { entries_.assign(entries_.size(), {}); }

 private:
  // One cache line.
  struct alignas(64) Entry {
    uint8_t bytes = 0, count = 0;
    char word[30];
    int32_t ids[8];
  };

  size_t slot(std::string_view word) const {
    return XXH3_64bits(word.data(), word.size()) & (entries_.size() - 1);
  }

  std::vector<Entry> entries_{size_t{1} << 15};  // 2 MiB
};

}  // namespace weft
