#include "distributed/environment.h"

#include <unistd.h>

#include <cstdlib>

#include "distributed/mpi_comm.h"

namespace weft {
namespace {

// The variable as a number, or `absent`.
int number(const Getenv& getenv, const char* name, int absent) {
  const char* value = getenv(name);
  if (!value || !*value) return absent;
  char* end = nullptr;
  const long n = std::strtol(value, &end, 10);
  return *end == 0 ? static_cast<int>(n) : absent;
}

std::string first_of(const Getenv& getenv, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const char* value = getenv(name)) return value;
  return text("parent-", getppid());
}

}  // namespace

Launched detect_launch(const Getenv& getenv) {
  const auto get = [&](const char* name, int absent) { return number(getenv, name, absent); };
  Launched at;
  if (const int size = get("OMPI_COMM_WORLD_SIZE", 0); size > 1) {
    at = {Launched::By::open_mpi,
          get("OMPI_COMM_WORLD_RANK", 0),
          size,
          get("OMPI_COMM_WORLD_LOCAL_RANK", 0),
          get("OMPI_COMM_WORLD_LOCAL_SIZE", 1),
          first_of(getenv, {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"})};
  } else if (const int steps = get("SLURM_STEP_NUM_TASKS", 0); steps > 1 && getenv("SLURM_PROCID")) {
    // A batch script has SLURM_PROCID too, but only a step started by srun has its number of tasks.
    const int nodes = get("SLURM_STEP_NUM_NODES", 1);
    const std::string id = first_of(getenv, {"SLURM_JOB_ID"}) + "." + first_of(getenv, {"SLURM_STEP_ID"});
    at = {Launched::By::slurm,     get("SLURM_PROCID", 0),      steps,
          get("SLURM_LOCALID", 0), (steps + nodes - 1) / nodes, id};
  } else if (const int pmi = get("PMI_SIZE", 0); pmi > 1) {
    at = {Launched::By::pmi,         get("PMI_RANK", 0),        pmi,
          get("MPI_LOCALRANKID", 0), get("MPI_LOCALNRANKS", 1), first_of(getenv, {})};
  } else if (const int torch = get("WORLD_SIZE", 0); torch > 1 && getenv("RANK") && getenv("LOCAL_RANK")) {
    throw Error(
        Exit::usage,
        text("started by torchrun with ", torch, " processes, which would train ", torch, " separate models"),
        "WORLD_SIZE", text("start it with: weft launch -n ", torch, " ... (or mpirun, srun)"));
  }
  return at;
}

Launched detect_launch() {
  return detect_launch([](const char* name) { return std::getenv(name); });
}

std::unique_ptr<Communicator> world_communicator(const Launched& launched, const WorldOptions& options) {
  if (!launched.under_mpi()) return self_communicator();
  return mpi_world(launched, options);
}

}  // namespace weft
