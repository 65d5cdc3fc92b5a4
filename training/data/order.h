#pragma once
// The order of training samples as a pure function of (seed, sample number): independent of the number of
// ranks and of restarts, and with no state but the step. Each epoch is a new permutation of all samples.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace weft {

// Where element k of [0, n) goes in a permutation chosen by key and epoch: a Feistel network with Philox as
// its round function, on the smallest even number of bits that holds n, walked until it is back inside [0, n)
// (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
int64_t permuted(int64_t k, int64_t n, std::array<uint32_t, 2> key, int64_t epoch);

class SampleOrder {
 public:
  struct Part {
    int64_t samples = 0;  // >= 1
    double weight = 1;    // > 0; the parts' weights need not sum to 1
  };

  // Sample numbers count through the parts: those of part p start where those of p - 1 end.
  // Every prefix of the run holds each part in proportion to its weight, to within as many samples as there
  // are parts. shuffle false: every epoch in file order.
  SampleOrder(std::vector<Part> parts, uint64_t seed, bool shuffle = true);

  // The sample that is number `draw` of the run.
  int64_t operator()(int64_t draw) const;
  // Those of one step, in global batch order.
  std::vector<int64_t> step(int64_t step, int64_t samples_per_step) const;

 private:
  std::vector<Part> parts_;
  std::vector<uint64_t> shares_;  // of part p among parts p..end, as a fraction of 2^63
  uint64_t seed_;
  bool shuffle_;
};

// The fingerprint of a run's order: h <- XXH3-128(h, the step's sample numbers as little-endian i64 in global
// batch order), h as its 16 canonical (big-endian) bytes, all zero before the first step.
class OrderHash {
 public:
  OrderHash() = default;
  explicit OrderHash(
      const std::string& hex);  // goes on from a checkpoint. Errors: Exit::data, not 32 hex digits

  void update(std::span<const int64_t> samples);
  std::string hex() const;

 private:
  std::array<uint8_t, 16> hash_{};
};

}  // namespace weft
