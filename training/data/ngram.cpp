#include "training/data/ngram.h"

#include <algorithm>
#include <cmath>

namespace weft {

namespace {

constexpr size_t pending_limit = size_t{1} << 21;
constexpr uint64_t whole = (uint64_t{1} << 40) - 1;  // five bytes

uint64_t shifted(uint64_t key, char byte) { return (key << 8 | static_cast<uint8_t>(byte)) & whole; }

// Sums the counts of equal neighbours.
template <class Counts>
void sum_runs(Counts& sorted) {
  size_t kept = 0;
  for (size_t i = 0; i < sorted.size(); ++i) {
    if (kept > 0 && sorted[kept - 1].first == sorted[i].first)
      sorted[kept - 1].second += sorted[i].second;
    else
      sorted[kept++] = sorted[i];
  }
  sorted.resize(kept);
}

}  // namespace

void ByteNgram::train(std::string_view document) {
  const auto& counted = grams_[order - 1].counts;
  if (counted.size() >= max_grams) return;
  built_ = false;
  Key key = 0;  // a document starts after zero bytes, so that every byte has a context of full length
  for (const char byte : document) {
    key = shifted(key, byte);
    pending_.push_back(key);
    if (pending_.size() < pending_limit) continue;
    merge_pending();
    if (counted.size() >= max_grams) return;
  }
}

void ByteNgram::merge_pending() {
  auto& counted = grams_[order - 1].counts;
  std::sort(pending_.begin(), pending_.end());
  const auto middle = static_cast<std::ptrdiff_t>(counted.size());
  for (const Key key : pending_) {
    if (static_cast<std::ptrdiff_t>(counted.size()) > middle && counted.back().first == key)
      ++counted.back().second;
    else
      counted.emplace_back(key, 1);
  }
  pending_.clear();
  std::inplace_merge(counted.begin(), counted.begin() + middle, counted.end());
  sum_runs(counted);
}

void ByteNgram::build() {
  merge_pending();
  for (int n = order; n >= 1; --n) {
    auto& [counts, contexts, discount] = grams_[n - 1];
    if (n < order) {
      // Kneser-Ney: a shorter string counts once for each byte that was seen before it.
      const auto& longer = grams_[n].counts;
      counts.clear();
      counts.reserve(longer.size());
      for (const auto& [key, count] : longer) counts.emplace_back(key & ((Key{1} << 8 * n) - 1), 1);
      std::sort(counts.begin(), counts.end());
      sum_runs(counts);
    }
    contexts.clear();
    double once = 0, twice = 0;
    for (const auto& [key, count] : counts) {
      if (contexts.empty() || contexts.back().key != key >> 8) contexts.push_back({key >> 8, 0, 0});
      contexts.back().total += count;
      ++contexts.back().kinds;
      once += count == 1;
      twice += count == 2;
    }
    discount = once > 0 ? once / (once + 2 * twice) : 0.5;
  }
  built_ = true;
}

double ByteNgram::bits(std::string_view document) {
  if (!built_) build();
  double sum = 0;
  Key key = 0;
  for (const char byte : document) {
    key = shifted(key, byte);
    double p = 1.0 / 256;
    for (int n = 1; n <= order; ++n) {
      const Grams& grams = grams_[n - 1];
      const Key gram = key & ((Key{1} << 8 * n) - 1);
      const auto context = std::lower_bound(grams.contexts.begin(), grams.contexts.end(), gram >> 8,
                                            [](const Grams::Context& c, Key k) { return c.key < k; });
      if (context == grams.contexts.end() || context->key != gram >> 8)
        break;  // unseen, and so is any longer one
      const auto found =
          std::lower_bound(grams.counts.begin(), grams.counts.end(), std::pair<Key, uint64_t>(gram, 0));
      const bool seen = found != grams.counts.end() && found->first == gram;
      const auto total = static_cast<double>(context->total), kinds = static_cast<double>(context->kinds);
      const double own = seen ? static_cast<double>(found->second) - grams.discount : 0;
      p = (own + grams.discount * kinds * p) / total;
    }
    sum -= std::log2(p);
  }
  return sum;
}

}  // namespace weft
