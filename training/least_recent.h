#pragma once
// A few values by key; of too many, the one that was not asked for longest goes.

#include <list>
#include <utility>

#include "autograd/check.h"

namespace weft {

template <class Key, class Value>
class LeastRecent {
 public:
  explicit LeastRecent(size_t most) : most_(most) { CHECK(most > 0, "LeastRecent: room for none"); }

  // Null if it is not there. It is now the one that was asked for last.
  Value* find(const Key& key) {
    for (auto it = items_.begin(); it != items_.end(); ++it) {
      if (it->first != key) continue;
      items_.splice(items_.begin(), items_, it);
      return &it->second;
    }
    return nullptr;
  }
  // Of a key that is not there.
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
