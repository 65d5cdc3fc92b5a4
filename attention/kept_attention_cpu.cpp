#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/kept_attention.h"
#include "attention/row_math.h"
#include "autograd/ops/sparsek_threshold.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

template <class T>
constexpr T kNever = -std::numeric_limits<T>::infinity();

// f(head, first, end) for each document and head, those of one head one after another.
template <class F>
void for_each_text(const KeptRows& rows, int64_t heads, F f) {
  const int32_t* first = rows.first.data<int32_t>();
  const int64_t documents = rows.first.numel() - 1;
  parallel_for(heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h)
      for (int64_t g = 0; g < documents; ++g) f(h, int64_t{first[g]}, int64_t{first[g + 1]});
  });
}

// The candidates that are kept at a row, the earlier first; asked row by row.
class Kept {
 public:
  Kept(const int32_t* leave, int64_t first) : leave_(leave), at_(first) {}
  const std::vector<int64_t>& at(int64_t t) {
    while (at_ <= t) now_.push_back(at_++);
    std::erase_if(now_, [&](int64_t j) { return leave_[j] <= t; });
    return now_;
  }

 private:
  const int32_t* leave_;
  int64_t at_;
  std::vector<int64_t> now_;
};

template <class T>
T gate_of(T above) {
  return std::clamp(above, T(0), T(1));
}

}  // namespace

void kept_select(const KeptPairs& pairs, const Tensor& u, const KeptRows& rows, const KeptOptions& options) {
  const int64_t n = u.dim(0), heads = u.dim(1), kept = options.kept, support = options.support;
  with_wide(u.dtype(), [&]<class T>() {
    const T* U = u.data<T>();
    for_each_text(rows, heads, [&](int64_t h, int64_t first, int64_t end) {
      int32_t* leave[2] = {pairs.leave.data<int32_t>() + h * n,
                           pairs.leave.data<int32_t>() + (heads + h) * n};
      std::vector<int64_t> best;  // the support, highest score first
      std::vector<double> z;
      for (int64_t t = first; t < end; ++t) {
        const T score = U[t * heads + h];
        if (score > kNever<T>) {
          const auto place = std::upper_bound(best.begin(), best.end(), score,
                                              [&](T s, int64_t j) { return s > U[j * heads + h]; });
          const int64_t rank = place - best.begin();
          best.insert(place, t);
          const auto size = static_cast<int64_t>(best.size());
          leave[0][t] = static_cast<int32_t>(rank < kept ? end : t);
          leave[1][t] = static_cast<int32_t>(end);
          // One more is in front of those behind it.
          if (rank < kept && size > kept) leave[0][best[kept]] = static_cast<int32_t>(t);
          if (size > support) {
            leave[1][best.back()] = static_cast<int32_t>(t);
            best.pop_back();
          }
        } else {
          leave[0][t] = leave[1][t] = static_cast<int32_t>(t);
        }
        T tau = kNever<T>;
        int32_t between = 0;
        if (static_cast<int64_t>(best.size()) > kept) {
          const auto top = static_cast<double>(U[best[0] * heads + h]);
          z.clear();
          for (const int64_t j : best) z.push_back(static_cast<double>(U[j * heads + h]) - top);
          tau = static_cast<T>(top + sparsek_threshold(z, kept));
          for (const int64_t j : best) {
            const T above = U[j * heads + h] - tau;
            between += above > 0 && above < 1;
          }
        }
        pairs.tau.data<T>()[t * heads + h] = tau;
        pairs.between.data<int32_t>()[t * heads + h] = between;
      }
    });
  });
}

void kept_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& u, const KeptPairs& pairs, const KeptRows& rows, const KeptOptions& options) {
  const int64_t n = q.dim(0), heads = q.dim(1), groups = k.dim(1), d = q.dim(2), e = v.dim(2);
  with_wide(q.dtype(), [&]<class T>() {
    const T *Q = q.data<T>(), *K = k.data<T>(), *V = v.data<T>(), *U = u.data<T>();
    const T scale = static_cast<T>(options.scale);
    for_each_text(rows, heads, [&](int64_t h, int64_t first, int64_t end) {
      const int64_t owner = h * groups / heads;
      Kept kept(pairs.leave.data<int32_t>() + h * n, first);
      Scratch<T> score;
      for (int64_t t = first; t < end; ++t) {
        const int64_t row = t * heads + h;
        const T tau = pairs.tau.data<T>()[row];
        T* out = o.data<T>() + row * e;
        std::fill_n(out, e, T(0));
        T top = kNever<T>, sum = 0;
        score.clear();
        const std::vector<int64_t>& now = kept.at(t);
        for (const int64_t j : now) {
          const T gate = gate_of(U[j * heads + h] - tau), on_key = options.gate_keys ? gate : T(1);
          score.push_back(gate == 0 ? kNever<T>
                                    : scale * on_key * dot(Q + row * d, K + (j * groups + owner) * d, d));
          top = std::max(top, score.back());
        }
        if (top > kNever<T>) {
          for (T& s : score) sum += s = vector_math::exp(s - top);
          for (size_t i = 0; i < now.size(); ++i) {
            const T gate = gate_of(U[now[i] * heads + h] - tau);
            add_scaled(out, score[i] * gate / sum, V + (now[i] * groups + owner) * e, e);
          }
        }
        lse.data<T>()[row] = top > kNever<T> ? top + std::log(sum) : kNever<T>;
      }
    });
  });
}

// With P = exp(s - lse), a = dO . v and D = dO . o - dlse:  ds = P (p a - D),  dp = P a + scale ds q . k,
// dv = P p dO,  dq = scale p ds k,  dk = scale p ds q. Of the gates dp goes to u_j where 0 < p < 1, less the
// mean of all of these over the scores of the support that are so.
void kept_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& du, const Tensor& q,
                   const Tensor& k, const Tensor& v, const Tensor& u, const KeptPairs& pairs,
                   const KeptRows& rows, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                   const Tensor& d_lse, const KeptOptions& options) {
  const int64_t n = q.dim(0), heads = q.dim(1), groups = k.dim(1), d = q.dim(2), e = v.dim(2);
  for (const Tensor& x : {dq, dk, dv, du}) x.zero();
  with_wide(q.dtype(), [&]<class T>() {
    const T *Q = q.data<T>(), *K = k.data<T>(), *V = v.data<T>(), *U = u.data<T>();
    const T *dO = d_o.data<T>(), *O = o.data<T>();
    const T scale = static_cast<T>(options.scale);
    const auto of_head = [&](int64_t h, int64_t first, int64_t end) {
      const int64_t owner = h * groups / heads;
      const int32_t* leave = pairs.leave.data<int32_t>() + h * n;
      Kept kept(leave, first), support(leave + heads * n, first);
      for (int64_t t = first; t < end; ++t) {
        const int64_t row = t * heads + h;
        const std::vector<int64_t>& now = kept.at(t);
        const std::vector<int64_t>& all = support.at(t);
        const T whole = lse.data<T>()[row], tau = pairs.tau.data<T>()[row];
        if (whole == kNever<T>) continue;
        const T delta = dot(dO + row * e, O + row * e, e) - d_lse.data<T>()[row];
        double sum = 0;
        for (const int64_t j : now) {
          const int64_t from = j * groups + owner;
          const T above = U[j * heads + h] - tau, gate = gate_of(above),
                  on_key = options.gate_keys ? gate : T(1);
          if (gate == 0) continue;
          const T product = scale * dot(Q + row * d, K + from * d, d), a = dot(dO + row * e, V + from * e, e);
          const T p = vector_math::exp(on_key * product - whole), ds = p * (gate * a - delta);
          add_scaled(dv.data<T>() + from * e, p * gate, dO + row * e, e);
          add_scaled(dq.data<T>() + row * d, scale * on_key * ds, K + from * d, d);
          add_scaled(dk.data<T>() + from * d, scale * on_key * ds, Q + row * d, d);
          if (above >= 1) continue;
          const T d_gate = p * a + (options.gate_keys ? ds * product : T(0));
          du.data<T>()[j * heads + h] += d_gate;
          sum += static_cast<double>(d_gate);
        }
        const int32_t between = pairs.between.data<int32_t>()[row];
        if (between == 0) continue;
        for (const int64_t j : all) {
          const T above = U[j * heads + h] - tau;
          if (above > 0 && above < 1) du.data<T>()[j * heads + h] -= static_cast<T>(sum / between);
        }
      }
    };
    // Heads that share keys write to the same rows.
    for_each_text(rows, groups, [&](int64_t g, int64_t first, int64_t end) {
      for (int64_t h = g * heads / groups; h < (g + 1) * heads / groups; ++h) of_head(h, first, end);
    });
  });
}

}  // namespace weft::cpu
