#pragma once
// Recurring work of training steps as CUDA graphs, one for each key: launched kernel by kernel once, then
// recorded, and from then on launched as a whole. Graphs take turns in the same memory, so many need no more
// than one. When there are too many, the least recently used is dropped.
//
// What the work reads and writes must stay in its place, and two runs of one key may differ only in what lies
// there. Work that exchanges anything with the host is not recorded. Neither is work that asks for other
// memory while it is recorded: the caller then hides what the key does not determine, so the work depended on
// that. A note says so once. Without a GPU nothing is recorded. The bits are the same
// either way.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/parameter.h"
#include "training/least_recent.h"

namespace weft {

class StepGraphs {
 public:
  using Key = std::vector<int64_t>;
  using Work = std::function<void(bool recorded)>;

  // most: graphs that are kept; 0: none. Which gradients of the store were written before belongs to every
  // key, since the first writer overwrites.
  StepGraphs(ParameterStore& store, int64_t most);
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // pairs: how many pairs of tokens meet in the work's documents, for counting operations.
  void run(const Key& key, const Work& work, double pairs = 0);
  // Call this when what the work uses has moved.
  void forget();
  int64_t recorded() const { return recorded_; }  // so far
  int64_t replayed() const { return replayed_; }

 private:
  struct Graph;
  std::vector<bool> written() const;
  void set_written(const std::vector<bool>& flags);
  void try_to_record(Graph& graph, const Work& work, double pairs);
  static void refuse(const std::string& why);

  ParameterStore& store_;
  int64_t most_;
  std::unique_ptr<LeastRecent<Key, Graph>> graphs_;
  int64_t arena_changes_ = 0, recorded_ = 0, replayed_ = 0;
  int unsettled_ = 0;  // runs in a row that changed the arena
};

}  // namespace weft
