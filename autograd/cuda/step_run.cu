#include <cstdlib>
#include <string_view>
#include <vector>

#include "autograd/cuda/replay.h"
#include "autograd/cuda/step_run_attention.cuh"
#include "autograd/cuda/step_run_product.cuh"
#include "autograd/cuda/step_run_recurrence.cuh"

namespace weft::cuda {
namespace {

enum class Kind { product, attention, recurrence };
struct Phase {
  Kind kind;
  union {
    ProductPhase product;
    AttentionPhase attention;
    RecurrencePhase recurrence;
  };
};
constexpr int kMostPhases = 160;
// In the kernel's arguments, of which there may be 32764 bytes.
struct Run {
  int count = 0, attention = -1;  // one of the phases of attention, or none
  Phase phases[kMostPhases];
};
static_assert(sizeof(Run) < 32764);

constexpr int kBlockThreads = kRunThreads + kLoaders * static_cast<int>(kWarp);

// Blocks that have reached the ends of phases, and the end of all; 0 between kernels.
[[maybe_unused]] __device__ unsigned run_arrived, run_left;  // where there are no runs

[[maybe_unused]] __device__ inline unsigned arrivals_so_far() {
  unsigned n;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(&run_arrived) : "memory");
  return n;
}

template <class F>
__device__ void with_phase(const Phase& phase, const F& f) {
  switch (phase.kind) {
    case Kind::product: return f(phase.product);
    case Kind::attention: return f(phase.attention);
    case Kind::recurrence: return f(phase.recurrence);
  }
}

// Every phase reads what the ones before it wrote, so all blocks meet between two of them: a block says that
// it is there, prepares the next one, waits. All of the grid's blocks are on the GPU at once. kTiles: of 8
// rows of the products.
template <int kTiles>
__global__ void __launch_bounds__(kBlockThreads, 1) run_kernel(const __grid_constant__ Run run) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kLoaderRegisters = 40, kComputeRegisters = 232;  // the loaders give theirs to the others
  extern __shared__ __align__(128) unsigned char shared[];
  RunShared& s = *reinterpret_cast<RunShared*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < kSlots; ++i) {
      s.full[i].init(kLoaders);
      s.empty[i].init(kFewWarps);
    }
    for (BulkBarrier& met : s.met_full) met.init(1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    if (run.attention >= 0) {
      const AttentionPhase& p = run.phases[run.attention].attention;
      s.first_item[0] = 0;
      for (int m = 0; m < p.documents; ++m) {
        const int at = p.position[m], keys = KeysOfPart()(at + 1);
        s.position[m] = at;
        s.keys_of_part[m] = keys;
        s.first_item[m + 1] = s.first_item[m] + (at + keys) / keys * p.heads;
      }
    }
  }
  cooperative_groups::this_cluster().sync();
  if (thread >= kRunThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kLoaderRegisters));
    const int loader = (thread - kRunThreads) / static_cast<int>(kWarp);
    LoaderAt at;
    for (int i = 0; i < run.count; ++i)
      with_phase(run.phases[i], [&](const auto& p) { produce(p, s, at, loader); });
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
  if (run.attention >= 0) turn_angles(run.phases[run.attention].attention, s);
  RingAt at;
  uint32_t met = 0;
  for (int i = 0; i < run.count; ++i) {
    const Phase& phase = run.phases[i];
    run_meets();
    if (i > 0 && thread == 0)
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(&run_arrived) : "memory");
    if (phase.kind == Kind::product) prepare(phase.product, s);
    if (i > 0) {
      if (thread == 0)
        while (arrivals_so_far() < static_cast<unsigned>(i) * gridDim.x) {
        }
      run_meets();
    }
    switch (phase.kind) {
      case Kind::product: compute<kTiles>(phase.product, s, at, met); break;
      case Kind::attention: compute(phase.attention, s, at); break;
      case Kind::recurrence: compute(phase.recurrence, s, at); break;
    }
  }
  if (thread == 0 && atomicAdd(&run_left, 1) == gridDim.x - 1) {
    run_arrived = 0;
    run_left = 0;
  }
#endif
}

// Whether other processes may have blocks on the GPU beside ours: two kernels that each wait for all of their
// blocks would then wait for ever. Who cannot say may.
bool is_shared_with_processes() {
#if CUDART_VERSION >= 12030
  int device = 0, shared = 1;
  CUDA_CHECK(cudaGetDevice(&device));
  if (cudaDeviceGetAttribute(&shared, cudaDevAttrMpsEnabled, device) == cudaSuccess) return shared != 0;
  cudaGetLastError();  // an older driver: no later launch should fail of this
#endif
  return true;
}

// Whether the kernel is more than a name here, and its blocks: all that are on the GPU at once.
struct RunLaunch {
  cudaLaunchAttribute pairs{};
  cudaLaunchConfig_t config{};
  RunLaunch() {
    pairs.id = cudaLaunchAttributeClusterDimension;
    pairs.val.clusterDim = {2, 1, 1};
    config.gridDim = static_cast<unsigned>(of_device(cudaDevAttrMultiProcessorCount)) / 2 * 2;
    config.blockDim = kBlockThreads;
    config.dynamicSmemBytes = sizeof(RunShared);
    config.attrs = &pairs;
    config.numAttrs = 1;
  }
  template <int kTiles>
  unsigned resident_blocks() const {
    cudaFuncAttributes kernel;  // empty, and so without registers, unless compiled for sm_90a
    if (of_device(cudaDevAttrComputeCapabilityMajor) != 9 || is_shared_with_processes() ||
        cudaFuncGetAttributes(&kernel, run_kernel<kTiles>) != cudaSuccess || kernel.numRegs < 100 ||
        !fits_shared<run_kernel<kTiles>>(sizeof(RunShared)))
      return 0;
    int clusters = 0;
    CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, run_kernel<kTiles>, &config));
    return std::min(config.gridDim.x, 2 * static_cast<unsigned>(clusters));
  }
};
unsigned blocks_of_runs() {
  static const unsigned blocks = std::min(RunLaunch().resident_blocks<1>(), RunLaunch().resident_blocks<2>());
  return blocks;
}

// What waits, of the recording under way.
Run waiting;
std::vector<std::function<void()>> alone_instead;
int waiting_rows = 0;
bool runs_are_wanted = false;
int64_t launched = 0;
constexpr int kFewestPhases = 3;  // less is not worth a kernel that starts late

// More rows than these are served well by kernels of their own: beside them only attention gains enough.
constexpr int kRowsForAll = 8;

template <class P>
bool join(Kind kind, P Phase::*place, const P& phase, int rows, const std::function<void()>& alone) {
  if (!runs_are_wanted || blocks_of_runs() == 0 || rows > kFewRowsMost) return false;
  if (rows > kRowsForAll && kind != Kind::attention && (kind != Kind::product || waiting.attention < 0))
    return false;
  if (waiting.count == kMostPhases) launch_run();
  Phase& next = waiting.phases[waiting.count++];
  next.kind = kind;
  next.*place = phase;
  waiting_rows = std::max(waiting_rows, rows);
  alone_instead.push_back(alone);
  return true;
}

bool alike(const AttentionPhase& a, const AttentionPhase& b) {
  return a.position == b.position && a.documents == b.documents && a.heads == b.heads && a.turn == b.turn;
}

}  // namespace

bool joins_run(const ProductPhase& p, const std::function<void()>& alone) {
  if (!runs_are_wanted || p.packs % kWindow != 0 || p.parts > 2 * kHeldParts ||
      (p.parts > 1 && (p.gated || p.norm > 0)) || is_recorded(p.b))
    return false;
  if (const int pairs = static_cast<int>(blocks_of_runs()) / 2;
      p.parts > 1 && (pairs == 0 || (p.units + pairs - 1) / pairs > 2 * kMet))
    return false;
  return join(Kind::product, &Phase::product, p, p.rows, alone);
}

bool joins_run(const AttentionPhase& p, const std::function<void()>& alone) {
  if (p.splits > kMostSplits || p.heads > kMostPhaseHeads || p.documents > kPhaseDocuments) return false;
  if (waiting.attention >= 0 && !alike(waiting.phases[waiting.attention].attention, p)) launch_run();
  if (!join(Kind::attention, &Phase::attention, p, p.documents, alone)) return false;
  waiting.attention = waiting.count - 1;
  return true;
}

bool joins_run(const RecurrencePhase& p, const std::function<void()>& alone) {
  return join(Kind::recurrence, &Phase::recurrence, p, p.documents, alone);
}

void launch_run() {
  if (waiting.count == 0) return;
  const Run run = waiting;
  const int rows = waiting_rows;
  const std::vector<std::function<void()>> alone = std::move(alone_instead);
  drop_run();  // before stream(), which asks again
  if (run.count < kFewestPhases) {
    for (const auto& kernel : alone) kernel();
    return;
  }
  RunLaunch l;
  l.config.gridDim = blocks_of_runs();
  l.config.stream = stream();
  CUDA_CHECK(rows > 8 ? cudaLaunchKernelEx(&l.config, run_kernel<2>, run)
                      : cudaLaunchKernelEx(&l.config, run_kernel<1>, run));
  ++launched;
}

int64_t launched_runs() { return launched; }

void drop_run() {
  waiting.count = 0;
  waiting.attention = -1;
  waiting_rows = 0;
  alone_instead.clear();
}

bool has_runs() { return blocks_of_runs() > 0; }
void want_runs(bool on) {
  const char* const kernels = std::getenv("WEFT_KERNELS");
  runs_are_wanted = on && (kernels == nullptr || std::string_view(kernels) != "mma");
}

}  // namespace weft::cuda
