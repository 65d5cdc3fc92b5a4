#pragma once
// Small values that ranks have to agree on, in host memory: handshakes, counts, decisions.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "distributed/communicator.h"

namespace weft {

// Everywhere here null stands for a process alone: rank 0 of 1, whose own value is the answer.
int rank_of(const Communicator* comm);
int size_of(const Communicator* comm);

// The value of every rank, in rank order.
std::vector<int64_t> gather_values(Communicator* comm, int64_t mine);
std::vector<double> gather_values(Communicator* comm, double mine);
std::vector<std::string> gather_texts(Communicator* comm, std::string_view mine);

int64_t sum_over_ranks(Communicator* comm, int64_t mine);
int64_t max_over_ranks(Communicator* comm, int64_t mine);
bool all_ranks(Communicator* comm, bool mine);
bool any_rank(Communicator* comm, bool mine);

// Throws on every rank, with this code, a RankError that names the first rank whose `value` of `field` is not
// rank 0's: the handshake for recipes, binaries, data hashes and (with fingerprint()) the sequence of
// collectives.
void require_same(Communicator* comm, const std::string& field, std::string_view value,
                  Exit code = Exit::recipe);

}  // namespace weft
