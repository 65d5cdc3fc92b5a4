#include "tools/local_ranks.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// "PID (NAME) STATE PARENT ...", where NAME may hold anything.
pid_t parent_of(const fs::path& process) {
  const std::string stat = content_of(process / "stat");
  const size_t name_end = stat.rfind(") ");
  return name_end == std::string::npos ? 0 : std::atoi(stat.c_str() + std::min(name_end + 4, stat.size()));
}

bool has_rank(const fs::path& process) {
  const std::string environment = '\0' + content_of(process / "environ");
  for (const char* name : {"OMPI_COMM_WORLD_RANK=", "PMI_RANK="})
    if (environment.find(std::string(1, '\0') + name) != std::string::npos) return true;
  return false;
}

}  // namespace

std::vector<pid_t> local_ranks(pid_t launcher) {
  std::vector<pid_t> ranks;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator("/proc", gone)) {
    const pid_t process = std::atoi(entry.path().filename().c_str());
    if (process > 0 && parent_of(entry.path()) == launcher && has_rank(entry.path()))
      ranks.push_back(process);
  }
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

}  // namespace weft
