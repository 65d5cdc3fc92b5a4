#pragma once
// `weft eval zoo`: what each mechanism learns of each task, at some widths and learning rates, with several
// seeds. A cell is one training run and one score; it is kept in a file of its own, so a zoo that was stopped
// goes on where it was. What the papers claim is judged from means and spreads (zoo_claims.cpp).

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace weft {

// A model of the zoo: overrides of a task's recipe.
struct ZooMechanism {
  std::string name;
  std::vector<std::string> overrides;
};

// A size of the zoo: which recipes, each one a task, and what to vary.
struct ZooSize {
  std::string name, recipes;  // a folder under recipes/
  std::vector<int64_t> widths;
  std::vector<double> rates;  // optim.lr
};

struct ZooClaim {
  enum class Relation : uint8_t {
    better,  // left is better than right
    equal,   // left is no worse than right by more than the tolerance
  };
  std::string says, paper;
  std::string task, left, right;
  Relation relation = Relation::better;
  std::string metric = {};  // the task's, or grad_peak
};

const std::vector<ZooMechanism>& zoo_mechanisms();
const std::vector<ZooSize>& zoo_sizes();
const std::vector<ZooClaim>& zoo_claims();

struct ZooCell {
  std::string task, mechanism;
  int64_t width = 0;
  double rate = 0;
  int64_t seed = 0;
  std::string name() const;  // "mqar-softmax-w64-lr0.003-s1"
};

struct ZooResult {
  ZooCell cell;
  std::string metric;  // accuracy, exact, bits_per_byte
  double value = 0;    // mean over the rows of the task's grid
  int64_t n = 0;       // labels, answers or tokens behind it
  double chance = 0;   // of always the commonest answer; NaN of text
  bool diverged =
      false;             // training gave up on numbers that were not finite; value is then the worst there is
  double grad_peak = 0;  // largest gradient norm after warm-up over the median one
  double loss = 0;       // of the last step
  int64_t state_bytes = -1;  // of one layer after an example; -1: it does not decode
  int64_t parameters = 0;
  double seconds = 0;
  std::string recipe_hash, commit, date;
};

struct ZooOptions {
  std::string size = "cpu";
  std::vector<std::string> mechanisms, tasks;  // empty: all
  std::vector<int64_t> seeds{1, 2, 3}, widths;
  std::vector<double> rates;           // and widths; empty: the size's
  std::string folder;                  // of the results; empty: runs/zoo-SIZE
  std::vector<std::string> overrides;  // of all recipes
  bool table_only = false;             // runs nothing
};

// Runs what is not there yet; say: a line of progress. Returns all results that were asked for and are there,
// in order. Errors: those of training, but for numerics; Exit::stopped after a signal.
std::vector<ZooResult> run_zoo(const ZooOptions& options, const std::string& recipe_root,
                               const std::function<void(const std::string&)>& say);

// Mean and sample deviation of one mechanism on one task at its best rate.
struct ZooSummary {
  std::string metric;
  double rate = 0, mean = 0, deviation = 0, chance = 0;
  int64_t seeds = 0, state_bytes = -1, diverged = 0;
};

// The best rate is the one of the best mean over the seeds; a rate with fewer seeds than another is no match
// for it. metric: empty for the task's own; grad_peak is taken at the highest rate. None where there is no
// result.
bool summarize(const std::vector<ZooResult>& results, const std::string& task, const std::string& mechanism,
               int64_t width, const std::string& metric, ZooSummary& summary);

struct ZooVerdict {
  ZooClaim claim;
  int64_t width = 0;
  std::string verdict;  // shown, refuted, not decided
  std::string why;
};

// Each claim at each width of the results.
std::vector<ZooVerdict> judge(const std::vector<ZooResult>& results, const std::vector<ZooClaim>& claims);

// Markdown: the table, the claims, and how they are judged.
std::string zoo_report(const std::vector<ZooResult>& results, const std::vector<ZooVerdict>& verdicts,
                       const std::string& size);

}  // namespace weft
