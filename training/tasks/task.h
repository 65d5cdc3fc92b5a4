#pragma once
// A synthetic task: examples made from random draws, each a sequence with labels at some of its tokens.

#include <cstdint>
#include <vector>

#include "autograd/fields.h"
#include "autograd/philox.h"

namespace weft {

// As a model reads it: targets[i] is what it should say after tokens[0..i], -1 where nothing is asked.
struct Example {
  std::vector<int32_t> tokens, targets;  // of one length
};

// The random numbers of one example, one after another: a pure function of the key and the example's number.
class Draws {
 public:
  Draws(RandomKey key, uint64_t example) : key_(key), example_(example) {}

  uint32_t bits();
  int64_t below(int64_t n);  // uniform in [0, n), 1 <= n < 2^31
  double uniform();          // uniform in (0, 1]
  // k different numbers of [0, n), in random order.
  std::vector<int64_t> choose(int64_t k, int64_t n);
  // The same with unequal chances: each next one is drawn in proportion to its weight among those left.
  std::vector<int64_t> choose(int64_t k, const std::vector<double>& weights);

 private:
  RandomKey key_;
  uint64_t example_;
  PhiloxBlock block_{};
  uint32_t drawn_ = 0;
};

class Task {
 public:
  virtual ~Task() = default;
  virtual int64_t vocab() const = 0;   // tokens and targets lie in [0, vocab)
  virtual int64_t length() const = 0;  // of an example, at most
  virtual Example make(Draws& draws) const = 0;
};

}  // namespace weft
