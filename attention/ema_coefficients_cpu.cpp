#include "attention/ema_coefficients.h"
#include "attention/ema_coefficients_element.h"
#include "autograd/parallel.h"

namespace weft::cpu {

namespace {
constexpr int64_t kSigmoids = kWorthACore / 16;  // elements; two exponentials each
}

void ema_coefficients_forward(const Tensor (&to)[3], const Tensor (&of)[4], double scale) {
  with_wide(to[0].dtype(), [&]<class T>() {
    const T *alpha = of[0].data<T>(), *delta = of[1].data<T>(), *beta = of[2].data<T>(),
            *gamma = of[3].data<T>();
    T *in = to[0].data<T>(), *out = to[1].data<T>(), *decay = to[2].data<T>();
    parallel_for(to[0].numel(), kSigmoids, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const EmaTaken<T> y =
            ema_taken(EmaLearned<T>{alpha[i], delta[i], beta[i], gamma[i]}, static_cast<T>(scale));
        in[i] = y.in, out[i] = y.out, decay[i] = y.decay;
      }
    });
  });
}

void ema_coefficients_backward(const Into (&to)[4], const Tensor (&of)[4], const Tensor (&d)[3],
                               double scale) {
  with_wide(d[0].dtype(), [&]<class T>() {
    const T *alpha = of[0].data<T>(), *delta = of[1].data<T>(), *beta = of[2].data<T>(),
            *gamma = of[3].data<T>(), *in = d[0].data<T>(), *out = d[1].data<T>(), *decay = d[2].data<T>();
    parallel_for(d[0].numel(), kSigmoids, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const EmaLearned<T> g =
            ema_taken_backward(EmaLearned<T>{alpha[i], delta[i], beta[i], gamma[i]},
                               EmaTaken<T>{in[i], out[i], decay[i]}, static_cast<T>(scale));
        const T all[] = {g.alpha, g.delta, g.beta, g.gamma};
        for (int j = 0; j < 4; ++j) {
          if (!to[j].target.defined()) continue;
          T& at = to[j].target.data<T>()[i];
          at = to[j].beta == 0 ? all[j] : at + all[j];
        }
      }
    });
  });
}

}  // namespace weft::cpu
