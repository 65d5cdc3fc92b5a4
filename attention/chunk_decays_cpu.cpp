#include "attention/chunk_decays.h"

#include <algorithm>

#include "attention/scan_tiles.h"
#include "autograd/ops/gemm_kernel.h"
#include "autograd/ops/vector_math.h"

namespace weft::cpu {
namespace {

constexpr int64_t kNearTokens = 8;  // tokens whose pairs are multiplied one by one

template <class W>
MatrixView<W> dense_rows(const W* x, int64_t pitch) {
  return {x, pitch, 1};
}

}  // namespace

template <class W>
ChunkDecays<W>::ChunkDecays(bool of_channels, int64_t d, bool gate_gradient)
    : of_channels_(of_channels), gate_gradient_(gate_gradient), d_(d) {
  const auto size = static_cast<size_t>(kLinearChunk * d);
  from_start_.resize(size), to_end_.resize(size), total_.resize(static_cast<size_t>(d));
  transposed_.resize(size);
  if (of_channels)
    step_.resize(size), factor_.resize(size), weighted_.resize(size), part_.resize(size);
  else
    between_.resize(kLinearChunk * kLinearChunk);
  if (gate_gradient) gate_.resize(size);
}

template <class W>
void ChunkDecays<W>::load(const W* g, int64_t pitch, int64_t n) {
  if (pitch == 0 && g == g_ && n == n_) return;
  g_ = g, n_ = n;
  if (of_channels_)
    load_channels(g, pitch);
  else
    load_heads(g, pitch);
}

template <class W>
void ChunkDecays<W>::load_heads(const W* g, int64_t pitch) {
  W step[kLinearChunk], since_start = 1;
  for (int64_t i = 0; i < n_; ++i) step[i] = g[i * pitch];
#pragma omp simd
  for (int64_t i = 0; i < n_; ++i) step[i] = vector_math::exp(step[i]);
  const W* above = between_.data();
  for (int64_t i = 0; i < n_; ++i) {
    W *row = between_.data() + i * kLinearChunk, by = step[i];
#pragma omp simd
    for (int64_t j = 0; j < kLinearChunk; ++j) row[j] = j < i ? decay_product(above[j], by) : W(j == i);
    above = row;
    since_start = decay_product(since_start, by);
    std::fill_n(from_start_.data() + i * d_, d_, since_start);
  }
  for (int64_t j = 0; j < n_; ++j) std::fill_n(to_end_.data() + j * d_, d_, above[j]);
  std::fill_n(total_.data(), d_, since_start);
}

template <class W>
void ChunkDecays<W>::load_channels(const W* g, int64_t pitch) {
  const int64_t d = d_;
  W *step = step_.data(), *start = from_start_.data(), *end = to_end_.data();
  for (int64_t i = 0; i < n_; ++i)
#pragma omp simd
    for (int64_t c = 0; c < d; ++c) step[i * d + c] = vector_math::exp(g[i * pitch + c]);
  std::fill_n(total_.data(), d, W(1));
  const W* before = total_.data();
  for (int64_t i = 0; i < n_; ++i, before = start + (i - 1) * d)
#pragma omp simd
    for (int64_t c = 0; c < d; ++c) start[i * d + c] = decay_product(before[c], step[i * d + c]);
  if (n_ > 0) {
    std::copy_n(before, d, total_.data());
    std::fill_n(end + (n_ - 1) * d, d, W(1));
  }
  for (int64_t i = n_ - 2; i >= 0; --i)
#pragma omp simd
    for (int64_t c = 0; c < d; ++c)
      end[i * d + c] = decay_product(end[(i + 1) * d + c], step[(i + 1) * d + c]);
}

template <class W>
void ChunkDecays<W>::scores(W* p, const W* q, const W* k) {
  if (!of_channels_) {
    base::transpose(transposed_.data(), n_, dense_rows(k, d_), n_, d_);
    multiply(Product<W, W, W>{p, kLinearChunk, dense_rows(q, d_), dense_rows<W>(transposed_.data(), n_), n_,
                              n_, d_, 1, 0});
    for (int64_t i = 0; i < n_; ++i) {
      W* row = p + i * kLinearChunk;
      const W* decay = between_.data() + i * kLinearChunk;
#pragma omp simd
      for (int64_t j = 0; j < n_; ++j) row[j] = decay[j] == 0 ? W(0) : row[j] * decay[j];
    }
    return;
  }
  for (int64_t i = 0; i < n_; ++i) std::fill_n(p + i * kLinearChunk, n_, W(0));
  for (int64_t begin = 0; begin < n_; begin += kNearTokens)
    near_pairs(p, q, k, begin, std::min(begin + kNearTokens, n_));
  for (int64_t half = kNearTokens; half < n_; half *= 2)
    for (int64_t begin = 0; begin + half < n_; begin += 2 * half) {
      const int64_t middle = begin + half, end = std::min(middle + half, n_);
      weigh_halves(q, k, begin, middle, end);
      far_pairs(p, begin, middle, end);
    }
}

template <class W>
void ChunkDecays<W>::backward(W* p, W* dp, const W* q, const W* k, W* dq, W* dk) {
  std::fill(gate_.begin(), gate_.end(), W(0));
  if (of_channels_)
    channel_backward(p, dp, q, k, dq, dk);
  else
    head_backward(p, dp, q, k, dq, dk);
}

// The gradient of g at t is the sum of p dp over all pairs of which t lies behind one and up to the other.
template <class W>
void ChunkDecays<W>::head_backward(W* p, W* dp, const W* q, const W* k, W* dq, W* dk) {
  base::transpose(transposed_.data(), n_, dense_rows(k, d_), n_, d_);
  multiply(Product<W, W, W>{p, kLinearChunk, dense_rows(q, d_), dense_rows<W>(transposed_.data(), n_), n_, n_,
                            d_, 1, 0});
  W across[kLinearChunk] = {};  // of the tokens from i on and j
  for (int64_t i = n_ - 1; i >= 0; --i) {
    W *row = p + i * kLinearChunk, *d_row = dp + i * kLinearChunk;
    const W* decay = between_.data() + i * kLinearChunk;
#pragma omp simd
    for (int64_t j = 0; j < n_; ++j) {
      const W raw = d_row[j];
      row[j] = decay[j] == 0 ? W(0) : row[j] * decay[j];
      d_row[j] = decay[j] == 0 ? W(0) : raw * decay[j];
      across[j] += decay[j] == 0 ? W(0) : row[j] * raw;
    }
    if (!gate_gradient_) continue;
    W sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < i; ++j) sum += across[j];
    gate_[static_cast<size_t>(i * d_)] = sum;
  }
  const MatrixView<W> between = dense_rows<W>(dp, kLinearChunk);
  put_product(dq, between, dense_rows(k, d_), n_, d_, n_);
  put_product(dk, between.transposed(), dense_rows(q, d_), n_, d_, n_);
}

template <class W>
void ChunkDecays<W>::channel_backward(W* p, const W* dp, const W* q, const W* k, W* dq, W* dk) {
  const int64_t d = d_;
  std::fill_n(dq, n_ * d, W(0));
  std::fill_n(dk, n_ * d, W(0));
  for (int64_t i = 0; i < n_; ++i) std::fill_n(p + i * kLinearChunk, n_, W(0));
  for (int64_t begin = 0; begin < n_; begin += kNearTokens)
    near_pairs_backward(p, dp, q, k, dq, dk, begin, std::min(begin + kNearTokens, n_));
  W* const part = part_.data();
  for (int64_t half = kNearTokens; half < n_; half *= 2)
    for (int64_t begin = 0; begin + half < n_; begin += 2 * half) {
      const int64_t middle = begin + half, end = std::min(middle + half, n_);
      weigh_halves(q, k, begin, middle, end);
      far_pairs(p, begin, middle, end);
      const MatrixView<W> between = dense_rows(dp + middle * kLinearChunk + begin, kLinearChunk);
      const auto weighted = [&](int64_t row) { return dense_rows<W>(weighted_.data() + row * d, d); };
      put_product(part + middle * d, between, weighted(begin), end - middle, d, half);
      put_product(part + begin * d, between.transposed(), weighted(middle), half, d, end - middle);
      // A decay in the second half is in the pairs of the queries from it on, one in the first in those of
      // the keys before it.
      for (int64_t at = begin; at < end; ++at)
#pragma omp simd
        for (int64_t c = at * d; c < (at + 1) * d; ++c) part[c] *= factor_[c];
      for (int64_t at = middle * d; at < end * d; ++at) dq[at] += part[at];
      for (int64_t at = begin * d; at < middle * d; ++at) dk[at] += part[at];
      if (!gate_gradient_) continue;
      W* const so_far = transposed_.data();
      std::fill_n(so_far, d, W(0));
      for (int64_t i = end - 1; i >= middle; --i)
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) {
          so_far[c] += q[i * d + c] * part[i * d + c];
          gate_[i * d + c] += so_far[c];
        }
      std::fill_n(so_far, d, W(0));
      for (int64_t j = begin; j < middle; ++j)
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) {
          gate_[j * d + c] += so_far[c];
          so_far[c] += k[j * d + c] * part[j * d + c];
        }
    }
}

// The pairs of a few tokens. key: k_j as token i sees it.
template <class W>
void ChunkDecays<W>::near_pairs(W* p, const W* q, const W* k, int64_t begin, int64_t end) {
  const int64_t d = d_;
  W* const key = transposed_.data();
  for (int64_t j = begin; j < end; ++j) {
    std::copy_n(k + j * d, d, key);
    for (int64_t i = j; i < end; ++i) {
      const W *query = q + i * d, *step = step_.data() + i * d;
      W sum = 0;
      if (i > j)
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) key[c] *= step[c];
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < d; ++c) sum += query[c] * key[c];
      p[i * kLinearChunk + j] = sum;
    }
  }
}

// sum: of dp q over the queries from i on, as far as the decay before i.
template <class W>
void ChunkDecays<W>::near_pairs_backward(W* p, const W* dp, const W* q, const W* k, W* dq, W* dk,
                                         int64_t begin, int64_t end) {
  const int64_t d = d_;
  W *const keys = part_.data(), *const sum = transposed_.data();
  for (int64_t j = begin; j < end; ++j) {
    std::copy_n(k + j * d, d, keys + j * d);
    for (int64_t i = j; i < end; ++i) {
      const W *query = q + i * d, *step = step_.data() + i * d, by = dp[i * kLinearChunk + j];
      W *key = keys + i * d, *d_query = dq + i * d, product = 0;
      if (i > j)
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) key[c] = key[c - d] * step[c];
#pragma omp simd reduction(+ : product)
      for (int64_t c = 0; c < d; ++c) {
        product += query[c] * key[c];
        d_query[c] += by * key[c];
      }
      p[i * kLinearChunk + j] = product;
    }
    std::fill_n(sum, d, W(0));
    for (int64_t i = end - 1; i > j; --i) {
      const W *query = q + i * d, *step = step_.data() + i * d, *key = keys + (i - 1) * d,
              by = dp[i * kLinearChunk + j];
#pragma omp simd
      for (int64_t c = 0; c < d; ++c) sum[c] = (sum[c] + by * query[c]) * step[c];
      if (gate_gradient_)
#pragma omp simd
        for (int64_t c = 0; c < d; ++c) gate_[i * d + c] += sum[c] * key[c];
    }
    const W *query = q + j * d, by = dp[j * kLinearChunk + j];
#pragma omp simd
    for (int64_t c = 0; c < d; ++c) dk[j * d + c] += sum[c] + by * query[c];
  }
}

// The queries of the second half and the keys of the first, both measured from the border between them.
template <class W>
void ChunkDecays<W>::weigh_halves(const W* q, const W* k, int64_t begin, int64_t middle, int64_t end) {
  const int64_t d = d_;
  W *const factor = factor_.data(), *const weighted = weighted_.data();
  const W* const step = step_.data();
  for (int64_t i = middle; i < end; ++i)
#pragma omp simd
    for (int64_t c = i * d; c < (i + 1) * d; ++c) {
      factor[c] = i == middle ? step[c] : decay_product(factor[c - d], step[c]);
      weighted[c] = q[c] * factor[c];
    }
  for (int64_t j = middle - 1; j >= begin; --j)
#pragma omp simd
    for (int64_t c = j * d; c < (j + 1) * d; ++c) {
      factor[c] = j == middle - 1 ? W(1) : decay_product(factor[c + d], step[c + d]);
      weighted[c] = k[c] * factor[c];
    }
}

template <class W>
void ChunkDecays<W>::far_pairs(W* p, int64_t begin, int64_t middle, int64_t end) const {
  const auto weighted = [&](int64_t row) { return dense_rows<W>(weighted_.data() + row * d_, d_); };
  multiply(Product<W, W, W>{p + middle * kLinearChunk + begin, kLinearChunk, weighted(middle),
                            weighted(begin).transposed(), end - middle, middle - begin, d_, 1, 0});
}

template <class W>
void ChunkDecays<W>::add_states(const W* q, const W* dq, const W* k, const W* dk, const W* kept) {
  const int64_t d = d_;
  W* const so_far = transposed_.data();
  std::fill_n(so_far, d, W(0));
  for (int64_t j = 0; j < n_; ++j)
#pragma omp simd
    for (int64_t c = 0; c < d; ++c) {
      gate_[j * d + c] += so_far[c];
      so_far[c] += k[j * d + c] * dk[j * d + c];
    }
  std::copy_n(kept, d, so_far);
  for (int64_t i = n_ - 1; i >= 0; --i)
#pragma omp simd
    for (int64_t c = 0; c < d; ++c) {
      so_far[c] += q[i * d + c] * dq[i * d + c];
      gate_[i * d + c] += so_far[c];
    }
}

template <class W>
void ChunkDecays<W>::take_gate_gradient(W* dg, int64_t pitch) const {
  for (int64_t i = 0; i < n_; ++i) {
    const W* row = gate_.data() + i * d_;
    if (of_channels_) {
      std::copy_n(row, d_, dg + i * pitch);
      continue;
    }
    W sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < d_; ++c) sum += row[c];
    dg[i * pitch] = sum;
  }
}

template class ChunkDecays<float>;
template class ChunkDecays<double>;

}  // namespace weft::cpu
