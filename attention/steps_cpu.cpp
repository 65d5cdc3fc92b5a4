#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention/flash_attention.h"
#include "attention/steps.h"
#include "autograd/ops/rotary.h"
#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

// Each multiplies a number that memory has to bring.
constexpr int64_t kSmall = kWorthACore / 16;

template <class T>
T* address(const Tensor& table, int64_t row, int column) {
  return static_cast<T*>(reinterpret_cast<void* const*>(table.raw())[row * (table.dim(1) / 2) + column]);
}

// Head h of row m of x (M, H, D).
template <class T>
const T* row_of(const Tensor& x, int64_t m, int64_t h) {
  return x.data<T>() + m * x.pitch() + h * x.dim(2);
}

template <class T>
void recurrent(const Tensor& o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
               const Tensor& beta, const Tensor& states, double factor) {
  using W = Acc<T>;
  const int64_t heads = q.dim(1), d = q.dim(2), e = v.dim(2);
  parallel_for(q.dim(0) * heads, 1 + kSmall / (d * e + 1), [&](int64_t begin, int64_t end) {
    Scratch<W> u(static_cast<size_t>(e)), y(u.size());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = i / heads, h = i % heads;
      const T *query = row_of<T>(q, m, h), *key = row_of<T>(k, m, h), *value = row_of<T>(v, m, h);
      W* s = address<W>(states, m, 0) + h * d * e;
      const W* gate = nullptr;
      if (g.defined()) gate = g.data<W>() + m * g.pitch() + h * (g.rank() == 3 ? d : 1);
      const bool each = g.defined() && g.rank() == 3;
      const W one = gate != nullptr && !each ? std::exp(*gate) : W(1);
      for (int64_t j = 0; j < e; ++j) u[j] = static_cast<W>(value[j]);
      for (int64_t r = 0; r < d; ++r) {
        const W decay = each ? std::exp(gate[r]) : one;
        W* row = s + r * e;
        if (decay != 1)
          for (int64_t j = 0; j < e; ++j) row[j] *= decay;
        if (!beta.defined()) continue;
        const W x = static_cast<W>(key[r]);
        for (int64_t j = 0; j < e; ++j) u[j] -= x * row[j];
      }
      if (beta.defined()) {
        const W strength = beta.data<W>()[m * beta.pitch() + h];
        for (W& x : u) x *= strength;
      }
      std::fill(y.begin(), y.end(), W(0));
      for (int64_t r = 0; r < d; ++r) {
        const W x = static_cast<W>(key[r]), z = static_cast<W>(query[r]);
        W* row = s + r * e;
        for (int64_t j = 0; j < e; ++j) {
          row[j] += x * u[j];
          y[j] += z * row[j];
        }
      }
      T* to = o.data<T>() + i * e;
      for (int64_t j = 0; j < e; ++j) store(to[j], static_cast<W>(factor) * y[j]);
    }
  });
}

template <class T>
void ema(const Tensor& y, const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
         const Tensor& states) {
  using W = Acc<T>;
  const int64_t channels = x.dim(1), n = in.dim(1);
  const W *a = in.data<W>(), *c = out.data<W>(), *q = decay.data<W>();
  for (int64_t m = 0; m < x.dim(0); ++m) {
    W* h = address<W>(states, m, 0);
    const T* from = x.data<T>() + m * x.pitch();
    for (int64_t i = 0; i < channels; ++i) {
      W sum = 0;
      for (int64_t j = i * n; j < (i + 1) * n; ++j) {
        h[j] = q[j] * h[j] + a[j] * static_cast<W>(from[i]);
        sum += c[j] * h[j];
      }
      store(y.data<T>()[m * channels + i], sum);
    }
  }
}

template <class T>
void attend(const Tensor& o, const Tensor& lse, const StepTokens& t, const Tensor& caches,
            const AttentionOptions& options) {
  using W = Acc<T>;
  const int64_t m_all = t.q.dim(0), heads = t.q.dim(1), groups = t.k.dim(1), d = t.q.dim(2), e = t.v.dim(2);
  const int32_t *position = t.position.data<int32_t>(), *document = t.document.data<int32_t>();
  int64_t longest = 0;
  for (int64_t m = 0; m < m_all; ++m) {
    const int64_t at = position[m];
    std::copy_n(row_of<T>(t.k, m, 0), groups * d, address<T>(caches, m, 0) + at * groups * d);
    std::copy_n(row_of<T>(t.v, m, 0), groups * e, address<T>(caches, m, 1) + at * groups * e);
    address<int32_t>(caches, m, 2)[at] = position[m];
    address<int32_t>(caches, m, 3)[at] = document[m];
    longest = std::max(longest, at + 1);
  }
  const std::vector<double> slopes = options.alibi ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  parallel_for(m_all * heads, 1 + kSmall / (longest * (d + e)), [&](int64_t begin, int64_t end) {
    Scratch<W> p, sum(static_cast<size_t>(e));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t m = i / heads, h = i % heads, group = h * groups / heads, at = position[m];
      const int64_t first = options.window > 0 ? std::max<int64_t>(0, at + 1 - options.window) : 0;
      const T *q = row_of<T>(t.q, m, h), *k = address<T>(caches, m, 0) + group * d,
              *v = address<T>(caches, m, 1) + group * e;
      p.resize(static_cast<size_t>(at + 1 - first));
      for (int64_t j = first; j <= at; ++j) {
        const T* key = k + j * groups * d;
        const W dot = row_sum<W>(d, [&](int64_t x) { return static_cast<W>(q[x]) * static_cast<W>(key[x]); });
        p[j - first] =
            static_cast<W>(options.scale) * dot - static_cast<W>(slopes[h]) * static_cast<W>(at - j);
      }
      const W top = *std::max_element(p.begin(), p.end());
      W total = 0;
      std::fill(sum.begin(), sum.end(), W(0));
      for (int64_t j = first; j <= at; ++j) {
        const W weight = std::exp(p[j - first] - top);
        const T* value = v + j * groups * e;
        total += weight;
        for (int64_t x = 0; x < e; ++x) sum[x] += weight * static_cast<W>(value[x]);
      }
      T* to = o.data<T>() + i * e;
      for (int64_t x = 0; x < e; ++x) store(to[x], sum[x] / total);
      lse.data<W>()[i] = top + std::log(total);
    }
  });
}

}  // namespace

void recurrent_step(const Tensor& o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                    const Tensor& beta, const Tensor& states, double scale) {
  with_float(v.dtype(), [&]<class T>() { recurrent<T>(o, q, k, v, g, beta, states, scale); });
}

void ema_step(const Tensor& y, const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
              const Tensor& states) {
  with_float(x.dtype(), [&]<class T>() { ema<T>(y, x, in, out, decay, states); });
}

void attention_step(const Tensor& o, const Tensor& lse, const StepTokens& given, const Tensor& caches,
                    int64_t, const AttentionOptions& options, double turn) {
  StepTokens tokens = given;
  if (turn > 0)
    for (Tensor* x : {&tokens.q, &tokens.k}) *x = weft::rotary(*x, tokens.position, turn).value();
  with_float(o.dtype(), [&]<class T>() { attend<T>(o, lse, tokens, caches, options); });
}

void shift_window(const Tensor& window, const Tensor& rows) {
  const int64_t width = window.dim(0) / rows.dim(0), bytes = rows.row_size() * size_of(rows.dtype()),
                pitch = rows.pitch() * size_of(rows.dtype());
  for (int64_t m = 0; m < rows.dim(0); ++m) {
    char* to = static_cast<char*>(window.raw()) + m * width * bytes;
    std::memmove(to, to + bytes, static_cast<size_t>((width - 1) * bytes));
    std::memcpy(to + (width - 1) * bytes, static_cast<const char*>(rows.raw()) + m * pitch,
                static_cast<size_t>(bytes));
  }
}

}  // namespace weft::cpu
