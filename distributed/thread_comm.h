#pragma once
// Ranks as threads of one process: the whole distributed layer tested in a debugger, under TSan, without MPI.

#include <chrono>
#include <functional>

#include "distributed/communicator.h"

namespace weft {

// Runs body once on each of `ranks` threads and waits for all. The first rank that throws is the cause: the
// others are released from whatever they wait in with an Error (peer_lost), and the cause is thrown here. A
// rank that returns while another waits for it is a lost peer; a wait longer than `patience` is an Error
// (hang) that says who waits in what.
void run_ranks(int ranks, const std::function<void(Communicator&)>& body,
               std::chrono::seconds patience = std::chrono::seconds(120));

}  // namespace weft
