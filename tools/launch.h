#pragma once
// The implementation of `weft launch -n N ARGS...`: starts the ranks with mpirun or srun, and says why they
// ended.

#include <string>
#include <vector>

#include "autograd/check.h"

namespace weft {

struct LaunchOptions {
  int ranks = 1;
  std::string with = "auto";       // auto, mpirun or srun; auto is srun inside a Slurm allocation
  std::vector<std::string> extra;  // more flags for mpirun or srun, such as --hostfile F
  std::string run_folder;          // where ranks of other machines leave their codes; may be empty
};

// What the command line depends on.
struct LaunchHost {
  enum class Mpi { none, open_mpi, mpich };

  Mpi mpi = Mpi::none;  // whose mpirun is first in PATH
  int mpi_major = 0;    // its major version
  bool srun = false;    // inside a Slurm allocation, with srun in PATH
  bool root = false;    // Open MPI refuses root unless told
  int cores = 1;        // this process may use
  int nodes = 1;        // of the allocation
  int omp_threads = 0;  // OMP_NUM_THREADS, where the user has set it
};

LaunchHost detect_launch_host();

// From the first lines of `mpirun --version`.
void read_mpi_version(const std::string& output, LaunchHost& host);

struct LaunchCommand {
  std::vector<std::string> words;
  std::vector<std::string> environment;  // NAME=value, for all ranks

  std::string shown() const;  // as one would type it
};

// program and its arguments on options.ranks ranks. Error (usage) where there is neither mpirun nor srun, or
// the number of ranks makes no sense.
LaunchCommand launch_command(const LaunchOptions& options, const LaunchHost& host, const std::string& program,
                             const std::vector<std::string>& arguments);

struct LaunchResult {
  Exit code = Exit::ok;
  std::string what;        // empty on success, and where a rank has said it already
  int rank = 0;            // the rank at fault
  std::string cause = {};  // what it, or a rank that noticed, left word of, if one did
};

// What the launcher's own wait status means when no rank has left a cause. stop: this process passed a signal
// on.
LaunchResult read_launcher_status(int wait_status, bool stop);

// Prints the command on stderr, runs it, passes signals on, and returns the first cause. The first SIGINT,
// SIGTERM or SIGHUP reaches the ranks as SIGUSR1, which asks them to save and leave; the second ends the job,
// the third kills it. Error (usage) as launch_command, or where there is no such program; (cannot_create)
// without a temporary folder.
LaunchResult launch(const LaunchOptions& options, const std::vector<std::string>& arguments,
                    const std::string& program = "/proc/self/exe");

}  // namespace weft
