#pragma once
// The run folder's files for people: log/rank-NNNN.txt and samples.txt.

#include <cstdint>
#include <string>

#include "training/log/append_file.h"

namespace weft {

enum class Level { info, warning, error };

// "2026-11-02T09:30:00.123Z warning message", one line a message. Thread-safe.
class RankLog {
 public:
  // In the folder `log` of the run; goes on where an earlier process of the run left off.
  RankLog(const std::string& log_folder, int rank, Warn warn);
  void write(Level level, const std::string& message);

 private:
  AppendFile file_;
};

// Generated text, each piece under a line "=== step 250".
class SamplesFile {
 public:
  SamplesFile(const std::string& path, Warn warn);
  void write(int64_t step, const std::string& text);

 private:
  AppendFile file_;
};

}  // namespace weft
