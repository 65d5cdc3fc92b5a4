#pragma once
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter-based
// generator. A draw is a pure function of (seed, stream, step, index, channel), so recomputation, another
// number of ranks and a resumed run draw the same numbers.

#include <array>
#include <cstdint>
#include <string_view>

#include "autograd/dtype.h"

namespace weft {

using PhiloxBlock = std::array<uint32_t, 4>;

// Ten rounds over counter under key.
WEFT_HOST_DEVICE inline PhiloxBlock philox(PhiloxBlock counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// FNV-1a of an operation's dotted name: the stream it draws from.
constexpr uint32_t stream_of(std::string_view name) {
  uint32_t hash = 2166136261u;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619u;
  return hash;
}

// What a draw depends on besides its place: index counts tokens or elements, channel what is drawn at each.
struct RandomKey {
  uint32_t seed = 0;
  uint32_t stream = 0;
  uint32_t step = 0;

  WEFT_HOST_DEVICE PhiloxBlock draw(uint64_t index, uint32_t channel = 0) const {
    return philox({step, static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), channel},
                  {seed, stream});
  }
  // Uniform in (0, 1], never 0, so that log() is safe.
  WEFT_HOST_DEVICE double uniform(uint64_t index, uint32_t channel = 0) const {
    const PhiloxBlock r = draw(index, channel);
    return (static_cast<double>((uint64_t{r[0]} << 21) ^ (r[1] >> 11)) + 1.0) * 0x1p-53;
  }
  // Standard normal, Box-Muller.
  double normal(uint64_t index, uint32_t channel = 0) const;
};

}  // namespace weft
