#include "distributed/mpi_comm.h"

namespace weft {

bool built_with_mpi() { return false; }

std::string mpi_version() { return {}; }

std::unique_ptr<Communicator> mpi_world(const Launched& launched, const WorldOptions&) {
  throw Error(
      Exit::usage,
      text("started as rank ", launched.rank, " of ", launched.size, ", but weft was built without MPI"), {},
      "install libopenmpi-dev and openmpi-bin, then build again");
}

void set_mpi_piece(int64_t) {}

}  // namespace weft
