// Eigen for the products of tiles; softmax by hand.

#include <Eigen/Core>
#include <algorithm>
#include <limits>
#include <numbers>

#include "attention/flash_attention.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

constexpr int64_t kTile = 64;

// Of the laplace weights: the mean, and 1 / (sigma sqrt 2).
constexpr double kLaplaceMean = 1 / std::numbers::sqrt2, kLaplaceRate = 2.5066282746310002;

template <class W>
using Matrix = Eigen::Matrix<W, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class W>
using Rows = Eigen::Map<Matrix<W>, 0, Eigen::OuterStride<>>;

// What a run of tokens has in common.
struct Span {
  int32_t first_document, last_document, first_position, last_position;
};
Span span_of(const int32_t* document, const int32_t* position, int64_t n) {
  const auto [d0, d1] = std::minmax_element(document, document + n);
  const auto [p0, p1] = std::minmax_element(position, position + n);
  return {*d0, *d1, *p0, *p1};
}

enum class Sight { none, some, all };

// Whether queries q see keys k; exact when each run is of one document.
Sight sight_of(const Span& q, const Span& k, const AttentionOptions& o) {
  if (k.last_document < q.first_document || q.last_document < k.first_document) return Sight::none;
  const bool one =
      q.first_document == q.last_document && k.first_document == k.last_document && q.first_document >= 0;
  if (!one) return Sight::some;
  if (o.causal && k.first_position > q.last_position) return Sight::none;
  if (o.window > 0 && q.first_position - k.last_position >= o.window) return Sight::none;
  if (o.block > 0 && (q.first_position / o.block > k.last_position / o.block ||
                      k.first_position / o.block > q.last_position / o.block))
    return Sight::none;
  const auto block_of = [&](int32_t position) { return o.block > 0 ? position / o.block : 0; };
  const bool all = (!o.causal || k.last_position <= q.first_position) &&
                   block_of(std::min(q.first_position, k.first_position)) ==
                       block_of(std::max(q.last_position, k.last_position)) &&
                   (o.window == 0 || (q.last_position - k.first_position < o.window &&
                                      (o.causal || k.last_position - q.first_position < o.window)));
  return all ? Sight::all : Sight::some;
}

// Rows [begin, begin + n) of head h of x (N, H, D) as f32 or f64: in place where the type is that already,
// through `space` for bf16.
template <class T, class W>
Rows<W> rows_of(const Tensor& x, int64_t begin, int64_t n, int64_t h, std::vector<W>& space) {
  const int64_t d = x.dim(2), stride = x.dim(1) * d;
  T* p = x.data<T>() + begin * stride + h * d;
  if constexpr (std::is_same_v<T, W>) {
    return Rows<W>(p, n, d, Eigen::OuterStride<>(stride));
  } else {
    space.resize(static_cast<size_t>(kTile * d));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < d; ++j) space[i * d + j] = static_cast<W>(p[i * stride + j]);
    return Rows<W>(space.data(), n, d, Eigen::OuterStride<>(d));
  }
}

template <class W>
struct Scores {
  const AttentionOptions& options;
  const int32_t *q_position, *q_document, *k_position, *k_document;
  W slope = 0;
  const W* bias = nullptr;  // of this head, by distance
  int64_t reach = 0;        // how many

  int64_t bias_of(int32_t apart) const { return std::min<int64_t>(apart, reach - 1); }

  // Turns the product of a tile into scores: bias, and -inf where a query must not see a key.
  void mask(Matrix<W>& s, int64_t q, int64_t k, int64_t nq, int64_t nk, Sight sight) const {
    const W never = -std::numeric_limits<W>::infinity();
    if (sight == Sight::all && !options.alibi && bias == nullptr) return;
    for (int64_t i = 0; i < nq; ++i) {
      W* row = s.data() + i * s.cols();
      const int32_t p = q_position[q + i], d = q_document[q + i];
      for (int64_t j = 0; j < nk; ++j) {
        const int32_t distance = p - k_position[k + j];
        const int32_t apart = distance < 0 ? -distance : distance;
        const bool seen = d == k_document[k + j] && d >= 0 && (!options.causal || distance >= 0) &&
                          (options.window == 0 || apart < options.window) &&
                          (options.block == 0 || p / options.block == k_position[k + j] / options.block);
        row[j] = seen ? row[j] - slope * static_cast<W>(apart) + (bias ? bias[bias_of(apart)] : W(0)) : never;
      }
    }
  }

  // Of a tile of gradients of scale q k^T. Where nobody is seen they are 0.
  void add_bias_gradient(W* to, const Matrix<W>& ds, int64_t q, int64_t k) const {
    const W factor = 1 / static_cast<W>(options.scale);
    for (int64_t i = 0; i < ds.rows(); ++i)
      for (int64_t j = 0; j < ds.cols(); ++j)
        to[bias_of(std::abs(q_position[q + i] - k_position[k + j]))] += ds(i, j) * factor;
  }
};

std::vector<Span> spans_of(const Tensor& document, const Tensor& position) {
  std::vector<Span> spans;
  const int64_t n = document.dim(0);
  for (int64_t i = 0; i < n; i += kTile)
    spans.push_back(
        span_of(document.data<int32_t>() + i, position.data<int32_t>() + i, std::min(kTile, n - i)));
  return spans;
}

template <class W>
Scores<W> scores_of(const AttentionTokens& t, const AttentionOptions& options, const Tensor& bias,
                    int64_t head) {
  Scores<W> scores{options, t.q_position.data<int32_t>(), t.q_document.data<int32_t>(),
                   t.k_position.data<int32_t>(), t.k_document.data<int32_t>()};
  if (bias.defined()) {
    scores.reach = bias.dim(1);
    scores.bias = bias.data<W>() + head * scores.reach;
  }
  return scores;
}

// Weights that depend on their own score alone, and their derivatives; 0 at a score of -infinity.
template <class W>
W weight_of(Weighting f, W s) {
  if (f == Weighting::relu2) return s > 0 ? s * s : W(0);
  return W(0.5) * std::erfc((W(kLaplaceMean) - s) * W(kLaplaceRate));
}
template <class W>
W weight_slope(Weighting f, W s) {
  if (f == Weighting::relu2) return s > 0 ? 2 * s : W(0);
  const W u = (s - W(kLaplaceMean)) * W(kLaplaceRate);
  return W(std::numbers::sqrt2) * vector_math::exp(-u * u);
}

template <class T, class W>
void forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
             const AttentionTokens& tokens, const Tensor& bias, const AttentionOptions& options) {
  const int64_t n = q.dim(0), m = k.dim(0), heads = q.dim(1), group = heads / k.dim(1), dv = v.dim(2);
  const std::vector<Span> q_spans = spans_of(tokens.q_document, tokens.q_position);
  const std::vector<Span> k_spans = spans_of(tokens.k_document, tokens.k_position);
  const std::vector<double> slopes = options.alibi ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  const auto tiles = static_cast<int64_t>(q_spans.size());
  const W never = -std::numeric_limits<W>::infinity();
  parallel_for(tiles * heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<W> q_space, k_space, v_space;
    Matrix<W> s, acc;
    std::vector<W> peak(kTile), sum(kTile);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t h = task % heads, tile = task / heads, q0 = tile * kTile, nq = std::min(kTile, n - q0);
      Scores<W> scores = scores_of<W>(tokens, options, bias, h);
      scores.slope = static_cast<W>(slopes[h]);
      const Rows<W> Q = rows_of<T, W>(q, q0, nq, h, q_space);
      acc.setZero(nq, dv);
      std::fill(peak.begin(), peak.end(), never);
      std::fill(sum.begin(), sum.end(), W(0));
      for (int64_t k0 = 0; k0 < m; k0 += kTile) {
        const Sight sight = sight_of(q_spans[tile], k_spans[k0 / kTile], options);
        if (sight == Sight::none) continue;
        const int64_t nk = std::min(kTile, m - k0);
        const Rows<W> K = rows_of<T, W>(k, k0, nk, h / group, k_space),
                      V = rows_of<T, W>(v, k0, nk, h / group, v_space);
        s.resize(nq, nk);
        s.noalias() = static_cast<W>(options.scale) * (Q * K.transpose());
        scores.mask(s, q0, k0, nq, nk, sight);
        for (int64_t i = 0; i < nq; ++i) {
          W* row = s.data() + i * nk;
          if (options.weighting != Weighting::softmax) {  // the sum counts the keys seen
            sum[i] += static_cast<W>(nk - std::count(row, row + nk, never));
            peak[i] = 0;
            for (int64_t j = 0; j < nk; ++j) row[j] = weight_of(options.weighting, row[j]);
            continue;
          }
          W top = peak[i];
          for (int64_t j = 0; j < nk; ++j) top = std::max(top, row[j]);
          if (top == never) {  // nothing seen so far
            std::fill(row, row + nk, W(0));
            continue;
          }
          W total = 0;
#pragma omp simd reduction(+ : total)
          for (int64_t j = 0; j < nk; ++j) {
            row[j] = vector_math::exp(row[j] - top);
            total += row[j];
          }
          const W shrink = vector_math::exp(peak[i] - top);
          if (shrink != W(1)) acc.row(i) *= shrink;
          sum[i] = sum[i] * shrink + total;
          peak[i] = top;
        }
        acc.noalias() += s * V;
      }
      T* out = o.data<T>() + (q0 * heads + h) * dv;
      W* out_lse = lse.data<W>() + q0 * heads + h;
      for (int64_t i = 0; i < nq; ++i) {
        const W inverse = sum[i] > 0 ? W(1) / sum[i] : W(0);
        for (int64_t j = 0; j < dv; ++j) out[i * heads * dv + j] = static_cast<T>(acc(i, j) * inverse);
        out_lse[i * heads] = sum[i] > 0 ? peak[i] + std::log(sum[i]) : never;
      }
    }
  });
}

// With P = exp(S - lse):  dV = P^T dO,  dP = dO V^T,  dS = P (dP - (dO . o - dlse)),  dQ = scale dS K,  dK =
// scale dS^T Q. One query head a task, so every sum has one writer; the heads of a group are added
// afterwards, in order.
template <class T, class W>
void backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias, const Tensor& q,
              const Tensor& k, const Tensor& v, const AttentionTokens& tokens, const Tensor& bias,
              const Tensor& o, const Tensor& lse, const Tensor& d_o, const Tensor& d_lse,
              const AttentionOptions& options) {
  const int64_t n = q.dim(0), m = k.dim(0), heads = q.dim(1), kv_heads = k.dim(1), group = heads / kv_heads;
  const int64_t d = q.dim(2), e = v.dim(2);
  const std::vector<Span> q_spans = spans_of(tokens.q_document, tokens.q_position);
  const std::vector<Span> k_spans = spans_of(tokens.k_document, tokens.k_position);
  const std::vector<double> slopes = options.alibi ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  const W scale = static_cast<W>(options.scale);
  parallel_for(kv_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<W> q_space, k_space, v_space, o_space, g_space;
    Matrix<W> p, ds, dq_all(n, d), dk_all(m, d), dv_all(m, e);
    std::vector<W> delta(static_cast<size_t>(n)), shift(static_cast<size_t>(n));
    for (int64_t hk = begin; hk < end; ++hk) {
      dk_all.setZero();
      dv_all.setZero();
      for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
        dq_all.setZero();
        Scores<W> scores = scores_of<W>(tokens, options, bias, h);
        scores.slope = static_cast<W>(slopes[h]);
        for (int64_t i = 0; i < n; ++i) {
          const W l = lse.data<W>()[i * heads + h];
          // A query that saw nothing: exp(score - infinity) = 0.
          shift[i] = l == -std::numeric_limits<W>::infinity() ? std::numeric_limits<W>::infinity() : l;
        }
        for (int64_t q0 = 0; q0 < n; q0 += kTile) {
          const int64_t nq = std::min(kTile, n - q0);
          const Rows<W> O = rows_of<T, W>(o, q0, nq, h, o_space), G = rows_of<T, W>(d_o, q0, nq, h, g_space);
          const W* gl = d_lse.data<W>() + q0 * heads + h;
          for (int64_t i = 0; i < nq; ++i) delta[q0 + i] = O.row(i).dot(G.row(i)) - gl[i * heads];
        }
        for (int64_t k0 = 0; k0 < m; k0 += kTile) {
          const int64_t nk = std::min(kTile, m - k0);
          const Rows<W> K = rows_of<T, W>(k, k0, nk, hk, k_space), V = rows_of<T, W>(v, k0, nk, hk, v_space);
          for (int64_t q0 = 0; q0 < n; q0 += kTile) {
            const Sight sight = sight_of(q_spans[q0 / kTile], k_spans[k0 / kTile], options);
            if (sight == Sight::none) continue;
            const int64_t nq = std::min(kTile, n - q0);
            const Rows<W> Q = rows_of<T, W>(q, q0, nq, h, q_space),
                          G = rows_of<T, W>(d_o, q0, nq, h, g_space);
            p.resize(nq, nk);
            ds.resize(nq, nk);
            p.noalias() = scale * (Q * K.transpose());
            scores.mask(p, q0, k0, nq, nk, sight);
            ds.noalias() = G * V.transpose();
            for (int64_t i = 0; i < nq; ++i) {
              W *prow = p.data() + i * nk, *srow = ds.data() + i * nk;
              const W s = shift[q0 + i], t = delta[q0 + i];
              if (options.weighting != Weighting::softmax) {
                const W share = std::exp(-s);  // one over the number of keys seen
                for (int64_t j = 0; j < nk; ++j) {
                  srow[j] *= scale * share * weight_slope(options.weighting, prow[j]);
                  prow[j] = share * weight_of(options.weighting, prow[j]);
                }
                continue;
              }
#pragma omp simd
              for (int64_t j = 0; j < nk; ++j) {
                prow[j] = vector_math::exp(prow[j] - s);
                srow[j] = scale * prow[j] * (srow[j] - t);
              }
            }
            if (bias.defined()) scores.add_bias_gradient(dbias.data<W>() + h * bias.dim(1), ds, q0, k0);
            dv_all.middleRows(k0, nk).noalias() += p.transpose() * G;
            dk_all.middleRows(k0, nk).noalias() += ds.transpose() * Q;
            dq_all.middleRows(q0, nq).noalias() += ds * K;
          }
        }
        T* out = dq.data<T>() + h * d;
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < d; ++j) out[i * heads * d + j] = static_cast<T>(dq_all(i, j));
      }
      T *out_k = dk.data<T>() + hk * d, *out_v = dv.data<T>() + hk * e;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < d; ++j) out_k[i * kv_heads * d + j] = static_cast<T>(dk_all(i, j));
        for (int64_t j = 0; j < e; ++j) out_v[i * kv_heads * e + j] = static_cast<T>(dv_all(i, j));
      }
    }
  });
}

}  // namespace

void flash_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                   const AttentionTokens& tokens, const Tensor& bias, const AttentionOptions& options) {
  with_float(q.dtype(), [&]<class T>() { forward<T, Acc<T>>(o, lse, q, k, v, tokens, bias, options); });
}

void flash_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                    const Tensor& q, const Tensor& k, const Tensor& v, const AttentionTokens& tokens,
                    const Tensor& bias, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                    const Tensor& d_lse, const AttentionOptions& options) {
  with_float(q.dtype(), [&]<class T>() {
    backward<T, Acc<T>>(dq, dk, dv, dbias, q, k, v, tokens, bias, o, lse, d_o, d_lse, options);
  });
}

}  // namespace weft::cpu
