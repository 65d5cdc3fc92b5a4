#pragma once
// Does a mechanism's time a token grow with the text? The same number of tokens, as many short documents or
// as few long ones, forward and backward, in f32 on one core.

#include "tools/bench_row.h"

namespace weft {

// mechanism: an id, perhaps with settings, "titans_mac chunk=128". One row a length: 32,768 tokens a call, in
// documents of 1K, 2K, ... 32K, 4 heads of 32 and width 128. Lengths take turns, so that a machine's slow
// moment meets all of them; the median of `rounds`.
std::vector<BenchRow> bench_length(const std::string& mechanism, int64_t rounds);

// What the least-squares line of ms over log2(length) climbs from the first of these rows to the last, as a
// share of its value at the first: 0.1 is 10 %. Each length is twice the one before.
double rise_of(const std::vector<BenchRow>& rows);

}  // namespace weft
