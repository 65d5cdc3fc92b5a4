#pragma once
// How each rank ended, for the launcher: mpirun kills the others when one rank fails and reports one of the
// deaths, not the cause. Each rank leaves a small file exit-RRRR, in the `log` folder of its run and in the
// folder of the launcher that started it (WEFT_LAUNCH), if any:
//
//   weft-exit 1
//   rank 3
//   code 78
//   culprit 3                   the rank at fault; another one where this rank noticed its failure
//   time 1780000000.123456      seconds since 1970
//   launch /tmp/weft-launch-x7  the launcher's folder, or -
//   said 1                      0: not on stderr, where rank 0 alone speaks
//   what unknown key optim.lrr

#include <optional>
#include <string>
#include <vector>

#include "autograd/check.h"

namespace weft {

constexpr const char* launch_variable = "WEFT_LAUNCH";

struct ExitRecord {
  int rank = 0;
  Exit code = Exit::ok;
  double time = 0;
  std::string launch;
  std::string what;
  int culprit = rank;
  bool said = true;
};

// Never throws: it runs when things have already gone wrong. run_folder may be empty or not exist: nothing is
// made there.
void leave_exit_code(const std::string& run_folder, int rank, Exit code, int culprit, const std::string& what,
                     bool said = true) noexcept;

// The records in folder, by rank; those of another launch are passed over when launch is not empty, as are
// files that cannot be read.
std::vector<ExitRecord> read_exit_codes(const std::string& folder, const std::string& launch = {});

// Why the job ended: the earliest failure that is not the consequence of another (peer lost, hang, stopped);
// else a hang, a lost peer, a stop, in this order; nothing where every rank that left a code succeeded.
std::optional<ExitRecord> first_cause(const std::vector<ExitRecord>& records);

}  // namespace weft
