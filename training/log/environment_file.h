#pragma once
// environment.json: where and with what a run was started. Each start of a run writes it anew.

#include <map>
#include <string>
#include <vector>

namespace weft {

struct RunEnvironment {
  std::vector<std::string> command_line;
  std::string device;                           // "cpu", "NVIDIA H100 80GB HBM3"
  int world = 1;                                // ranks
  std::map<std::string, std::string> versions;  // of libraries that the run uses: cuda, mpi
};

// These, and the commit and version of this build ("" = unknown), compiler, build type, system, processors,
// host name and time. Indented JSON, ends in a newline.
std::string environment_json(const RunEnvironment& environment);

// Error (io, cannot_create).
void write_environment(const std::string& path, const RunEnvironment& environment);

// The commit this was built from, in full; "" if unknown.
std::string build_commit();

}  // namespace weft
