#include "autograd/ops/rotary.h"

#include <cmath>
#include <cstring>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"
#include "autograd/scratch.h"

namespace weft::cpu {
namespace {

// cos and sin of every angle of a position, one product of two rotations: by the position's multiple of 64,
// which neighbours share, and by the rest, of which there are 64. A function of the position alone.
template <class A>
class Angles {
 public:
  // Those of this thread, which live from call to call: short ones would spend their time on sines.
  static Angles& of(double theta, int64_t pairs) {
    thread_local Angles last(theta, pairs);
    if (last.theta_ != theta || last.pairs_ != pairs) last = Angles(theta, pairs);
    return last;
  }

  Angles(double theta, int64_t pairs)
      : theta_(theta), pairs_(pairs), frequency_(pairs), high_(2 * pairs), cos(pairs), sin(pairs) {
    for (int64_t i = 0; i < pairs; ++i)
      frequency_[i] = std::pow(theta, -static_cast<double>(i) / static_cast<double>(pairs));
  }

  void turn_to(int32_t position) {
    const int64_t rest = position & 63, multiple = position - rest;
    if (multiple != multiple_) unit(high_, multiple_ = multiple);
    if (low_[rest].empty()) {
      low_[rest].resize(2 * pairs_);
      unit(low_[rest], rest);
    }
    const double *c = high_.data(), *s = c + pairs_, *lc = low_[rest].data(), *ls = lc + pairs_;
#pragma omp simd
    for (int64_t i = 0; i < pairs_; ++i) {
      cos[i] = static_cast<A>(c[i] * lc[i] - s[i] * ls[i]);
      sin[i] = static_cast<A>(s[i] * lc[i] + c[i] * ls[i]);
    }
  }

 private:
  // All cosines, then all sines.
  void unit(std::vector<double>& to, int64_t position) const {
    for (int64_t i = 0; i < pairs_; ++i) {
      const double angle = static_cast<double>(position) * frequency_[i];
      to[i] = std::cos(angle);
      to[pairs_ + i] = std::sin(angle);
    }
  }

  double theta_;
  int64_t pairs_, multiple_ = 1;  // no multiple of 64: nothing yet
  std::vector<double> frequency_, high_, low_[64];

 public:
  Scratch<A> cos, sin;
};

void turn_heads(const Tensor& y, const Tensor& x, const Tensor& position, double theta, int64_t rotated,
                double turn) {
  const int64_t heads = x.dim(1), width = x.dim(2), pairs = rotated / 2;
  const int32_t* p = position.data<int32_t>();
  with_float(x.dtype(), [&]<class T>() {
    using A = Acc<T>;
    const Rows<T> in(x), out(y);
    const A sign = static_cast<A>(turn);
    parallel_for(x.dim(0), row_grain(heads * width), [&](int64_t begin, int64_t end) {
      Angles<A>& angles = Angles<A>::of(theta, pairs);
      for (int64_t i = begin; i < end; ++i) {
        angles.turn_to(p[i]);
        const A *c = angles.cos.data(), *s = angles.sin.data();
        for (int64_t h = 0; h < heads; ++h) {
          const T *a = in[i * heads + h], *b = a + pairs;
          T *u = out[i * heads + h], *v = u + pairs;
#pragma omp simd
          for (int64_t j = 0; j < pairs; ++j) {
            const A first = A(a[j]), second = A(b[j]), sine = sign * s[j];
            store(u[j], first * c[j] - second * sine);
            store(v[j], second * c[j] + first * sine);
          }
          if (u != a)
            std::memcpy(static_cast<void*>(u + rotated), a + rotated,
                        static_cast<size_t>(width - rotated) * sizeof(T));
        }
      }
    });
  });
}

}  // namespace

void rotary(const std::vector<RotaryPart>& parts, const Tensor& position, double theta, int64_t rotated,
            double turn) {
  for (const RotaryPart& part : parts) turn_heads(part.y, part.x, position, theta, rotated, turn);
}

}  // namespace weft::cpu
