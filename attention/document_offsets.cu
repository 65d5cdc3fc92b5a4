#include "attention/document_offsets.h"

#include <cub/block/block_scan.cuh>

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

constexpr int kScanThreads = 1024, kMostSizes = 8;

struct Sizes {
  int64_t of[kMostSizes];
  int count;
};

// One block; each thread has a stretch of tokens.
__global__ void __launch_bounds__(kScanThreads)
    offsets_kernel(int32_t* start, int32_t* lengths, int32_t* offsets, int64_t pitch, const int32_t* position,
                   int64_t n, int64_t documents, Sizes sizes) {
  using Scan = cub::BlockScan<int, kScanThreads>;
  __shared__ Scan::TempStorage storage;
  const int64_t each = (n + kScanThreads - 1) / kScanThreads, first = threadIdx.x * each;
  const int64_t end = min(first + each, n);
  for (int64_t d = threadIdx.x; d <= documents; d += kScanThreads) start[d] = static_cast<int32_t>(n);
  int index = 0;
  for (int64_t i = first; i < end; ++i) index += position[i] == 0 ? 1 : 0;
  Scan(storage).ExclusiveSum(index, index);
  __syncthreads();
  for (int64_t i = first; i < end; ++i) {
    if (position[i] != 0) continue;
    if (index >= documents) __trap();
    start[index++] = static_cast<int32_t>(i);
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d <= documents; d += kScanThreads) {
    if (d < documents) lengths[d] = start[d + 1] - start[d];
    for (int s = 0; s < sizes.count; ++s)
      offsets[s * pitch + d] = static_cast<int32_t>(start[d] * sizes.of[s]);
  }
}

}  // namespace

DocumentOffsets document_offsets(const Tensor& position, int64_t documents,
                                 const std::vector<int64_t>& sizes) {
  const int64_t n = position.dim(0), pitch = (documents + 4) / 4 * 4;
  Sizes all{{}, static_cast<int>(sizes.size())};
  CHECK(sizes.size() <= kMostSizes, "document offsets: ", sizes.size(), " sizes");
  for (size_t s = 0; s < sizes.size(); ++s) {
    CHECK(n * sizes[s] <= INT32_MAX, "document offsets: ", n, " rows of ", sizes[s]);
    all.of[s] = sizes[s];
  }
  const Tensor start = empty({documents + 1}, Dtype::i32, Device::cuda);
  const DocumentOffsets out{empty({documents}, Dtype::i32, Device::cuda),
                            empty({static_cast<int64_t>(sizes.size()), pitch}, Dtype::i32, Device::cuda)};
  offsets_kernel<<<1, kScanThreads, 0, stream()>>>(data<int32_t>(start), data<int32_t>(out.lengths),
                                                   data<int32_t>(out.offsets), pitch,
                                                   data<const int32_t>(position), n, documents, all);
  check_launch("document offsets");
  return out;
}

}  // namespace weft::cuda
