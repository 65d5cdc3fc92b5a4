#pragma once
// Who holds which tokens. The documents of a batch lie one after another on one line of tokens; a rank holds
// a list of segments of it, in order. Every rank computes all lists from the lengths alone.

#include <cstdint>
#include <span>
#include <vector>

#include "autograd/layout.h"

namespace weft {

enum class SegmentPlan : uint8_t {
  contiguous,  // rank r holds the r-th of P equal parts of the line
  zigzag,      // rank r holds parts r and 2P-1-r of 2P: equal causal cost where documents are equally long
  balanced,    // equal tokens and nearly equal causal cost for documents of any lengths; at most 32 parts a
               // rank
};

// The lists of all ranks. Cuts inside a document are multiples of align, counted from its start, so parts are
// equal up to that; lengths may be anything, 0 included. Together the lists hold each token once.
std::vector<Segments> plan_segments(SegmentPlan plan, std::span<const int64_t> lengths, int ranks,
                                    int64_t align = 1);

int64_t count_tokens(const Segments& segments);

// What causal softmax attention costs: the keys that each token sees, summed, Σ (position + 1).
int64_t causal_cost(const Segments& segments);

}  // namespace weft
