#pragma once
// What the kernels for Hopper share: attention of bf16 by wgmma and TMA. A block has two warpgroups
// that compute, 64 rows each, and a third of which one warp loads tiles and another, the scout, finds out
// which. Blocks stay on their multiprocessor and take pieces of work, a tile of a head, from a counter in
// memory, so that the next piece's tiles come in while one is computed. Which block makes a piece changes no
// bit of it.

#include "attention/flash_attention.cuh"
#include "attention/kernels/hopper.cuh"
#include "attention/kernels/tensor_map.h"

namespace weft::cuda {

constexpr int kHopperRows = 128, kHopperThreads = 3 * 128, kHopperWarps = 8;  // warps that compute
constexpr int kLoaderRegisters = 40, kComputeRegisters = 232;  // a thread; together what a block starts with
constexpr float kLog2e = 1.44269504f;

struct HopperAttention {
  TokenTiles queries, keys;
  Visibility visibility;
  Weighting weighting;
  DistanceBias<float> bias;
  float scale;
  int heads, group, d, e;
  int section;  // heads whose blocks run side by side, so that their keys and values stay in L2

  // Pieces in order: sections of heads, in each the tiles one after another, of each tile the heads.
  struct Work {
    int tile, head;  // tile < 0: no more
  };
  __device__ Work work(int piece, int tiles, int of_heads, int of_section) const {
    const int a_section = tiles * of_section, first = piece / a_section;
    const int rest = piece - first * a_section;
    const int side_by_side = min(of_section, of_heads - first * of_section);
    return {rest / side_by_side, first * of_section + rest % side_by_side};
  }
  // By one warp: the next piece that has tokens of the queries, late tiles first, since they see more.
  __device__ Work take_queries() const {
    while (true) {
      const int piece = take(queries.tiles * heads);
      if (piece < 0) return {-1, 0};
      Work w = work(piece, queries.tiles, heads, section);
      w.tile = queries.tiles - 1 - w.tile;
      if (queries.lists == 1 || queries.token[queries.tile(w.head, w.tile) * queries.size] >= 0) return w;
    }
  }
  // By one warp: the number of the next piece of these, or -1.
  __device__ int take(int pieces) const {
    int piece = 0;
    if (threadIdx.x % kWarp == 0) piece = atomicAdd(queries.taken, 1);
    piece = __shfl_sync(~0u, piece, 0);
    return piece < pieces ? piece : -1;
  }
};

// The same in all threads of a warp, which the compiler does not see in threadIdx.
__device__ inline int own_warpgroup() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0); }
__device__ inline int own_warp() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0); }
constexpr int kLoader = 8, kScout = 9;  // warps of the third warpgroup

// A tile of rows [row, row + R) of one head, zero beyond what there is.
template <int R, int C>
__device__ void copy_tile(Tile<R, C> to, const CUtensorMap* map, int head, int64_t row, Barrier full) {
#pragma unroll
  for (int i = 0; i < C / 64; ++i)
    copy_in(to.template part<64>(i).address, map, 64 * i, head, static_cast<int>(row), full);
}

template <int N>
__device__ Operand<N> operand_of(const Accumulator<N>& a) {
  Operand<N> p;
#pragma unroll
  for (int k = 0; k < N / 16; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p.x[k][i] = pack(a.x[2 * k + i / 2][2 * (i % 2)], a.x[2 * k + i / 2][2 * (i % 2) + 1]);
  return p;
}

// Here a has its value, beside products that still run: left alone the compiler waits for these first. A
// branch that it cannot see through is what stops it. never: false, and it depends on all of a.
template <int N>
__device__ void hold(Accumulator<N>& a, bool never) {
  WarpgroupProducts::settle(a);
  if (never) __trap();
}
// For hold, of exponentials. The only number with just these bits is negative.
template <int N>
__device__ bool never(const Accumulator<N>& a) {
  uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < N / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= __float_as_uint(a.x[n][i]);
  return bits == 0x80000001u;
}

// Scores of those that do not see each other become -infinity. rows: the 64 of this warpgroup.
template <bool rows_are_queries, int N>
__device__ void hide(Accumulator<N>& s, const Visibility& visibility, const TokenAt* rows,
                     const TokenAt* columns) {
  const Lane lane;
  const Visibility::Range seen[2] = {visibility.range(rows[lane.row()], rows_are_queries),
                                     visibility.range(rows[lane.row() + 8], rows_are_queries)};
#pragma unroll
  for (int n = 0; n < N / 8; ++n) {
    const int4 pair = *reinterpret_cast<const int4*>(columns + 8 * n + 2 * lane.t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const TokenAt other = i % 2 == 0 ? TokenAt{pair.x, pair.y} : TokenAt{pair.z, pair.w};
      if (!seen[i / 2].has(other)) s.x[n][i] = -INFINITY;
    }
  }
}

// The same of two tiles of which `Visibility::by_order` holds, the queries beginning `later` positions behind
// the keys.
template <bool rows_are_queries, int N>
__device__ void hide_by_order(Accumulator<N>& s, int later, int warpgroup) {
  const Lane lane;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int edge = 64 * warpgroup + lane.row() + 8 * r + (rows_are_queries ? later : -later) - 2 * lane.t;
#pragma unroll
    for (int n = 0; n < N / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (rows_are_queries ? 8 * n + i > edge : 8 * n + i < edge) s.x[n][2 * r + i] = -INFINITY;
  }
}

// The tokens of rows lane.row() and lane.row() + 8 of a warpgroup; -1 is nobody.
struct OwnTokens {
  int32_t low = -1, high = -1;
  OwnTokens() = default;
  __device__ OwnTokens(const int32_t* of_tile, int warpgroup)
      : low(of_tile[64 * warpgroup + Lane().row()]), high(of_tile[64 * warpgroup + Lane().row() + 8]) {}
};

// Where a kernel leaves rows, (N, H, D).
struct HopperRowsTo {
  bf16* data;
  int64_t pitch;
  explicit HopperRowsTo(const Tensor& x) : data(cuda::data<bf16>(x)), pitch(x.pitch()) {}
};

// The rows of a warpgroup, rounded, through its rows of a tile that nobody reads any more, to
// out[token * pitch].
template <int R, int C>
__device__ void store_rows(Tile<R, C> tile, int warpgroup, const Accumulator<C>& a, bf16* out, int64_t pitch,
                           int width, OwnTokens own) {
  constexpr int units = C / 8, rows = 32 / units;  // of a row; that a warp stores at once
  const Lane lane;
  const int l = threadIdx.x % 32, unit = l % units, first = 64 * warpgroup + 16 * lane.warp;
  sync_threads(1 + warpgroup, 128);
  store(tile, 64 * warpgroup, a);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16; i += rows) {
    const int row = i + l / units, to = __shfl_sync(~0u, i < 8 ? own.low : own.high, row % 8 * 4);
    if (to >= 0 && 8 * unit < width)
      *reinterpret_cast<uint4*>(out + to * pitch + 8 * unit) = load_shared(tile.at(first + row, unit));
  }
}

// Places in shared memory, one after another.
struct SharedPlaces {
  uint32_t next;
  __device__ uint32_t take(int bytes) {
    const uint32_t here = next;
    next += bytes;
    return here;
  }
};

// What the loader tells with a tile: which, and whether everybody in it sees everybody. -1: no more.
__device__ inline int notice(int tile, bool all) { return 2 * tile + (all ? 1 : 0); }

// The same for those that know tiles by their order.
struct Sighting {
  enum Bits { everybody = 1, by_order = 2, first = 4, last = 8 };  // of a piece's tiles
  int word = -1;                                                   // no more tiles
  Sighting() = default;
  __device__ Sighting(int tile, int bits) : word(16 * tile + bits) {}
  __device__ bool ends() const { return word == -1; }
  __device__ bool is(Bits bit) const { return (word & bit) != 0; }
  __device__ int tile() const { return word >> 4; }  // by_order: how much later the queries begin
};

// Pieces of work on their way from the loader to the computing warpgroups, with `slots` places for what
// belongs to a piece.
template <int slots>
struct Pieces {
  static constexpr int bytes = slots * (2 * 8 + 8);
  uint32_t barriers, words;

  __device__ explicit Pieces(SharedPlaces& places)
      : barriers(places.take(2 * 8 * slots)), words(places.take(8 * slots)) {}
  __device__ static int slot(int i) { return i % slots; }
  __device__ static int phase(int i) { return i / slots % 2; }
  __device__ Barrier full(int i) const { return {barriers + 8 * slot(i)}; }
  __device__ Barrier empty(int i) const { return {barriers + 8 * (slots + slot(i))}; }
  __device__ void init() const {
    for (int i = 0; i < slots; ++i) full(i).init(1), empty(i).init(kHopperWarps);
  }
  // By one thread of the loader; `expected` bytes of tiles are to come.
  __device__ void open(int i, HopperAttention::Work work, int expected) const {
    empty(i).wait(phase(i) ^ 1);
    store_shared(words + 8 * slot(i), static_cast<uint32_t>(work.tile));
    store_shared(words + 8 * slot(i) + 4, static_cast<uint32_t>(work.head));
    full(i).arrive_and_expect(expected);
  }
  __device__ HopperAttention::Work wait(int i) const {
    full(i).wait(phase(i));
    return {static_cast<int>(load_shared_word(words + 8 * slot(i))),
            static_cast<int>(load_shared_word(words + 8 * slot(i) + 4))};
  }
  // What was written through the piece's tiles is done with.
  __device__ void release(int i) const {
    publish_shared();
    empty(i).arrive_warp();
  }
};

// The next tile to load, on its way from the scout, who waits for memory several times to find it, to the
// loader, who does not.
struct Errand {
  int word, tile;              // what a Sighting says of the tile of keys
  HopperAttention::Work work;  // the piece that it is for; tile < 0: no more
};
struct Errands {
  static constexpr int places = 16, bytes = places * (16 + 2 * 8);
  uint32_t entries, barriers;

  __device__ explicit Errands(SharedPlaces& of)
      : entries(of.take(16 * places)), barriers(of.take(16 * places)) {}
  __device__ Barrier full(int n) const { return {barriers + 8 * (n % places)}; }
  __device__ Barrier empty(int n) const { return {barriers + 8 * (places + n % places)}; }
  __device__ static int phase(int n) { return n / places % 2; }
  __device__ void init() const {
    for (int n = 0; n < places; ++n) full(n).init(1), empty(n).init(1);
  }
  // Each by one thread.
  __device__ void send(int n, int word, int tile, HopperAttention::Work work) const {
    empty(n).wait(phase(n) ^ 1);
    const uint32_t to = entries + 16 * (n % places);
    store_shared(to, static_cast<uint32_t>(word)), store_shared(to + 4, static_cast<uint32_t>(tile));
    store_shared(to + 8, static_cast<uint32_t>(work.tile));
    store_shared(to + 12, static_cast<uint32_t>(work.head));
    full(n).arrive();
  }
  __device__ Errand take(int n) const {
    full(n).wait(phase(n));
    const uint4 e = load_shared(entries + 16 * (n % places));
    empty(n).arrive();
    return {static_cast<int>(e.x), static_cast<int>(e.y), {static_cast<int>(e.z), static_cast<int>(e.w)}};
  }
};

// By one warp: send(n, word of a Sighting, tile), in its first thread, for all tiles of keys that a tile of
// queries, counted over all lists, meets, from step n on; where it meets none, for one of which everything is
// hidden. Returns the step behind them.
template <class Send>
__device__ int meet_keys(const HopperAttention& f, int64_t query_tile, int n, Send send) {
  const TileSpan& own = f.queries.span[query_tile];
  TileWalk<true> walk(f.visibility, own, f.keys.span, f.keys.tiles);
  int bits = Sighting::first, j = walk.next();
  while (true) {
    if (j >= 0 && walk.all) bits |= Sighting::everybody;
    const int next = j < 0 ? -1 : walk.next(), now = max(j, 0);
    if (next < 0) bits |= Sighting::last;
    if (threadIdx.x % kWarp == 0) {
      const TileSpan& other = f.keys.span[now];
      int payload = now;
      if (j >= 0 && !(bits & Sighting::everybody) && f.visibility.by_order(own, other))
        bits |= Sighting::by_order, payload = own.first_low - other.first_low;
      send(n, Sighting(payload, bits).word, now);
    }
    __syncwarp();
    ++n;
    if (next < 0) return n;
    j = next, bits = 0;
  }
}

// Tiles of keys and values on their way from the loader to the computing warpgroups, which give each back.
// They are counted through all pieces of work.
template <int D>
struct KeyStream {
  static constexpr int keys = 128, stages = D == 128 ? 2 : 4;
  using K = Tile<keys, D>;
  static constexpr int bytes = stages * (2 * K::bytes + 4 * 8) + 16;
  uint32_t tiles, barriers, notices;

  __device__ explicit KeyStream(SharedPlaces& places)
      : tiles(places.take(2 * stages * K::bytes)),
        barriers(places.take(32 * stages)),
        notices(places.take(16)) {}

  __device__ static int stage(int n) { return n % stages; }
  __device__ static int phase(int n) { return n / stages % 2; }
  __device__ K k(int n) const { return {tiles + 2 * stage(n) * K::bytes}; }
  __device__ K v(int n) const { return {tiles + (2 * stage(n) + 1) * K::bytes}; }
  __device__ Barrier barrier(int which, int n) const { return {barriers + 8 * (which * stages + stage(n))}; }
  __device__ Barrier k_full(int n) const { return barrier(0, n); }
  __device__ Barrier k_empty(int n) const { return barrier(1, n); }
  __device__ Barrier v_full(int n) const { return barrier(2, n); }
  __device__ Barrier v_empty(int n) const { return barrier(3, n); }

  __device__ void init() const {
    for (int n = 0; n < stages; ++n) {
      k_full(n).init(1), v_full(n).init(1);
      k_empty(n).init(kHopperWarps), v_empty(n).init(kHopperWarps);
    }
  }
  // By one thread: step n, and of what a Sighting says of it.
  __device__ void load(int n, int word, int tile, const CUtensorMap* k_map, const CUtensorMap* v_map,
                       int kv_head) const {
    const int64_t row = int64_t{tile} * keys;
    k_empty(n).wait(phase(n) ^ 1);
    store_shared(notices + 4 * stage(n), static_cast<uint32_t>(word));
    k_full(n).arrive_and_expect(K::bytes);
    copy_tile(k(n), k_map, kv_head, row, k_full(n));
    v_empty(n).wait(phase(n) ^ 1);
    v_full(n).arrive_and_expect(K::bytes);
    copy_tile(v(n), v_map, kv_head, row, v_full(n));
  }
  // By one thread: no more pieces.
  __device__ void finish(int n) const {
    k_empty(n).wait(phase(n) ^ 1);
    store_shared(notices + 4 * stage(n), static_cast<uint32_t>(Sighting().word));
    k_full(n).arrive();
  }
  // Waits for the keys of step n.
  __device__ Sighting wait(int n) const {
    k_full(n).wait(phase(n));
    Sighting now;
    now.word = static_cast<int>(load_shared_word(notices + 4 * stage(n)));
    return now;
  }
  __device__ void wait_values(int n) const { v_full(n).wait(phase(n)); }
  // Hides what is not seen. queries: the places of this warpgroup's rows.
  __device__ static void hide_from(Accumulator<keys>& s, Sighting now, const HopperAttention& f,
                                   const TokenAt* queries, int warpgroup) {
    if (now.is(Sighting::everybody)) return;
    if (now.is(Sighting::by_order))
      hide_by_order<true>(s, now.tile(), warpgroup);
    else
      hide<true>(s, f.visibility, queries, f.keys.at + int64_t{now.tile()} * keys);
  }
};

// A row's part of the running softmax: rows g and g + 8 of a thread.
struct RunningSoftmax {
  float peak[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // sum: this thread's columns only

  // s: from products to weights e^(scale s - peak). Returns by what earlier sums and outputs shrink.
  template <int N>
  __device__ float2 weigh(Accumulator<N>& s, float log2_scale) {
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = peak[r];
#pragma unroll
      for (int n = 0; n < N / 8; ++n) top = fmaxf(top, fmaxf(s.x[n][2 * r], s.x[n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float shift = top == -INFINITY ? 0.f : top * log2_scale;
      shrink[r] = exp2_fast(peak[r] * log2_scale - shift);
      peak[r] = top;
      float even = 0, odd = 0;
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
        even += s.x[n][2 * r] = exp2_fast(s.x[n][2 * r] * log2_scale - shift);
        odd += s.x[n][2 * r + 1] = exp2_fast(s.x[n][2 * r + 1] * log2_scale - shift);
      }
      sum[r] = sum[r] * shrink[r] + (even + odd);
    }
    return {shrink[0], shrink[1]};
  }

  // Of a row, over all of its columns, and its log-sum-exp from that.
  __device__ float whole_sum(int r) const {
    float whole = sum[r];
    whole += __shfl_xor_sync(~0u, whole, 1);
    whole += __shfl_xor_sync(~0u, whole, 2);
    return whole;
  }
  __device__ float log_sum(int r, float whole, float scale) const {
    return whole > 0 ? peak[r] * scale + logf(whole) : -INFINITY;
  }
};

inline int multiprocessors() {
  static const int count = of_device(cudaDevAttrMultiProcessorCount);
  return count;
}

// Blocks that take pieces of work.
inline int64_t pieces_blocks(int tiles, int64_t heads) {
  return std::min<int64_t>(tiles * heads, multiprocessors());
}

template <auto kernel, class... A>
void launch_hopper(const char* name, int64_t blocks, int bytes, const A&... arguments) {
  static const bool ready = [=] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    return true;
  }();
  static_cast<void>(ready);
  kernel<<<static_cast<unsigned>(blocks), kHopperThreads, bytes, stream()>>>(arguments...);
  check_launch(name);
}

// Of x (N, H, D), in boxes of rows.
inline CUtensorMap map_of(const Tensor& x, int rows) {
  return tensor_map(x.raw(), x.pitch(), x.dim(2), x.dim(1), x.dim(0), rows);
}

// Tiles of 128 of the queries and of the keys, which are often the same tokens.
struct HopperTiles {
  TokenTileBuffers queries, keys;
  bool by_list;  // heads have queries of their own
  HopperTiles(const AttentionTokens& t, int64_t heads)
      : queries(token_tiles(t.q_position, t.q_document, t.active, heads, kHopperRows)),
        keys(!t.active.defined() && t.q_position.raw() == t.k_position.raw() &&
                     t.q_document.raw() == t.k_document.raw() && t.q_position.dim(0) == t.k_position.dim(0)
                 ? queries
                 : token_tiles(t.k_position, t.k_document, {}, 1, kHopperRows)),
        by_list(t.active.defined()) {}

  // TMA takes rows that lie together: x (N, H, D) of queries by the lists of its heads, (rows of a list, H,
  // D), or x itself where every head has all. Behind the end of a list a tile is filled up with zeros.
  Tensor rows(const Tensor& x) const;
};

HopperAttention hopper_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                 const TokenTileBuffers& queries, const TokenTileBuffers& keys,
                                 const AttentionOptions& options);

// Of rows by list: lse in base 2 (infinity where no key was seen, so that P = 0) and delta, (H, padded) each.
struct RowNumbers {
  const float *log2_sum, *delta;
  int64_t padded;
};

inline bool plain_softmax(const HopperAttention& f) {
  return f.weighting == Weighting::softmax && f.bias.table == nullptr && !f.bias.alibi;
}
// By pieces of 64 columns: heads of more than 128 features, other weights or biases.
inline bool is_wide(const HopperAttention& f) { return std::max(f.d, f.e) > 128 || !plain_softmax(f); }
void wide_attention_forward(const HopperAttention& f, const Tensor& o, const Tensor& lse, const Tensor& q,
                            const Tensor& k, const Tensor& v);
void wide_attention_backward(const HopperAttention& f, const Tensor& dq, const Tensor& dk, const Tensor& dv,
                             const Tensor& dbias, const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& d_o, const RowNumbers& rows);

}  // namespace weft::cuda
