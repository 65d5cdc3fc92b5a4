// attention/flash_attention.h on the GPU under C names, for flash_attention.py. Rows come from whoever calls,
// are copied into tensors, and results out of them.

#include "attention/flash_attention.cuh"

#include <algorithm>
#include <vector>

#include "tools/lab/guarded.h"

using namespace weft;

// As in flash_attention.py. Pointers to the GPU's memory.
struct Arguments {
  int64_t queries, keys, heads, kv_heads, d, e, is_f32, causal, window, plain;
  double scale;
  const void *q, *k, *v, *d_o, *d_lse, *q_position, *q_document, *k_position, *k_document;
  void *o, *lse, *d_q, *d_k, *d_v;
};

namespace {

struct Run {
  AttentionOptions options;
  bool plain;
  cpu::AttentionTokens tokens;
  Tensor q, k, v, d_o, d_lse, o, lse, dq, dk, dv, delta;

  explicit Run(const Arguments& a) : plain(a.plain != 0) {
    options.scale = a.scale;
    options.causal = a.causal != 0;
    options.window = a.window;
    const Dtype dtype = a.is_f32 ? Dtype::f32 : Dtype::bf16;
    const auto take = [](const Shape& shape, Dtype type, const void* from) {
      const Tensor x = empty(shape, type, Device::cuda);
      CUDA_CHECK(cudaMemcpyAsync(x.raw(), from, static_cast<size_t>(x.bytes()), cudaMemcpyDeviceToDevice,
                                 cuda::stream()));
      return x;
    };
    q = take({a.queries, a.heads, a.d}, dtype, a.q);
    k = take({a.keys, a.kv_heads, a.d}, dtype, a.k);
    v = take({a.keys, a.kv_heads, a.e}, dtype, a.v);
    d_o = take({a.queries, a.heads, a.e}, dtype, a.d_o);
    d_lse = take({a.queries, a.heads}, Dtype::f32, a.d_lse);
    tokens.q_position = take({a.queries}, Dtype::i32, a.q_position);
    tokens.q_document = take({a.queries}, Dtype::i32, a.q_document);
    tokens.k_position = take({a.keys}, Dtype::i32, a.k_position);
    tokens.k_document = take({a.keys}, Dtype::i32, a.k_document);
    o = empty(d_o.shape(), dtype, Device::cuda);
    lse = empty(d_lse.shape(), Dtype::f32, Device::cuda);
    dq = empty_like(q), dk = empty_like(k), dv = empty_like(v);
  }
  void forward() const {
    if (plain)
      cuda::plain_attention_forward(o, lse, q, k, v, tokens, {}, options);
    else
      cuda::flash_forward(o, lse, q, k, v, tokens, {}, options);
  }
  void backward() const {
    if (plain)
      cuda::plain_attention_backward(dq, dk, dv, {}, q, k, v, tokens, {}, lse,
                                     cuda::attention_delta(o, d_o, d_lse), d_o, options);
    else
      cuda::flash_backward(dq, dk, dv, {}, q, k, v, tokens, {}, o, lse, d_o, d_lse, options);
  }
};

}  // namespace

extern "C" int attention(const Arguments* a) {
  return guarded([&] {
    const Run run(*a);
    run.forward();
    run.backward();
    const auto give = [](void* to, const Tensor& x) {
      CUDA_CHECK(cudaMemcpyAsync(to, x.raw(), static_cast<size_t>(x.bytes()), cudaMemcpyDeviceToDevice,
                                 cuda::stream()));
    };
    give(a->o, run.o), give(a->lse, run.lse), give(a->d_q, run.dq), give(a->d_k, run.dk),
        give(a->d_v, run.dv);
    cuda::synchronize();
  });
}

// Median milliseconds of each of {forward, backward} over `repeat` calls.
extern "C" int attention_times(const Arguments* a, int repeat, float* milliseconds) {
  return guarded([&] {
    const Run run(*a);
    cudaEvent_t begin, end;
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
    for (const bool back : {false, true}) {
      std::vector<float> times;
      for (int i = 0; i < repeat + 3; ++i) {
        CUDA_CHECK(cudaEventRecord(begin, cuda::stream()));
        back ? run.backward() : run.forward();
        CUDA_CHECK(cudaEventRecord(end, cuda::stream()));
        CUDA_CHECK(cudaEventSynchronize(end));
        float time = 0;
        CUDA_CHECK(cudaEventElapsedTime(&time, begin, end));
        if (i >= 3) times.push_back(time);
      }
      std::sort(times.begin(), times.end());
      milliseconds[back] = times[times.size() / 2];
    }
    CUDA_CHECK(cudaEventDestroy(begin));
    CUDA_CHECK(cudaEventDestroy(end));
  });
}
