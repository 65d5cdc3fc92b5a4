#include "training/step_graphs.h"

#include "autograd/flops.h"
#include "autograd/notes.h"
#include "autograd/pair_flops.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/replay.h"
#include "autograd/cuda/runtime.h"
#endif

namespace weft {

#ifdef WEFT_CUDA

namespace {
constexpr int kPatience = 16;  // steps
constexpr int kTries = 2;
}  // namespace

struct StepGraphs::Graph {
  cuda::Replay replay;
  int tries = 0;  // to record it
  std::vector<bool> written;
  double flops = 0, recomputed = 0, pairs = 0, flops_of_a_pair = 0;
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

void StepGraphs::run(const Key& key, const Work& work, double pairs) {
  if (most_ == 0) {
    if (store_.device() != Device::cuda) return work(false);
    const cuda::Pass pass;
    return work(false);
  }
  if (const int64_t now = cuda::arena_changes(); now != arena_changes_) {
    forget();
    arena_changes_ = now;
  }
  Key full = key;
  for (const bool flag : written()) full.push_back(flag ? 1 : 0);
  Graph* graph = graphs_->find(full);
  if (graph == nullptr) {
    if (graphs_->full()) cuda::synchronize();  // the one that goes may be running
    graph = &graphs_->insert(full);
  }
  if (!graph->replay.recorded()) return try_to_record(*graph, work, pairs);
  graph->replay.run();
  set_written(graph->written);
  count_repeated_flops(graph->flops + graph->flops_of_a_pair * (pairs - graph->pairs), graph->recomputed);
  ++replayed_;
}

// Launched kernel by kernel, and watched: where it turns out that the host had no part in it, it is recorded
// at once, so that the next run of a key is as fast as all later ones.
void StepGraphs::try_to_record(Graph& graph, const Work& work, double pairs) {
  if (graph.tries == kTries) {
    const cuda::Pass pass;
    return work(false);
  }
  const std::vector<bool> before = written();
  const double flops = counted_flops(), recomputed = recomputed_flops(), of_a_pair = noted_flops_of_a_pair();
  const int64_t copies = cuda::host_copies();
  uint64_t trace = 0;
  {
    const cuda::Pass pass;
    work(false);
    trace = pass.trace();
  }
  // Whatever was made now and is kept, such as a workspace of products, is there at the next run.
  if (cuda::arena_changes() != arena_changes_) {
    if (++unsettled_ == kPatience) refuse("what they keep changes at every step");
    return;
  }
  unsettled_ = 0;
  ++graph.tries;
  graph.written = written();
  graph.flops = counted_flops() - flops;
  graph.recomputed = recomputed_flops() - recomputed;
  graph.flops_of_a_pair = noted_flops_of_a_pair() - of_a_pair;
  graph.pairs = pairs;
  std::string why;
  if (cuda::host_copies() != copies) {
    why = "numbers pass between them and the host";
  } else {
    set_written(before);
    try {
      const cuda::Pass pass;
      graph.replay.record([&] { work(true); });
      if (pass.trace() != trace) why = "what is launched depends on the length of every document";
    } catch (const Error& refused) {
      why = refused.what();
    }
    set_written(graph.written);
    count_repeated_flops(graph.flops - (counted_flops() - flops),
                         graph.recomputed - (recomputed_flops() - recomputed));
  }
  if (why.empty()) {
    ++recorded_;
    return;
  }
  graph.replay.forget();
  // The first run of a shape may have asked for more, to choose among products.
  if (graph.tries == kTries) refuse(why);
}

void StepGraphs::refuse(const std::string& why) {
  note_once("training steps are launched kernel by kernel, not as CUDA graphs: " + why);
}

#else

struct StepGraphs::Graph {};
StepGraphs::StepGraphs(ParameterStore& store, int64_t) : store_(store), most_(0) {}
StepGraphs::~StepGraphs() = default;
void StepGraphs::forget() {}
void StepGraphs::run(const Key&, const Work& work, double) { work(false); }

#endif

}  // namespace weft
