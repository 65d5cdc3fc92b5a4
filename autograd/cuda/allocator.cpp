// An arena over all of the GPU's memory that is asked for: blocks by best fit, neighbours joined as they
// become free. With one stream a block may be handed out again at once, since whoever gets it works later.
// Steps take and return the same sizes again and again, and where kernels are launched one by one the host is
// what they wait for: so small blocks first wait in a list of their size, not joined, until one of that size
// is asked for, or nothing else fits.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "autograd/cuda/replay.h"
#include "autograd/cuda/runtime.h"

namespace weft::cuda {
namespace {

constexpr int64_t kAlignment = 512;               // of every block: whole lines for bulk copies
constexpr int64_t kSegment = int64_t{256} << 20;  // asked of the driver at a time, at least
constexpr int64_t kLargestWaiting = int64_t{4} << 20, kMostWaiting = kSegment / 4;  // a block, all together

int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// Nothing where the driver has no more.
char* ask_driver(int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t code = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // reported here, and no longer by the next launch
    return nullptr;
  }
  check(code, "cudaMalloc");
  return static_cast<char*>(memory);
}

// Each block an allocation of the driver's of just its size, so that compute-sanitizer sees who leaves it, or
// reads what nobody wrote.
bool blocks_lie_apart() {
  static const bool apart = [] {
    const char* value = std::getenv("APART");
    return value != nullptr && std::strcmp(value, "0") != 0;
  }();
  return apart;
}

class Arena {
 public:
  // fresh: taken within a Pass, until that ends.
  void* allocate(int64_t bytes, bool fresh) {
    const std::lock_guard lock(mutex_);
    const auto block = take(rounded(std::max<int64_t>(1, bytes), kAlignment));
    if (block == blocks_.end()) return nullptr;
    block->second.fresh = fresh;
    fresh_ += fresh ? 1 : 0;
    return block->first;
  }

  // Whether the block was fresh; nothing where it is not one of these.
  std::optional<bool> release(void* pointer) {
    const std::lock_guard lock(mutex_);
    const auto block = blocks_.find(static_cast<char*>(pointer));
    if (block == blocks_.end()) return std::nullopt;
    const bool fresh = std::exchange(block->second.fresh, false);
    fresh_ -= fresh ? 1 : 0;
    const int64_t bytes = block->second.bytes;
    if (bytes <= kLargestWaiting) {
      if (waiting_bytes_ + bytes > kMostWaiting) join_waiting();  // sizes that nobody asks for any more
      waiting_[bytes / kAlignment].push_back(block);
      waiting_bytes_ += bytes;
    } else {
      set_free(block);
    }
    return fresh;
  }

  // Ends what is fresh, and says whether anything was.
  bool settle() {
    const std::lock_guard lock(mutex_);
    if (fresh_ == 0) return false;
    for (auto& [at, block] : blocks_) block.fresh = false;
    fresh_ = 0;
    return true;
  }

  // Segments that lie idle, to the driver; whether there were any. Not while recording, which may not wait.
  bool give_back() {
    const std::lock_guard lock(mutex_);
    return give_back_idle();
  }

  bool owns(const void* pointer) {
    const std::lock_guard lock(mutex_);
    const char* const at = static_cast<const char*>(pointer);
    return std::any_of(segments_.begin(), segments_.end(),
                       [at](const auto& s) { return s.first <= at && at < s.first + s.second; });
  }

 private:
  struct Block {
    int64_t bytes = 0;
    bool free = true;
    bool first = false;  // of a segment: never joined with what lies before it
    bool fresh = false;
  };
  using Blocks = std::map<char*, Block>;

  // The end where the driver has no more.
  Blocks::iterator take(int64_t bytes) {
    if (bytes <= kLargestWaiting)
      if (auto& list = waiting_[bytes / kAlignment]; !list.empty()) {
        const auto block = list.back();
        list.pop_back();
        waiting_bytes_ -= bytes;
        return block;
      }
    const auto smallest = [&] { return free_.lower_bound({bytes, nullptr}); };
    auto fit = smallest();
    if (fit == free_.end()) {
      join_waiting();
      fit = smallest();
    }
    if (fit == free_.end()) {
      if (!grow(bytes)) return blocks_.end();
      fit = smallest();
    }
    const auto block = blocks_.find(fit->second);
    free_.erase(fit);
    block->second.free = false;
    if (const int64_t rest = block->second.bytes - bytes; rest > 0) {
      block->second.bytes = bytes;
      blocks_[block->first + bytes] = {rest, true, false, false};
      free_.insert({rest, block->first + bytes});
    }
    return block;
  }

  void set_free(Blocks::iterator block) {
    block->second.free = true;
    const auto next = std::next(block);
    if (next != blocks_.end() && next->second.free && !next->second.first) join(block, next);
    if (block != blocks_.begin() && !block->second.first) {
      const auto before = std::prev(block);
      if (before->second.free) {
        join(before, block);
        block = before;
      }
    }
    free_.insert({block->second.bytes, block->first});
  }

  void join_waiting() {
    if (waiting_bytes_ == 0) return;
    for (auto& list : waiting_) {
      for (const auto block : list) set_free(block);
      list.clear();
    }
    waiting_bytes_ = 0;
  }

  // b, which follows a, becomes part of a. Whichever of them is listed as free leaves the list.
  void join(Blocks::iterator a, Blocks::iterator b) {
    free_.erase({a->second.bytes, a->first});
    free_.erase({b->second.bytes, b->first});
    a->second.bytes += b->second.bytes;
    blocks_.erase(b);
  }

  // A new segment that holds `bytes`; what fills more than half of one gets its own, or the rest would lie
  // idle where many of a size are asked for, as caches are. Where the driver has no more, segments that lie
  // idle go back first.
  bool grow(int64_t bytes) {
    if (add_segment(2 * bytes > kSegment ? bytes : kSegment)) return true;
    return give_back_idle() && add_segment(bytes);
  }

  bool add_segment(int64_t bytes) {
    bytes = rounded(bytes, int64_t{2} << 20);  // the driver's page
    char* const at = ask_driver(bytes);
    if (at == nullptr) return false;
    blocks_[at] = {bytes, true, true, false};
    free_.insert({bytes, at});
    segments_[at] = bytes;
    return true;
  }

  bool give_back_idle() {
    if (recording()) return false;
    join_waiting();
    synchronize();
    const size_t before = segments_.size();
    for (auto it = segments_.begin(); it != segments_.end();) {
      const Block& block = blocks_.at(it->first);
      if (block.free && block.bytes == it->second) {
        free_.erase({block.bytes, it->first});
        blocks_.erase(it->first);
        CUDA_CHECK(cudaFree(it->first));
        it = segments_.erase(it);
      } else {
        ++it;
      }
    }
    const bool any = segments_.size() < before;
    changes_ += any ? 1 : 0;
    return any;
  }

  std::mutex mutex_;
  Blocks blocks_;                             // all, by address
  std::set<std::pair<int64_t, char*>> free_;  // by size
  std::map<char*, int64_t> segments_;
  std::array<std::vector<Blocks::iterator>, kLargestWaiting / kAlignment + 1> waiting_;  // by size
  int64_t waiting_bytes_ = 0;
  int64_t fresh_ = 0;                 // blocks
  std::atomic<int64_t> changes_ = 0;  // times that memory went back to the driver

 public:
  int64_t changes() const { return changes_; }
};

// What recorded work uses lies apart: it is written whenever the recording runs, while whoever recorded it
// has long given it back. Recordings may share it, since one runs after the other, and so may passes that are
// not recorded.
class Arenas : public Allocator {
 public:
  void* allocate(int64_t bytes) override {
    if (passing_) trace_ = (trace_ ^ static_cast<uint64_t>(bytes)) * 0x9e3779b97f4a7c15u + 1;
    if (!recording() && blocks_lie_apart()) return ask_driver(std::max<int64_t>(1, bytes));
    const bool shared = recording() || passing_;
    Arena &own = shared ? recorded_ : usual_, &other = shared ? usual_ : recorded_;
    void* const at = own.allocate(bytes, passing_);
    return at == nullptr && other.give_back() ? own.allocate(bytes, passing_) : at;
  }
  void release(void* pointer, int64_t) override {
    std::optional<bool> fresh = usual_.release(pointer);
    const bool usual = fresh.has_value();
    if (!usual) fresh = recorded_.release(pointer);
    if (!fresh)
      CUDA_CHECK(cudaFree(pointer));  // apart; waits for all work
    else if (!*fresh && (passing_ || !usual))
      ++changes_;
  }
  void fill(void* pointer, int value, int64_t bytes) override {
    CUDA_CHECK(cudaMemsetAsync(pointer, value, static_cast<size_t>(bytes), stream()));
  }
  bool is_recorded(const void* pointer) { return recorded_.owns(pointer); }
  void pass(bool on) {
    CHECK(passing_ != on, "a pass within a pass");
    passing_ = on;
    if (on) trace_ = 0;
    if (!on && recorded_.settle()) ++changes_;
  }
  int64_t changes() const { return changes_ + recorded_.changes(); }
  uint64_t trace() const { return trace_; }

 private:
  Arena usual_, recorded_;
  std::atomic<bool> passing_ = false;
  std::atomic<uint64_t> trace_ = 0;
  std::atomic<int64_t> changes_ = 0;
};

Arenas& arenas() {
  static auto* const both = new Arenas;  // never destroyed: tensors with static lifetime may outlive main
  return *both;
}

}  // namespace

Allocator& allocator() { return arenas(); }
bool is_recorded(const void* pointer) { return arenas().is_recorded(pointer); }
Pass::Pass() { arenas().pass(true); }
Pass::~Pass() { arenas().pass(false); }
uint64_t Pass::trace() const { return arenas().trace(); }
int64_t arena_changes() { return arenas().changes(); }

}  // namespace weft::cuda
