#include "autograd/ops/arrange.h"

#include <algorithm>

#include "autograd/ops/convert.h"

namespace weft {
namespace {

struct Range {
  int axis;
  int64_t begin, end;
};
struct Order {
  int rank;
  int axis[Shape::kMaxRank];
};

Tensor copy_slice(const Tensor& x, int axis, int64_t begin, int64_t end) {
  const Tensor y = empty(x.shape().with(axis, end - begin), x.dtype(), x.device());
  ON_DEVICE(x.device(), copy_block(y, 0, x.contiguous(), begin, axis, end - begin));
  return y;
}

}  // namespace

// A parameter is recorded: it is no slot of the tape, and what arrives for it must have the shape that its
// store gave it.
Variable reshape(const Variable& x, const Shape& shape) {
  if (x.value().dense() && !x.parameter().defined()) return x.in_shape(shape);
  const Tensor y = x.value().contiguous().reshape(shape);
  return record("reshape", {x}, y, save(), NoAttributes{}, [](Backward& b, const NoAttributes&) {
    b.add(0, b.grad().contiguous().reshape(b.shape(0)));
  });
}

Variable permute(const Variable& x, const std::vector<int>& order) {
  CHECK(static_cast<int>(order.size()) == x.rank(), "permute: ", x.shape(), " by ", order.size(), " axes");
  Shape shape;
  Order back{x.rank(), {}};
  for (size_t i = 0; i < order.size(); ++i) {
    shape.push_back(x.dim(order[i]));
    back.axis[order[i]] = static_cast<int>(i);
  }
  const Tensor y = empty(shape, x.dtype(), x.device());
  ON_DEVICE(x.device(), permute(y, x.value().contiguous(), order));
  return record("permute", {x}, y, save(), back, [](Backward& b, const Order& back) {
    const Tensor g = b.grad().contiguous();
    const std::vector<int> order(back.axis, back.axis + back.rank);
    Shape shape;
    for (int axis : order) shape.push_back(g.dim(axis));
    const Tensor dx = empty(shape, g.dtype(), g.device());
    ON_DEVICE(g.device(), permute(dx, g, order));
    b.add(0, dx);
  });
}

Variable slice(const Variable& x, int axis, int64_t begin, int64_t end) {
  axis = x.shape().index(axis);
  CHECK(0 <= begin && begin <= end && end <= x.dim(axis), "slice: [", begin, ", ", end, ") of axis ", axis,
        " of ", x.shape());
  if (begin == 0 && end == x.dim(axis)) return x;
  const Tensor y = axis == 0 ? x.value().rows(begin, end) : copy_slice(x, axis, begin, end);
  return record("slice", {x}, y, save(), Range{axis, begin, end}, [](Backward& b, const Range& r) {
    const Tensor g = b.grad().contiguous();
    const Tensor dx =
        b.accumulator(0);  // many slices of one tensor cost their own size, not the whole one's each
    if (r.axis == 0) {
      ON_DEVICE(g.device(), accumulate(dx.rows(r.begin, r.end), g));
    } else {
      ON_DEVICE(g.device(), add_block(dx, r.begin, g, 0, r.axis, r.end - r.begin));
    }
  });
}

Variable concatenate(const std::vector<Variable>& parts, int axis) {
  CHECK(!parts.empty(), "concatenate: no parts");
  if (parts.size() == 1) return parts[0];
  axis = parts[0].shape().index(axis);
  int64_t total = 0;
  for (const Variable& p : parts) {
    CHECK(p.rank() == parts[0].rank() && p.shape().with(axis, 0) == parts[0].shape().with(axis, 0) &&
              p.dtype() == parts[0].dtype(),
          "concatenate: ", p.shape(), " and ", parts[0].shape(), " along axis ", axis);
    total += p.dim(axis);
  }
  const Tensor y = empty(parts[0].shape().with(axis, total), parts[0].dtype(), parts[0].device());
  int64_t at = 0;
  for (const Variable& p : parts) {
    ON_DEVICE(y.device(), copy_block(y, at, p.value().contiguous(), 0, axis, p.dim(axis)));
    at += p.dim(axis);
  }
  return record("concatenate", parts, y, save(), Range{axis, 0, total}, [](Backward& b, const Range& r) {
    const Tensor g = b.grad().contiguous();
    int64_t at = 0;
    for (int i = 0; i < b.inputs(); ++i) {
      const int64_t n = b.shape(i)[r.axis];
      if (b.wants(i)) b.add(i, copy_slice(g, r.axis, at, at + n));
      at += n;
    }
  });
}

std::vector<Variable> split_columns(const Variable& x, const std::vector<Shape>& shapes) {
  CHECK(x.rank() == 2, "split_columns: ", x.shape());
  std::vector<Tensor> parts;
  int64_t at = 0;
  for (const Shape& shape : shapes) {
    CHECK(shape.rank() >= 2 && shape[0] == x.dim(0), "split_columns: x ", x.shape(), ", a part ", shape);
    const int64_t width = shape.product(1, shape.rank());
    parts.push_back(x.value().columns(at, at + width).reshape(shape));
    at += width;
  }
  CHECK(at == x.dim(1), "split_columns: widths add up to ", at, ", x is ", x.shape());
  std::vector<Variable> out = record_many("split_columns", {x}, parts, save(), NoAttributes{},
                                          [](Backward& b, const NoAttributes&) { b.add(0, b.joined()); });
  if (Tape::current() != nullptr) Tape::current()->join(out, 1);
  return out;
}

std::vector<Variable> split_rows(const Variable& x, int64_t count) {
  CHECK(x.rank() >= 1 && count > 0 && x.dim(0) % count == 0, "split_rows: x ", x.shape(), " in ", count);
  const int64_t n = x.dim(0) / count;
  std::vector<Tensor> parts;
  parts.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) parts.push_back(x.value().rows(i * n, (i + 1) * n));
  std::vector<Variable> out = record_many("split_rows", {x}, parts, save(), NoAttributes{},
                                          [](Backward& b, const NoAttributes&) { b.add(0, b.joined()); });
  if (Tape::current() != nullptr) Tape::current()->join(out, 0);
  return out;
}

std::vector<Variable> split_columns(const Variable& x, const std::vector<int64_t>& widths) {
  std::vector<Shape> shapes;
  for (const int64_t width : widths) shapes.push_back({x.dim(0), width});
  return split_columns(x, shapes);
}

Variable gather_rows(const Variable& x, const Tensor& index, double fill) {
  CHECK(index.rank() == 1 && index.dtype() == Dtype::i32, "gather_rows: index ", index.shape());
  const Tensor y = empty(x.shape().with(0, index.dim(0)), x.dtype(), x.device());
  ON_DEVICE(x.device(), gather_rows(y, x.value().contiguous(), index, fill));
  return record("gather_rows", {x}, y, save(index), NoAttributes{}, [](Backward& b, const NoAttributes&) {
    const Tensor g = b.grad().contiguous();
    const Tensor to = b.accumulator(0);  // also on meta, where no kernel is called
    ON_DEVICE(g.device(), scatter_rows(to, g, b.saved(0)));
  });
}

}  // namespace weft
