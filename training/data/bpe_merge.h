#pragma once
// The merges of a byte-pair encoding, applied: the best-ranked pair first, the leftmost of equals, until none
// is left.

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace weft {

class MergeTable {
 public:
  struct Merge {
    uint32_t rank;  // no_merge when the two do not merge
    int32_t id;     // of the two joined
  };
  static constexpr uint32_t no_merge = UINT32_MAX;

  MergeTable() = default;
  // pairs[i] joins to results[i] with rank i; of a pair listed twice the later rank counts.
  MergeTable(std::span<const std::pair<int32_t, int32_t>> pairs, std::span<const int32_t> results);

  Merge find(int32_t left, int32_t right) const {
    const uint64_t key = key_of(left, right);
    for (size_t slot = slot_of(key);; slot = (slot + 1) & mask_) {
      if (slots_[slot].key == key) return slots_[slot].merge;
      if (slots_[slot].key == empty) return {no_merge, -1};
    }
  }

  // Merges symbols in place. O(n^2) for short words, O(n log n) for long ones, with the same result.
  void apply(std::vector<int32_t>& symbols) const;

 private:
  struct Slot {
    uint64_t key;
    Merge merge;
  };
  static constexpr uint64_t empty = UINT64_MAX;  // never a key: ids are not negative

  static uint64_t key_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const { return (key * 0x9e3779b97f4a7c15u >> 32) & mask_; }
  void apply_short(std::vector<int32_t>& symbols) const;
  void apply_long(std::vector<int32_t>& symbols) const;

  std::vector<Slot> slots_{{empty, {no_merge, -1}}};
  size_t mask_ = 0;
};

}  // namespace weft
