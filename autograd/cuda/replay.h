#pragma once
// Work that is the same each time, recorded once as a CUDA graph and asked for again as a whole.

#include <cstdint>
#include <functional>

namespace weft::cuda {

class Replay {
 public:
  Replay() = default;
  ~Replay();
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  bool recorded() const { return graph_ != nullptr; }
  // What f launches, without running it. Whatever f reads or writes must stay where it is; what it allocates
  // comes from an arena of recordings, which nobody else uses. f may exchange nothing with the host, so run
  // it once before and see that host_copies() stays what it was. as_runs: kernels of a decoding step that
  // follow one another become one, where that is better (step_run.h), with the same bits.
  void record(const std::function<void()>& f, bool as_runs = false);
  void run() const;
  void forget();  // as if nothing had been recorded

 private:
  void* graph_ = nullptr;
};

// While it lives, what is allocated comes from the arena of recordings, so that the same work, run first and
// then recorded, takes its memory once. What lives on after a pass, or goes later, or was there before and
// goes within it, changes the arena: what was recorded until then may write where somebody else is now, or
// read what is gone, and must not run again.
class Pass {
 public:
  Pass();
  ~Pass();
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  // Of the sizes asked for so far, in their order: the same for the same work.
  uint64_t trace() const;
};
int64_t arena_changes();  // so far

// Of the kernel launched last, if work is recorded: it waits for all work before it by
// cudaGridDependencySynchronize(), so that in the recording it starts as soon as the kernel before it has,
// and its first reads are under way when it may go on. Until it waits it writes nothing, and reads only what
// was written before the last kernel that does not start early: a whole run of such kernels may be under way.
void starts_early();

// Whether an address is of memory that a recording took.
bool is_recorded(const void* pointer);

// Copies between the GPU and the host so far.
int64_t host_copies();
bool recording();

}  // namespace weft::cuda
