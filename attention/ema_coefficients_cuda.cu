#include "attention/ema_coefficients.h"
#include "attention/ema_coefficients_element.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {
namespace {

template <class T>
void forward_as(const Tensor (&to)[3], const Tensor (&of)[4], T scale) {
  const T *alpha = data<const T>(of[0]), *delta = data<const T>(of[1]), *beta = data<const T>(of[2]),
          *gamma = data<const T>(of[3]);
  T *in = data<T>(to[0]), *out = data<T>(to[1]), *decay = data<T>(to[2]);
  each(to[0].numel(), [=] __device__(int64_t i) {
    const EmaTaken<T> y = ema_taken(EmaLearned<T>{alpha[i], delta[i], beta[i], gamma[i]}, scale);
    in[i] = y.in, out[i] = y.out, decay[i] = y.decay;
  });
}

template <class T>
struct Target {
  T* at;  // null: not wanted
  bool add;
  __device__ void write(int64_t i, T x) const {
    if (at != nullptr) at[i] = add ? at[i] + x : x;
  }
};

template <class T>
void backward_as(const Into (&to)[4], const Tensor (&of)[4], const Tensor (&d)[3], T scale) {
  const T *alpha = data<const T>(of[0]), *delta = data<const T>(of[1]), *beta = data<const T>(of[2]),
          *gamma = data<const T>(of[3]), *in = data<const T>(d[0]), *out = data<const T>(d[1]),
          *decay = data<const T>(d[2]);
  const auto target = [&](int j) { return Target<T>{data<T>(to[j].target), to[j].beta != 0}; };
  const Target<T> d_alpha = target(0), d_delta = target(1), d_beta = target(2), d_gamma = target(3);
  each(d[0].numel(), [=] __device__(int64_t i) {
    const EmaLearned<T> g = ema_taken_backward(EmaLearned<T>{alpha[i], delta[i], beta[i], gamma[i]},
                                               EmaTaken<T>{in[i], out[i], decay[i]}, scale);
    d_alpha.write(i, g.alpha), d_delta.write(i, g.delta), d_beta.write(i, g.beta), d_gamma.write(i, g.gamma);
  });
}

}  // namespace

void ema_coefficients_forward(const Tensor (&to)[3], const Tensor (&of)[4], double scale) {
  with_wide(to[0].dtype(), [&]<class T>() { forward_as<T>(to, of, static_cast<T>(scale)); });
}

void ema_coefficients_backward(const Into (&to)[4], const Tensor (&of)[4], const Tensor (&d)[3],
                               double scale) {
  with_wide(d[0].dtype(), [&]<class T>() { backward_as<T>(to, of, d, static_cast<T>(scale)); });
}

}  // namespace weft::cuda
