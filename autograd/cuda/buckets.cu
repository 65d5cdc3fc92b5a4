#include "autograd/cuda/buckets.h"

#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

Buckets buckets_of(const Tensor& index, int64_t rows) {
  const int64_t n = index.numel();
  CHECK(n <= INT32_MAX && rows < INT32_MAX, "scatter: ", n, " entries for ", rows,
        " rows, more than 32 bits number");
  const Tensor place = empty({n}, Dtype::i32, Device::cuda), key = empty_like(place),
               sorted = empty_like(place);
  const Buckets b{empty({rows + 1}, Dtype::i32, Device::cuda), empty_like(place)};
  const auto* at = data<const int32_t>(index);
  auto *p = data<int32_t>(place), *k = data<int32_t>(key);
  const auto none = static_cast<int32_t>(rows);  // -1 sorts last
  each(n, [=] __device__(int64_t i) {
    p[i] = static_cast<int32_t>(i);
    k[i] = at[i] < 0 ? none : at[i];
  });
  size_t bytes = 0;
  const int bits = std::bit_width(static_cast<uint64_t>(rows));
  const auto sort = [&](void* scratch) {
    CUDA_CHECK(cub::DeviceRadixSort::SortPairs(scratch, bytes, k, data<int32_t>(sorted), p,
                                               data<int32_t>(b.order), static_cast<int>(n), 0, bits,
                                               stream()));
  };
  sort(nullptr);
  const Buffer scratch(Device::cuda, static_cast<int64_t>(bytes) + 1);
  sort(scratch.data());
  const auto* s = data<const int32_t>(sorted);
  auto* start = data<int32_t>(b.start);
  each(rows + 1, [=] __device__(int64_t row) {  // the first entry that is not below the row
    int64_t low = 0, high = n;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (s[middle] < row)
        low = middle + 1;
      else
        high = middle;
    }
    start[row] = static_cast<int32_t>(low);
  });
  return b;
}

}  // namespace weft::cuda
