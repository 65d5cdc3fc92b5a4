#pragma once
// Rows that follow one another: while a group adds one up, the next are on their way, in one of two forms.
//
// Both are used so: kAhead times ask(row_of, n); then for each row wait(), take() once for each input, and
// ask() for the row kAhead later, at once if kAtOnce, else after its last use in the group's sum. row_of(i):
// where a row of n elements begins in tensor i of kInputs; n is 0 where there is none.

#include <cuda_pipeline.h>

#include "autograd/cuda/rows.cuh"

namespace weft::cuda {

// The next row in registers.
template <class T, int kHeld, bool whole, int kInputs, class G>
class RowAhead {
 public:
  static_assert(whole && kHeld > 0);
  static constexpr int kAhead = 1;
  static constexpr bool kAtOnce = true;
  using Row = HeldRow<T, kHeld, whole>;
  __device__ RowAhead(void*, const G& group) : group_(group) {}

  template <class F>
  __device__ void ask(F row_of, int n) {
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      const T* const own = row_of(i) + group_.lane * Row::V;
      each_slot<kHeld, Row::V>(n, group_, [&](int k, int j) {
        if (j < n) next_[i][k] = *reinterpret_cast<const uint4*>(own + k * group_.lanes() * Row::V);
      });
    }
  }
  __device__ void wait() const {}
  template <class F>
  __device__ Row take(int input, F, int n) const {
    return Row(reinterpret_cast<const Pack<T>*>(next_[input]), 1, n, group_);
  }
  static size_t bytes(const RowPlan&) { return 0; }

 private:
  const G& group_;
  uint4 next_[kInputs][kHeld];
};

// The next three rows in shared memory, by asynchronous copies. Each thread brings the vectors that it takes
// itself, so threads wait for no other's. Rows too long for registers, or not of whole vectors, are read
// where they are taken.
template <class T, int kHeld, bool whole, int kInputs, class G>
class RowsAhead {
 public:
  static constexpr int kAhead = 3;
  static constexpr bool kAtOnce = false;
  using Row = HeldRow<T, kHeld, whole>;
  __device__ RowsAhead(void* shared, const G& group)
      : group_(group), first_(static_cast<Pack<T>*>(shared) + threadIdx.x), slot_(first_) {}

  template <class F>
  __device__ void ask(F row_of, int n) {
    if constexpr (kRing) {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
        const T* const own = row_of(i) + group_.lane * Row::V;
        each_vector<kHeld, Row::V>(n, group_, [&](int k, int) {
          __pipeline_memcpy_async(place(i) + k * stride(), own + k * group_.lanes() * Row::V,
                                  sizeof(Pack<T>));
        });
      }
      __pipeline_commit();
      const int slot = kInputs * kHeld * stride();
      slot_ = slot_ == first_ + (kAhead - 1) * slot ? first_ : slot_ + slot;
    }
  }
  __device__ void wait() const {
    if constexpr (kRing) __pipeline_wait_prior(kAhead - 1);
  }
  template <class F>
  __device__ Row take(int input, F row_of, int n) const {
    if constexpr (kRing)
      return Row(place(input), stride(), n, group_);
    else
      return Row(row_of(input), n, group_);
  }

  static size_t bytes(const RowPlan& plan) {
    return kRing ? size_t{kAhead} * kInputs * kHeld * sizeof(Pack<T>) * static_cast<size_t>(plan.threads) : 0;
  }

 private:
  static constexpr bool kRing = whole && kHeld > 0;
  // A row is taken from where the next ask puts one.
  __device__ Pack<T>* place(int input) const { return slot_ + input * kHeld * stride(); }
  __device__ static int stride() { return static_cast<int>(blockDim.x); }
  const G& group_;
  Pack<T>* const first_;
  Pack<T>* slot_;
};

}  // namespace weft::cuda
