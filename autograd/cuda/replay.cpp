#include "autograd/cuda/replay.h"

#include <set>
#include <vector>

#include "autograd/cuda/runtime.h"
#include "autograd/cuda/step_run.h"

namespace weft::cuda {

Replay::~Replay() { forget(); }

void Replay::forget() {
  if (graph_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
  graph_ = nullptr;
}

namespace {

bool recording_now = false;

// Of the recording.
std::set<cudaGraphNode_t>& early_nodes() {
  static std::set<cudaGraphNode_t> nodes;
  return nodes;
}

#if CUDART_VERSION >= 13000  // where edges have kinds
bool is_kernel(cudaGraphNode_t node) {
  cudaGraphNodeType type;
  CUDA_CHECK(cudaGraphNodeGetType(node, &type));
  return type == cudaGraphNodeTypeKernel;
}

// Kernels that start early depend on the start of the kernel before them, and no longer on its end.
void let_kernels_start_early(cudaGraph_t graph) {
  size_t count = 0;
  CUDA_CHECK(cudaGraphGetEdges(graph, nullptr, nullptr, nullptr, &count));
  std::vector<cudaGraphNode_t> from(count), to(count);
  std::vector<cudaGraphEdgeData> edges(count);
  CUDA_CHECK(cudaGraphGetEdges(graph, from.data(), to.data(), edges.data(), &count));
  for (size_t i = 0; i < count; ++i) {
    if (!early_nodes().contains(to[i]) || !is_kernel(from[i])) continue;
    cudaGraphEdgeData early{};
    early.from_port = cudaGraphKernelNodePortLaunchCompletion;
    early.type = cudaGraphDependencyTypeProgrammatic;
    CUDA_CHECK(cudaGraphRemoveDependencies(graph, &from[i], &to[i], &edges[i], 1));
    CUDA_CHECK(cudaGraphAddDependencies(graph, &from[i], &to[i], &early, 1));
  }
}
#endif

// Ends the recording whatever happens; a recording that failed leaves nothing.
class Recording {
 public:
  explicit Recording(bool as_runs) {
    want_runs(as_runs);
    const cudaError_t begun =
        cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed);  // the arena may grow
    if (begun != cudaSuccess) want_runs(false);
    check(begun, "cudaStreamBeginCapture");
    recording_now = true;
    early_nodes().clear();
  }
  ~Recording() {
    if (recording_now) {
      drop_run();
      end();
      cudaGetLastError();  // whoever failed has said so: no later launch should
    }
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  cudaGraph_t finish() {
    check(end(), "cudaStreamEndCapture");
    return graph_;
  }

 private:
  cudaError_t end() {
    const cudaStream_t recorded = stream();  // with what waited for it
    recording_now = false;
    want_runs(false);
    return cudaStreamEndCapture(recorded, &graph_);
  }
  cudaGraph_t graph_ = nullptr;
};

}  // namespace

bool recording() { return recording_now; }

void starts_early() {
#if CUDART_VERSION >= 13000
  static const bool able = of_device(cudaDevAttrComputeCapabilityMajor) >= 9;
  if (!recording_now || !able) return;
  cudaStreamCaptureStatus status;
  const cudaGraphNode_t* last = nullptr;
  const cudaGraphEdgeData* edges = nullptr;
  size_t count = 0;
  CUDA_CHECK(cudaStreamGetCaptureInfo(stream(), &status, nullptr, nullptr, &last, &edges, &count));
  if (count == 1) early_nodes().insert(last[0]);
#endif
}

void Replay::record(const std::function<void()>& f, bool as_runs) {
  CHECK(graph_ == nullptr, "replay: recorded twice");
  Recording recording(as_runs);
  f();
  cudaGraphExec_t ready = nullptr;
  const cudaGraph_t graph = recording.finish();
#if CUDART_VERSION >= 13000
  let_kernels_start_early(graph);
#endif
  CUDA_CHECK(cudaGraphInstantiate(&ready, graph, 0));
  graph_ = ready;
  CUDA_CHECK(cudaGraphUpload(ready, stream()));  // or the first run would wait for it
}

void Replay::run() const {
  CHECK(graph_ != nullptr, "replay: nothing was recorded");
  CUDA_CHECK(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), stream()));
}

}  // namespace weft::cuda
