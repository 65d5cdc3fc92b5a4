#pragma once
// Runs set side by side: which of them answer the same question, what differs between their recipes, and the
// mean and spread over seeds.

#include <cmath>
#include <string>
#include <vector>

#include "training/report/run_folder.h"

namespace weft {

struct ComparedRun {
  RunData data;
  std::string mechanism;  // its layers, short: "gla*2", "(lightning, softmax)*2"
  std::string setting;    // what else differs between the runs but the seed: "optim.lr 0.001"
  // Why it is not comparable with most of the others, "context 512, not 256"; empty where it is.
  std::string apart;
  double parameters = NAN, flops_per_token = NAN;  // planned from the recipe; NaN where that failed
  double loss = NAN;                               // mean of the last twentieth of its steps
  double val_loss = NAN, val_bpb = NAN;            // as measured last
  double val_accuracy = NAN, val_exact = NAN;
  std::vector<std::string> values;  // of each key of Comparison::keys
  size_t group = 0;
};

// Mean, and standard deviation of the sample (n - 1): NaN of fewer than two.
struct Spread {
  double mean = NAN, deviation = NAN;
  explicit Spread(const std::vector<double>& values);  // those that are finite
};

// Runs that differ in their seed alone.
struct RunGroup {
  std::string mechanism, setting;
  std::vector<size_t> runs;     // all of them
  std::vector<size_t> counted;  // of these: done, and comparable
};

struct Comparison {
  std::vector<ComparedRun> runs;  // as given
  std::vector<std::string> keys;  // in which the recipes differ, run apart
  std::vector<RunGroup> groups;   // in the order of their first run
  std::vector<size_t> best;       // the best group of each mechanism, the best mechanism first
  std::string common;             // what comparable runs share: "context 256, 122,880 tokens of data/kjv.txt"
  std::vector<std::string> notes;  // what could not be read or planned, a line each
};

// Comparable are runs with the same data, validation, tokenizer, context and number of tokens as most of
// them. The score of a group is the mean validation loss of its counted runs, or where none was measured
// their training loss.
Comparison compare_runs(std::vector<RunData> runs);

// The score's mean and spread, and of other numbers of the group's counted runs.
Spread spread_of(const Comparison& all, const RunGroup& group, double ComparedRun::*number);

// Keys of a recipe that say how a run is done and kept, or which of several it is, not what is learned.
bool is_housekeeping(const std::string& key);

// Whether any run has such a number.
bool measured(const Comparison& all, double ComparedRun::*number);

// {"a", "b", "a", "b"} -> "(a, b)*2"
std::string short_pattern(const std::vector<std::string>& layers);

}  // namespace weft
