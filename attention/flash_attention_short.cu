// Forward of short documents of one length, in a single launch that needs nothing prepared: where so little
// is to do, launches decide what a call costs.

#include "attention/flash_attention_hopper.cuh"
#include "autograd/cuda/early.cuh"

namespace weft::cuda {
namespace {

// Two warpgroups make the same 64 rows, each from every second tile of keys; the first adds both up.
constexpr int kShortRows = 64, kParts = 2, kShortThreads = kParts * 128;

struct ShortAttention {
  const bf16 *q, *k, *v;
  bf16* o;
  float* lse;
  int64_t q_pitch, k_pitch, v_pitch;
  int length, heads, group;
  float scale;
  bool causal;
};

template <int D>
struct ShortShape {
  static constexpr int stages = D == 64 ? 2 : 1;  // of keys and values, a part
  using Rows = Tile<kShortRows, D>;
  static constexpr int bytes = (1 + 2 * stages * kParts) * Rows::bytes;
};

// Rows [first, first + 64) of one head, zeros from the document's end on.
template <int D, int threads>
__device__ void bring(Tile<kShortRows, D> to, const bf16* from, int64_t pitch, int first, int length,
                      int thread) {
  constexpr int units = D / 8, at_once = threads / units;
  const int row = thread / units, unit = thread % units;
  const bf16* own = from + (first + row) * pitch + 8 * unit;
#pragma unroll
  for (int r = 0; r < kShortRows; r += at_once, own += at_once * pitch)
    copy_async(to.at(r + row, unit), own, first + r + row < length);
}

// Hides keys behind the last that a row sees, counted from the tile's first.
template <int N>
__device__ void hide_behind(Accumulator<N>& s, int last_of_low, int last_of_high) {
  const Lane lane;
#pragma unroll
  for (int n = 0; n < N / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (8 * n + 2 * lane.t + i % 2 > (i < 2 ? last_of_low : last_of_high)) s.x[n][i] = -INFINITY;
}

// By constant numbers: a kernel that computes one is given all sixteen barriers.
__device__ inline void sync_part(int part) {
  if (part == 0)
    sync_threads(1, 128);
  else
    sync_threads(2, 128);
}

// Adds the second part to the first, through `shared`, which nobody reads any more.
template <int D>
__device__ void add_parts(Accumulator<D>& out, RunningSoftmax& softmax, int part, float* shared,
                          float log2_scale) {
  constexpr int numbers = D / 2;
  float* const own = shared + threadIdx.x % 128;
  const auto place = [&](int n) -> float& { return own[128 * n]; };
  __syncthreads();
  if (part == 1) {
#pragma unroll
    for (int n = 0; n < numbers; ++n) place(n) = out.x[n / 4][n % 4];
#pragma unroll
    for (int r = 0; r < 2; ++r) place(numbers + r) = softmax.peak[r], place(numbers + 2 + r) = softmax.sum[r];
  }
  __syncthreads();
  if (part == 1) return;
  float ours[2], theirs[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float other = place(numbers + r), top = fmaxf(softmax.peak[r], other);
    ours[r] = exp2_fast((softmax.peak[r] - top) * log2_scale);
    theirs[r] = exp2_fast((other - top) * log2_scale);
    softmax.peak[r] = top;
    softmax.sum[r] = softmax.sum[r] * ours[r] + place(numbers + 2 + r) * theirs[r];
  }
#pragma unroll
  for (int n = 0; n < numbers; ++n) {
    const int r = n % 4 / 2;
    out.x[n / 4][n % 4] = out.x[n / 4][n % 4] * ours[r] + place(n) * theirs[r];
  }
}

// A block has 64 queries of a head of a document.
template <int D>
__global__ void __launch_bounds__(kShortThreads) short_kernel(const ShortAttention f) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Products = WarpgroupProducts;
  using Rows = typename ShortShape<D>::Rows;
  constexpr int stages = ShortShape<D>::stages;
  extern __shared__ __align__(1024) char raw[];
  const Rows q_tile{shared_address(raw)};
  const int part = own_warpgroup(), thread = static_cast<int>(threadIdx.x) % 128;
  const uint32_t ring = q_tile.address + (1 + part * 2 * stages) * Rows::bytes;
  const auto k_tile = [&](int i) { return Rows{ring + 2 * (i % stages) * Rows::bytes}; };
  const auto v_tile = [&](int i) { return Rows{ring + (2 * (i % stages) + 1) * Rows::bytes}; };

  const int head = static_cast<int>(blockIdx.y), kv_head = head / f.group;
  const int first = kShortRows * static_cast<int>(gridDim.x - 1 - blockIdx.x);  // those that see most first
  const int64_t begin = int64_t{blockIdx.z} * f.length;
  const int seen = f.causal ? min(first + kShortRows, f.length) : f.length;
  const bf16* const k = f.k + begin * f.k_pitch + kv_head * D;
  const bf16* const v = f.v + begin * f.v_pitch + kv_head * D;
  const auto first_key = [&](int i) { return (i * kParts + part) * kShortRows; };
  const auto bring_keys = [&](int i) {
    if (first_key(i) < seen) {
      bring<D, 128>(k_tile(i), k, f.k_pitch, first_key(i), f.length, thread);
      bring<D, 128>(v_tile(i), v, f.v_pitch, first_key(i), f.length, thread);
    }
    commit_copies();
  };
  wait_for_earlier();
  bring<D, kShortThreads>(q_tile, f.q + begin * f.q_pitch + head * D, f.q_pitch, first, f.length,
                          static_cast<int>(threadIdx.x));
#pragma unroll
  for (int i = 0; i < stages; ++i) bring_keys(i);

  const int low = first + Lane().row();
  const float log2_scale = f.scale * kLog2e;
  RunningSoftmax softmax;
  Accumulator<D> out;
  out.fill(0);
  for (int i = 0;; ++i) {
    wait_copies<stages - 1>();
    publish_shared();
    if (i == 0)
      __syncthreads();
    else
      sync_part(part);
    const int key = first_key(i);
    if (key >= seen) break;
    Accumulator<kShortRows> s;
    Products::start(s);
    Products::a_bt(s, TileRows<kShortRows, D>(q_tile, 0), k_tile(i), false);
    Products::commit();
    Products::wait<0>();
    Products::settle(s);
    if (key + kShortRows >= seen) {
      const int end = f.length - 1;
      hide_behind(s, (f.causal ? min(low, end) : end) - key, (f.causal ? min(low + 8, end) : end) - key);
    }
    const float2 shrink = softmax.weigh(s, log2_scale);
    out.scale(shrink.x, shrink.y);
    const Operand<kShortRows> weights = operand_of(s);
    Products::start(out);
    Products::add_a_b(out, weights, v_tile(i));
    Products::commit();
    Products::wait<0>();
    Products::settle(out);
    sync_part(part);
    bring_keys(i + stages);
  }
  add_parts(out, softmax, part, reinterpret_cast<float*>(raw + Rows::bytes), log2_scale);
  if (part == 1) return;

  OwnTokens tokens;
  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = softmax.whole_sum(r);
    const int row = low + 8 * r, token = row < f.length ? static_cast<int>(begin) + row : -1;
    factor[r] = 1 / sum;
    (r == 0 ? tokens.low : tokens.high) = token;
    if (Lane().t == 0 && token >= 0)
      f.lse[int64_t{token} * f.heads + head] = softmax.log_sum(r, sum, f.scale);
  }
  out.scale(factor[0], factor[1]);
  store_rows(q_tile, 0, out, f.o + head * D, int64_t{f.heads} * D, D, tokens);
#endif
}

int tiles_of(const AttentionOptions& options) { return (options.longest + kShortRows - 1) / kShortRows; }

template <int D>
void forward(const ShortAttention& f, const AttentionOptions& options) {
  constexpr int bytes = ShortShape<D>::bytes;
  CHECK(fits_shared<short_kernel<D>>(bytes), "attention: ", bytes, " bytes of shared memory");
  const dim3 blocks(static_cast<unsigned>(tiles_of(options)), static_cast<unsigned>(f.heads),
                    static_cast<unsigned>(options.documents));
  launch_alone<short_kernel<D>>(blocks, kShortThreads, bytes, f);
  check_launch("attention forward (short)");
}

}  // namespace

// As many blocks as run side by side, and up to a length: what was measured to be faster than cuDNN (gpu.md,
// "Short documents").
bool short_attention_serves(const Tensor& q, const Tensor& k, const Tensor& v,
                            const AttentionOptions& options) {
  const int64_t size = q.dim(2), documents = options.documents, side_by_side = size == 64 ? 2 : 1;
  return documents > 0 && options.longest <= 512 && documents * options.longest == q.dim(0) &&
         k.dim(0) == q.dim(0) && (size == 64 || size == 128) && v.dim(2) == size &&
         options.weighting == Weighting::softmax && options.window == 0 && options.block == 0 &&
         !options.alibi && documents * tiles_of(options) * q.dim(1) <= side_by_side * multiprocessors() &&
         hopper_attention_serves(q, k, v, options);
}

void short_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const AttentionOptions& options) {
  const ShortAttention f{data<const bf16>(q),
                         data<const bf16>(k),
                         data<const bf16>(v),
                         data<bf16>(o),
                         data<float>(lse),
                         q.pitch(),
                         k.pitch(),
                         v.pitch(),
                         options.longest,
                         static_cast<int>(q.dim(1)),
                         static_cast<int>(q.dim(1) / k.dim(1)),
                         static_cast<float>(options.scale),
                         options.causal};
  if (q.dim(2) == 64)
    forward<64>(f, options);
  else
    forward<128>(f, options);
}

}  // namespace weft::cuda
