#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "autograd/cuda/early.cuh"
#include "autograd/cuda/step_run_attention.cuh"
#include "autograd/cuda/step_run_product.cuh"
#include "autograd/cuda/step_run_recurrence.cuh"
#include "autograd/notes.h"

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

// Two halves, of which launches use one after the other; who uses one cleans the other, and so nobody looks
// at a word before it is kNotSent.
struct alignas(256) Exchange {
  unsigned launches, left;  // so far; blocks at the end of the one under way
  int64_t used[2];          // bytes that are not clean
  WEFT_HOST_DEVICE bf16* rows() { return reinterpret_cast<bf16*>(this + 1); }
};
constexpr int64_t kHalfBytes = int64_t{16} << 20, kHalf = kHalfBytes / 2;

// In the kernel's arguments, of which there may be 32764 bytes.
struct Run {
  int count = 0, attention = -1;  // one of the phases of attention, or none
  Exchange* exchange = nullptr;
  int64_t bytes = 0;  // of a half, that are used
  Phase phases[kMostPhases];
};
static_assert(sizeof(Run) < 32764);

constexpr int kBlockThreads = kRunThreads + kLoaders * static_cast<int>(kWarp);

template <class F>
__device__ void with_phase(const Phase& phase, const F& f) {
  switch (phase.kind) {
    case Kind::product: return f(phase.product);
    case Kind::attention: return f(phase.attention);
    case Kind::recurrence: return f(phase.recurrence);
  }
}

// A warp's share of making the other half clean, a part in each phase.
struct Cleaning {
  uint4* to;
  int64_t packs;
  __device__ explicit Cleaning(Exchange& exchange) {
    const unsigned other = 1 - exchange.launches % 2;
    to = reinterpret_cast<uint4*>(exchange.rows() + other * kHalf);
    packs = exchange.used[other] / 16;
  }
  __device__ void operator()(int phase, int phases) const {
    const int64_t blocks = gridDim.x, stride = phases * blocks * kWarp;
    for (int64_t i = (phase * blocks + blockIdx.x) * kWarp + threadIdx.x % kWarp; i < packs; i += stride)
      to[i] = {kNotSent, kNotSent, kNotSent, kNotSent};
  }
};
// By the two of each block who read it; the last one of all says what the next launch will find.
__device__ void leave(const Run& run) {
  Exchange& exchange = *run.exchange;
  if (atomicAdd(&exchange.left, 1) != 2 * gridDim.x - 1) return;
  const unsigned which = exchange.launches % 2;
  exchange.left = 0;
  exchange.used[which] = run.bytes;
  exchange.used[1 - which] = 0;
  ++exchange.launches;
}

// A block goes from phase to phase, and waits for nothing but what it needs of the phases before
// (step_run.cuh). All of the grid's blocks are on the GPU at once. kTiles: of 8 rows of the products. It
// starts early (replay.h): what the loaders read was written a step ago, or never.
template <int kTiles>
__global__ void __launch_bounds__(kBlockThreads, 1) run_kernel(const __grid_constant__ Run run) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kLoaderRegisters = 40, kComputeRegisters = 232;  // the loaders give theirs to the others
  extern __shared__ __align__(128) unsigned char shared[];
  RunShared& s = *reinterpret_cast<RunShared*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < kSlots; ++i) {
      s.full[i].init(kLoaders * static_cast<int>(kWarp));
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
    with_phase(run.phases[0], [&](const auto& p) { produce(p, s, at, loader); });
    wait_for_earlier();
    const Cleaning clean(*run.exchange);
    for (int i = 1; i < run.count; ++i) {
      if (loader == kLoaders - 1) clean(i - 1, run.count - 1);
      with_phase(run.phases[i], [&](const auto& p) { produce(p, s, at, loader); });
    }
    if (thread == kBlockThreads - 1) leave(run);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
  if (run.attention >= 0) turn_angles(run.phases[run.attention].attention, s);
  wait_for_earlier();
  if (thread == 0) s.half = run.exchange->launches % 2 * kHalf;
  RingAt at;
  uint32_t met = 0;
  constexpr int kWords = sizeof(Phase) / 4;
  static_assert(kWords <= kPhaseWords && kWords <= kRunThreads);
  uint32_t word = thread < kWords ? argument(reinterpret_cast<const uint32_t*>(run.phases) + thread) : 0;
  for (int i = 0; i < run.count; ++i) {
    const Phase& phase = *reinterpret_cast<const Phase*>(s.phases[i % 2]);
    if (thread < kWords) s.phases[i % 2][thread] = word;
    run_meets();  // nobody needs the sums of the phase before any more
    // Asked for where a block has to wait anyway: nobody can tell the compiler to wait for one load alone.
    const auto ahead = [&] {
      if (thread < kWords && i + 1 < run.count)
        word = argument(reinterpret_cast<const uint32_t*>(run.phases + i + 1) + thread);
    };
    if (phase.kind == Kind::product)
      prepare(phase.product, s);
    else
      ahead();
    switch (phase.kind) {
      case Kind::product: compute<kTiles>(phase.product, s, at, met, ahead); break;
      case Kind::attention: compute(phase.attention, s, at); break;
      case Kind::recurrence: compute(phase.recurrence, s, at); break;
    }
  }
  if (thread == 0) leave(run);
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

// Of the driver and not of the arenas: it outlives all recordings. Null where there is no room for it; each
// recording asks again.
bool memory_is_refused = false;
Exchange* exchange() {
  static Exchange* all = nullptr;
  if (all != nullptr && !memory_is_refused) return all;
  const size_t bytes = sizeof(Exchange) + 2 * kHalfBytes;
  void* memory = nullptr;
  const cudaError_t code = memory_is_refused ? cudaErrorMemoryAllocation : cudaMalloc(&memory, bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // or the next launch would report it
    note_once(text("no ", bytes >> 20,
                   " MiB of GPU memory are left to run a decoding step as one kernel: "
                   "it is launched kernel by kernel"));
    return nullptr;
  }
  check(code, "cudaMalloc");
  cudaStream_t own = nullptr;  // the other one may be recording
  CUDA_CHECK(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking));
  CUDA_CHECK(cudaMemsetAsync(memory, 0xff, bytes, own));
  CUDA_CHECK(cudaMemsetAsync(memory, 0, sizeof(Exchange), own));
  CUDA_CHECK(cudaStreamSynchronize(own));
  CUDA_CHECK(cudaStreamDestroy(own));
  return all = static_cast<Exchange*>(memory);
}

struct Span {
  const char *begin, *end;
  bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};
// Rows of bf16, or so many bytes.
struct Rows {
  const bf16* x;
  int64_t rows, columns, pitch;
  Span span() const {
    if (rows == 0) return {};
    return {reinterpret_cast<const char*>(x),
            reinterpret_cast<const char*>(x + (rows - 1) * pitch + columns)};
  }
};
Span span_of(const void* x, int64_t bytes) {
  const char* begin = static_cast<const char*>(x);
  return {begin, begin + bytes};
}

// A phase that waits, as the ones after it see it.
struct Made {
  Rows to{};
  Span lse{};  // of attention
  bool paired = false, attention = false;
  bool chained = false;             // it reads what the phase just before it makes
  int64_t place = -1;               // in a half of the exchange, once somebody reads it there
  bool normed = false;              // there, for one reader
  int after = -1;                   // before a block works at the phase, all that this one needed is made
  std::vector<Span> reads, others;  // of memory: what it reads, and what it writes besides
};

// What waits, of the recording under way.
Run waiting;
std::vector<Made> made;
std::vector<std::function<void()>> alone_instead;
int waiting_rows = 0;
bool runs_are_wanted = false;
int64_t launched = 0;
constexpr int kFewestPhases = 3;  // less is not worth a kernel that starts late

// The phase that makes the row at x, or -1: what the memory held before the run.
int maker_of(const bf16* x) {
  for (int i = waiting.count - 1; i >= 0; --i)
    if (made[static_cast<size_t>(i)].to.span().meets(span_of(x, 1))) return i;
  return -1;
}
Sent& sent_of(Phase& phase) {
  switch (phase.kind) {
    case Kind::product: return phase.product.sent;
    case Kind::attention: return phase.attention.sent;
    case Kind::recurrence: break;
  }
  return phase.recurrence.sent;
}
// Nobody reads there any more what the phase makes.
void write_no_memory(Phase& phase) {
  switch (phase.kind) {
    case Kind::product: phase.product.c = nullptr; break;
    case Kind::attention: phase.attention.o = nullptr; break;
    case Kind::recurrence: phase.recurrence.o = nullptr; break;
  }
}

// Where phase `maker` sends what lies at `from`; null if it makes that otherwise, or the exchange is full.
// Rows are read there in packs, as in memory, but what is aligned in memory need not be in the exchange,
// where the maker's first column is.
const bf16* place_in_exchange(int maker, const Rows& from) {
  Made& m = made[static_cast<size_t>(maker)];
  const int64_t column = from.x - m.to.x;
  if (m.normed || column < 0 || column + from.columns > m.to.columns || from.rows != m.to.rows ||
      (from.rows > 1 && from.pitch != m.to.pitch) || column % 8 != 0 || m.to.pitch % 8 != 0)
    return nullptr;
  if (m.place < 0) {
    const int64_t bytes = (m.to.rows * m.to.pitch * 2 + 255) / 256 * 256;
    if (waiting.bytes + bytes > kHalfBytes) return nullptr;
    m.place = waiting.bytes / 2;
    waiting.bytes += bytes;
    sent_of(waiting.phases[maker]).to = exchange()->rows() + m.place;
  }
  return exchange()->rows() + m.place + column;
}

// Attention's parts are sent too, where they are few beside what else a launch has to clean.
constexpr int64_t kMostPartBytes = int64_t{1} << 20;

// `from` becomes its place in the exchange if a phase that waits makes it. false: it cannot be read there.
bool find(const bf16*& x, const Rows& from, bool& sent, Made& next) {
  const int maker = maker_of(x);
  sent = maker >= 0;
  if (!sent) {
    next.reads.push_back(from.span());
    return true;
  }
  return (x = place_in_exchange(maker, from)) != nullptr;
}

// The norm of heads, which the block that makes a head has all of, and who reads rows would take again: of
// one row in less time, by all its threads.
void norm_at_maker(ProductPhase& p, int maker) {
  RecurrencePhase& m = waiting.phases[maker].recurrence;
  m.norm = true, m.gain = p.gain, m.eps = p.eps;
  p.norm = 0, p.gain = nullptr;
  made[static_cast<size_t>(maker)].normed = true;
}

bool find_all(ProductPhase& p, Made& next) {
  const int64_t columns = int64_t{p.packs} * 8, wide = p.gated ? p.n / 2 : p.n;
  const int maker = maker_of(p.a);
  if (maker >= 0) {
    const Made& m = made[static_cast<size_t>(maker)];
    next.after = p.parts == 1 && columns == m.to.columns ? maker : m.after;
    next.chained = maker == waiting.count - 1;
  }
  const bool heads = maker >= 0 && waiting.phases[maker].kind == Kind::recurrence && p.rows > 1 &&
                     p.norm == kPhaseHead && made[static_cast<size_t>(maker)].place < 0 &&
                     (p.a - made[static_cast<size_t>(maker)].to.x) % kPhaseHead == 0;
  if (p.c != nullptr) next.to = {p.c, p.rows, wide, p.c_pitch};
  if (p.wide != nullptr) next.others = {span_of(p.wide, p.rows * p.c_pitch * 4)};
  next.paired = p.parts > 1;
  if (!find(p.a, {p.a, p.rows, columns, p.a_pitch}, p.sent.from, next)) return false;
  if (heads) norm_at_maker(p, maker);
  return p.residual == nullptr ||
         find(p.residual, {p.residual, p.rows, wide, p.residual_pitch}, p.sent.residual, next);
}
// q, k and v of one phase, or of none.
template <class P>
bool find_heads(P& p, Made& next) {
  const int64_t wide = int64_t{p.heads} * kPhaseHead;
  const int maker = maker_of(p.q);
  if (maker_of(p.k) != maker || maker_of(p.v) != maker) return false;
  if (maker >= 0) {
    next.after = made[static_cast<size_t>(maker)].after;
    next.chained = maker == waiting.count - 1;
  }
  next.to = {p.o, p.documents, wide, wide};
  return find(p.q, {p.q, p.documents, wide, p.q_pitch}, p.sent.from, next) &&
         find(p.k, {p.k, p.documents, wide, p.k_pitch}, p.sent.from, next) &&
         find(p.v, {p.v, p.documents, wide, p.v_pitch}, p.sent.from, next);
}
bool find_all(AttentionPhase& p, Made& next) {
  const int64_t parts = int64_t{p.documents} * p.heads * p.splits, bytes = parts * (kPhaseHead + 1) * 4;
  if (!find_heads(p, next)) return false;
  next.attention = true;
  next.lse = span_of(p.lse, int64_t{p.documents} * p.heads * 4);
  next.others = {next.lse};
  if (bytes <= kMostPartBytes && waiting.bytes + bytes <= kHalfBytes) {
    p.sent.parts = true;
    p.part_o = reinterpret_cast<float*>(exchange()->rows() + waiting.bytes / 2);
    p.part_lse = p.part_o + parts * kPhaseHead;
    waiting.bytes += (bytes + 255) / 256 * 256;
  } else {
    next.others.push_back(span_of(p.part_o, parts * kPhaseHead * 4));
    next.others.push_back(span_of(p.part_lse, parts * 4));
  }
  return true;
}
bool find_all(RecurrencePhase& p, Made& next) { return find_heads(p, next); }

// Whether a block may begin the next phase while others are at those before it. They share what attention
// counts its parts by, and what pairs of blocks send each other; memory that one reads another may not write.
bool may_follow(const Made& next) {
  // All blocks are through with the phases of the chain that ends with `after`: each needed the one before
  // it. A block without work in the chain may still be at a phase before that.
  int first = next.after;
  while (first > 0 && made[static_cast<size_t>(first)].chained) --first;
  for (int i = 0; i < waiting.count; ++i) {
    if (i >= first && i <= next.after) continue;
    const Made& m = made[static_cast<size_t>(i)];
    if ((next.paired && m.paired) || (next.attention && m.attention)) return false;
    std::vector<Span> writes = next.others;
    writes.push_back(next.to.span());
    for (const Span& w : writes) {
      for (const Span& r : m.reads)
        if (w.meets(r)) return false;
      for (const Span& r : m.others)
        if (w.meets(r)) return false;
    }
  }
  return true;
}

template <class P>
bool join(Kind kind, P Phase::*place, const P& phase, int rows, const std::function<void()>& alone) {
  if (!runs_are_wanted || rows > kFewRowsMost) return false;
  if (waiting.count == kMostPhases) launch_run();
  P fitted = phase;
  Made next;
  if (!find_all(fitted, next) || !may_follow(next)) {
    launch_run();
    fitted = phase;
    next = {};
    find_all(fitted, next);
  }
  // Two phases in one place of memory: what the first one made there is gone, and was read in the exchange,
  // or by nobody. It is not written, since nothing orders its store and that of another block in a later
  // phase.
  const auto gone = [&](const Span& of) {
    return of.meets(next.to.span()) ||
           std::any_of(next.others.begin(), next.others.end(), [&](const Span& w) { return of.meets(w); });
  };
  for (size_t i = 0; i < made.size(); ++i) {
    if (gone(made[i].to.span())) write_no_memory(waiting.phases[i]);
    if (made[i].attention && gone(made[i].lse)) waiting.phases[i].attention.lse = nullptr;
  }
  made.push_back(next);
  Phase& last = waiting.phases[waiting.count++];
  last.kind = kind;
  last.*place = fitted;
  waiting_rows = std::max(waiting_rows, rows);
  alone_instead.push_back(alone);
  return true;
}

bool alike(const AttentionPhase& a, const AttentionPhase& b) {
  return a.position == b.position && a.documents == b.documents && a.heads == b.heads && a.turn == b.turn;
}

// Pairs of columns are words of memory.
bool in_pairs(const ProductPhase& p) {
  const auto words = [](const bf16* x, int64_t pitch) {
    return reinterpret_cast<uintptr_t>(x) % 4 == 0 && pitch % 2 == 0;
  };
  return (p.gated ? p.n / 2 : p.n) % 2 == 0 && words(p.c, p.c_pitch) &&
         (p.residual == nullptr || words(p.residual, p.residual_pitch));
}

}  // namespace

bool joins_run(const ProductPhase& p, const std::function<void()>& alone) {
  if (!runs_are_wanted || p.packs % kWindow != 0 || p.parts > 2 * kHeldParts ||
      (p.parts > 1 && (p.gated || p.norm > 0)) || is_recorded(p.b) || !in_pairs(p))
    return false;
  if (const int pairs = static_cast<int>(blocks_of_runs()) / 2;
      p.parts > 1 && (p.units + pairs - 1) / pairs > 2 * kMet)
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
  Run run = waiting;
  run.exchange = exchange();
  for (int i = 0; i < run.count; ++i)
    if (run.phases[i].kind == Kind::product) {
      ProductPhase& p = run.phases[i].product;
      p.at_once = kTileSums / (waiting_rows > 8 ? 2 : 1) / (p.parts > 1 ? p.parts / 2 : 1);
    }
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
  // Attention reads positions ahead of the wait, and what the recording itself makes may be under way.
  if (run.attention < 0 || !is_recorded(run.phases[run.attention].attention.position)) starts_early();
  ++launched;
}

int64_t launched_runs() { return launched; }

void drop_run() {
  waiting.count = 0;
  waiting.attention = -1;
  waiting.bytes = 0;
  waiting_rows = 0;
  made.clear();
  alone_instead.clear();
}

bool has_runs() { return blocks_of_runs() > 0; }
void refuse_memory_to_runs(bool on) { memory_is_refused = on; }
void want_runs(bool on) {
  const char* const kernels = std::getenv("WEFT_KERNELS");
  runs_are_wanted =
      on && (kernels == nullptr || std::string_view(kernels) != "mma") && has_runs() && exchange() != nullptr;
}

}  // namespace weft::cuda
