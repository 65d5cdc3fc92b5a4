#include "autograd/memory.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <unordered_map>
#include <utility>

#include "autograd/out_of_memory.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/runtime.h"
#endif

namespace weft {
namespace {

// Held for a few instructions some hundred times in every step of a recurrence, nearly always by one thread:
// a mutex costs twice as much to take and to give back.
class Lock {
 public:
  void lock() {
    while (held_.exchange(true, std::memory_order_acquire))
      while (held_.load(std::memory_order_relaxed)) std::this_thread::yield();
  }
  void unlock() { held_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> held_ = false;
};

// A training step takes and returns the same sizes again and again. Small blocks wait in a list of their size
// for the next one: glibc's own lists do not serve aligned blocks, and what it does instead is a tenth of a
// step of small ops. Large ones stay in the heap instead of giving their pages back to the system and
// faulting them in anew.
class CpuAllocator : public Allocator {
 public:
  CpuAllocator() {
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, -1);  // never
    mallopt(M_TOP_PAD, 64 << 20);
  }
  void* allocate(int64_t bytes) override {
    const int64_t units = units_of(bytes);
    if (units <= kLargest) {
      const std::lock_guard guard(lock_);
      if (Free*& first = lists_[units]; first != nullptr) {
        waiting_ -= units;
        __builtin_prefetch(first->next);  // long unused; the next call reads it
        return std::exchange(first, first->next);
      }
    }
    return std::aligned_alloc(kUnit, static_cast<size_t>(units * kUnit));
  }
  void release(void* pointer, int64_t bytes) override {
    const int64_t units = units_of(bytes);
    if (units <= kLargest) {
      const std::lock_guard guard(lock_);
      if (waiting_ + units <= kMostWaiting) {
        waiting_ += units;
        lists_[units] = new (pointer) Free{lists_[units]};
        return;
      }
    }
    std::free(pointer);
  }
  void fill(void* pointer, int value, int64_t bytes) override {
    std::memset(pointer, value, static_cast<size_t>(bytes));
  }

 private:
  struct Free {
    Free* next;
  };
  static constexpr int64_t kUnit = 64;  // bytes: a cache line
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kLargest = -1;  // every block comes and goes where the sanitizer sees it
#else
  static constexpr int64_t kLargest = (int64_t{64} << 10) / kUnit;
#endif
  static constexpr int64_t kMostWaiting = (int64_t{1} << 30) / kUnit;
  static int64_t units_of(int64_t bytes) { return std::max<int64_t>(1, (bytes + kUnit - 1) / kUnit); }

  Lock lock_;
  Free* lists_[std::max<int64_t>(0, kLargest) + 1] = {};
  int64_t waiting_ = 0;  // units in the lists
};

class MetaAllocator : public Allocator {
 public:
  void* allocate(int64_t) override { return nullptr; }
  void release(void*, int64_t) override {}
  void fill(void*, int, int64_t) override {}
};

// Scope names are interned once; a scope is its number.
class Ledger {
 public:
  int enter(int parent, const std::string& name) {
    const std::lock_guard guard(lock_);
    const std::string full = parent == 0 ? name : names_[parent] + "/" + name;
    const auto [it, fresh] = numbers_.try_emplace(full, static_cast<int>(names_.size()));
    if (fresh) names_.push_back(full);
    return it->second;
  }
  void book(Device device, int scope, int64_t bytes) {
    const std::lock_guard guard(lock_);
    Account& a = accounts_[static_cast<int>(device)];
    if (a.by_scope.size() < names_.size()) a.by_scope.resize(names_.size());
    a.by_scope[scope] += bytes;
    a.bytes += bytes;
    if (a.bytes > a.peak) {
      a.peak = a.bytes;
      a.at_peak = a.by_scope;
    }
  }
  MemoryReport report(Device device) {
    const std::lock_guard guard(lock_);
    const Account& a = accounts_[static_cast<int>(device)];
    MemoryReport r{a.bytes, a.peak, {}};
    for (size_t i = 0; i < a.at_peak.size(); ++i)
      if (a.at_peak[i] > 0) r.peak_by_scope.emplace_back(names_[i], a.at_peak[i]);
    std::sort(r.peak_by_scope.begin(), r.peak_by_scope.end(),
              [](const auto& x, const auto& y) { return x.second > y.second; });
    return r;
  }
  void reset_peak(Device device) {
    const std::lock_guard guard(lock_);
    Account& a = accounts_[static_cast<int>(device)];
    a.peak = a.bytes;
    a.at_peak = a.by_scope;
  }

 private:
  struct Account {
    int64_t bytes = 0, peak = 0;
    std::vector<int64_t> by_scope, at_peak;
  };
  Lock lock_;
  std::vector<std::string> names_{"other"};
  std::unordered_map<std::string, int> numbers_{{"other", 0}};
  Account accounts_[3];
};

Ledger& ledger() {
  static auto* const instance = new Ledger;  // never destroyed: tensors with static lifetime may outlive main
  return *instance;
}

thread_local int current_scope = 0;

bool poison() {
  static const bool on = [] {
    const char* value = std::getenv("POISON");
    return value != nullptr && std::strcmp(value, "0") != 0;
  }();
  return on;
}

}  // namespace

Allocator& allocator_of(Device device) {
  static auto* const cpu = new CpuAllocator;
  static auto* const meta = new MetaAllocator;
  if (device == Device::cpu) return *cpu;
  if (device == Device::meta) return *meta;
#ifdef WEFT_CUDA
  return cuda::allocator();
#else
  throw Error(Exit::internal, "this build has no CUDA kernels");
#endif
}

MemoryScope::MemoryScope(const std::string& name) : previous_(current_scope) {
  current_scope = ledger().enter(previous_, name);
}
MemoryScope::~MemoryScope() { current_scope = previous_; }

MemoryReport memory_report(Device device) { return ledger().report(device); }
void reset_peak(Device device) { ledger().reset_peak(device); }

namespace {

std::string out_of_memory(int64_t asked, const MemoryReport& report) {
  const auto mib = [](int64_t bytes) { return (bytes + (1 << 20) - 1) >> 20; };
  std::string line = text("out of memory: ", mib(asked), " MiB asked, ", mib(report.bytes), " MiB in use");
  if (!report.peak_by_scope.empty())
    line += text(", most of it, ", mib(report.peak_by_scope[0].second), " MiB, by ",
                 report.peak_by_scope[0].first);
  return line;
}

}  // namespace

OutOfMemory::OutOfMemory(int64_t asked, const MemoryReport& report)
    : Error(Exit::internal, out_of_memory(asked, report), "", "lower micro_tokens, or use more ranks"),
      in_use(report.bytes) {}

Buffer::Buffer(Device device, int64_t bytes) : bytes_(bytes), scope_(current_scope), device_(device) {
  if (bytes > 0 && device != Device::meta) {
    data_ = allocator_of(device).allocate(bytes);
    if (data_ == nullptr) {
      throw OutOfMemory(bytes, memory_report(device));
    }
    if (poison()) allocator_of(device).fill(data_, 0xff, bytes);
  }
  ledger().book(device, scope_, bytes);
}

Buffer::~Buffer() {
  if (data_ != nullptr) allocator_of(device_).release(data_, bytes_);
  ledger().book(device_, scope_, -bytes_);
}

}  // namespace weft
