#include "tools/run_command.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <thread>

#include "autograd/check.h"
#include "autograd/field_value.h"
#include "autograd/nearest_name.h"
#include "distributed/environment.h"
#include "distributed/exit_code.h"
#include "distributed/mpi_comm.h"
#include "training/log/failure.h"
#include "training/log/printable.h"

namespace weft {
namespace {

std::string overview() {
  std::string out = "usage: weft COMMAND [...]\n\n";
  size_t width = 0;
  for (const Command& c : commands()) width = std::max(width, std::string(c.name).size());
  for (const Command& c : commands()) {
    const std::string name = c.name;
    out += "  " + name + std::string(width + 2 - name.size(), ' ') + c.summary + "\n";
  }
  return out + "\n`weft COMMAND --help` says more; `weft help KEY` explains a key of a recipe.\n";
}

void print_version(bool json) {
#ifdef WEFT_CUDA
  const bool cuda = true;
#else
  const bool cuda = false;
#endif
  if (json)
    print(text(R"({"weft":"version/1","exit":0,"version":")", WEFT_VERSION, R"(","cuda":)",
               cuda ? "true" : "false", R"(,"mpi":)", built_with_mpi() ? "true" : "false", "}\n"));
  else
    print(text("weft ", WEFT_VERSION, " (cpu", cuda ? ", cuda" : "", built_with_mpi() ? ", mpi" : "", ")\n"));
}

const Command& named(const std::string& name) {
  if (const Command* command = find_command(name)) return *command;
  Words names;
  for (const Command& c : commands()) names.push_back(c.name);
  throw Error(Exit::usage, "unknown command " + shown(name), "", suggest_name(name, names, "commands"));
}

int dispatch(const Words& words, int rank) {
  const std::string first = words.empty() ? "--help" : words[0];
  const bool version = first == "--version";
  if (version || first == "--help" || first == "-h") {
    if (rank > 0) return 0;
    version ? print_version(wants_json(words)) : print(overview());
    return 0;
  }
  const Command& command = named(first);
  if (rank > 0 && !command.ranks) return 0;
  if (rank > 0) print_nothing();  // of what all ranks find, such as --help
  return command.run({words.begin() + 1, words.end()});
}

// Whose result a failure stands for: of `weft launch`, the launched command's.
std::string speaker(const Words& words) {
  if (words.empty()) return "weft";
  if (words[0] == "launch")
    for (size_t i = 1; i < words.size(); ++i)
      if (find_command(words[i])) return words[i];
  return words[0];
}

void report(const Error& error, const Words& words, int rank) {
  if (rank > 0) {  // a launcher ends all ranks when the first leaves: rank 0 is to have spoken by then
    std::this_thread::sleep_for(std::chrono::seconds(1));
    return;
  }
  print_error(error);
  if (wants_json(words) && !anything_printed() && error.where != "stdout")
    print_failure(failure_json(printable(speaker(words)) + "/1", error, rank) + "\n");
}

}  // namespace

int run_command(const Words& words) noexcept {
  int rank = 0;
  std::signal(SIGXFSZ, SIG_IGN);  // a file at its size limit is a failed write, as on a full disk
  try {
    try {
      rank = detect_launch().rank;
      return dispatch(words, rank);
    } catch (const std::exception& exception) {
      const Error error = as_error(exception);
      leave_exit_code({}, rank, error.code, rank, error_line(error), rank == 0);  // for `weft launch`
      report(error, words, rank);
      return static_cast<int>(error.code);
    }
  } catch (...) {  // the report itself failed
    return static_cast<int>(Exit::internal);
  }
}

}  // namespace weft
