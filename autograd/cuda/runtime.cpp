#include "autograd/cuda/runtime.h"

namespace weft::cuda {

void check(cudaError_t code, const char* call) {
  if (code == cudaSuccess) return;
  const bool no_gpu = code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver ||
                      code == cudaErrorInitializationError || code == cudaErrorStubLibrary;
  const bool refused = code == cudaErrorAssert;
  throw Error(Exit::internal, text("CUDA: ", cudaGetErrorString(code), " in ", call), "",
              no_gpu    ? "mend the driver, or compute on the CPU"
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
  return one;
}

void synchronize() { CUDA_CHECK(cudaStreamSynchronize(stream())); }

void copy(const Tensor& to, const Tensor& from) {
  CHECK(to.shape() == from.shape() && to.dtype() == from.dtype(), "copy between devices: ", from.shape(), " ",
        name_of(from.dtype()), " into ", to.shape(), " ", name_of(to.dtype()));
  if (to.numel() == 0) return;
  const auto item = static_cast<size_t>(size_of(to.dtype()));
  const auto pitch = [&](const Tensor& x) { return static_cast<size_t>(x.pitch()) * item; };
  if (to.dense() && from.dense())
    CUDA_CHECK(
        cudaMemcpyAsync(to.raw(), from.raw(), static_cast<size_t>(to.bytes()), cudaMemcpyDefault, stream()));
  else
    CUDA_CHECK(cudaMemcpy2DAsync(to.raw(), pitch(to), from.raw(), pitch(from),
                                 static_cast<size_t>(to.row_size()) * item, static_cast<size_t>(to.dim(0)),
                                 cudaMemcpyDefault, stream()));
  // On the way to the GPU the driver has taken pageable memory aside before it returns.
  if (to.device() != Device::cuda) synchronize();
}

}  // namespace weft::cuda
