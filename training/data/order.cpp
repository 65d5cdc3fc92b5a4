#include "training/data/order.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "autograd/check.h"
#include "autograd/philox.h"

namespace weft {

int64_t permuted(int64_t k, int64_t n, std::array<uint32_t, 2> key, int64_t epoch) {
  CHECK(0 <= k && k < n, "permuted: ", k, " of ", n);
  // At least four bits: two-bit halves already mix well over eight rounds, one-bit halves do not.
  const int half = std::max(2, static_cast<int>(std::bit_width(static_cast<uint64_t>(n - 1)) + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half) - 1;
  const auto low = static_cast<uint32_t>(epoch),
             high = static_cast<uint32_t>(static_cast<uint64_t>(epoch) >> 32);
  auto x = static_cast<uint64_t>(k);
  do {
    uint64_t left = x >> half, right = x & mask;
    for (uint32_t round = 0; round < 8; ++round) {
      const uint64_t mixed = philox({static_cast<uint32_t>(right), round, low, high}, key)[0] & mask;
      left = std::exchange(right, left ^ mixed);
    }
    x = left << half | right;
  } while (x >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(x);
}

SampleOrder::SampleOrder(std::vector<Part> parts, uint64_t seed, bool shuffle)
    : parts_(std::move(parts)), shares_(parts_.size()), seed_(seed), shuffle_(shuffle) {
  CHECK(!parts_.empty(), "SampleOrder: no parts");
  double rest = 0;
  for (size_t p = parts_.size(); p-- > 0;) {
    CHECK(parts_[p].samples > 0 && parts_[p].weight > 0 && std::isfinite(parts_[p].weight),
          "SampleOrder: part ", p, " has ", parts_[p].samples, " samples, weight ", parts_[p].weight);
    rest += parts_[p].weight;
    shares_[p] = static_cast<uint64_t>(parts_[p].weight / rest * 0x1p63);
  }
}

int64_t SampleOrder::operator()(int64_t draw) const {
  CHECK(draw >= 0, "SampleOrder: draw ", draw);
  // Part p takes draw i of those that reach it where i share, rounded, steps up; all others go on to the next
  // part. Integers throughout, so the counts are right however long the run is.
  auto i = static_cast<uint64_t>(draw);
  int64_t first = 0;
  size_t p = 0;
  for (; p + 1 < parts_.size(); ++p) {
    const auto taken = [&](uint64_t draws) {
      const auto half = static_cast<unsigned __int128>(1) << 62;
      return static_cast<uint64_t>((static_cast<unsigned __int128>(draws) * shares_[p] + half) >> 63);
    };
    const uint64_t mine = taken(i);
    if (taken(i + 1) > mine) {
      i = mine;
      break;
    }
    i -= mine;
    first += parts_[p].samples;
  }
  const auto number = static_cast<int64_t>(i), samples = parts_[p].samples;
  const int64_t k = number % samples;
  if (!shuffle_) return first + k;
  const std::array<uint32_t, 2> key = {
      static_cast<uint32_t>(seed_),
      static_cast<uint32_t>(seed_ >> 32) ^ (stream_of("data.order") + static_cast<uint32_t>(p))};
  return first + permuted(k, samples, key, number / samples);
}

std::vector<int64_t> SampleOrder::step(int64_t step, int64_t samples_per_step) const {
  std::vector<int64_t> samples(static_cast<size_t>(samples_per_step));
  for (int64_t i = 0; i < samples_per_step; ++i) samples[i] = (*this)(step * samples_per_step + i);
  return samples;
}

OrderHash::OrderHash(const std::string& hex) {
  bool valid = hex.size() == 32;
  for (size_t i = 0; i < 32 && valid; ++i) {
    const char c = hex[i];
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    valid = digit >= 0;
    hash_[i / 2] = static_cast<uint8_t>(hash_[i / 2] << 4 | (digit & 15));
  }
  if (!valid) throw Error(Exit::data, text("'", hex, "' is not an order hash (32 hexadecimal digits)"));
}

void OrderHash::update(std::span<const int64_t> samples) {
  std::vector<uint8_t> bytes(hash_.begin(), hash_.end());
  bytes.resize(hash_.size() + samples.size_bytes());
  if (!samples.empty()) std::memcpy(bytes.data() + hash_.size(), samples.data(), samples.size_bytes());
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  std::memcpy(hash_.data(), canonical.digest, hash_.size());
}

std::string OrderHash::hex() const {
  std::string out;
  for (const uint8_t byte : hash_) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

}  // namespace weft
