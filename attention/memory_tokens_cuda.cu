// What goes into a memory and comes out of it, between rows of tokens and heads.

#include <cmath>

#include "attention/memory_ops.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

// f(element of heads, element of rows)
template <class F>
void each_of_heads(const Tensor& heads, int64_t documents, F f) {
  const int64_t h = heads.dim(0) / documents, n = heads.dim(1), size = heads.dim(2);
  each(heads.numel(), [=] __device__(int64_t i) {
    int64_t c = i;
    int64_t token = divide(c, size);
    int64_t head = divide(token, n);
    const int64_t document = divide(head, h);
    f(i, ((document * n + token) * h + head) * size + c);
  });
}

template <class T>
struct Together {
  T* rows;
  const Acc<T>* heads;
  __device__ void operator()(int64_t head, int64_t row) const { rows[row] = static_cast<T>(heads[head]); }
};
template <class T>
struct Apart {
  Acc<T>* heads;
  const T* rows;
  __device__ void operator()(int64_t head, int64_t row) const { heads[head] = Acc<T>(rows[row]); }
};

}  // namespace

void heads_together(const Tensor& rows, const Tensor& heads, int64_t documents) {
  with_float(rows.dtype(), [&]<class T>() {
    each_of_heads(heads, documents, Together<T>{data<T>(rows), data<const Acc<T>>(heads)});
  });
}

void heads_apart(const Tensor& heads, const Tensor& rows, int64_t documents) {
  with_float(rows.dtype(), [&]<class T>() {
    each_of_heads(heads, documents, Apart<T>{data<Acc<T>>(heads), data<const T>(rows)});
  });
}

namespace {

template <class A>
__device__ A sigmoid_of(A x) {
  return A(1) / (A(1) + exp(-x));
}

// Queries, keys and values; step, momentum and what is forgotten.
template <class A>
struct TokenParts {
  A *vectors[3], *gates[3];
};

struct TokenPlaces {
  int64_t n, skip, heads, key, value;
  __device__ int64_t size(int part) const { return part < 2 ? key : value; }
  __device__ int64_t columns() const { return heads * (2 * key + value); }
};

// f(part, head, row of x at this head, row of logits, row of the outputs), a warp each.
template <class F>
__device__ void for_each_vector(const TokenPlaces& p, int64_t tokens, F f) {
  const int64_t warps = int64_t{gridDim.x} * (kThreads / kWarp), tasks = tokens * p.heads * 3;
  for (int64_t i = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp; i < tasks; i += warps) {
    int64_t head = i;
    int64_t token = divide(head, p.heads * 3);
    const int part = static_cast<int>(divide(head, p.heads));
    const int64_t row = token, document = divide(token, p.n);
    const int64_t from = (document * (p.skip + p.n) + p.skip + token) * p.columns() + part * p.heads * p.key +
                         head * p.size(part);
    f(part, from, row * 3 * p.heads + part * p.heads + head, (document * p.heads + head) * p.n + token);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    tokens_kernel(TokenParts<Acc<T>> to, const T* rows, const T* logits, TokenPlaces p, int64_t tokens) {
  using A = Acc<T>;
  const int64_t lane = threadIdx.x % kWarp;
  for_each_vector(p, tokens, [&](int part, int64_t from, int64_t gate, int64_t row) {
    const int64_t size = p.size(part);
    A squares = 0;
    for (int64_t c = lane; c < size; c += kWarp) {
      const A x = A(rows[from + c]), y = x * sigmoid_of(x);
      squares += y * y;
    }
    squares = warp_sum(squares);
    const A factor = part < 2 ? A(1) / sqrt(squares + A(1e-6)) : A(1);
    for (int64_t c = lane; c < size; c += kWarp) {
      const A x = A(rows[from + c]);
      to.vectors[part][row * size + c] = x * sigmoid_of(x) * factor;
    }
    if (lane == 0) {
      const A g = sigmoid_of(A(logits[gate]));
      to.gates[part][row] = part < 2 ? g : A(1) - g;
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    tokens_backward_kernel(T* drows, T* dlogits, TokenParts<const Acc<T>> d, const T* rows, const T* logits,
                           TokenPlaces p, int64_t tokens) {
  using A = Acc<T>;
  const int64_t lane = threadIdx.x % kWarp;
  for_each_vector(p, tokens, [&](int part, int64_t from, int64_t gate, int64_t row) {
    const int64_t size = p.size(part);
    const A* g = d.vectors[part] + row * size;
    A squares = 0, along = 0;
    for (int64_t c = lane; c < size; c += kWarp) {
      const A x = A(rows[from + c]), y = x * sigmoid_of(x);
      squares += y * y;
      along += y * g[c];
    }
    squares = warp_sum(squares);
    along = warp_sum(along);
    const A factor = A(1) / sqrt(squares + A(1e-6));
    for (int64_t c = lane; c < size; c += kWarp) {
      const A x = A(rows[from + c]), share = sigmoid_of(x);
      const A dy = part < 2 ? factor * (g[c] - factor * factor * along * x * share) : g[c];
      drows[from + c] = static_cast<T>(dy * share * (A(1) + x * (A(1) - share)));
    }
    if (lane == 0) {
      const A share = sigmoid_of(A(logits[gate])), slope = share * (A(1) - share);
      dlogits[gate] = static_cast<T>(d.gates[part][row] * (part < 2 ? slope : -slope));
    }
  });
}

TokenPlaces places_of(const Tensor& logits, const MemoryTokenSizes& s) {
  return {logits.dim(0) / s.documents, s.skip, s.heads, s.key, s.value};
}

}  // namespace

void memory_tokens(const std::vector<Tensor>& to, const Tensor& rows, const Tensor& logits,
                   const MemoryTokenSizes& s) {
  const int64_t tokens = logits.dim(0);
  if (tokens == 0) return;
  with_float(rows.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const TokenParts<A> parts{{data<A>(to[0]), data<A>(to[1]), data<A>(to[2])},
                              {data<A>(to[3]), data<A>(to[4]), data<A>(to[5])}};
    tokens_kernel<T>
        <<<blocks_for(tokens * s.heads * 3, kThreads / static_cast<int>(kWarp)), kThreads, 0, stream()>>>(
            parts, data<const T>(rows), data<const T>(logits), places_of(logits, s), tokens);
  });
  check_launch("memory_tokens");
}

void memory_tokens_backward(const Tensor& drows, const Tensor& dlogits, const std::vector<Tensor>& d,
                            const Tensor& rows, const Tensor& logits, const MemoryTokenSizes& s) {
  const int64_t tokens = logits.dim(0);
  if (s.skip > 0 || tokens == 0) drows.zero();
  if (tokens == 0) return;
  with_float(rows.dtype(), [&]<class T>() {
    using A = const Acc<T>;
    const TokenParts<A> parts{{data<A>(d[0]), data<A>(d[1]), data<A>(d[2])},
                              {data<A>(d[3]), data<A>(d[4]), data<A>(d[5])}};
    tokens_backward_kernel<T>
        <<<blocks_for(tokens * s.heads * 3, kThreads / static_cast<int>(kWarp)), kThreads, 0, stream()>>>(
            data<T>(drows), data<T>(dlogits), parts, data<const T>(rows), data<const T>(logits),
            places_of(logits, s), tokens);
  });
  check_launch("memory_tokens_backward");
}

}  // namespace weft::cuda
