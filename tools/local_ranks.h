#pragma once
// The ranks that a launcher has started on this machine.

#include <sys/types.h>

#include <vector>

namespace weft {

// The children of a process to whom an MPI launcher has given a rank, in the order of their numbers. What
// runs between it and ranks of other machines (ssh, daemons) is none.
std::vector<pid_t> local_ranks(pid_t launcher);

// Whether a process handles a signal: before, it would end by it.
bool handles(pid_t process, int signal);

// Whether a process has children, and all of them have ended without its taking notice.
bool has_only_dead_children(pid_t process);

}  // namespace weft
