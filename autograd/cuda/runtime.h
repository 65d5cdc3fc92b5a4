#pragma once
// What everything on the GPU shares: one device and one stream a process, so that work runs in the order in
// which it was asked for and memory can be used again as soon as the host has given it back.

#include <cuda_runtime.h>

#include "autograd/tensor.h"

namespace weft::cuda {

// Throws Exit::internal with the call and CUDA's own words.
void check(cudaError_t code, const char* call);

cudaStream_t stream();
int of_device(cudaDeviceAttr which);  // an attribute of the one device
void synchronize();                   // waits for all work asked for so far

// to = from, of one dtype and shape, either of them on either device. Waits where the host is the one to have
// it.
void copy(const Tensor& to, const Tensor& from);

Allocator& allocator();

}  // namespace weft::cuda

#define CUDA_CHECK(...) ::weft::cuda::check((__VA_ARGS__), #__VA_ARGS__)
