#include <algorithm>
#include <limits>
#include <numbers>

#include "attention/flash_attention.h"
#include "attention/softmax_tile.h"
#include "autograd/ops/gemm_kernel.h"
#include "autograd/ops/vector_math.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

constexpr int64_t kTile = 64, kTogether = 4;
constexpr int64_t kSmall = kWorthACore / 4;  // with exponentials and masks a multiplication takes longer

// Of the laplace weights: the mean, and 1 / (sigma sqrt 2).
constexpr double kLaplaceMean = 1 / std::numbers::sqrt2, kLaplaceRate = 2.5066282746310002;

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
  const auto block = [&](int32_t position) { return o.block > 0 ? position / o.block : 0; };
  if (block(k.last_position) < block(q.first_position) || block(q.last_position) < block(k.first_position))
    return Sight::none;
  const bool same_block = block(std::min(q.first_position, k.first_position)) ==
                          block(std::max(q.last_position, k.last_position));
  const bool all = same_block && (!o.causal || k.last_position <= q.first_position) &&
                   (o.window == 0 || (q.last_position - k.first_position < o.window &&
                                      (o.causal || k.last_position - q.first_position < o.window)));
  return all ? Sight::all : Sight::some;
}

// The rows of head h of x (N, H, D).
template <class T>
MatrixView<T> head_of(const Tensor& x, int64_t h) {
  return {x.data<T>() + h * x.dim(2), x.pitch(), 1};
}
// Rows of n numbers in the accumulator's type into head h of x, at tokens where(0), where(1), ...
template <class T, class W, class Where>
void put_rows(const Tensor& x, int64_t h, const W* from, int64_t n, const Where& where) {
  const int64_t d = x.dim(2), pitch = x.pitch();
  T* const to = x.data<T>() + h * d;
  for (int64_t i = 0; i < n; ++i, from += d)
    for (int64_t j = 0; j < d; ++j) to[where(i) * pitch + j] = static_cast<T>(from[j]);
}

// The tokens of which a head is on, in order, and what those of each tile have in common.
struct Queries {
  std::vector<int32_t> token, position, document;
  std::vector<Span> spans;
  int64_t size() const { return std::ssize(token); }
};

// Of each head; one for all where all are on.
std::vector<Queries> queries_of(const AttentionTokens& t, int64_t heads) {
  const int64_t n = t.q_position.dim(0);
  const int32_t *position = t.q_position.data<int32_t>(), *document = t.q_document.data<int32_t>();
  const Tensor active = t.active.defined() ? t.active.to(Dtype::f32) : Tensor();
  std::vector<Queries> all(static_cast<size_t>(active.defined() ? heads : 1));
  for (size_t h = 0; h < all.size(); ++h) {
    Queries& q = all[h];
    for (std::vector<int32_t>* list : {&q.token, &q.position, &q.document})
      list->reserve(static_cast<size_t>(n));
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

const Queries& of_head(const std::vector<Queries>& queries, int64_t h) {
  return queries[queries.size() == 1 ? 0 : static_cast<size_t>(h)];
}

// Rows with which a tile of n queries is multiplied. Which heads are on must not change the bits of a row
// that is, and those of a product can depend on how many rows come with it, below a multiple of the kernel's
// block.
int64_t padded(int64_t n, const AttentionTokens& t) {
  constexpr int64_t kBlock = 16;
  return t.active.defined() && t.q_position.dim(0) >= kBlock ? (n + kBlock - 1) / kBlock * kBlock : n;
}

// Head h of these n tokens of x (N, H, D) in the accumulator's type, one row after another, up to `rows` of
// them. Products of small matrices that lie close together need no packing.
template <class T, class W>
void take_rows(Scratch<W>& to, const Tensor& x, const int32_t* token, int64_t n, int64_t rows, int64_t h) {
  const int64_t d = x.dim(2);
  to.assign(static_cast<size_t>(rows * d), W(0));
  const MatrixView<T> there = head_of<T>(x, h);
  for (int64_t i = 0; i < n; ++i) std::copy_n(there.data + token[i] * there.row, d, to.data() + i * d);
}

// The same for n tokens one behind another from `begin` on, of x or turned: (d, n).
template <class T, class W>
MatrixView<W> take_tile(Scratch<W>& to, const Tensor& x, int64_t begin, int64_t n, int64_t h) {
  const int64_t d = x.dim(2);
  const MatrixView<T> there = head_of<T>(x, h).from(begin, 0);
  for (int64_t i = 0; i < n; ++i) std::copy_n(there.data + i * there.row, d, to.data() + i * d);
  return {to.data(), d, 1};
}
template <class T, class W>
MatrixView<W> turn_tile(Scratch<W>& to, const Tensor& x, int64_t begin, int64_t n, int64_t h) {
  base::transpose(to.data(), n, head_of<T>(x, h).from(begin, 0), n, x.dim(2));
  return {to.data(), n, 1};
}

template <class W>
struct Scores {
  const AttentionOptions& options;
  const int32_t *q_position, *q_document, *k_position, *k_document;
  W slope = 0;
  const W* bias = nullptr;  // of this head, by distance
  int64_t distances = 0;    // how many

  // Which bias: as the Merge says (part.h).
  int64_t bias_of(int64_t distance) const {
    const int64_t most = options.causal ? distances - 1 : distances / 2, least = options.causal ? 0 : -most;
    return std::clamp(distance, least, most) - least;
  }

  // Turns the product of a tile into scores: bias, and -inf where a query must not see a key.
  void mask(W* s, int64_t q, int64_t k, int64_t nq, int64_t nk, Sight sight) const {
    const W never = -std::numeric_limits<W>::infinity();
    if (sight == Sight::all && !options.alibi && bias == nullptr) return;
    constexpr int32_t far = std::numeric_limits<int32_t>::max();
    const int32_t nearest = options.causal ? 0 : -far;
    const int32_t reach =
        options.window > 0 ? static_cast<int32_t>(std::min<int64_t>(options.window, far)) : far;
    const int32_t *positions = k_position + k, *documents = k_document + k;
    for (int64_t i = 0; i < nq; ++i) {
      W* row = s + i * nk;
      const int32_t p = q_position[q + i], d = q_document[q + i];
      if (d < 0) {  // padding
        std::fill_n(row, nk, never);
        continue;
      }
      const auto size = static_cast<int32_t>(std::min<int64_t>(options.block, far));
      const int32_t first = size > 0 ? p / size * size : -far, last = size > 0 ? first + (size - 1) : far;
#pragma omp simd
      for (int64_t j = 0; j < nk; ++j) {
        const int32_t at = positions[j], distance = p - at, apart = distance < 0 ? -distance : distance;
        const bool seen =
            (d == documents[j]) & (distance >= nearest) & (apart < reach) & (at >= first) & (at <= last);
        row[j] = seen ? row[j] - slope * static_cast<W>(apart) : never;
      }
      if (bias != nullptr)
        for (int64_t j = 0; j < nk; ++j) row[j] += bias[bias_of(p - positions[j])];
    }
  }

  // Of a tile of gradients of scale q k^T. Where nobody is seen they are 0.
  void add_bias_gradient(W* to, const W* ds, int64_t q, int64_t k, int64_t nq, int64_t nk) const {
    const W factor = 1 / static_cast<W>(options.scale);
    for (int64_t i = 0; i < nq; ++i)
      for (int64_t j = 0; j < nk; ++j)
        to[bias_of(q_position[q + i] - k_position[k + j])] += ds[i * nk + j] * factor;
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
Scores<W> scores_of(const Queries& queries, const AttentionTokens& t, const AttentionOptions& options,
                    const Tensor& bias, int64_t head) {
  Scores<W> scores{options, queries.position.data(), queries.document.data(), t.k_position.data<int32_t>(),
                   t.k_document.data<int32_t>()};
  if (bias.defined()) {
    scores.distances = bias.dim(1);
    scores.bias = bias.data<W>() + head * scores.distances;
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

// Turns a tile of scores into weights, and counts the keys that each row saw.
template <class W>
void weigh(Weighting f, W* s, W* peak, W* sum, int64_t rows, int64_t columns) {
  constexpr W never = -std::numeric_limits<W>::infinity();
  for (int64_t i = 0; i < rows; ++i, s += columns) {
    sum[i] += static_cast<W>(columns - std::count(s, s + columns, never));
    peak[i] = 0;
    for (int64_t j = 0; j < columns; ++j) s[j] = weight_of(f, s[j]);
  }
}

template <class T, class W>
void forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
             const AttentionTokens& tokens, const Tensor& bias, const AttentionOptions& options) {
  const int64_t n = q.dim(0), m = k.dim(0), heads = q.dim(1), group = heads / k.dim(1);
  const int64_t d = q.dim(2), dv = v.dim(2);
  const std::vector<Queries> queries = queries_of(tokens, heads);
  const std::vector<Span> k_spans = spans_of(tokens.k_document, tokens.k_position);
  const std::vector<double> slopes = options.alibi ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  const W scale = static_cast<W>(options.scale), never = -std::numeric_limits<W>::infinity();
  T* const outputs = o.data<T>();
  W* const lses = lse.data<W>();
  if (tokens.active.defined()) {
    o.zero();
    std::fill_n(lses, lse.numel(), never);
  }
  // A task is a few tiles of queries of a head, so that a tile of keys is turned once for all of them. Late
  // tiles see more keys: each task is followed by the one as far from the end as it is from the beginning.
  const int64_t tiles = (n + kTile - 1) / kTile;
  const int64_t together =
      std::clamp<int64_t>(tiles * heads / (int64_t{8} * omp_get_max_threads()), 1, kTogether);
  std::vector<std::pair<int64_t, int64_t>> tasks;  // first tile, head
  for (int64_t turn = 0; turn < tiles; turn += together)
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t own = std::ssize(of_head(queries, h).spans),
                    last = (own - 1) / together * together - turn;
      if (turn > last) continue;
      tasks.emplace_back(turn, h);
      if (turn < last) tasks.emplace_back(last, h);
    }
  const int64_t most = std::min(kTile, padded(n, tokens)), columns = std::min(kTile, m);
  const int64_t work = together * most * m * (d + dv) / 2;
  parallel_for(std::ssize(tasks), 1 + kSmall / (work + 1), [&](int64_t begin, int64_t end) {
    const int64_t total = std::min(together * kTile, most * tiles);
    Scratch<W> q_rows, k_turned(columns * d), v_rows(columns * dv), s(most * columns), acc(total * dv),
        peak(total), sum(total);
    for (int64_t task = begin; task < end; ++task) {
      const auto [first, h] = tasks[static_cast<size_t>(task)];
      const Queries& mine = of_head(queries, h);
      const int64_t start = first * kTile, count = std::min(together * kTile, mine.size() - start);
      Scores<W> scores = scores_of<W>(mine, tokens, options, bias, h);
      scores.slope = static_cast<W>(slopes[h]);
      take_rows<T>(q_rows, q, mine.token.data() + start, count, padded(count, tokens), h);
      std::fill(acc.begin(), acc.end(), W(0));
      std::fill(peak.begin(), peak.end(), never);
      std::fill(sum.begin(), sum.end(), W(0));
      for (int64_t k0 = 0; k0 < m; k0 += kTile) {
        const int64_t nk = std::min(kTile, m - k0);
        MatrixView<W> K{}, V{};
        for (int64_t i0 = 0; i0 < count; i0 += kTile) {
          const int64_t q0 = start + i0;
          const Sight sight = sight_of(mine.spans[q0 / kTile], k_spans[k0 / kTile], options);
          if (sight == Sight::none) continue;
          if (K.data == nullptr) {
            K = turn_tile<T>(k_turned, k, k0, nk, h / group);
            V = take_tile<T>(v_rows, v, k0, nk, h / group);
          }
          const int64_t nq = std::min(kTile, count - i0), rows = padded(nq, tokens);
          const MatrixView<W> Q{q_rows.data() + i0 * d, d, 1}, P{s.data(), nk, 1};
          W* const of_tile = acc.data() + i0 * dv;
          multiply(Product<W, W, W>{s.data(), nk, Q, K, rows, nk, d, scale, 0});
          scores.mask(s.data(), q0, k0, nq, nk, sight);
          if (options.weighting == Weighting::softmax)
            softmax_tile<W>({s.data(), of_tile, &peak[i0], &sum[i0], nq, nk, dv});
          else
            weigh(options.weighting, s.data(), &peak[i0], &sum[i0], nq, nk);
          multiply(Product<W, W, W>{of_tile, dv, P, V, rows, dv, nk, 1, 1});
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = mine.token[start + i] * heads + h;
        const W inverse = sum[i] > 0 ? W(1) / sum[i] : W(0);
        T* out = outputs + row * dv;
        for (int64_t j = 0; j < dv; ++j) out[j] = static_cast<T>(acc[i * dv + j] * inverse);
        lses[row] = sum[i] > 0 ? peak[i] + std::log(sum[i]) : never;
      }
    }
  });
}

// Scores to weights and the gradients of weights to those of scores, each divided by the number of keys seen,
// e^count.
template <class W>
void weigh_back(Weighting f, W* p, W* ds, const W* count, int64_t rows, int64_t columns, W scale) {
  for (int64_t i = 0; i < rows; ++i, p += columns, ds += columns) {
    const W share = std::exp(-count[i]);
    for (int64_t j = 0; j < columns; ++j) {
      ds[j] *= scale * share * weight_slope(f, p[j]);
      p[j] = share * weight_of(f, p[j]);
    }
  }
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
  const std::vector<Queries> queries = queries_of(tokens, heads);
  const std::vector<Span> k_spans = spans_of(tokens.k_document, tokens.k_position);
  const std::vector<double> slopes = options.alibi ? alibi_slopes(heads) : std::vector<double>(heads, 0.0);
  const W scale = static_cast<W>(options.scale);
  const T* const outputs = o.data<T>();
  const W *const lses = lse.data<W>(), *const d_lses = d_lse.data<W>();
  if (tokens.active.defined()) dq.zero();
  const int64_t tile = std::min(kTile, n) * std::min(kTile, m), work = group * n * m * (d + e);
  parallel_for(kv_heads, 1 + kSmall / (work + 1), [&](int64_t begin, int64_t end) {
    Scratch<W> p(tile), ds(tile), dq_all(static_cast<size_t>(n * d)), dk_all(static_cast<size_t>(m * d)),
        dv_all(static_cast<size_t>(m * e));
    Scratch<W> delta(static_cast<size_t>(n)), shift(static_cast<size_t>(n)), q_rows, g_rows;
    const int64_t columns = std::min(kTile, m);
    Scratch<W> k_turned(columns * d), k_rows(columns * d), v_turned(columns * e);
    for (int64_t hk = begin; hk < end; ++hk) {
      std::fill(dk_all.begin(), dk_all.end(), W(0));
      std::fill(dv_all.begin(), dv_all.end(), W(0));
      for (int64_t h = hk * group; h < (hk + 1) * group; ++h) {
        std::fill(dq_all.begin(), dq_all.end(), W(0));
        const Queries& mine = of_head(queries, h);
        const int64_t count = mine.size();
        take_rows<T>(q_rows, q, mine.token.data(), count, count, h);
        take_rows<T>(g_rows, d_o, mine.token.data(), count, count, h);
        Scores<W> scores = scores_of<W>(mine, tokens, options, bias, h);
        scores.slope = static_cast<W>(slopes[h]);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = mine.token[i] * heads + h;
          const W l = lses[row];
          // A query that saw nothing: exp(score - infinity) = 0.
          shift[i] = l == -std::numeric_limits<W>::infinity() ? std::numeric_limits<W>::infinity() : l;
          const T* O = outputs + row * e;
          const W* G = g_rows.data() + i * e;
          W dot = 0;
#pragma omp simd reduction(+ : dot)
          for (int64_t j = 0; j < e; ++j) dot += static_cast<W>(O[j]) * G[j];
          delta[i] = dot - d_lses[row];
        }
        for (int64_t k0 = 0; k0 < m; k0 += kTile) {
          const int64_t nk = std::min(kTile, m - k0);
          const MatrixView<W> K = take_tile<T>(k_rows, k, k0, nk, hk),
                              KT = turn_tile<T>(k_turned, k, k0, nk, hk),
                              VT = turn_tile<T>(v_turned, v, k0, nk, hk);
          for (int64_t q0 = 0; q0 < count; q0 += kTile) {
            const Sight sight = sight_of(mine.spans[q0 / kTile], k_spans[k0 / kTile], options);
            if (sight == Sight::none) continue;
            const int64_t nq = std::min(kTile, count - q0);
            const MatrixView<W> Q{q_rows.data() + q0 * d, d, 1}, G{g_rows.data() + q0 * e, e, 1};
            const MatrixView<W> P{p.data(), nk, 1}, dS{ds.data(), nk, 1};
            multiply(Product<W, W, W>{p.data(), nk, Q, KT, nq, nk, d, scale, 0});
            scores.mask(p.data(), q0, k0, nq, nk, sight);
            multiply(Product<W, W, W>{ds.data(), nk, G, VT, nq, nk, e, 1, 0});
            if (options.weighting == Weighting::softmax)
              softmax_gradient_tile<W>({p.data(), ds.data(), &shift[q0], &delta[q0], nq, nk, scale});
            else
              weigh_back(options.weighting, p.data(), ds.data(), &shift[q0], nq, nk, scale);
            if (bias.defined())
              scores.add_bias_gradient(dbias.data<W>() + h * bias.dim(1), ds.data(), q0, k0, nq, nk);
            multiply(Product<W, W, W>{dv_all.data() + k0 * e, e, P.transposed(), G, nk, e, nq, 1, 1});
            multiply(Product<W, W, W>{dk_all.data() + k0 * d, d, dS.transposed(), Q, nk, d, nq, 1, 1});
            multiply(Product<W, W, W>{dq_all.data() + q0 * d, d, dS, K, nq, d, nk, 1, 1});
          }
        }
        put_rows<T>(dq, h, dq_all.data(), count, [&](int64_t i) { return mine.token[i]; });
      }
      const auto in_order = [](int64_t i) { return i; };
      put_rows<T>(dk, hk, dk_all.data(), m, in_order);
      put_rows<T>(dv, hk, dv_all.data(), m, in_order);
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
    backward<T, Acc<T>>(dq, dk, dv, dbias, q, k, v, tokens, bias, o, lse, d_o,
                        d_lse.defined() ? d_lse : zeros_like(lse), options);
  });
}

}  // namespace weft::cpu
