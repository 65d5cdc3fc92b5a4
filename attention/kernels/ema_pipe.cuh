#pragma once
// A warp's tiles of the forward pass on their way in, through its hands, and out again: next() gives the tile
// that has arrived, send() takes it back with what was put in its place. Two ways to move them.

#include "attention/kernels/ema.cuh"
#include "attention/kernels/hopper.cuh"

namespace weft::cuda {

struct EmaMaps {  // of x and y, where tiles are moved in bulk
  CUtensorMap x, y;
};

// By lanes, 16 bytes each. Of walks that leave no output nothing is sent.
template <class T>
class EmaByLanes {
 public:
  static constexpr int kBytes = kEmaStages * kEmaTileBytes;  // of shared memory, a warp

  __device__ EmaByLanes(void* shared, const EmaMaps&, const EmaRows<const T>& x, const EmaRows<T>& y,
                        int channel, int begin, int end)
      : tiles_(ema_shared(shared, kBytes)),
        now_(tiles_),
        free_(tiles_ + (kEmaStages - 1) * kEmaTileBytes),
        source_(x, channel, begin, begin, end),
        sink_(y, channel, begin, begin, end) {
#pragma unroll
    for (int i = 0; i < kEmaStages - 1; ++i) source_.fetch(tiles_ + i * kEmaTileBytes);
  }
  __device__ uint32_t next() {
    source_.fetch(free_);
    advance(free_);
    arrived<kEmaStages - 1>();
    return now_;
  }
  __device__ void send() {
    sink_.send(now_);
    advance(now_);
  }
  __device__ void drop() {
    __syncwarp();
    advance(now_);
  }
  __device__ void finish() {}

 private:
  __device__ void advance(uint32_t& tile) const {
    tile = tile == tiles_ + (kEmaStages - 1) * kEmaTileBytes ? tiles_ : tile + kEmaTileBytes;
  }
  uint32_t tiles_, now_, free_;  // now: in work; free: to be fetched into
  EmaMover<const T, 1> source_;
  EmaMover<T, 1> sink_;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class T>
using EmaByBulk = EmaByLanes<T>;  // never launched
#else
// By bulk tensor copies (Hopper), whole tiles at once, which no lane waits for; what is left at the end of a
// span by lanes.
template <class T>
class EmaByBulk {
 public:
  static constexpr int kStages = 4, kTile = kEmaTile<T>;
  static constexpr int kBytes = kStages * kEmaTileBytes + 128;  // the last for barriers

  __device__ EmaByBulk(void* shared, const EmaMaps& maps, const EmaRows<const T>& x, const EmaRows<T>& y,
                       int channel, int begin, int end)
      : tiles_(ema_shared(shared, kBytes)),
        maps_(maps),
        x_(x),
        y_(y),
        channel_(channel),
        low_(begin),
        ahead_(begin),
        end_(end) {
    if (leads()) {
      for (int i = 0; i < kStages; ++i) barrier(i).init(1);
      publish_barriers();
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) fetch();
  }
  __device__ uint32_t next() {
    fetch();
    barrier(now_).wait(phase_);
    return tile(now_);
  }
  __device__ void send() {
    if (low_ + kTile <= end_) {
      publish_shared();
      __syncwarp();
      if (leads()) {
        copy_out(tile(now_), &maps_.y, channel_, 0, low_);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      }
    } else {
      __syncwarp();
      by_lane(low_, tile(now_), [&](uint32_t at, int64_t token, int channel) {
        y_.data[token * y_.pitch + channel] = T(number<T>(take<T>(at)));
      });
    }
    drop();
  }
  __device__ void drop() {
    __syncwarp();
    low_ += kTile;
    now_ = (now_ + 1) % kStages;
    if (now_ == 0) phase_ ^= 1;
  }
  // Shared memory is read until then.
  __device__ void finish() {
    if (leads()) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }

 private:
  __device__ static bool leads() { return threadIdx.x % 32 == 0; }
  __device__ Barrier barrier(int stage) const { return {tiles_ + kStages * kEmaTileBytes + 8 * stage}; }
  __device__ uint32_t tile(int stage) const { return tiles_ + stage * kEmaTileBytes; }

  // Into the place of the tile before the one that was sent last, so that its way out has long been read.
  __device__ void fetch() {
    if (ahead_ < end_) {
      if (leads()) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
      if (ahead_ + kTile <= end_) {
        if (leads()) {
          barrier(free_).arrive_and_expect(kEmaTileBytes);
          copy_in(tile(free_), &maps_.x, channel_, 0, ahead_, barrier(free_));
        }
      } else {
        __syncwarp();
        by_lane(ahead_, tile(free_), [&](uint32_t at, int64_t token, int channel) {
          put<T>(at, static_cast<float>(x_.data[token * x_.pitch + channel]));
        });
        __syncwarp();
        if (leads()) barrier(free_).arrive();
      }
    }
    ahead_ += kTile;
    free_ = (free_ + 1) % kStages;
  }
  // f(place in the tile, token, channel) for the rest of the span, from token `low` on, of this lane's
  // channel.
  template <class F>
  __device__ void by_lane(int low, uint32_t tile, F f) {
    const int lane = threadIdx.x % 32;
    if (channel_ + lane >= x_.channels) return;
    for (int token = low; token < end_; ++token)
      f(tile + (token - low) * kEmaRow<T> + lane * static_cast<int>(sizeof(T)), token, channel_ + lane);
  }

  const uint32_t tiles_;
  const EmaMaps& maps_;
  const EmaRows<const T>& x_;
  const EmaRows<T>& y_;
  const int channel_;
  int low_, ahead_, end_;  // tokens: of the tile in work, of the next to be fetched, behind the span
  int now_ = 0, free_ = 0, phase_ = 0;
};
#endif

template <class T, bool Bulk>
using EmaPipe = std::conditional_t<Bulk, EmaByBulk<T>, EmaByLanes<T>>;

}  // namespace weft::cuda
