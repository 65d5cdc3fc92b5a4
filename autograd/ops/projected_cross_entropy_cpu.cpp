#include "autograd/ops/projected_cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "autograd/ops/rows.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

void check_targets(const Tensor& targets, int64_t vocabulary) {
  const int32_t* target = targets.data<int32_t>();
  for (int64_t i = 0; i < targets.dim(0); ++i)
    if (target[i] < -1 || target[i] >= vocabulary)
      throw Error(Exit::data,
                  text("cross-entropy: target id ", target[i], " is outside the vocabulary of ", vocabulary),
                  {}, "use the tokenizer the model was made for, and -1 for tokens to ignore");
}

}  // namespace

void cross_entropy(const Tensor& loss, const Tensor& nll, const Tensor& gradient, const Tensor& logits,
                   const Tensor& targets, const Tensor& weights, double softcap, double z_loss,
                   const Tensor& seed) {
  const int64_t vocabulary = logits.dim(1);
  check_targets(targets, vocabulary);
  const int32_t* target = targets.data<int32_t>();
  const auto rows = [&]<class A>(A*) {
    const A *w = weights.defined() ? weights.data<A>() : nullptr, cap = static_cast<A>(softcap);
    const A z = static_cast<A>(z_loss), inverse_cap = softcap > 0 ? A(1) / cap : A(0);
    const A slope_of_loss = seed.defined() ? static_cast<A>(seed.data<double>()[0]) : A(1);
    A *loss_of = loss.data<A>(), *nll_of = nll.data<A>(), *all = logits.data<A>();
    A* slopes = gradient.defined() ? gradient.data<A>() : nullptr;
    parallel_for(logits.dim(0), row_grain(8 * vocabulary), [&](int64_t begin, int64_t end) {
      Scratch<A> powers(static_cast<size_t>(vocabulary));
      A* p = powers.data();
      for (int64_t i = begin; i < end; ++i) {
        A *x = all + i * vocabulary, *d = slopes == nullptr ? nullptr : slopes + i * vocabulary;
        if (target[i] < 0) {
          loss_of[i] = nll_of[i] = 0;
          if (d != nullptr) std::fill_n(d, vocabulary, A(0));
          continue;
        }
        if (softcap > 0) {
#pragma omp simd
          for (int64_t j = 0; j < vocabulary; ++j) x[j] = cap * vector_math::tanh(x[j] * inverse_cap);
        }
        const A m = row_max<A>(vocabulary, [=](int64_t j) { return x[j]; });
#pragma omp simd
        for (int64_t j = 0; j < vocabulary; ++j) p[j] = vector_math::exp(x[j] - m);
        const A sum = row_sum<A>(vocabulary, [=](int64_t j) { return p[j]; });
        const A lse = m + std::log(sum), weight = w == nullptr ? A(1) : w[i];
        // Not lse - x: near certainty that difference has no digits left.
        nll_of[i] = std::log(sum) - (x[target[i]] - m);
        loss_of[i] = weight * (nll_of[i] + z * lse * lse);
        if (d == nullptr) continue;
        const A factor = weight * slope_of_loss, k = factor * (A(1) + 2 * z * lse) / sum;
        // The slope of the cap, 1 - (x / softcap)^2, is taken at the target before it is overwritten.
        const A slope = A(1) - x[target[i]] * inverse_cap * (x[target[i]] * inverse_cap);
#pragma omp simd
        for (int64_t j = 0; j < vocabulary; ++j) {
          const A t = x[j] * inverse_cap;
          d[j] = k * p[j] * (A(1) - t * t);
        }
        d[target[i]] -= factor * slope;
      }
    });
  };
  if (logits.dtype() == Dtype::f64)
    rows(static_cast<double*>(nullptr));
  else
    rows(static_cast<float*>(nullptr));
}

void add_scaled(const Tensor& to, const Tensor& from, const Tensor& scale, double beta) {
  const int64_t columns = to.dim(1);
  with_float(to.dtype(), [&]<class To>() {
    with_float(from.dtype(), [&]<class From>() {
      using A = Acc<To>;
      const A k = static_cast<A>(to_values(scale)[0]);
      const Rows<To> y(to);
      const Rows<From> x(from);
      parallel_for(to.dim(0), row_grain(columns), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          To* a = y[i];
          const From* b = x[i];
#pragma omp simd
          for (int64_t j = 0; j < columns; ++j)
            store(a[j], (beta == 0 ? A(0) : static_cast<A>(a[j])) +
                            k * static_cast<A>(static_cast<Acc<From>>(b[j])));
        }
      });
    });
  });
}

}  // namespace weft::cpu
