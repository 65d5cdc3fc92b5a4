#pragma once
// Who sees whom, in tiles: what the CUDA kernels of flash_attention.h share. Tokens are laid out in lists of
// tiles, one list for all heads or, where heads may be off, one a head of the tokens for which it is on.

#include <climits>

#include "attention/flash_attention.h"
#include "autograd/cuda/kernel.cuh"

namespace weft::cuda {

struct TokenAt {
  int32_t position, document;  // document < 0: nobody
};

// What the tokens of a tile have in common. Tokens of no document do not count.
struct alignas(8) TileSpan {
  int32_t first_document, last_document;  // first > last: none
  int32_t first_low, first_high;          // positions in the first document
  int32_t last_low, last_high;            // and in the last
  int32_t uniform;                        // a full tile of one document
  int32_t ordered;                        // and one position behind the other
};

// On the device: `tiles` tiles a list of `size` tokens.
struct TokenTiles {
  const TokenAt* at;
  const TileSpan* span;
  const int32_t* token;  // row of the tensors, -1 behind the end of a list
  int32_t* taken;        // 0 at first: a counter for one kernel whose blocks take work from it
  int lists, tiles, size;

  __device__ int64_t tile(int head, int i) const { return int64_t{lists == 1 ? 0 : head} * tiles + i; }
};

// Its memory. active undefined: one list of all tokens.
struct TokenTileBuffers {
  Tensor at, span, token, taken;
  int lists, tiles, size;
  TokenTiles view() const {
    return {data<const TokenAt>(at),
            data<const TileSpan>(span),
            data<const int32_t>(token),
            data<int32_t>(taken),
            lists,
            tiles,
            size};
  }
};
TokenTileBuffers token_tiles(const Tensor& position, const Tensor& document, const Tensor& active,
                             int64_t heads, int size);

// The options that say which keys a query sees.
struct Visibility {
  bool causal;
  int32_t reach, block;  // distances below reach; block 0: none

  explicit Visibility(const AttentionOptions& o)
      : causal(o.causal),
        reach(o.window > 0 ? static_cast<int32_t>(std::min<int64_t>(o.window, INT_MAX)) : INT_MAX),
        block(static_cast<int32_t>(std::min<int64_t>(o.block, INT_MAX))) {}

  __device__ int32_t block_of(int32_t position) const { return block > 0 ? position / block : 0; }

  __device__ bool sees(TokenAt q, TokenAt k) const {
    const int32_t distance = q.position - k.position;
    return q.document >= 0 && q.document == k.document && !(causal && distance < 0) &&
           abs(distance) < reach && block_of(q.position) == block_of(k.position);
  }

  // Positions [first, last] of its document that a query sees, or that see a key.
  struct Range {
    int32_t first, last, document;
    __device__ bool has(TokenAt t) const {
      return t.document == document && t.position >= first && t.position <= last;
    }
  };
  __device__ Range range(TokenAt t, bool is_query) const {
    if (t.document < 0) return {1, 0, t.document};
    int64_t first = int64_t{t.position} - reach + 1, last = int64_t{t.position} + reach - 1;
    if (causal && is_query) last = t.position;
    if (causal && !is_query) first = t.position;
    if (block > 0) {
      const int64_t start = block_of(t.position) * int64_t{block};
      first = max(first, start);
      last = min(last, start + block - 1);
    }
    return {static_cast<int32_t>(max(first, int64_t{INT_MIN})),
            static_cast<int32_t>(min(last, int64_t{INT_MAX})), t.document};
  }

  enum Sight { none, some, all };

  // Of queries q and keys k. `none` and `all` are certain.
  __device__ Sight sight(const TileSpan& q, const TileSpan& k) const {
    const int32_t low = max(q.first_document, k.first_document), high = min(q.last_document, k.last_document);
    if (low > high) return none;
    if (low < high) return some;
    // One document in common: what stands where in it?
    const bool q_first = low == q.first_document, k_first = low == k.first_document;
    if ((!q_first && low != q.last_document) || (!k_first && low != k.last_document)) return some;
    const int32_t q_low = q_first ? q.first_low : q.last_low, q_high = q_first ? q.first_high : q.last_high;
    const int32_t k_low = k_first ? k.first_low : k.last_low, k_high = k_first ? k.first_high : k.last_high;
    if (causal ? k_low > q_high : k_low - q_high >= reach) return none;
    if (q_low - k_high >= reach || block_of(k_high) < block_of(q_low) || block_of(q_high) < block_of(k_low))
      return none;
    const bool everybody = q.uniform && k.uniform &&
                           block_of(min(q_low, k_low)) == block_of(max(q_high, k_high)) &&
                           q_high - k_low < reach && (causal ? k_high <= q_low : k_high - q_low < reach);
    return everybody ? all : some;
  }

  // Whether of these tiles a query sees exactly the keys that do not stand behind it.
  __device__ bool by_order(const TileSpan& q, const TileSpan& k) const {
    return causal && reach == INT_MAX && block == 0 && q.ordered && k.ordered &&
           q.first_document == k.first_document;
  }
};

// What is added to the score of a query and a key for their distance.
template <class W>
struct DistanceBias {
  const W* table;  // (heads, distances), or null
  int64_t distances;
  int heads;
  bool causal, alibi;

  DistanceBias(const Tensor& bias, int64_t of_heads, const AttentionOptions& o)
      : table(data<const W>(bias)),
        distances(bias.defined() ? bias.dim(1) : 0),
        heads(static_cast<int>(of_heads)),
        causal(o.causal),
        alibi(o.alibi) {}

  __device__ bool any() const { return table != nullptr || alibi; }
  // As alibi_slopes.
  __device__ W slope(int head) const {
    if (!alibi) return 0;
    int power = 1;
    while (2 * power <= heads) power *= 2;
    const double i = head < power ? 2.0 * (head + 1) : 2.0 * (head - power) + 1;
    return static_cast<W>(std::exp2(-4.0 * i / power));
  }
  __device__ int64_t bin(int32_t distance) const {
    const int64_t most = causal ? distances - 1 : distances / 2, least = causal ? 0 : -most;
    return min(max(int64_t{distance}, least), most) - least;
  }
  __device__ W operator()(int head, W slope, int32_t distance) const {
    const W by_slope = -slope * static_cast<W>(abs(distance));
    return table == nullptr ? by_slope : by_slope + table[head * distances + bin(distance)];
  }
};

// to[bin] += value for every lane of a warp, lanes of one bin in their order.
template <class W>
__device__ void add_by_bin(W* to, int64_t bin, W value) {
  unsigned left = __match_any_sync(~0u, bin);
  const auto lane = static_cast<int>(threadIdx.x % kWarp);
  const bool first = __ffs(static_cast<int>(left)) - 1 == lane;
  W sum = 0;
  while (__any_sync(~0u, left != 0)) {
    const W next = __shfl_sync(~0u, value, left != 0 ? __ffs(static_cast<int>(left)) - 1 : lane);
    if (left != 0) sum += next;
    left &= left - 1;
  }
  if (first) to[bin] += sum;
  __syncwarp();
}

// The tiles on the other side that meet one tile, in order. Every thread of a warp walks with it.
template <bool from_query>
class TileWalk {
 public:
  __device__ TileWalk(const Visibility& visibility, const TileSpan& own, const TileSpan* others, int count)
      : visibility_(visibility), own_(own), others_(others), count_(count) {}

  // -1 at the end
  __device__ int next() {
    while (some_ == 0) {
      base_ += kWarp;
      if (base_ >= count_) return -1;
      if (base_ % (kGroups * kWarp) == 0) look();
      if (((near_ >> (base_ / kWarp % kGroups)) & 1) == 0) continue;
      const int i = base_ + static_cast<int>(threadIdx.x % kWarp);
      Visibility::Sight sight = Visibility::none;
      if (i < count_)
        sight = from_query ? visibility_.sight(own_, others_[i]) : visibility_.sight(others_[i], own_);
      some_ = __ballot_sync(~0u, sight != Visibility::none);
      all_ = __ballot_sync(~0u, sight == Visibility::all);
    }
    const int bit = __ffs(static_cast<int>(some_)) - 1;
    some_ &= some_ - 1;
    all = (all_ >> bit) & 1;
    return base_ + bit;
  }

  bool all = false;  // everybody in the tile that next() gave sees everybody

 private:
  static constexpr int kGroups = 8;
  // Which of the next groups of tiles have documents of this one. Where documents are many most have none,
  // and reading one group after another would take a latency each.
  __device__ void look() {
    int2 of[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int i = base_ + group * static_cast<int>(kWarp) + static_cast<int>(threadIdx.x % kWarp);
      of[group] = i < count_ ? *reinterpret_cast<const int2*>(others_ + i) : int2{INT_MAX, INT_MIN};
    }
    near_ = 0;
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
      if (__any_sync(~0u, max(own_.first_document, of[group].x) <= min(own_.last_document, of[group].y)))
        near_ |= 1u << group;
  }

  const Visibility& visibility_;
  const TileSpan own_;
  const TileSpan* others_;
  int count_, base_ = -static_cast<int>(kWarp);
  unsigned some_ = 0, all_ = 0, near_ = 0;
};

// (N, H): o . do - dlse.
Tensor attention_delta(const Tensor& o, const Tensor& d_o, const Tensor& d_lse);

// The kernels for every option and float type. Where `active` is given, o, lse
// and dq of heads that are off are left alone.
void plain_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const AttentionTokens& tokens, const Tensor& bias,
                             const AttentionOptions& options);
void plain_attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                              const Tensor& q, const Tensor& k, const Tensor& v,
                              const AttentionTokens& tokens, const Tensor& bias, const Tensor& lse,
                              const Tensor& delta, const Tensor& d_o, const AttentionOptions& options);

// Forward of short documents of one length in a single launch, on Hopper, where that is faster than cuDNN.
bool short_attention_serves(const Tensor& q, const Tensor& k, const Tensor& v,
                            const AttentionOptions& options);
void short_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const AttentionOptions& options);

// The fast ones for Hopper: bf16, heads of a multiple of 8 features. o, lse and dq of heads that are off are
// left alone.
bool hopper_attention_serves(const Tensor& q, const Tensor& k, const Tensor& v,
                             const AttentionOptions& options);
void hopper_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                              const Tensor& v, const AttentionTokens& tokens, const Tensor& bias,
                              const AttentionOptions& options);
void hopper_attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                               const Tensor& q, const Tensor& k, const Tensor& v,
                               const AttentionTokens& tokens, const Tensor& bias, const Tensor& o,
                               const Tensor& lse, const Tensor& d_o, const Tensor& d_lse,
                               const AttentionOptions& options);

}  // namespace weft::cuda
