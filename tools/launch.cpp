#include "tools/launch.h"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "distributed/exit_code.h"
#include "tools/child_process.h"
#include "tools/launcher_notes.h"
#include "tools/local_ranks.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

bool in_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');)
    if (access((fs::path(folder) / program).c_str(), X_OK) == 0) return true;
  return false;
}

int number_in(const char* variable, int absent) {
  const char* value = std::getenv(variable);
  return value && std::atoi(value) > 0 ? std::atoi(value) : absent;
}

std::string output_of(const char* command) {
  std::string output;
  FILE* pipe = popen(command, "r");
  if (!pipe) return output;
  char part[512];
  while (std::fgets(part, sizeof part, pipe)) output += part;
  pclose(pipe);
  return output;
}

// A folder for the codes of this launch, gone when it ends.
class CodesFolder {
 public:
  CodesFolder() {
    std::error_code absent;
    const fs::path parent = fs::temp_directory_path(absent);
    std::string name = parent / "weft-launch-XXXXXX";
    if (absent || !mkdtemp(name.data()))
      throw Error(
          Exit::cannot_create,
          text("cannot create a folder for exit codes: ", absent ? absent.message() : std::strerror(errno)),
          absent ? "TMPDIR" : name, "set TMPDIR to a writable folder");
    path_ = name;
  }
  ~CodesFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  CodesFolder(const CodesFolder&) = delete;
  CodesFolder& operator=(const CodesFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// In ticks, half a second each. After a call to stop:
constexpr int kTicksToListen = 6;  // ranks that are all here are signalled, though they do not handle it yet
constexpr int kTicksToStart = 60;  // the launcher is signalled, since its ranks have not all come
// At any time: a launcher that has had only dead children for longer is killed.
constexpr int kTicksAbandoned = 20;

// Asks all ranks to save and leave, once each. Where all are on this machine they are told themselves: Ubuntu
// 24.04's Open MPI 4.1.6 takes the signal and passes it to nobody. A call that comes while they are being
// started reaches each as soon as it listens, or after a while whether it listens or not. Else the launcher
// is told, at once or, where the ranks should be here, when they do not come.
class StopCall {
 public:
  StopCall(int ranks, bool all_local) : ranks_(ranks), all_local_(all_local) {}

  void begin(pid_t launcher) {
    looks_ = 0;
    told_.clear();
    launcher_told_ = false;
    look(launcher);
  }

  void look(pid_t launcher) {
    if (looks_ < 0) return;  // nobody has called
    const std::vector<pid_t> here = local_ranks(launcher);
    const int look = looks_++;
    if (std::ssize(here) == ranks_ && !launcher_told_) {
      const bool late = !all_local_ || look >= kTicksToListen;
      for (const pid_t rank : here)
        if ((late || handles(rank, SIGUSR1)) && told_.insert(rank).second) kill(rank, SIGUSR1);
    } else if ((!all_local_ || look >= kTicksToStart) && told_.empty() &&
               !std::exchange(launcher_told_, true)) {
      kill(launcher, SIGUSR1);
    }
  }

 private:
  int ranks_;
  bool all_local_;
  int looks_ = -1;
  bool launcher_told_ = false;
  std::set<pid_t> told_;
};

bool in_contract(int code) {
  for (Exit e : {Exit::usage, Exit::data, Exit::no_checkpoint, Exit::peer_lost, Exit::internal,
                 Exit::cannot_create, Exit::io, Exit::stopped, Exit::recipe, Exit::numerics, Exit::hang})
    if (static_cast<int>(e) == code) return true;
  return false;
}

}  // namespace

void read_mpi_version(const std::string& output, LaunchHost& host) {
  host.mpi = LaunchHost::Mpi::none;
  if (const size_t at = output.find("Open MPI) "); at != std::string::npos) {
    host.mpi = LaunchHost::Mpi::open_mpi;
    host.mpi_major = std::atoi(output.c_str() + at + std::strlen("Open MPI) "));
  } else if (output.find("HYDRA") != std::string::npos || output.find("Intel(R) MPI") != std::string::npos) {
    host.mpi = LaunchHost::Mpi::mpich;
  }
}

LaunchHost detect_launch_host() {
  LaunchHost host;
  if (in_path("mpirun")) read_mpi_version(output_of("mpirun --version 2>/dev/null"), host);
  host.srun = std::getenv("SLURM_JOB_ID") && in_path("srun");
  host.root = geteuid() == 0;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) host.cores = std::max(1, CPU_COUNT(&allowed));
  host.nodes = host.srun ? number_in("SLURM_JOB_NUM_NODES", 1) : 1;
  host.omp_threads = number_in("OMP_NUM_THREADS", 0);
  return host;
}

LaunchCommand launch_command(const LaunchOptions& options, const LaunchHost& host, const std::string& program,
                             const std::vector<std::string>& arguments) {
  if (options.ranks < 1) throw Error(Exit::usage, text("cannot launch ", options.ranks, " ranks"), "-n");
  if (options.with != "auto" && options.with != "mpirun" && options.with != "srun")
    throw Error(Exit::usage, text("unknown launcher '", options.with, "'"), "--with", "auto, mpirun or srun");
  const bool srun = options.with == "srun" || (options.with == "auto" && host.srun);
  if (!srun && host.mpi == LaunchHost::Mpi::none)
    throw Error(Exit::usage, "several ranks need mpirun, and none is in PATH", "PATH",
                "install openmpi-bin and libopenmpi-dev, then build again");

  LaunchCommand command;
  const int ranks_a_node = (options.ranks + host.nodes - 1) / host.nodes;
  const int threads = host.omp_threads > 0 ? host.omp_threads : std::max(1, host.cores / ranks_a_node);
  command.environment = {text("OMP_NUM_THREADS=", threads)};
  auto& words = command.words;
  const std::string n = std::to_string(options.ranks);
  if (srun) {
    words = {"srun", "-n", n, "--kill-on-bad-exit=1", "--cpu-bind=none"};
    words.push_back(host.mpi == LaunchHost::Mpi::mpich ? "--mpi=pmi2" : "--mpi=pmix");
  } else if (host.mpi == LaunchHost::Mpi::open_mpi) {
    // Any number of ranks on any number of cores, bound to none of them.
    if (host.mpi_major >= 5)
      words = {"mpirun", "-n", n, "--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"};
    else
      words = {"mpirun", "-n", n, "--bind-to", "none", "--oversubscribe"};
    if (host.root) words.push_back("--allow-run-as-root");
    words.insert(words.end(), {"-x", "OMP_NUM_THREADS", "-x", launch_variable});
  } else {
    words = {"mpirun", "-n", n, "-bind-to", "none"};
  }
  words.insert(words.end(), options.extra.begin(), options.extra.end());
  words.push_back(program);
  words.insert(words.end(), arguments.begin(), arguments.end());
  return command;
}

std::string LaunchCommand::shown() const {
  std::string line;
  const auto add = [&](const std::string& word) { line += (line.empty() ? "" : " ") + shell_word(word); };
  for (const std::string& setting : environment) add(setting);
  for (const std::string& word : words) add(word);
  return line;
}

LaunchResult read_launcher_status(int wait_status, bool stop) {
  const bool exited = WIFEXITED(wait_status);
  const int code = exited ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
  if (exited && code == 0) return {};
  if (exited && in_contract(code)) return {static_cast<Exit>(code), {}};
  if (stop) return {Exit::stopped, "stopped by a signal before any rank could answer"};
  if (!exited) return {Exit::peer_lost, text("the launcher was ended by signal ", code - 128)};
  // Open MPI 4 says 137 whenever it had to kill, whatever the others said.
  if (code > 128 && code <= 128 + SIGRTMAX)
    return {Exit::peer_lost, text("a rank was ended by signal ", code - 128)};
  return {Exit::internal,
          text("the ranks did not start or ended in an unknown way: the launcher returned ", code)};
}

LaunchResult launch(const LaunchOptions& options, const std::vector<std::string>& arguments,
                    const std::string& program) {
  std::error_code unresolved;
  const fs::path resolved = fs::canonical(program, unresolved);
  if (unresolved) throw Error(Exit::usage, text("no such program: ", unresolved.message()), program);
  const LaunchHost host = detect_launch_host();
  LaunchCommand command = launch_command(options, host, resolved, arguments);
  if (!in_path(command.words[0]))  // --with srun where there is no Slurm
    throw Error(Exit::usage, command.words[0] + " is not in PATH", "--with",
                "leave --with out to take what there is");
  std::fprintf(stderr, "%s\n", command.shown().c_str());
  const CodesFolder codes;
  command.environment.push_back(text(launch_variable, "=", codes.path()));

  ChildProcess child{.words = command.words,
                     .environment = command.environment,
                     .on_stop = "weft: asking all ranks to save and leave; again to end them at once\n"};
  const bool all_local = command.words[0] == "mpirun" && host.mpi == LaunchHost::Mpi::open_mpi &&
                         host.nodes == 1 && options.extra.empty();
  StopCall call(options.ranks, all_local);
  int abandoned = 0;  // ticks
  child.ask = [&](pid_t launcher) { call.begin(launcher); };
  child.tick = [&](pid_t launcher) {
    call.look(launcher);
    // Open MPI 4 may miss that its ranks have died while it started them, and then waits for ever.
    abandoned = all_local && has_only_dead_children(launcher) ? abandoned + 1 : 0;
    if (abandoned > kTicksAbandoned) kill(-launcher, SIGKILL);
  };
  LauncherNotes notes;
  if (command.words[0] == "mpirun" && host.mpi == LaunchHost::Mpi::open_mpi)
    child.on_err = [&](std::string_view bytes) {
      const std::string shown = bytes.empty() ? notes.rest() : notes.pass(bytes);
      std::fwrite(shown.data(), 1, shown.size(), stderr);
    };
  const ChildEnd ended = run_child(child);
  std::vector<ExitRecord> records = read_exit_codes(codes.path());
  if (!options.run_folder.empty()) {
    const auto more = read_exit_codes(fs::path(options.run_folder) / "log", codes.path());
    records.insert(records.end(), more.begin(), more.end());
  }
  if (const auto cause = first_cause(records)) {
    const std::string what = cause->what.substr(cause->what.starts_with("weft: ") ? 6 : 0);
    const bool said = std::any_of(records.begin(), records.end(),
                                  [](const ExitRecord& r) { return r.code != Exit::ok && r.said; });
    return {cause->code, said ? "" : what, cause->culprit, what};
  }
  return read_launcher_status(ended.wait_status, ended.stop);
}

}  // namespace weft
