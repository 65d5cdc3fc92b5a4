#include "tests/tools/program.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace weft {

namespace fs = std::filesystem;

namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

[[noreturn]] void become(const std::vector<std::string>& words, const RunOptions& options,
                         const std::string& out, const std::string& err) {
  const auto send = [](const std::string& path, int to) {
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || dup2(file, to) < 0) _exit(126);
  };
  send(out, STDOUT_FILENO);
  send(err, STDERR_FILENO);
  if (chdir(options.folder.c_str()) != 0) _exit(126);
  for (const std::string& setting : options.environment) {
    const size_t equals = setting.find('=');
    setenv(setting.substr(0, equals).c_str(), setting.substr(equals + 1).c_str(), 1);
  }
  if (options.file_limit > 0) {
    const rlimit limit{static_cast<rlim_t>(options.file_limit), static_cast<rlim_t>(options.file_limit)};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  if (options.memory_limit > 0) {
    const rlimit limit{static_cast<rlim_t>(options.memory_limit), static_cast<rlim_t>(options.memory_limit)};
    setrlimit(RLIMIT_AS, &limit);
  }
  std::vector<std::string> line{WEFT_PROGRAM};
  if (options.mpirun > 0) line = {"mpirun", "--oversubscribe", "-n", std::to_string(options.mpirun), line[0]};
  line.insert(line.end(), words.begin(), words.end());
  std::vector<char*> arguments;
  for (std::string& word : line) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  _exit(127);
}

}  // namespace

std::vector<std::string> Ran::out_lines() const {
  std::vector<std::string> lines;
  std::istringstream in(out);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

nlohmann::json Ran::json() const {
  const auto lines = out_lines();
  return lines.size() == 1 ? nlohmann::json::parse(lines[0], nullptr, false) : nlohmann::json();
}

Ran run_weft(const std::vector<std::string>& words, const RunOptions& options) {
  const TestFolder streams;
  const std::string out = options.out.empty() ? streams / "out" : options.out;
  const pid_t child = fork();
  if (child == 0) become(words, options, out, streams / "err");
  int status = 0;
  bool ended = false;
  if (!options.stop_at_file.empty()) {
    const fs::path file = fs::path(options.folder) / options.stop_at_file;
    std::error_code absent;
    while (!ended && (!fs::exists(file) || fs::file_size(file, absent) == 0)) {
      usleep(1000);
      ended = waitpid(child, &status, WNOHANG) == child;
    }
  }
  if (options.stop_after_ms > 0) usleep(static_cast<useconds_t>(options.stop_after_ms) * 1000);
  if (!ended) {
    if (options.stop_after_ms > 0 || !options.stop_at_file.empty()) kill(child, options.stop_signal);
    waitpid(child, &status, 0);
  }
  Ran ran;
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (options.out.empty()) ran.out = content_of(out);
  ran.err = content_of(streams / "err");
  return ran;
}

TestFolder::TestFolder() {
  std::string name = fs::temp_directory_path() / "weft-tools-XXXXXX";
  path_ = mkdtemp(name.data());
}
TestFolder::~TestFolder() { fs::remove_all(path_); }

void TestFolder::write(const std::string& name, const std::string& content) const {
  const fs::path path = fs::path(path_) / name;
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

std::string TestFolder::read(const std::string& name) const { return content_of(*this / name); }

}  // namespace weft
