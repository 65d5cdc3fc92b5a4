#pragma once
// One element of ema_coefficients.h, for its kernels.

#include "autograd/ops/vector_math.h"

namespace weft {

// The learned parameters, or their gradients.
template <class T>
struct EmaLearned {
  T alpha, delta, beta, gamma;
};
// The coefficients of the recurrence, or their gradients.
template <class T>
struct EmaTaken {
  T in, out, decay;
};

// scale = 1 / sqrt(N)
template <class T>
WEFT_HOST_DEVICE EmaTaken<T> ema_taken(const EmaLearned<T>& x, T scale) {
  const T p = vector_math::sigmoid(x.alpha), r = vector_math::sigmoid(x.delta);
  return {p * x.beta, scale * x.gamma, T(1) - p * r};
}
template <class T>
WEFT_HOST_DEVICE EmaLearned<T> ema_taken_backward(const EmaLearned<T>& x, const EmaTaken<T>& d, T scale) {
  const T p = vector_math::sigmoid(x.alpha), r = vector_math::sigmoid(x.delta);
  const T dp = d.in * x.beta - d.decay * r, dr = -d.decay * p;
  return {dp * p * (T(1) - p), dr * r * (T(1) - r), d.in * p, scale * d.out};
}

}  // namespace weft
