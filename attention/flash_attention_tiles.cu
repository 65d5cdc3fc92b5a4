#include "attention/flash_attention.cuh"
#include "autograd/cuda/buckets.h"

namespace weft::cuda {
namespace {

// One block a tile, one thread a token. Of list l, token i is order[start[l] + i] / lists, or i itself.
__global__ void tiles_kernel(TokenAt* at, TileSpan* span, int32_t* token, int32_t* taken,
                             const int32_t* position, const int32_t* document, const int32_t* order,
                             const int32_t* start, int64_t n, int lists) {
  __shared__ TileSpan s;
  __shared__ int present, front;
  const int64_t tile = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) {
    s = {INT_MAX, INT_MIN, INT_MAX, INT_MIN, INT_MAX, INT_MIN, 0, 0};
    present = 0;
    if (tile == 0) *taken = 0;
  }
  __syncthreads();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  int32_t row = -1;
  if (order == nullptr)
    row = i < n ? static_cast<int32_t>(i) : -1;
  else if (start[blockIdx.y] + i < start[blockIdx.y + 1])
    row = order[start[blockIdx.y] + i] / lists;
  const TokenAt own = row < 0 ? TokenAt{0, -1} : TokenAt{position[row], document[row]};
  at[tile * blockDim.x + threadIdx.x] = own;
  token[tile * blockDim.x + threadIdx.x] = row;
  if (threadIdx.x == 0) front = own.position;
  if (own.document >= 0) {
    atomicMin(&s.first_document, own.document);
    atomicMax(&s.last_document, own.document);
    atomicAdd(&present, 1);
  }
  __syncthreads();
  if (own.document >= 0 && own.document == s.first_document) {
    atomicMin(&s.first_low, own.position);
    atomicMax(&s.first_high, own.position);
  }
  if (own.document >= 0 && own.document == s.last_document) {
    atomicMin(&s.last_low, own.position);
    atomicMax(&s.last_high, own.position);
  }
  const int ordered = __syncthreads_and(own.position - front == static_cast<int>(threadIdx.x));
  if (threadIdx.x == 0) {
    s.uniform = present == static_cast<int>(blockDim.x) && s.first_document == s.last_document;
    s.ordered = s.uniform != 0 && ordered != 0;
    span[tile] = s;
  }
}

template <class A>
void lists_of_heads(const Tensor& index, const Tensor& active, int64_t heads) {
  int32_t* to = data<int32_t>(index);
  const A* on = data<const A>(active);
  each(active.numel(), [=] __device__(int64_t i) {
    int64_t head = i;
    divide(head, heads);
    to[i] = static_cast<Acc<A>>(on[i]) == 0 ? -1 : static_cast<int32_t>(head);
  });
}

}  // namespace

TokenTileBuffers token_tiles(const Tensor& position, const Tensor& document, const Tensor& active,
                             int64_t heads, int size) {
  const int64_t n = position.dim(0), lists = active.defined() ? heads : 1, tiles = (n + size - 1) / size;
  TokenTileBuffers b{empty({lists, tiles, size, 2}, Dtype::i32, Device::cuda),
                     empty({lists, tiles, 8}, Dtype::i32, Device::cuda),
                     empty({lists, tiles, size}, Dtype::i32, Device::cuda),
                     empty({1}, Dtype::i32, Device::cuda),
                     static_cast<int>(lists),
                     static_cast<int>(tiles),
                     size};
  if (n == 0) return b;
  Buckets on;
  if (active.defined()) {
    const Tensor index = empty({active.numel()}, Dtype::i32, Device::cuda);
    with_float(active.dtype(), [&]<class A>() { lists_of_heads<A>(index, active, heads); });
    on = buckets_of(index, heads);
  }
  tiles_kernel<<<dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(lists)), size, 0, stream()>>>(
      data<TokenAt>(b.at), data<TileSpan>(b.span), data<int32_t>(b.token), data<int32_t>(b.taken),
      data<const int32_t>(position), data<const int32_t>(document), data<const int32_t>(on.order),
      data<const int32_t>(on.start), n, b.lists);
  check_launch("attention tiles");
  return b;
}

}  // namespace weft::cuda
