#pragma once
// How a rank of a command that works on several ends when it or another one fails.

#include <cstdint>
#include <exception>
#include <optional>
#include <string>

#include "distributed/communicator.h"

namespace weft {

// What this rank leaves behind when it or a peer fails: its code, in the run's folder (may be empty) and for
// the launcher, and of rank 0, with json, the line of JSON of `result`, such as train/1.
void leave_word(Communicator& world, const std::string& run_folder, const std::string& result, bool json);

// Says what failed, once a job, and ends this rank. result: of the line of JSON; empty: none is asked for.
// step: the current one, none before the first. A process alone (world is null) throws the failure on.
int end_rank(Communicator* world, const std::exception& failure, const std::string& result,
             std::optional<int64_t> step = {});

}  // namespace weft
