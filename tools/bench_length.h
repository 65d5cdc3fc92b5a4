#pragma once
// Does a mechanism's time a token grow with the text? The same number of tokens, as many short documents or
// as few long ones, forward and backward, in f32 on the cores that OpenMP has.

#include "tools/bench_cpu.h"

namespace weft {

struct LengthBench {
  std::vector<BenchRow> rows;  // one a length, shortest first
  // What the least-squares line of time a token over log2(length) climbs from the first length to the last,
  // as a share of its value at the first: 0.1 is 10 %.
  double rise = 0;
};

// 32,768 tokens a call, documents of 1K, 2K, ... 32K, 4 heads of 32. Lengths take turns, so that a machine's
// slow moment meets all of them; the median of `rounds`.
LengthBench bench_length(const std::string& mechanism, const std::string& settings, int64_t rounds);

// See LengthBench.
double rise_of(const std::vector<BenchRow>& rows);

}  // namespace weft
