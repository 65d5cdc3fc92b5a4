#include "autograd/ops/elementwise.h"

#include <algorithm>
#include <tuple>

namespace weft {
namespace {

Shape broadcast(const char* op, const Shape& a, const Shape& b) {
  Shape out;
  const int rank = std::max(a.rank(), b.rank());
  for (int i = 0; i < rank; ++i) {
    const int ia = i - rank + a.rank(), ib = i - rank + b.rank();
    const int64_t da = ia < 0 ? 1 : a[ia], db = ib < 0 ? 1 : b[ib];
    CHECK(da == db || da == 1 || db == 1, op, ": ", a, " and ", b, " do not broadcast");
    out.push_back(da == 1 ? db : da);
  }
  return out;
}

// Adds a gradient in the broadcast shape to input i, summed to the input's own shape.
void add_summed(Backward& grads, int i, const Tensor& d, const Shape& shape) {
  if (d.shape() == shape) return grads.add(i, d);
  const Tensor sum = empty(shape, d.dtype(), d.device());
  ON_DEVICE(d.device(), sum_to(sum, d));
  grads.add(i, sum);
}

template <class F>
Variable unary_op(const Variable& input) {
  const Tensor x = input.value().contiguous();
  const Tensor y = empty_like(x);
  ON_DEVICE(x.device(), unary_forward<F>(y, x));
  return record("elementwise", {input}, y, save(x, y), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor dy = grads.grad().contiguous(), dx = empty_like(dy);
                  ON_DEVICE(dy.device(), unary_backward<F>(dx, grads.saved(0), grads.saved(1), dy));
                  grads.add(0, dx);
                });
}

template <class F>
Variable binary_op(const Variable& first, const Variable& second) {
  const Tensor a = first.value().contiguous(), b = second.value().contiguous();
  CHECK(a.dtype() == b.dtype() && a.device() == b.device(), "elementwise: ", name_of(a.dtype()), " on ",
        name_of(a.device()), " and ", name_of(b.dtype()), " on ", name_of(b.device()));
  const Tensor y = empty(broadcast("elementwise", a.shape(), b.shape()), a.dtype(), a.device());
  ON_DEVICE(y.device(), binary_forward<F>(y, a, b));
  constexpr bool linear =
      std::is_same_v<F, Add> || std::is_same_v<F, Subtract>;  // needs no values on its way back
  return record("elementwise", {first, second}, y, linear ? save() : save(a, b), NoAttributes{},
                [](Backward& grads, const NoAttributes&) {
                  const Tensor dy = grads.grad().contiguous();
                  for (int i = 0; i < 2; ++i) {
                    if (!grads.wants(i)) continue;
                    Tensor d = dy;  // NOLINT(performance-unnecessary-copy-initialization): not of Add
                    if constexpr (std::is_same_v<F, Subtract>) {
                      if (i == 1) {
                        d = empty_like(dy);
                        ON_DEVICE(dy.device(), affine(d, dy, -1, 0));
                      }
                    } else if constexpr (!std::is_same_v<F, Add>) {
                      d = empty_like(dy);
                      ON_DEVICE(dy.device(),
                                binary_backward<F>(d, grads.saved(0), grads.saved(1), dy, i == 0));
                    }
                    add_summed(grads, i, d, grads.shape(i));
                  }
                });
}

}  // namespace

// One instantiation a function, from the two lists.
template <class F>
Variable unary(const Variable& x) {
  return unary_op<F>(x);
}
template <class F>
Variable binary(const Variable& a, const Variable& b) {
  return binary_op<F>(a, b);
}

namespace {
template <class... F>
constexpr auto instances(FunctionList<F...>) {
  if constexpr (requires { (F::forward(1.0f), ...); })
    return std::tuple{&unary<F>...};
  else
    return std::tuple{&binary<F>...};
}
}  // namespace
[[maybe_unused]] extern const auto unary_instances = instances(UnaryFunctions{});
[[maybe_unused]] extern const auto binary_instances = instances(BinaryFunctions{});

Variable scale(const Variable& input, double alpha, double beta) {
  const Tensor x = input.value().contiguous(), y = empty_like(x);
  ON_DEVICE(x.device(), affine(y, x, alpha, beta));
  struct Alpha {
    double alpha;
  };
  return record("scale", {input}, y, save(), Alpha{alpha}, [](Backward& grads, const Alpha& a) {
    const Tensor dy = grads.grad().contiguous(), dx = empty_like(dy);
    ON_DEVICE(dy.device(), affine(dx, dy, a.alpha, 0));
    grads.add(0, dx);
  });
}

Variable cast(const Variable& x, Dtype dtype) {
  if (x.dtype() == dtype) return x;
  struct From {
    Dtype dtype;
  };
  return record("cast", {x}, x.value().to(dtype), save(), From{x.dtype()},
                [](Backward& grads, const From& from) { grads.add(0, grads.grad().to(from.dtype)); });
}

}  // namespace weft
