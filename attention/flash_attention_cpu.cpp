// Eigen for the products of tiles; softmax by hand.

#include <Eigen/Core>
#include <algorithm>
#include <limits>

#include "attention/flash_attention.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

constexpr int64_t kTile = 64;

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
  const bool all = (!o.causal || k.last_position <= q.first_position) &&
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

// The tokens of which a head is on, in order, and those of each tile of them.
struct Queries {
  std::vector<int32_t> token, position, document;
  std::vector<Span> spans;
  int64_t size() const { return std::ssize(token); }
};

std::vector<Queries> queries_of(const AttentionTokens& t, int64_t n, int64_t heads) {
  const int32_t *position = t.q_position.data<int32_t>(), *document = t.q_document.data<int32_t>();
  const Tensor active = t.active.defined() ? t.active.to(Dtype::f32) : Tensor();
  std::vector<Queries> all(static_cast<size_t>(active.defined() ? heads : 1));
  for (size_t h = 0; h < all.size(); ++h) {
    Queries& q = all[h];
    for (int64_t i = 0; i < n; ++i) {
      if (active.defined() && active.data<float>()[i * heads + static_cast<int64_t>(h)] == 0) continue;
      q.token.push_back(static_cast<int32_t>(i));
      q.position.push_back(position[i]);
      q.document.push_back(document[i]);
    }
    for (int64_t i = 0; i < q.size(); i += kTile)
      q.spans.push_back(span_of(q.document.data() + i, q.position.data() + i, std::min(kTile, q.size() - i)));
  }
  return all;
}

// Rows with which a tile of n queries is multiplied. Which heads are on must not change the bits of a row
// that is, and those of a product can depend on how many rows come with it, below a multiple of the kernel's
// block.
int64_t padded(int64_t n, const AttentionTokens& t) {
  constexpr int64_t kBlock = 16;
  return t.active.defined() && t.q_position.dim(0) >= kBlock ? (n + kBlock - 1) / kBlock * kBlock : n;
}

// Head h of these tokens of x (N, H, D), one row after another.
template <class T, class W>
void take_rows(Matrix<W>& to, const Tensor& x, const int32_t* token, int64_t n, int64_t h) {
  const int64_t d = x.dim(2), stride = x.dim(1) * d;
  const T* p = x.data<T>() + h * d;
  to.resize(n, d);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < d; ++j) to(i, j) = static_cast<W>(p[token[i] * stride + j]);
}

template <class W>
struct Scores {
  const AttentionOptions& options;
  const int32_t *q_position, *q_document, *k_position, *k_document;
  W slope = 0;

  // Turns the product of a tile into scores: bias, and -inf where a query must not see a key.
  void mask(Matrix<W>& s, int64_t q, int64_t k, int64_t nq, int64_t nk, Sight sight) const {
    const W never = -std::numeric_limits<W>::infinity();
    if (sight == Sight::all && !options.alibi) return;
    for (int64_t i = 0; i < nq; ++i) {
      W* row = s.data() + i * s.cols();
      const int32_t p = q_position[q + i], d = q_document[q + i];
      for (int64_t j = 0; j < nk; ++j) {
        const int32_t distance = p - k_position[k + j];
        const int32_t apart = distance < 0 ? -distance : distance;
        const bool seen = d == k_document[k + j] && d >= 0 && (!options.causal || distance >= 0) &&
                          (options.window == 0 || apart < options.window);
        row[j] = seen ? row[j] - slope * static_cast<W>(apart) : never;
      }
    }
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
Scores<W> scores_of(const Queries& queries, const AttentionTokens& t, const AttentionOptions& options) {
  return {options, queries.position.data(), queries.document.data(), t.k_position.data<int32_t>(),
          t.k_document.data<int32_t>()};
}

const Queries& of_head(const std::vector<Queries>& queries, int64_t h) {
  return queries[queries.size() == 1 ? 0 : static_cast<size_t>(h)];
}

template <class T, class W>
void forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
             const AttentionTokens& tokens, const AttentionOptions& options) {
  const int64_t n = q.dim(0), m = k.dim(0), heads = q.dim(1), group = heads / k.dim(1), dv = v.dim(2);
  const std::vector<Queries> queries = queries_of(tokens, n, heads);
  const std::vector<Span> k_spans = spans_of(tokens.k_document, tokens.k_position);
  const std::vector<double> slopes = options.alibi ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  const W never = -std::numeric_limits<W>::infinity();
  std::vector<std::pair<int64_t, int64_t>> tasks;  // tile, head
  for (int64_t tile = 0; tile * kTile < n; ++tile)
    for (int64_t h = 0; h < heads; ++h)
      if (tile < std::ssize(of_head(queries, h).spans)) tasks.emplace_back(tile, h);
  if (tokens.active.defined()) {
    o.zero();
    std::fill_n(lse.data<W>(), lse.numel(), never);
  }
  parallel_for(std::ssize(tasks), 1, [&](int64_t begin, int64_t end) {
    std::vector<W> k_space, v_space;
    Matrix<W> Q, s, acc;
    std::vector<W> peak(kTile), sum(kTile);
    for (int64_t task = begin; task < end; ++task) {
      const auto [tile, h] = tasks[task];
      const Queries& mine = of_head(queries, h);
      const int64_t q0 = tile * kTile, nq = std::min(kTile, mine.size() - q0);
      Scores<W> scores = scores_of<W>(mine, tokens, options);
      scores.slope = static_cast<W>(slopes[h]);
      take_rows<T, W>(Q, q, mine.token.data() + q0, nq, h);
      const int64_t rows = padded(nq, tokens);
      Q.conservativeResize(rows, q.dim(2));
      Q.bottomRows(rows - nq).setZero();
      acc.setZero(rows, dv);
      std::fill(peak.begin(), peak.end(), never);
      std::fill(sum.begin(), sum.end(), W(0));
      for (int64_t k0 = 0; k0 < m; k0 += kTile) {
        const Sight sight = sight_of(mine.spans[tile], k_spans[k0 / kTile], options);
        if (sight == Sight::none) continue;
        const int64_t nk = std::min(kTile, m - k0);
        const Rows<W> K = rows_of<T, W>(k, k0, nk, h / group, k_space),
                      V = rows_of<T, W>(v, k0, nk, h / group, v_space);
        s.resize(rows, nk);
        s.noalias() = static_cast<W>(options.scale) * (Q * K.transpose());
        scores.mask(s, q0, k0, nq, nk, sight);
        for (int64_t i = 0; i < nq; ++i) {
          W* row = s.data() + i * nk;
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
      for (int64_t i = 0; i < nq; ++i) {
        const int64_t row = mine.token[q0 + i] * heads + h;
        const W inverse = sum[i] > 0 ? W(1) / sum[i] : W(0);
        for (int64_t j = 0; j < dv; ++j) o.data<T>()[row * dv + j] = static_cast<T>(acc(i, j) * inverse);
        lse.data<W>()[row] = sum[i] > 0 ? peak[i] + std::log(sum[i]) : never;
      }
    }
  });
}

// With P = exp(S - lse):  dV = P^T dO,  dP = dO V^T,  dS = P (dP - (dO . o - dlse)),  dQ = scale dS K,  dK =
// scale dS^T Q. One query head a task, so every sum has one writer; the heads of a group are added
// afterwards, in order.
template <class T, class W>
void backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& q, const Tensor& k,
              const Tensor& v, const AttentionTokens& tokens, const Tensor& o, const Tensor& lse,
              const Tensor& d_o, const Tensor& d_lse, const AttentionOptions& options) {
  const int64_t n = q.dim(0), m = k.dim(0), heads = q.dim(1), kv_heads = k.dim(1), group = heads / kv_heads;
  const int64_t d = q.dim(2), e = v.dim(2);
  const std::vector<Queries> queries = queries_of(tokens, n, heads);
  const std::vector<Span> k_spans = spans_of(tokens.k_document, tokens.k_position);
  const std::vector<double> slopes = options.alibi ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  const W scale = static_cast<W>(options.scale);
  if (tokens.active.defined()) dq.zero();
  parallel_for(kv_heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<W> k_space, v_space;
    Matrix<W> p, ds, q_all, g_all, dq_all, dk_all(m, d), dv_all(m, e);
    std::vector<W> delta(static_cast<size_t>(n)), shift(static_cast<size_t>(n));
    for (int64_t hk = begin; hk < end; ++hk) {
      dk_all.setZero();
      dv_all.setZero();
      for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
        const Queries& mine = of_head(queries, h);
        const int64_t count = mine.size();
        take_rows<T, W>(q_all, q, mine.token.data(), count, h);
        take_rows<T, W>(g_all, d_o, mine.token.data(), count, h);
        dq_all.setZero(count, d);
        Scores<W> scores = scores_of<W>(mine, tokens, options);
        scores.slope = static_cast<W>(slopes[h]);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = mine.token[i] * heads + h;
          const W l = lse.data<W>()[row];
          // A query that saw nothing: exp(score - infinity) = 0.
          shift[i] = l == -std::numeric_limits<W>::infinity() ? std::numeric_limits<W>::infinity() : l;
          W dot = 0;
          for (int64_t j = 0; j < e; ++j) dot += static_cast<W>(o.data<T>()[row * e + j]) * g_all(i, j);
          delta[i] = dot - d_lse.data<W>()[row];
        }
        for (int64_t k0 = 0; k0 < m; k0 += kTile) {
          const int64_t nk = std::min(kTile, m - k0);
          const Rows<W> K = rows_of<T, W>(k, k0, nk, hk, k_space), V = rows_of<T, W>(v, k0, nk, hk, v_space);
          for (int64_t q0 = 0; q0 < count; q0 += kTile) {
            const Sight sight = sight_of(mine.spans[q0 / kTile], k_spans[k0 / kTile], options);
            if (sight == Sight::none) continue;
            const int64_t nq = std::min(kTile, count - q0);
            const auto Q = q_all.middleRows(q0, nq), G = g_all.middleRows(q0, nq);
            p.resize(nq, nk);
            ds.resize(nq, nk);
            p.noalias() = scale * (Q * K.transpose());
            scores.mask(p, q0, k0, nq, nk, sight);
            ds.noalias() = G * V.transpose();
            for (int64_t i = 0; i < nq; ++i) {
              W *prow = p.data() + i * nk, *srow = ds.data() + i * nk;
              const W s = shift[q0 + i], t = delta[q0 + i];
#pragma omp simd
              for (int64_t j = 0; j < nk; ++j) {
                prow[j] = vector_math::exp(prow[j] - s);
                srow[j] = scale * prow[j] * (srow[j] - t);
              }
            }
            dv_all.middleRows(k0, nk).noalias() += p.transpose() * G;
            dk_all.middleRows(k0, nk).noalias() += ds.transpose() * Q;
            dq_all.middleRows(q0, nq).noalias() += ds * K;
          }
        }
        for (int64_t i = 0; i < count; ++i) {
          T* out = dq.data<T>() + (mine.token[i] * heads + h) * d;
          for (int64_t j = 0; j < d; ++j) out[j] = static_cast<T>(dq_all(i, j));
        }
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
                   const AttentionTokens& tokens, const AttentionOptions& options) {
  with_float(q.dtype(), [&]<class T>() { forward<T, Acc<T>>(o, lse, q, k, v, tokens, options); });
}

void flash_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& q, const Tensor& k,
                    const Tensor& v, const AttentionTokens& tokens, const Tensor& o, const Tensor& lse,
                    const Tensor& d_o, const Tensor& d_lse, const AttentionOptions& options) {
  with_float(q.dtype(), [&]<class T>() {
    backward<T, Acc<T>>(dq, dk, dv, q, k, v, tokens, o, lse, d_o, d_lse, options);
  });
}

}  // namespace weft::cpu
