#include "tools/local_ranks.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Kin {
  pid_t parent = 0;
  bool dead = false;  // and nobody has asked for its end
};

// "PID (NAME) STATE PARENT ...", where NAME may hold anything.
Kin kin_of(const fs::path& process) {
  const std::string stat = content_of(process / "stat");
  const size_t name_end = stat.rfind(") ");
  if (name_end == std::string::npos || name_end + 4 >= stat.size()) return {};
  return {std::atoi(stat.c_str() + name_end + 4), stat[name_end + 2] == 'Z'};
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
    if (process > 0 && kin_of(entry.path()).parent == launcher && has_rank(entry.path()))
      ranks.push_back(process);
  }
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

bool handles(pid_t process, int signal) {
  std::istringstream status(content_of(fs::path("/proc") / std::to_string(process) / "status"));
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("SigCgt:"))
      return (std::strtoull(line.c_str() + 7, nullptr, 16) >> (signal - 1)) & 1;
  return false;
}

bool has_only_dead_children(pid_t process) {
  bool any = false;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator("/proc", gone)) {
    if (std::atoi(entry.path().filename().c_str()) <= 0) continue;
    const Kin kin = kin_of(entry.path());
    if (kin.parent != process) continue;
    if (!kin.dead) return false;
    any = true;
  }
  return any;
}

}  // namespace weft
