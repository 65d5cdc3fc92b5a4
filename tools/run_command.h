#pragma once
// The one place where a command's failure is caught.

#include "tools/command.h"

namespace weft {

// Runs the command that words[0] names, or answers for weft itself (`--help`, `--version`). Never throws: a
// failure becomes one last line on stderr, with --json also one line of JSON on stdout, and the exit code of
// docs/contract.md. Under mpirun rank 0 alone prints.
int run_command(const Words& words) noexcept;

}  // namespace weft
