#pragma once
// ListOps (Nangia and Bowman 2018, arXiv 1804.06028; in Long Range Arena, Tay et al. 2020, arXiv 2011.04006):
// the value of a nested expression over digits.
//
//   [MAX 2 9 [MIN 4 7 ] 0 ] = -> 9
//
// MIN, MAX, MED (the median; of an even number of values the mean of the two in the middle, rounded down) and
// SM (the sum modulo 10). An argument is an expression with chance `nesting` while depth is left, else a
// digit; an expression has 2 to `arguments` of them. What is longer than `length` is drawn again. 0 to 9 are
// digits, then [MIN [MAX [MED [SM ] =.

#include "training/tasks/task.h"

namespace weft {

struct ListOpsConfig {
  int64_t length = 64;
  int64_t depth = 3;
  int64_t arguments = 5;
  double nesting = 0.25;
  void fields(FieldVisitor& f);
};

class ListOps : public Task {
 public:
  using Config = ListOpsConfig;
  enum Token : int32_t { min = 10, max, median, sum, close, equals, tokens };

  explicit ListOps(const Config& config) : config_(config) {}

  int64_t vocab() const override { return Token::tokens; }
  int64_t length() const override { return config_.length; }
  Example make(Draws& draws) const override;

  // Of one operator. Exposed for tests.
  static int32_t value_of(int32_t op, std::vector<int32_t> values);

 private:
  // Appends an expression; returns its value, or -1 where it grows over the length.
  int32_t expression(int64_t depth, int64_t most, Draws& draws, std::vector<int32_t>& out) const;

  Config config_;
};

}  // namespace weft
