#pragma once
// Multi-query associative recall (Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient
// Language Models", arXiv 2312.04927). First pairs, then every key again, and its value is asked for:
//
//   k1 v1 k2 v2 ... | filler  k2 -> v2  filler ...  k1 -> v1 ...
//
// Keys are 1 .. vocab/2 - 1, values vocab/2 .. vocab - 1, no key or value twice in an example. After the
// pairs, keys stand at even distances 2 n, n = 0, 1, ..., drawn with chances in proportion to a (n + 1)^(a -
// 1): most soon, some late. Filler is a random token, or 0.

#include "training/tasks/task.h"

namespace weft {

struct MqarConfig {
  int64_t vocab = 8192;
  int64_t length = 64;
  int64_t pairs = 4;
  double power = 0.01;
  bool random_filler = true;
  void fields(FieldVisitor& f);
};

class Mqar : public Task {
 public:
  using Config = MqarConfig;
  explicit Mqar(const Config& config);  // Errors: Exit::recipe for pairs that do not fit

  int64_t vocab() const override { return config_.vocab; }
  int64_t length() const override { return config_.length; }
  Example make(Draws& draws) const override;

 private:
  Config config_;
  std::vector<double> chances_;  // of each place after the pairs
};

}  // namespace weft
