#pragma once
// A folder with a recipe that trains in a second: two layers of width 32 over generated stories.

#include <cstdlib>

#include "tests/tools/program.h"

namespace weft {

using Words = std::vector<std::string>;

inline bool full_tests() {
  const char* full = std::getenv("WEFT_FULL");
  return full != nullptr && *full != 0;
}

class TinyRun {
 public:
  TinyRun();

  const TestFolder& folder() const { return folder_; }
  // `weft train tiny.yaml WORDS --json-summary`, in the folder. The run is runs/tiny unless the words say
  // otherwise.
  Ran train(const Words& words = {}, RunOptions options = {}) const;
  // The same on several ranks.
  Ran launch(int ranks, const Words& words, RunOptions options = {}) const;
  // And on ranks that mpirun itself starts.
  Ran mpirun(int ranks, const Words& words, RunOptions options = {}) const;
  Ran weft(const Words& words, RunOptions options = {}) const;
  // `weft WORDS` by `weft launch` on two ranks. Rank 1 first runs lines of sh, where "$@" is its command: it
  // differs, as on a machine of its own. (mpirun's own way to say so, a colon, ends that of Open MPI 5.0.7 by
  // signal 11.)
  Ran launch_unlike(const std::string& lines, const Words& words) const;

  std::string run(const std::string& name = "tiny") const { return folder_ / ("runs/" + name); }
  // Lines of metrics.jsonl: those of steps, and events of one kind.
  std::vector<nlohmann::json> steps(const std::string& run = "tiny") const;
  std::vector<nlohmann::json> events(const std::string& kind, const std::string& run = "tiny") const;
  // What the manifest of a step says.
  std::string weights_hash_at(int step, const std::string& run = "tiny") const;
  std::vector<std::string> checkpoints(const std::string& run = "tiny") const;  // names, sorted

 private:
  std::vector<nlohmann::json> lines(const std::string& run) const;
  TestFolder folder_;
};

}  // namespace weft
