#include "attention/steps.h"
#include "autograd/cuda/early.cuh"
#include "autograd/cuda/step_run.h"

namespace weft::cuda {
namespace {

// Addresses as AddressTable lays them out.
template <class T>
T* const* addresses(const Tensor& table) {
  return reinterpret_cast<T* const*>(data<int32_t>(table));
}

template <class T>
struct StepRows {
  const T* x;
  int64_t pitch;
  explicit StepRows(const Tensor& t) : x(data<const T>(t)), pitch(t.defined() ? t.pitch() : 0) {}
};

template <class T>
struct RecurrentStep {
  StepRows<T> q, k, v;
  StepRows<Acc<T>> g, beta;  // null: none
  bool channels;             // a gate for each channel of the keys
  T* o;
  Acc<T>* const* states;
  int heads, d, e;
  Acc<T> scale;
};

constexpr int kRowGroups = kThreads / static_cast<int>(kWarp);

// The sum of x over the groups of rows, for each of 32 columns; all threads get that of their column.
template <class W>
__device__ W over_groups(W (&parts)[kRowGroups][kWarp + 1], W x) {
  __syncthreads();
  parts[threadIdx.x / kWarp][threadIdx.x % kWarp] = x;
  __syncthreads();
  W sum = 0;
#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) sum += parts[i][threadIdx.x % kWarp];
  return sum;
}

constexpr int kHeld = 16;  // rows of the state that a lane keeps: all, of up to 128

// A block: 32 columns of the state of a head of a document, a column a lane; a warp has every eighth row. It
// starts early: the state was written a token ago.
template <class T, bool delta>
__global__ void __launch_bounds__(kThreads)
    recurrent_step_kernel(const __grid_constant__ RecurrentStep<T> p) {
  using W = Acc<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ W parts[kRowGroups][kWarp + 1];
  W *q = reinterpret_cast<W*>(shared), *k = q + p.d, *decay = k + p.d;
  const int64_t head = blockIdx.y, m = blockIdx.z;
  const int column = static_cast<int>(blockIdx.x * kWarp + threadIdx.x % kWarp),
            group = static_cast<int>(threadIdx.x / kWarp);
  const bool inside = column < p.e;
  W* s = p.states[m] + head * p.d * p.e + column;
  W held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int row = i * kRowGroups + group;
    held[i] = inside && row < p.d ? s[int64_t{row} * p.e] : W(0);
  }
  // f(state, row) for each row that is this lane's; what f leaves in state is kept if `keep`.
  const auto each_row = [&](bool keep, auto f) {
    if (!inside) return;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int row = i * kRowGroups + group;
      if (row >= p.d) break;
      f(held[i], row);
      if (keep) s[int64_t{row} * p.e] = held[i];
    }
#pragma unroll 8
    for (int row = kHeld * kRowGroups + group; row < p.d; row += kRowGroups) {
      W x = s[int64_t{row} * p.e];
      f(x, row);
      if (keep) s[int64_t{row} * p.e] = x;
    }
  };
  wait_for_earlier();
  for (int i = static_cast<int>(threadIdx.x); i < p.d; i += kThreads) {
    q[i] = static_cast<W>(p.q.x[m * p.q.pitch + head * p.d + i]);
    k[i] = static_cast<W>(p.k.x[m * p.k.pitch + head * p.d + i]);
    const W* g = p.g.x == nullptr ? nullptr
                 : p.channels     ? p.g.x + m * p.g.pitch + head * p.d + i
                                  : p.g.x + m * p.g.pitch + head;
    decay[i] = g == nullptr ? W(1) : std::exp(*g);
  }
  __syncthreads();
  W u = inside ? static_cast<W>(p.v.x[m * p.v.pitch + head * p.e + column]) : W(0);
  if constexpr (delta) {
    W met = 0;
    each_row(false, [&](const W& x, int row) { met += k[row] * decay[row] * x; });
    u = p.beta.x[m * p.beta.pitch + head] * (u - over_groups(parts, met));
  }
  W sum = 0;
  each_row(true, [&](W& x, int row) {
    x = decay[row] * x + k[row] * u;
    sum += q[row] * x;
  });
  sum = over_groups(parts, sum);
  if (inside && group == 0) p.o[(m * p.heads + head) * p.e + column] = static_cast<T>(p.scale * sum);
}

template <class T, bool delta>
void launch(const RecurrentStep<T>& p, int64_t documents) {
  const dim3 grid((static_cast<unsigned>(p.e) + kWarp - 1) / kWarp, static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(documents));
  const size_t bytes = 3 * sizeof(Acc<T>) * static_cast<size_t>(p.d);
  constexpr auto kernel = recurrent_step_kernel<T, delta>;
  CHECK(fits_shared<kernel>(bytes), "recurrent step: keys of ", p.d, " are too wide for this GPU");
  CHECK(documents <= 65535, "recurrent step: ", documents, " documents at once, a grid takes 65535");
  launch_early(kernel, grid, kThreads, bytes, p);
  check_launch("recurrent step");
}

template <class T>
void ema_as(const Tensor& y, const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
            const Tensor& states) {
  using W = Acc<T>;
  T* to = data<T>(y);
  const T* from = data<const T>(x);
  const W *a = data<const W>(in), *c = data<const W>(out), *q = data<const W>(decay);
  W* const* state = addresses<W>(states);
  const int64_t channels = x.dim(1), n = in.dim(1), pitch = x.pitch();
  each(y.numel(), [=] __device__(int64_t i) {
    int64_t channel = i;
    const int64_t m = divide(channel, channels);
    const W input = static_cast<W>(from[m * pitch + channel]);
    W sum = 0;
    for (int64_t j = channel * n; j < (channel + 1) * n; ++j) {
      W& h = state[m][j];
      h = q[j] * h + a[j] * input;
      sum += c[j] * h;
    }
    to[i] = static_cast<T>(sum);
  });
}

// Each thread moves one column of a document's window.
template <class U>
void shift_as(const Tensor& window, const Tensor& rows, int64_t columns, int64_t pitch) {
  U* to = data<U>(window);
  const U* from = data<const U>(rows);
  const int64_t width = window.dim(0) / rows.dim(0);
  each(rows.dim(0) * columns, [=] __device__(int64_t i) {
    const int64_t m = divide(i, columns);
    U* at = to + m * width * columns + i;
    for (int64_t r = 0; r + 1 < width; ++r, at += columns) *at = at[columns];
    *at = from[m * pitch + i];
  });
}

}  // namespace

void shift_window(const Tensor& window, const Tensor& rows) {
  const int64_t size = size_of(rows.dtype()), bytes = rows.row_size() * size, pitch = rows.pitch() * size;
  const auto in = [&](int64_t unit) {
    return bytes % unit == 0 && (pitch % unit == 0 || rows.dim(0) == 1) &&
           reinterpret_cast<uintptr_t>(rows.raw()) % static_cast<uintptr_t>(unit) == 0;
  };
  if (in(sizeof(uint4)))
    shift_as<uint4>(window, rows, bytes / 16, pitch / 16);
  else if (in(sizeof(uint32_t)))
    shift_as<uint32_t>(window, rows, bytes / 4, pitch / 4);
  else
    shift_as<uint16_t>(window, rows, bytes / 2, pitch / 2);
}

void recurrent_step(const Tensor& o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                    const Tensor& beta, const Tensor& states, double scale) {
  with_float(v.dtype(), [&]<class T>() {
    using W = Acc<T>;
    const RecurrentStep<T> p{StepRows<T>(q),
                             StepRows<T>(k),
                             StepRows<T>(v),
                             StepRows<W>(g),
                             StepRows<W>(beta),
                             g.defined() && g.rank() == 3,
                             data<T>(o),
                             addresses<W>(states),
                             static_cast<int>(q.dim(1)),
                             static_cast<int>(q.dim(2)),
                             static_cast<int>(v.dim(2)),
                             static_cast<W>(scale)};
    const int64_t documents = q.dim(0);
    const auto alone = [=, delta = beta.defined()] {
      delta ? launch<T, true>(p, documents) : launch<T, false>(p, documents);
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (!beta.defined() && p.d == kPhaseHead && p.e == kPhaseHead && p.v.pitch % 4 == 0 &&
          reinterpret_cast<uintptr_t>(p.v.x) % 8 == 0 &&
          joins_run({.q = p.q.x,
                     .k = p.k.x,
                     .v = p.v.x,
                     .q_pitch = p.q.pitch,
                     .k_pitch = p.k.pitch,
                     .v_pitch = p.v.pitch,
                     .g_pitch = p.g.pitch,
                     .g = p.g.x,
                     .states = p.states,
                     .o = p.o,
                     .documents = static_cast<int>(documents),
                     .heads = p.heads,
                     .channels = p.channels,
                     .scale = p.scale},
                    alone))
        return;
    alone();
  });
}

void ema_step(const Tensor& y, const Tensor& x, const Tensor& in, const Tensor& out, const Tensor& decay,
              const Tensor& states) {
  with_float(x.dtype(), [&]<class T>() { ema_as<T>(y, x, in, out, decay, states); });
}

}  // namespace weft::cuda
