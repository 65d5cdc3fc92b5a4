#pragma once
// How this process was started, and the communicator that follows from it.

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "distributed/communicator.h"

namespace weft {

struct Launched {
  enum class By { alone, open_mpi, pmi, slurm };

  By by = By::alone;
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // on this node
  std::string job;                     // the same on all ranks of one job and on no other job of this machine

  bool under_mpi() const { return by != By::alone; }
};

using Getenv = std::function<const char*(const char*)>;

// From the variables that mpirun, srun and their kin set. A single process is alone whatever started it.
// Error (usage) for torchrun with several processes, which weft does not join.
Launched detect_launch(const Getenv& getenv);
Launched detect_launch();

struct WorldOptions {
  std::chrono::seconds start_limit{120};  // how long to wait for missing ranks
  bool watch = true;  // end this process when a peer of this node dies or leaves (peers.h)
  std::chrono::seconds hang_limit{
      0};  // without a beat() or pulse() of any rank for so long: Exit::hang; 0 is off
  std::chrono::seconds stop_limit{
      20};  // a peer of this node stopped by a signal for so long: the same, 0 is off
};

// All ranks of the job: a group of one, or MPI when started under it; MPI is not touched otherwise. Destroy
// it last, on every rank: that waits for the others. Error (usage) where this build has no MPI, (peer_lost)
// where ranks are missing.
std::unique_ptr<Communicator> world_communicator(const Launched& launched, const WorldOptions& options = {});

}  // namespace weft
