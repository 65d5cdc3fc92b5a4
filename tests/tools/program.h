#pragma once
// The weft program as a person runs it.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace weft {

struct Ran {
  int code = 0;  // 128 + the signal that ended it
  std::string out, err;

  std::vector<std::string> out_lines() const;
  nlohmann::json json() const;  // of the only line of out; null where there is not exactly one
};

struct RunOptions {
  std::string folder = ".";                   // working directory
  std::string out = {};                       // stdout goes to this file instead
  std::vector<std::string> environment = {};  // NAME=value
  int mpirun = 0;                             // so many ranks, started by mpirun; 0: without it
  long file_limit = 0;                        // bytes a file may grow to; 0: any
  long memory_limit = 0;                      // bytes of address space; 0: any
  int stop_after_ms = 0;                      // stop_signal then; 0: not by time
  std::string stop_at_file = {};              // stop_signal once this file holds something
  int stop_signal = 15;                       // SIGTERM
};

Ran run_weft(const std::vector<std::string>& words, const RunOptions& options = {});

// A folder that is gone at the end.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  // Writes a file, with the folders above it.
  void write(const std::string& name, const std::string& content) const;
  std::string read(const std::string& name) const;

 private:
  std::string path_;
};

}  // namespace weft
