#pragma once
// For kernels that start early in a recording (replay.h).

#include <mutex>

#include "autograd/cuda/kernel.cuh"
#include "autograd/cuda/replay.h"

namespace weft::cuda {

// As said of starts_early(): what comes before it in a kernel. At once where nothing runs.
__device__ inline void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// As starts_early() says; in a recording only.
template <class Kernel, class... Arguments>
void launch_early(Kernel kernel, dim3 blocks, int threads, size_t bytes, const Arguments&... arguments) {
  kernel<<<blocks, threads, bytes, stream()>>>(arguments...);
  starts_early();
}

// As launch_early, of a kernel with one argument. Outside of a recording it is a graph of its own whose
// argument is set anew, which costs the host less than a launch (attention/gpu.md, "Short documents").
template <auto kernel, class Argument>
void launch_alone(dim3 blocks, int threads, size_t bytes, const Argument& argument) {
  if (recording()) return launch_early(kernel, blocks, threads, bytes, argument);
  static std::mutex mutex;
  static cudaGraphExec_t graph = nullptr;
  static cudaGraphNode_t node = nullptr;
  const std::lock_guard lock(mutex);
  void* arguments[] = {const_cast<Argument*>(&argument)};
  cudaKernelNodeParams launch{};
  launch.func = reinterpret_cast<void*>(kernel);
  launch.gridDim = blocks, launch.blockDim = dim3(static_cast<unsigned>(threads));
  launch.sharedMemBytes = static_cast<unsigned>(bytes), launch.kernelParams = arguments;
  if (graph != nullptr) {
    CUDA_CHECK(cudaGraphExecKernelNodeSetParams(graph, node, &launch));
  } else {
    cudaGraph_t made = nullptr;
    CUDA_CHECK(cudaGraphCreate(&made, 0));
    CUDA_CHECK(cudaGraphAddKernelNode(&node, made, nullptr, 0, &launch));
    CUDA_CHECK(cudaGraphInstantiate(&graph, made, 0));
  }
  CUDA_CHECK(cudaGraphLaunch(graph, stream()));
}

template <class F>
__global__ void __launch_bounds__(kThreads) each_early_kernel(int64_t n, F f) {
  wait_for_earlier();
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) f(i);
}

// As each.
template <class F>
void each_early(int64_t n, F f) {
  if (n == 0) return;
  launch_early(each_early_kernel<F>, blocks_for(n), kThreads, 0, n, f);
  check_launch("each");
}

// f(row, column) for each vector of V columns of so many rows, where V divides their width.
template <int V, class F>
void each_early_vector(int64_t rows, int64_t width, F f) {
  const int64_t vectors = width / V;
  each_early(rows * vectors, [=] __device__(int64_t i) {
    int64_t column = i;
    const int64_t row = divide(column, vectors);
    f(row, column * V);
  });
}

}  // namespace weft::cuda
