#pragma once
// What every op has to pass besides its own values: gradients in f64, f32 and bf16 against f64, views as
// good as copies, the same bits on one and two threads, and the same shapes on the meta device.

#include <omp.h>

#include "tests/autograd/test_tensors.h"

namespace weft {

// The same elements as columns of something wider.
inline Tensor as_columns(const Tensor& x) {
  if (x.rank() < 1) return x;
  const int64_t width = x.row_size();
  const Tensor view =
      random_tensor({x.dim(0), width + 9}, 99).to(x.dtype()).columns(4, 4 + width).reshape(x.shape());
  view.copy_from(x);
  return view;
}

// Outputs of f, and the gradients of its floating inputs for a random adjoint.
inline std::vector<Tensor> outputs_and_gradients(const Function& f, const std::vector<Tensor>& inputs,
                                                 bool adjoints_are_views = false) {
  Tape tape;
  std::vector<Variable> leaves;
  for (const Tensor& x : inputs)
    leaves.push_back(x.defined() && is_float(x.dtype()) ? tape.input(x) : Variable(x));
  const std::vector<Variable> outputs = f(leaves);
  std::vector<Tensor> all, seeds;
  for (const Variable& y : outputs) {
    all.push_back(y.value());
    seeds.push_back(y.device() == Device::meta ? empty_like(y) : random_tensor(y.shape(), 77).to(y.dtype()));
    if (adjoints_are_views) seeds.back() = as_columns(seeds.back());
  }
  tape.backward(outputs, seeds);
  for (const Variable& v : leaves)
    if (v.differentiable()) all.push_back(tape.gradient(v));
  return all;
}

template <class F>
std::vector<Tensor> each_float(const std::vector<Tensor>& inputs, F f) {
  std::vector<Tensor> out;
  for (const Tensor& x : inputs) out.push_back(x.defined() && is_float(x.dtype()) ? f(x) : x);
  return out;
}

// Both sides start from the same rounded inputs and adjoints: what is left is the op's own error.
inline void expect_precision(const Function& f, const std::vector<Tensor>& inputs) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const std::vector<Tensor> rounded = each_float(inputs, [&](const Tensor& x) { return x.to(dtype); });
    const std::vector<Tensor> exact =
        outputs_and_gradients(f, each_float(rounded, [](const Tensor& x) { return x.to(Dtype::f64); }));
    const std::vector<Tensor> got = outputs_and_gradients(f, rounded);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_LE(difference(got[i], exact[i]), tolerance::of(dtype)) << name_of(dtype) << " result " << i;
  }
}

// Inputs and adjoints may be views with a pitch. (Products of a GPU may go by other kernels then.)
inline void expect_views_equal_copies(const Function& f, const std::vector<Tensor>& inputs) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const std::vector<Tensor> x = each_float(inputs, [&](const Tensor& t) { return t.to(dtype); });
    const std::vector<Tensor> copies = outputs_and_gradients(f, x),
                              views = outputs_and_gradients(f, each_float(x, as_columns), true);
    for (size_t i = 0; i < copies.size(); ++i)
      EXPECT_LE(difference(views[i], copies[i]), tolerance::of(dtype)) << name_of(dtype) << " result " << i;
  }
}

inline void expect_same_bits_on_threads(const Function& f, const std::vector<Tensor>& inputs) {
  const int threads = omp_get_max_threads();
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const std::vector<Tensor> x = each_float(inputs, [&](const Tensor& t) { return t.to(dtype); });
    omp_set_num_threads(1);
    const std::vector<Tensor> one = outputs_and_gradients(f, x);
    for (const int many : {2, 3}) {
      omp_set_num_threads(many);
      const std::vector<Tensor> other = outputs_and_gradients(f, x);
      for (size_t i = 0; i < one.size(); ++i)
        EXPECT_TRUE(same_bits(one[i], other[i])) << name_of(dtype) << " result " << i << ", " << many;
    }
  }
  omp_set_num_threads(threads);
}

inline void expect_meta_shapes(const Function& f, const std::vector<Tensor>& inputs) {
  const std::vector<Tensor> real = outputs_and_gradients(f, inputs);
  std::vector<Tensor> meta;
  for (const Tensor& x : inputs)
    meta.push_back(x.defined() ? empty(x.shape(), x.dtype(), Device::meta) : Tensor());
  const std::vector<Tensor> planned = outputs_and_gradients(f, meta);
  for (size_t i = 0; i < real.size(); ++i) {
    EXPECT_EQ(planned[i].shape(), real[i].shape()) << i;
    EXPECT_EQ(planned[i].dtype(), real[i].dtype()) << i;
    EXPECT_EQ(planned[i].device(), Device::meta) << i;
  }
}

inline void expect_op(const Function& f, const std::vector<Tensor>& inputs) {
  expect_gradients(f, inputs);
  expect_precision(f, inputs);
  expect_views_equal_copies(f, inputs);
  expect_meta_shapes(f, inputs);
}

// For what only a CPU's kernels can refuse by name; a GPU's stop the program.
inline Tensor on_cpu(const Shape& shape) { return random_tensor(shape, 1).to(Device::cpu); }

// Ids 0, 1, ... in a fixed jumble below `bound`.
inline Tensor random_ints(int64_t n, int64_t bound, uint32_t seed) {
  const RandomKey key{seed, stream_of("random_ints"), 0};
  std::vector<int32_t> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<int32_t>(key.draw(i, 0)[0] % static_cast<uint32_t>(bound));
  return from_ints(values);
}

}  // namespace weft
