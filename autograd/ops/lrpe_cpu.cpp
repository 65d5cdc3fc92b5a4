#include "autograd/ops/lrpe.h"

#include <cmath>

#include "autograd/ops/rows.h"
#include "autograd/parallel.h"

namespace weft::cpu {
namespace {

// The cosine and the sine of an angle, in A.
template <class A>
struct Turn {
  A cosine, sine;
  Turn(A position, A theta) {
    const double angle = static_cast<double>(position) * static_cast<double>(theta);
    cosine = static_cast<A>(std::cos(angle));
    sine = static_cast<A>(std::sin(angle));
  }
};

}  // namespace

void lrpe_forward(const std::vector<LrpePart>& parts, const Tensor& theta, const Tensor& position) {
  const int64_t heads = theta.dim(0), size = theta.dim(1);
  with_lrpe_types(parts[0].x.dtype(), parts[0].y.dtype(), [&]<class T, class Y>() {
    using A = Acc<T>;
    const A *frequency = theta.data<A>(), *at = position.data<A>();
    std::vector<std::pair<Rows<T>, Rows<Y>>> rows;
    for (const LrpePart& p : parts) rows.emplace_back(Rows<T>(p.x), Rows<Y>(p.y));
    parallel_for(position.numel(), row_grain(heads * size), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t j = 0; j < size; ++j) {
            const Turn<A> turn(at[t], frequency[h * size + j]);
            for (const auto& [x, y] : rows) {
              const A a = A(x[t * heads + h][j]);
              Y* b = y[t * heads + h];
              store(b[j], A(T(a * turn.cosine)));
              store(b[size + j], A(T(a * turn.sine)));
            }
          }
    });
  });
}

void lrpe_backward(const std::vector<LrpePart>& gradients, const std::vector<Tensor>& x, const Tensor& dtheta,
                   const Tensor& theta, const Tensor& position) {
  const int64_t heads = theta.dim(0), size = theta.dim(1), n = position.numel();
  const RowBlocks blocks = row_blocks(n);
  dtheta.zero();
  with_lrpe_types(x[0].dtype(), gradients[0].y.dtype(), [&]<class T, class Y>() {
    using A = Acc<T>;
    const A *frequency = theta.data<A>(), *at = position.data<A>();
    struct Of {
      Rows<T> x, dx;
      Rows<Y> dy;
    };
    std::vector<Of> rows;
    for (size_t i = 0; i < x.size(); ++i)
      rows.push_back({Rows<T>(x[i]), Rows<T>(gradients[i].x), Rows<Y>(gradients[i].y)});
    parallel_for(blocks.count, row_grain(blocks.size * heads * size), [&](int64_t first, int64_t last) {
      for (int64_t block = first; block < last; ++block) {
        A* sum = dtheta.data<A>() + block * heads * size;
        for (int64_t t = block * blocks.size; t < std::min(n, (block + 1) * blocks.size); ++t)
          for (int64_t h = 0; h < heads; ++h)
            for (int64_t j = 0; j < size; ++j) {
              const Turn<A> turn(at[t], frequency[h * size + j]);
              for (const Of& of : rows) {
                const Y* d = of.dy[t * heads + h];
                const A a = A(of.x[t * heads + h][j]), of_cosine = A(d[j]), of_sine = A(d[size + j]);
                const A cosine = A(T(a * turn.cosine)), sine = A(T(a * turn.sine));  // the features
                store(of.dx[t * heads + h][j], of_cosine * turn.cosine + of_sine * turn.sine);
                sum[h * size + j] += at[t] * (of_sine * cosine - of_cosine * sine);
              }
            }
      }
    });
  });
}

}  // namespace weft::cpu
