// An arena over all of the GPU's memory that is asked for: blocks by best fit, neighbours joined as they
// become free. With one stream a block may be handed out again at once, since whoever gets it works later.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "autograd/cuda/replay.h"
#include "autograd/cuda/runtime.h"

namespace weft::cuda {
namespace {

constexpr int64_t kAlignment = 512;               // of every block: whole lines for bulk copies
constexpr int64_t kSegment = int64_t{256} << 20;  // asked of the driver at a time, at least

int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// Each block an allocation of the driver's of just its size, so that compute-sanitizer sees who leaves it, or
// reads what nobody wrote.
bool blocks_lie_apart() {
  static const bool apart = [] {
    const char* value = std::getenv("APART");
    return value != nullptr && std::strcmp(value, "0") != 0;
  }();
  return apart;
}

class Arena : public Allocator {
 public:
  explicit Arena(bool apart) : apart_(apart) {}

  void* allocate(int64_t bytes) override {
    if (apart_) return allocate_apart(std::max<int64_t>(1, bytes));
    bytes = rounded(std::max<int64_t>(1, bytes), kAlignment);
    const std::lock_guard lock(mutex_);
    auto fit = free_.lower_bound({bytes, nullptr});
    if (fit == free_.end()) {
      if (!grow(bytes)) return nullptr;
      fit = free_.lower_bound({bytes, nullptr});
    }
    char* const at = fit->second;
    free_.erase(fit);
    Block& block = blocks_.at(at);
    block.free = false;
    if (block.bytes > bytes) {
      const int64_t rest = block.bytes - bytes;
      block.bytes = bytes;
      blocks_[at + bytes] = {rest, true, false};
      free_.insert({rest, at + bytes});
    }
    return at;
  }

  void release(void* pointer, int64_t) override {
    const std::lock_guard lock(mutex_);
    if (apart_) {
      segments_.erase(static_cast<char*>(pointer));
      CUDA_CHECK(cudaFree(pointer));  // waits for all work
      return;
    }
    auto block = blocks_.find(static_cast<char*>(pointer));
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

  void fill(void* pointer, int value, int64_t bytes) override {
    CUDA_CHECK(cudaMemsetAsync(pointer, value, static_cast<size_t>(bytes), stream()));
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
  };
  using Blocks = std::map<char*, Block>;

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
    give_back();
    return add_segment(bytes);
  }

  // Nothing where the driver has no more.
  static char* ask_driver(int64_t bytes) {
    void* memory = nullptr;
    const cudaError_t code = cudaMalloc(&memory, static_cast<size_t>(bytes));
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // reported here, and no longer by the next launch
      return nullptr;
    }
    check(code, "cudaMalloc");
    return static_cast<char*>(memory);
  }

  void* allocate_apart(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    char* const at = ask_driver(bytes);
    if (at != nullptr) segments_[at] = bytes;
    return at;
  }

  bool add_segment(int64_t bytes) {
    bytes = rounded(bytes, int64_t{2} << 20);  // the driver's page
    char* const at = ask_driver(bytes);
    if (at == nullptr) return false;
    blocks_[at] = {bytes, true, true};
    free_.insert({bytes, at});
    segments_[at] = bytes;
    return true;
  }

  void give_back() {
    synchronize();
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
  }

  const bool apart_;
  std::mutex mutex_;
  Blocks blocks_;                             // all, by address
  std::set<std::pair<int64_t, char*>> free_;  // by size
  std::map<char*, int64_t> segments_;
};

// What recorded work uses lies apart: it is written whenever the recording runs, while whoever recorded it
// has long given it back. Recordings may share it, since one runs after the other.
class Arenas : public Allocator {
 public:
  void* allocate(int64_t bytes) override { return (recording() ? recorded_ : usual_).allocate(bytes); }
  void release(void* pointer, int64_t bytes) override {
    (recorded_.owns(pointer) ? recorded_ : usual_).release(pointer, bytes);
  }
  void fill(void* pointer, int value, int64_t bytes) override { usual_.fill(pointer, value, bytes); }
  bool is_recorded(const void* pointer) { return recorded_.owns(pointer); }

 private:
  Arena usual_{blocks_lie_apart()}, recorded_{false};
};

Arenas& arenas() {
  static auto* const both = new Arenas;  // never destroyed: tensors with static lifetime may outlive main
  return *both;
}

}  // namespace

Allocator& allocator() { return arenas(); }
bool is_recorded(const void* pointer) { return arenas().is_recorded(pointer); }

}  // namespace weft::cuda
