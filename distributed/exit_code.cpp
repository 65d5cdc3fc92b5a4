#include "distributed/exit_code.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace weft {
namespace {

namespace fs = std::filesystem;

// Written beside and renamed, so that nobody reads half a file.
void write(const fs::path& folder, const ExitRecord& record) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) return;
  char name[32];
  std::snprintf(name, sizeof name, "exit-%04d", record.rank);
  char time[40];
  std::snprintf(time, sizeof time, "%.6f", record.time);
  const fs::path part = folder / text(name, ".part");
  std::ofstream(part) << "weft-exit 1\nrank " << record.rank << "\ncode " << static_cast<int>(record.code)
                      << "\nculprit " << record.culprit << "\ntime " << time << "\nlaunch " << record.launch
                      << "\nsaid " << record.said << "\nwhat " << record.what << "\n";
  fs::rename(part, folder / name, ignored);
}

std::optional<ExitRecord> read(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line != "weft-exit 1") return std::nullopt;
  ExitRecord record;
  bool coded = false;
  std::optional<int> culprit;
  while (std::getline(file, line)) {
    const std::string key = line.substr(0, line.find(' '));
    const std::string value = line.size() > key.size() ? line.substr(key.size() + 1) : "";
    if (key == "rank")
      record.rank = std::atoi(value.c_str());
    else if (key == "code")
      record.code = static_cast<Exit>(std::atoi(value.c_str())), coded = true;
    else if (key == "culprit")
      culprit = std::atoi(value.c_str());
    else if (key == "time")
      record.time = std::atof(value.c_str());
    else if (key == "launch")
      record.launch = value;
    else if (key == "said")
      record.said = value != "0";
    else if (key == "what")
      record.what = value;
  }
  record.culprit = culprit.value_or(record.rank);
  return coded ? std::optional(record) : std::nullopt;
}

// Smaller is nearer to the cause.
int distance(Exit code) {
  switch (code) {
    case Exit::ok: return 4;
    case Exit::stopped: return 3;
    case Exit::peer_lost: return 2;
    case Exit::hang: return 1;
    default: return 0;
  }
}

}  // namespace

void leave_exit_code(const std::string& run_folder, int rank, Exit code, int culprit, const std::string& what,
                     bool said) noexcept {
  try {
    ExitRecord record{rank, code, 0, "-", what, culprit, said};
    record.time = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    std::replace(record.what.begin(), record.what.end(), '\n', ' ');
    const char* launch = std::getenv(launch_variable);
    if (launch && *launch) record.launch = launch, write(launch, record);
    if (run_folder.empty() || !fs::is_directory(run_folder)) return;
    fs::create_directory(fs::path(run_folder) / "log");
    write(fs::path(run_folder) / "log", record);
  } catch (...) {  // a full disk must not hide the failure that is being reported
  }
}

std::vector<ExitRecord> read_exit_codes(const std::string& folder, const std::string& launch) {
  std::vector<ExitRecord> records;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("exit-") || name.ends_with(".part")) continue;
    const auto record = read(entry.path());
    if (record && (launch.empty() || record->launch == launch)) records.push_back(*record);
  }
  std::sort(records.begin(), records.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  return records;
}

std::optional<ExitRecord> first_cause(const std::vector<ExitRecord>& records) {
  const auto cause = std::min_element(records.begin(), records.end(), [](const auto& a, const auto& b) {
    return std::pair(distance(a.code), a.time) < std::pair(distance(b.code), b.time);
  });
  return cause == records.end() || cause->code == Exit::ok ? std::nullopt : std::optional(*cause);
}

}  // namespace weft
