#pragma once
// A small map that drops the least recently used value when it is full.

#include <list>
#include <utility>

#include "autograd/check.h"

namespace weft {

template <class Key, class Value>
class LeastRecent {
 public:
  explicit LeastRecent(size_t most) : most_(most) { CHECK(most > 0, "LeastRecent: room for none"); }

  // Null if the key is not there. Counts as a use of the value.
  Value* find(const Key& key) {
    for (auto it = items_.begin(); it != items_.end(); ++it) {
      if (it->first != key) continue;
      items_.splice(items_.begin(), items_, it);
      return &it->second;
    }
    return nullptr;
  }
  // The key must not be there yet.
  Value& insert(const Key& key) {
    CHECK(find(key) == nullptr, "LeastRecent: inserted twice");
    if (items_.size() == most_) items_.pop_back();
    items_.emplace_front(std::piecewise_construct, std::forward_as_tuple(key), std::tuple<>());
    return items_.front().second;
  }
  bool full() const { return items_.size() == most_; }
  size_t size() const { return items_.size(); }
  void clear() { items_.clear(); }

 private:
  size_t most_;
  std::list<std::pair<Key, Value>> items_;  // asked for last first
};

}  // namespace weft
