#pragma once
// A store with every kind of parameter at odd sizes, and gradients that are a function of (step, seed) alone.

#include <memory>

#include "optim/optimizer.h"
#include "tests/autograd/test_tensors.h"

namespace weft {

// large: with a matrix of several blocks and of a size at which a GEMM cuts its sums.
inline std::unique_ptr<ParameterStore> example_store(Dtype precision, bool large = false,
                                                     Device device = default_device()) {
  auto store = std::make_unique<ParameterStore>(precision, device, 3);
  store->declare({"embedding", {37, 12}, ParameterKind::embedding, Initializer::normal(1)});
  store->declare({"a.in", {30, 12}, ParameterKind::matrix, Initializer::normal(0.5), {12, 12, 6}});
  store->declare({"a.out", {12, 13}, ParameterKind::matrix, Initializer::normal(0.5)});
  store->declare({"a.gain", {13}, ParameterKind::vector, Initializer::normal(1)});
  store->declare({"frozen", {5, 5}, ParameterKind::matrix, Initializer::normal(1), {}, false});
  const Shape shape = large ? Shape{401, 331} : Shape{41, 33};
  store->declare({"last", shape, ParameterKind::matrix, Initializer::uniform(0.1)});
  store->commit();
  return store;
}

// f(i) for element i of a tensor of any float type.
template <class F>
void fill_with(const Tensor& x, F f) {
  with_float(x.dtype(), [&]<class T>() {
    edit<T>(x, [&](T* values) {
      for (int64_t i = 0; i < x.numel(); ++i) values[i] = static_cast<T>(static_cast<float>(f(i)));
    });
  });
}

// Uniform, of mean 0.
inline void draw_gradients(ParameterStore& store, uint32_t step, double deviation = 1) {
  for (const auto& entry : store.entries()) {
    if (!entry->gradient.defined()) continue;
    uint32_t x = stream_of(entry->info.name) + 977 * step;
    fill_with(entry->gradient, [&](int64_t) {
      x = x * 1664525u + 1013904223u;
      return deviation * std::sqrt(3.0) * (x * 0x1p-31 - 1);
    });
  }
}

inline bool same_weights(const ParameterStore& a, const ParameterStore& b) {
  for (size_t i = 0; i < a.entries().size(); ++i)
    if (!same_bits(a.entries()[i]->master, b.entries()[i]->master) ||
        !same_bits(a.entries()[i]->working, b.entries()[i]->working))
      return false;
  return true;
}

// Updates with fresh gradients at steps [first, last).
inline void train(ParameterStore& store, Optimizer& optimizer, StepState& s, uint32_t first, uint32_t last) {
  for (uint32_t step = first; step < last; ++step) {
    draw_gradients(store, step);
    s.rate = 1 / (1.0 + step);
    s.gradient_norm = 3;
    optimizer.step(s);
  }
}

}  // namespace weft
