#include "autograd/cuda/runtime.h"

#include <atomic>
#include <cstring>
#include <mutex>

#include "autograd/cuda/copy_rows.h"
#include "autograd/cuda/replay.h"
#include "autograd/cuda/step_run.h"

namespace weft::cuda {

void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  const bool no_gpu = code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver ||
                      code == cudaErrorInitializationError || code == cudaErrorStubLibrary;
  const bool refused = code == cudaErrorAssert;
  throw Error(Exit::internal, text("CUDA: ", cudaGetErrorString(code), " in ", call), "",
              no_gpu    ? "repair the driver, or compute on the CPU"
              : refused ? "a kernel found an index out of range; the same on the CPU says which"
                        : "");
}

cudaStream_t stream() {
  // Blocking towards the default stream on purpose: libraries that use that one stay in order.
  static const cudaStream_t one = [] {
    cudaStream_t s = nullptr;
    CUDA_CHECK(cudaStreamCreate(&s));
    return s;
  }();
  launch_run();
  return one;
}

int of_device(cudaDeviceAttr which) {
  int device = 0, value = 0;
  CUDA_CHECK(cudaGetDevice(&device));
  CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

void synchronize() { CUDA_CHECK(cudaStreamSynchronize(stream())); }

namespace {

// The way to the GPU for what the host keeps in pageable memory, from which the driver copies only after all
// earlier work is done: a ring of pinned bytes, so that the host goes on at once. A piece is used again when
// its half of the ring has been copied.
class Upload {
 public:
  static constexpr int64_t kHalf = int64_t{4} << 20, kAlignment = 256;

  // false: too large for it.
  bool operator()(void* to, const void* from, int64_t bytes) {
    if (bytes > kHalf) return false;
    const std::lock_guard lock(mutex_);
    if (memory_ == nullptr) {
      CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&memory_), 2 * kHalf, cudaHostAllocDefault));
      for (cudaEvent_t& e : copied_) CUDA_CHECK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    }
    if (used_ + bytes > kHalf) {
      CUDA_CHECK(cudaEventRecord(copied_[half_], stream()));
      half_ = 1 - half_;
      used_ = 0;
      CUDA_CHECK(cudaEventSynchronize(copied_[half_]));  // at once the first time: nothing was recorded
    }
    char* const piece = memory_ + half_ * kHalf + used_;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    std::memcpy(piece, from, static_cast<size_t>(bytes));
    CUDA_CHECK(cudaMemcpyAsync(to, piece, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream()));
    return true;
  }

 private:
  std::mutex mutex_;
  char* memory_ = nullptr;
  cudaEvent_t copied_[2] = {};
  int half_ = 0;
  int64_t used_ = 0;
};

Upload& upload() {
  static auto* const one = new Upload;  // never destroyed, like the arena
  return *one;
}

std::atomic<int64_t> copies_with_host = 0;

}  // namespace

int64_t host_copies() { return copies_with_host; }

void copy(const Tensor& to, const Tensor& from) {
  CHECK(to.shape() == from.shape() && to.dtype() == from.dtype(), "copy between devices: ", from.shape(), " ",
        name_of(from.dtype()), " into ", to.shape(), " ", name_of(to.dtype()));
  if (to.numel() == 0) return;
  if (to.device() != from.device()) {
    if (from.repeats() && !from.dense())
      return copy(to, from.contiguous());  // the driver knows no pitch of 0
    CHECK(!recording(), "copy between devices, while work is recorded that the GPU does alone");
    ++copies_with_host;
  }
  const auto item = static_cast<size_t>(size_of(to.dtype()));
  const auto pitch = [&](const Tensor& x) { return static_cast<size_t>(x.pitch()) * item; };
  const bool dense = to.dense() && from.dense();
  if (dense && from.device() == Device::cpu && upload()(to.raw(), from.raw(), to.bytes())) return;
  if (dense)
    CUDA_CHECK(
        cudaMemcpyAsync(to.raw(), from.raw(), static_cast<size_t>(to.bytes()), cudaMemcpyDefault, stream()));
  else if (to.device() == Device::cuda && from.device() == Device::cuda)
    copy_rows(to, from);
  else
    CUDA_CHECK(cudaMemcpy2DAsync(to.raw(), pitch(to), from.raw(), pitch(from),
                                 static_cast<size_t>(to.row_size()) * item, static_cast<size_t>(to.dim(0)),
                                 cudaMemcpyDefault, stream()));
  // On the way to the GPU the driver has taken what is large aside before it returns.
  if (to.device() != Device::cuda) synchronize();
}

}  // namespace weft::cuda
