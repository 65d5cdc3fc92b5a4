// Transforms by cuFFT over many documents and channels at once. Signals lie as tokens do, (n, documents,
// channels), so nothing is put in another order; documents of one transform length go together, as many at
// once as a power of two, so that few plans are ever made.

#include <cufft.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <mutex>
#include <vector>

#include "autograd/cuda/kernel.cuh"
#include "autograd/cuda/step_run.h"
#include "autograd/ops/causal_convolution.h"

namespace weft::cuda {
namespace {

void check_fft(cufftResult code, const char* call) {
  if (code != CUFFT_SUCCESS) throw Error(Exit::internal, text("cuFFT: error ", int{code}, " in ", call));
}

template <class W>
using Complex = std::conditional_t<std::is_same_v<W, double>, cufftDoubleComplex, cufftComplex>;

struct Plan {
  bool made = false;
  cufftHandle handle = 0;
  size_t bytes = 0;  // of scratch
};

// A plan for `batch` signals of n numbers, that of signal b at b + batch i. Plans last as long as the
// process.
Plan plan_of(int64_t n, int64_t batch, cufftType type) {
  static std::mutex mutex;
  static std::map<std::tuple<int64_t, int64_t, cufftType>, Plan> plans;
  const std::scoped_lock lock(mutex);
  Plan& plan = plans[{n, batch, type}];
  if (!plan.made) {
    long long size = n;  // NOLINT: cuFFT's own type
    check_fft(cufftCreate(&plan.handle), "cufftCreate");
    check_fft(cufftSetAutoAllocation(plan.handle, 0), "cufftSetAutoAllocation");
    check_fft(cufftMakePlanMany64(plan.handle, 1, &size, &size, batch, 1, &size, batch, 1, type, batch,
                                  &plan.bytes),
              "cufftMakePlanMany64");
    check_fft(cufftSetStream(plan.handle, stream()), "cufftSetStream");
    plan.made = true;
  }
  return plan;
}

// Real numbers (n, batch), and spectra (n / 2 + 1, batch).
template <class W>
class Transform {
 public:
  Transform(int64_t n, int64_t batch) : n_(n), batch_(batch) {}
  int64_t bins() const { return (n_ / 2 + 1) * batch_; }
  Buffer signal() const { return Buffer(Device::cuda, n_ * batch_ * static_cast<int64_t>(sizeof(W))); }
  Buffer spectrum() const { return Buffer(Device::cuda, bins() * 2 * static_cast<int64_t>(sizeof(W))); }

  void forward(const Buffer& to, const Buffer& from) const {
    run(CUFFT_R2C, CUFFT_D2Z, [&](cufftHandle h) {
      if constexpr (sizeof(W) == 8)
        return cufftExecD2Z(h, static_cast<W*>(from.data()), static_cast<Complex<W>*>(to.data()));
      else
        return cufftExecR2C(h, static_cast<W*>(from.data()), static_cast<Complex<W>*>(to.data()));
    });
  }
  // n times the inverse; the spectrum is used up.
  void backward(const Buffer& to, const Buffer& from) const {
    run(CUFFT_C2R, CUFFT_Z2D, [&](cufftHandle h) {
      if constexpr (sizeof(W) == 8)
        return cufftExecZ2D(h, static_cast<Complex<W>*>(from.data()), static_cast<W*>(to.data()));
      else
        return cufftExecC2R(h, static_cast<Complex<W>*>(from.data()), static_cast<W*>(to.data()));
    });
  }

 private:
  template <class F>
  void run(cufftType single, cufftType twice, F execute) const {
    const Plan plan = plan_of(n_, batch_, sizeof(W) == 8 ? twice : single);
    const Buffer scratch(Device::cuda, static_cast<int64_t>(plan.bytes) + 1);
    static std::mutex mutex;  // threads share a plan, and with it the work area that it was given last
    const std::scoped_lock lock(mutex);
    check_fft(cufftSetWorkArea(plan.handle, scratch.data()), "cufftSetWorkArea");
    launch_run();  // the library has the stream since long ago
    check_fft(execute(plan.handle), "cufftExec");
  }
  int64_t n_, batch_;
};

constexpr int kMostDocuments = 64;
constexpr int64_t kMostElements = int64_t{1} << 27;  // of a signal buffer, if one document is no more

// Documents that are transformed together.
struct Documents {
  int64_t n = 0;  // their transform's length: a power of two, at least twice theirs
  int count = 0;
  std::array<int32_t, kMostDocuments> begin{}, size{};
};

// By length of transform, ascending.
std::vector<Documents> batches_of(const Tensor& first, int64_t channels) {
  std::map<int64_t, std::vector<int32_t>> by_length;
  const auto* start = first.data<int32_t>();
  for (int64_t g = 0; g + 1 < first.dim(0); ++g)
    if (const int64_t size = start[g + 1] - start[g]; size > 0)
      by_length[static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(2 * size)))].push_back(
          static_cast<int32_t>(g));
  std::vector<Documents> out;
  for (const auto& [n, documents] : by_length) {
    const int64_t fit = std::clamp<int64_t>(kMostElements / (n * channels), 1, kMostDocuments);
    for (size_t i = 0; i < documents.size(); i += static_cast<size_t>(out.back().count)) {
      Documents& d = out.emplace_back();
      d.n = n;
      d.count = static_cast<int>(std::bit_floor(std::min(static_cast<uint64_t>(fit), documents.size() - i)));
      for (int j = 0; j < d.count; ++j) {
        const int32_t g = documents[i + static_cast<size_t>(j)];
        d.begin[j] = start[g];
        d.size[j] = start[g + 1] - start[g];
      }
    }
  }
  return out;
}

// Tokens into signals, zeros behind them.
template <class T>
void load_tokens(const Buffer& signal, const Tensor& x, const Documents& documents) {
  auto* to = static_cast<Acc<T>*>(signal.data());
  const T* from = data<T>(x);
  const int64_t channels = x.dim(1);
  each(documents.n * documents.count * channels, [=] __device__(int64_t i) {
    int64_t c = i, d = divide(c, channels);
    const int64_t t = divide(d, documents.count);
    to[i] = t < documents.size[d] ? Acc<T>(from[(documents.begin[d] + t) * channels + c]) : Acc<T>(0);
  });
}

template <class T>
void store_tokens(const Tensor& y, const Buffer& signal, const Documents& documents) {
  T* to = data<T>(y);
  const auto* from = static_cast<const Acc<T>*>(signal.data());
  const int64_t channels = y.dim(1);
  const Acc<T> factor = Acc<T>(1) / static_cast<Acc<T>>(documents.n);
  each(documents.n / 2 * documents.count * channels, [=] __device__(int64_t i) {
    int64_t c = i, d = divide(c, channels);
    const int64_t t = divide(d, documents.count);
    if (t < documents.size[d]) to[(documents.begin[d] + t) * channels + c] = static_cast<T>(from[i] * factor);
  });
}

template <class T>
void load_kernel(const Buffer& signal, const Tensor& kernel, int64_t n) {
  auto* to = static_cast<Acc<T>*>(signal.data());
  const T* from = data<T>(kernel);
  const int64_t channels = kernel.dim(0), length = kernel.dim(1), taps = std::min(n / 2, length);
  each(n * channels, [=] __device__(int64_t i) {
    int64_t c = i;
    const int64_t t = divide(c, channels);
    to[i] = t < taps ? Acc<T>(from[c * length + t]) : Acc<T>(0);
  });
}

// sum += the first values behind the spectrum.
template <class W>
void add_to_kernel(const Tensor& sum, const Buffer& signal, int64_t n) {
  W* to = data<W>(sum);
  const W* from = static_cast<const W*>(signal.data());
  const int64_t channels = sum.dim(0), length = sum.dim(1), taps = std::min(n / 2, length);
  const W factor = W(1) / static_cast<W>(n);
  each(taps * channels, [=] __device__(int64_t i) {
    int64_t t = i;
    const int64_t c = divide(t, taps);
    to[c * length + t] += from[t * channels + c] * factor;
  });
}

// z = x filter, or x times the conjugate: of each document's channel with that channel's filter. z may be x.
template <class W>
void multiply(const Buffer& z, const Buffer& x, const Buffer& filter, int64_t bins,
              const Documents& documents, int64_t channels, bool conjugate) {
  auto* to = static_cast<Complex<W>*>(z.data());
  const auto *from = static_cast<const Complex<W>*>(x.data()),
             *by = static_cast<const Complex<W>*>(filter.data());
  const int64_t count = documents.count;
  const W sign = conjugate ? W(-1) : W(1);
  each(bins, [=] __device__(int64_t i) {
    int64_t c = i;
    const int64_t bin = divide(c, channels) / count;
    const Complex<W> a = from[i], b = by[bin * channels + c];
    const W imaginary = sign * b.y;
    to[i] = {a.x * b.x - a.y * imaginary, a.x * imaginary + a.y * b.x};
  });
}

// dfilter = or += sum over documents of g times the conjugate of x, in order.
template <class W>
void correlate(const Buffer& dfilter, const Buffer& g, const Buffer& x, const Documents& documents,
               int64_t channels, bool add) {
  auto* to = static_cast<Complex<W>*>(dfilter.data());
  const auto *a = static_cast<const Complex<W>*>(g.data()), *b = static_cast<const Complex<W>*>(x.data());
  const int count = documents.count;
  each((documents.n / 2 + 1) * channels, [=] __device__(int64_t i) {
    int64_t c = i;
    const int64_t bin = divide(c, channels);
    Complex<W> sum{0, 0};
    if (add) sum = to[i];
    for (int d = 0; d < count; ++d) {
      const int64_t at = (bin * count + d) * channels + c;
      sum.x += a[at].x * b[at].x + a[at].y * b[at].y;
      sum.y += a[at].y * b[at].x - a[at].x * b[at].y;
    }
    to[i] = sum;
  });
}

// The kernel's spectrum for transforms of length n.
template <class T>
void filter_spectrum(const Buffer& filter, const Tensor& kernel, const Transform<Acc<T>>& f, int64_t n) {
  const Buffer signal = f.signal();
  load_kernel<T>(signal, kernel, n);
  f.forward(filter, signal);
}

// use(begin, end) for runs of batches of one transform length.
template <class F>
void for_lengths(const std::vector<Documents>& all, F use) {
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    while (end < all.size() && all[end].n == all[begin].n) ++end;
    use(begin, end);
  }
}

template <class T>
void forward_as(const Tensor& y, const Tensor& x, const Tensor& kernel, const Tensor& first) {
  using W = Acc<T>;
  const int64_t channels = x.dim(1);
  const std::vector<Documents> all = batches_of(first, channels);
  for_lengths(all, [&](size_t begin, size_t end) {
    const int64_t n = all[begin].n;
    const Transform<W> own(n, channels);
    const Buffer filter = own.spectrum();
    filter_spectrum<T>(filter, kernel, own, n);
    for (size_t i = begin; i < end; ++i) {
      const Transform<W> f(n, all[i].count * channels);
      const Buffer signal = f.signal(), spectrum = f.spectrum();
      load_tokens<T>(signal, x, all[i]);
      f.forward(spectrum, signal);
      multiply<W>(spectrum, spectrum, filter, f.bins(), all[i], channels, false);
      f.backward(signal, spectrum);
      store_tokens<T>(y, signal, all[i]);
    }
  });
}

template <class T>
void backward_as(const Tensor& dx, const Tensor& dkernel, const Tensor& x, const Tensor& kernel,
                 const Tensor& first, const Tensor& dy) {
  using W = Acc<T>;
  const int64_t channels = x.dim(1);
  const std::vector<Documents> all = batches_of(first, channels);
  const Tensor sum = zeros(kernel.shape(), dtype_of<W>(), Device::cuda);
  for_lengths(all, [&](size_t begin, size_t end) {
    const int64_t n = all[begin].n;
    const Transform<W> own(n, channels);
    const Buffer filter = own.spectrum(), dfilter = own.spectrum();
    filter_spectrum<T>(filter, kernel, own, n);
    for (size_t i = begin; i < end; ++i) {
      const Transform<W> f(n, all[i].count * channels);
      const Buffer signal = f.signal(), g = f.spectrum(), s = f.spectrum();
      load_tokens<T>(signal, dy, all[i]);
      f.forward(g, signal);
      load_tokens<T>(signal, x, all[i]);
      f.forward(s, signal);
      correlate<W>(dfilter, g, s, all[i], channels, i > begin);
      multiply<W>(g, g, filter, f.bins(), all[i], channels, true);
      f.backward(signal, g);
      store_tokens<T>(dx, signal, all[i]);
    }
    const Buffer signal = own.signal();
    own.backward(signal, dfilter);
    add_to_kernel<W>(sum, signal, n);
  });
  dkernel.copy_from(sum);
}

}  // namespace

void causal_convolution_forward(const Tensor& y, const Tensor& x, const Tensor& kernel, const Tensor& first) {
  if (x.numel() > 0) with_float(x.dtype(), [&]<class T>() { forward_as<T>(y, x, kernel, first); });
}

void causal_convolution_backward(const Tensor& dx, const Tensor& dkernel, const Tensor& x,
                                 const Tensor& kernel, const Tensor& first, const Tensor& dy) {
  if (x.numel() == 0) return dkernel.zero();
  with_float(x.dtype(), [&]<class T>() { backward_as<T>(dx, dkernel, x, kernel, first, dy); });
}

}  // namespace weft::cuda
