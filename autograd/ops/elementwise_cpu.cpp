#include <tuple>

#include "autograd/ops/broadcast.h"
#include "autograd/ops/elementwise.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;

// y[i] = f(i), in the accumulator type, on all cores.
template <class T, class F>
void fill(const Tensor& y, F f) {
  T* p = y.data<T>();
  parallel_for(y.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p[i] = static_cast<T>(f(i));
  });
}

// f(begin, count, offset of a, offset of b) for each innermost run of the output.
template <class F>
void each_run(const Walk& w, F f) {
  const int64_t inner = w.extent[w.rank - 1];
  int64_t outer = 1;
  for (int i = 0; i + 1 < w.rank; ++i) outer *= w.extent[i];
  parallel_for(outer, 1 + kGrain / (inner + 1), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      int64_t rest = o, oa = 0, ob = 0;
      for (int i = w.rank - 2; i >= 0; --i) {
        const int64_t k = rest % w.extent[i];
        rest /= w.extent[i];
        oa += k * w.a[i];
        ob += k * w.b[i];
      }
      f(o * inner, inner, oa, ob);
    }
  });
}

// y[i] = f(a[...], b[...], i) with the inner strides known to the compiler where they are 0 or 1.
template <class T, class F>
void broadcast(const Tensor& y, const Tensor& ta, const Tensor& tb, F f) {
  T* p = y.data<T>();
  const T *a = ta.data<T>(), *b = tb.data<T>();
  using A = Acc<T>;
  const Walk w = walk_of(y.shape(), ta.shape(), tb.shape());
  const int64_t sa = w.a[w.rank - 1], sb = w.b[w.rank - 1];
  if (w.together()) {
    parallel_for(y.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) p[i] = static_cast<T>(f(A(a[i]), A(b[i]), i));
    });
    return;
  }
  each_run(w, [&](int64_t begin, int64_t n, int64_t oa, int64_t ob) {
    const T *ra = a + oa, *rb = b + ob;
    T* row = p + begin;
    if (sa == 1 && sb == 1)
      for (int64_t i = 0; i < n; ++i) row[i] = static_cast<T>(f(A(ra[i]), A(rb[i]), begin + i));
    else if (sa == 1 && sb == 0)
      for (int64_t i = 0; i < n; ++i) row[i] = static_cast<T>(f(A(ra[i]), A(*rb), begin + i));
    else
      for (int64_t i = 0; i < n; ++i) row[i] = static_cast<T>(f(A(ra[i * sa]), A(rb[i * sb]), begin + i));
  });
}

}  // namespace

template <class F>
void unary_forward(const Tensor& y, const Tensor& x) {
  with_float(x.dtype(), [&]<class T>() {
    const T* p = x.data<T>();
    fill<T>(y, [=](int64_t i) { return F::forward(Acc<T>(p[i])); });
  });
}

template <class F>
void unary_backward(const Tensor& dx, const Tensor& x, const Tensor& y, const Tensor& dy) {
  with_float(x.dtype(), [&]<class T>() {
    const T *px = x.data<T>(), *py = y.data<T>(), *g = dy.data<T>();
    fill<T>(dx, [=](int64_t i) { return F::derivative(Acc<T>(px[i]), Acc<T>(py[i])) * Acc<T>(g[i]); });
  });
}

template <class F>
void binary_forward(const Tensor& y, const Tensor& a, const Tensor& b) {
  if (y.numel() == 0) return;
  with_float(y.dtype(), [&]<class T>() {
    broadcast<T>(y, a, b, [](auto u, auto v, int64_t) { return F::forward(u, v); });
  });
}

template <class F>
void binary_backward(const Tensor& d, const Tensor& a, const Tensor& b, const Tensor& dy, bool first) {
  if (d.numel() == 0) return;
  with_float(d.dtype(), [&]<class T>() {
    const T* g = dy.data<T>();
    if (first)
      broadcast<T>(d, a, b, [=](auto u, auto v, int64_t i) { return F::derivative_a(u, v) * Acc<T>(g[i]); });
    else
      broadcast<T>(d, a, b, [=](auto u, auto v, int64_t i) { return F::derivative_b(u, v) * Acc<T>(g[i]); });
  });
}

void affine(const Tensor& y, const Tensor& x, double alpha, double beta) {
  with_float(x.dtype(), [&]<class T>() {
    const T* p = x.data<T>();
    const auto a = static_cast<Acc<T>>(alpha), b = static_cast<Acc<T>>(beta);
    fill<T>(y, [=](int64_t i) { return a * Acc<T>(p[i]) + b; });
  });
}

void sum_to(const Tensor& to, const Tensor& from) {
  // Summed one output at a time in index order, in the accumulator type; the runs of `from` that feed an
  // output are found through strides that are 0 where `to` stretches.
  with_float(to.dtype(), [&]<class T>() {
    Scratch<Acc<T>> sums(static_cast<size_t>(to.numel()), 0);
    const T* x = from.data<T>();
    if (from.numel() > 0) {
      const Walk w = walk_of(from.shape(), from.shape(), to.shape());
      const int64_t inner = w.extent[w.rank - 1], step = w.b[w.rank - 1];
      for (int64_t o = 0; o < from.numel() / inner; ++o) {
        int64_t rest = o, at = 0;
        for (int i = w.rank - 2; i >= 0; --i) {
          at += rest % w.extent[i] * w.b[i];
          rest /= w.extent[i];
        }
        Acc<T>* s = sums.data() + at;
        const T* run = x + o * inner;
        if (step == 1) {
          for (int64_t i = 0; i < inner; ++i) s[i] += Acc<T>(run[i]);
        } else {
          Acc<T> sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < inner; ++i) sum += Acc<T>(run[i]);
          *s += sum;
        }
      }
    }
    T* y = to.data<T>();
    for (size_t i = 0; i < sums.size(); ++i) y[i] = static_cast<T>(sums[i]);
  });
}

namespace {
template <class... F>
constexpr auto instances(FunctionList<F...>) {
  if constexpr (requires { (F::forward(1.0f), ...); })
    return std::tuple{std::pair{&unary_forward<F>, &unary_backward<F>}...};
  else
    return std::tuple{std::pair{&binary_forward<F>, &binary_backward<F>}...};
}
}  // namespace
[[maybe_unused]] extern const auto unary_kernels = instances(UnaryFunctions{});
[[maybe_unused]] extern const auto binary_kernels = instances(BinaryFunctions{});

}  // namespace weft::cpu
