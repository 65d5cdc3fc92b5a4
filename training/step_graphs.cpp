#include "training/step_graphs.h"

#include "autograd/flops.h"
#include "autograd/layout.h"
#include "autograd/notes.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/replay.h"
#include "autograd/cuda/runtime.h"
#endif

namespace weft {

#ifdef WEFT_CUDA

namespace {
constexpr int kPatience = 16;  // steps
}

struct StepGraphs::Graph {
  cuda::Replay replay;  // not recorded: the work cannot be
  std::vector<bool> written;
  double flops = 0, pairs = 0, flops_of_a_pair = 0;
};

StepGraphs::StepGraphs(ParameterStore& store, int64_t most) : store_(store), most_(most) {
  if (store.device() != Device::cuda) most_ = 0;
  if (most_ > 0) graphs_ = std::make_unique<LeastRecent<Key, Graph>>(static_cast<size_t>(most_));
}

StepGraphs::~StepGraphs() { forget(); }

void StepGraphs::forget() {
  if (graphs_ == nullptr || graphs_->size() == 0) return;
  cuda::synchronize();  // one may be running
  graphs_->clear();
}

std::vector<bool> StepGraphs::written() const {
  std::vector<bool> flags;
  for (const auto& e : store_.entries()) flags.push_back(e->written);
  return flags;
}

void StepGraphs::set_written(const std::vector<bool>& flags) {
  for (size_t i = 0; i < flags.size(); ++i) store_.entries()[i]->written = flags[i];
}

void StepGraphs::run(const Key& key, const std::function<void()>& work, double pairs) {
  if (most_ == 0) {
    if (store_.device() != Device::cuda) return work();
    const cuda::Pass pass;
    return work();
  }
  if (const int64_t now = cuda::arena_changes(); now != arena_changes_) {
    forget();
    arena_changes_ = now;
  }
  Key full = key;
  for (const bool flag : written()) full.push_back(flag ? 1 : 0);
  const Graph* const graph = graphs_->find(full);
  if (graph == nullptr) return first_run(full, work, pairs);
  if (!graph->replay.recorded()) {
    const cuda::Pass pass;
    return work();
  }
  graph->replay.run();
  set_written(graph->written);
  count_flops(graph->flops + graph->flops_of_a_pair * (pairs - graph->pairs));
  ++replayed_;
}

// Launched kernel by kernel, and watched: where it turns out that the host had no part in it, it is recorded
// at once, so that the second run of a key is as fast as all later ones.
void StepGraphs::first_run(const Key& key, const std::function<void()>& work, double pairs) {
  const std::vector<bool> before = written();
  const double flops = counted_flops(), of_a_pair = noted_flops_of_a_pair();
  const int64_t copies = cuda::host_copies(), reads = LayoutSegments::reads();
  {
    const cuda::Pass pass;
    work();
  }
  // Whatever was made now and is kept, such as a workspace of products, is there at the next run.
  if (cuda::arena_changes() != arena_changes_) {
    if (++unsettled_ == kPatience)
      note_once("training steps are no CUDA graphs: what they keep changes at every step");
    return;
  }
  unsettled_ = 0;
  if (graphs_->full()) cuda::synchronize();  // the one that goes may be running
  Graph& graph = graphs_->insert(key);
  graph.written = written();
  graph.flops = counted_flops() - flops;
  graph.flops_of_a_pair = noted_flops_of_a_pair() - of_a_pair;
  graph.pairs = pairs;
  const char* const why = cuda::host_copies() != copies ? "work waits for numbers of the host"
                          : LayoutSegments::reads() != reads
                              ? "what is launched depends on the lengths of all documents"
                              : nullptr;
  if (why != nullptr) return note_once(std::string("training steps are no CUDA graphs: ") + why);
  set_written(before);
  try {
    const cuda::Pass pass;
    graph.replay.record(work);
    ++recorded_;
  } catch (const Error& refused) {
    note_once(std::string("training steps are no CUDA graphs: ") + refused.what());
  }
  set_written(graph.written);
  count_flops(graph.flops - (counted_flops() - flops));
}

#else

struct StepGraphs::Graph {};
StepGraphs::StepGraphs(ParameterStore& store, int64_t) : store_(store), most_(0) {}
StepGraphs::~StepGraphs() = default;
void StepGraphs::forget() {}
void StepGraphs::run(const Key&, const std::function<void()>& work, double) { work(); }

#endif

}  // namespace weft
