#include "autograd/ops/scan.h"

#include <algorithm>
#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {

// One decay and the elements it governs at a time: columns are independent, rows run in order.
void decay_scan_forward(const Tensor& a_before, const Tensor& s_before, const Tensor& a_total,
                        const Tensor& s_total, const Tensor& a, const Tensor& s, const Tensor& first) {
  const int64_t decays = a.row_size(), width = s.row_size(), per = decays ? width / decays : 0;
  const int32_t* f = first.data<int32_t>();
  const int64_t groups = first.dim(0) - 1, work = (a.dim(0) / std::max<int64_t>(1, groups) + 1) * per;
  with_float(a.dtype(), [&]<class T>() {
    const T *pa = a.data<T>(), *ps = s.data<T>();
    T *ab = a_before.data<T>(), *sb = s_before.data<T>(), *at = a_total.data<T>(), *st = s_total.data<T>();
    parallel_for(groups * decays, row_grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t g = task / decays, h = task % decays;
        T* state = st + g * width + h * per;
        std::fill(state, state + per, T(0));
        Acc<T> product = 1;
        for (int64_t i = f[g]; i < f[g + 1]; ++i) {
          const Acc<T> decay = pa[i * decays + h];
          ab[i * decays + h] = static_cast<T>(product);
          const T* in = ps + i * width + h * per;
          T* before = sb + i * width + h * per;
          for (int64_t e = 0; e < per; ++e) {
            before[e] = state[e];
            state[e] = static_cast<T>(decay * Acc<T>(state[e]) + Acc<T>(in[e]));
          }
          product *= decay;
        }
        at[g * decays + h] = static_cast<T>(product);
      }
    });
  });
}

void decay_scan_backward(const Tensor& da, const Tensor& ds, const Tensor& a, const Tensor& a_before,
                         const Tensor& s_before, const Tensor& first, const Tensor& g_a_before,
                         const Tensor& g_s_before, const Tensor& g_a_total, const Tensor& g_s_total) {
  const int64_t decays = a.row_size(), width = s_before.row_size(), per = decays ? width / decays : 0;
  const int32_t* f = first.data<int32_t>();
  const int64_t groups = first.dim(0) - 1, work = (a.dim(0) / std::max<int64_t>(1, groups) + 1) * per;
  with_float(a.dtype(), [&]<class T>() {
    const T *pa = a.data<T>(), *ab = a_before.data<T>(), *sb = s_before.data<T>();
    const T *gab = g_a_before.data<T>(), *gsb = g_s_before.data<T>(), *gat = g_a_total.data<T>(),
            *gst = g_s_total.data<T>();
    T *pda = da.data<T>(), *pds = ds.data<T>();
    parallel_for(groups * decays, row_grain(work), [&](int64_t begin, int64_t end) {
      Scratch<Acc<T>> d(static_cast<size_t>(per));  // gradient of the state behind row i
      for (int64_t task = begin; task < end; ++task) {
        const int64_t g = task / decays, h = task % decays;
        for (int64_t e = 0; e < per; ++e) d[e] = gst[g * width + h * per + e];
        Acc<T> d_product = gat[g * decays + h];
        for (int64_t i = f[g + 1] - 1; i >= f[g]; --i) {
          const int64_t at = i * width + h * per;
          const Acc<T> decay = pa[i * decays + h];
          Acc<T> sum = d_product * Acc<T>(ab[i * decays + h]);
          for (int64_t e = 0; e < per; ++e) {
            sum += d[e] * Acc<T>(sb[at + e]);
            pds[at + e] = static_cast<T>(d[e]);
            d[e] = decay * d[e] + Acc<T>(gsb[at + e]);
          }
          pda[i * decays + h] = static_cast<T>(sum);
          d_product = d_product * decay + Acc<T>(gab[i * decays + h]);
        }
      }
    });
  });
}

}  // namespace weft::cpu
