#pragma once
// Ranks as processes, over MPI (point to point only: order and precision of sums are ours, see reduce.h).

#include <memory>

#include "distributed/environment.h"

namespace weft {

// False where the build found no MPI; mpi_world() is then an Error (usage) that says how to get it.
bool built_with_mpi();

// Of the MPI library that runs here, such as "Open MPI v4.1.6"; asked without starting MPI. Empty without
// MPI.
std::string mpi_version();

// Initialises MPI (MPI_THREAD_FUNNELED: call from the main thread only). One world a process. Its destructor
// waits for all ranks and finalises MPI; while an exception passes it does neither, and the process has to
// end soon, best by leave(), which ends it with the given code.
std::unique_ptr<Communicator> mpi_world(const Launched& launched, const WorldOptions& options);

// Messages longer than this are sent in pieces; MPI counts in int. Tests make it small.
void set_mpi_piece(int64_t bytes);

}  // namespace weft
