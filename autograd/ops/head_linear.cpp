#include "autograd/ops/head_linear.h"

#include <algorithm>

#include "autograd/ops/arrange.h"
#include "autograd/ops/matmul.h"

namespace weft {
namespace {

struct Attributes {
  int64_t tokens, always, routed;
  int64_t first;  // row of the weight, of linear_to_heads
  bool to_heads;
};

HeadTokens from_lists(const std::vector<std::vector<int32_t>>& lists, int64_t tokens, int64_t always,
                      Device device) {
  HeadTokens on{.tokens = tokens, .always = always};
  const int64_t heads = always + static_cast<int64_t>(lists.size());
  CHECK(tokens * heads <= INT32_MAX, "heads of tokens: ", tokens, " tokens of ", heads,
        " heads are more than 32 bits number");
  std::vector<int32_t> rows, slots;
  for (size_t i = 0; i < lists.size(); ++i) {
    for (const int32_t t : lists[i]) {
      rows.push_back(t);
      slots.push_back(static_cast<int32_t>(t * heads + always + static_cast<int64_t>(i)));
    }
    if (lists[i].size() == 1 && tokens > 1) rows.push_back(-1), slots.push_back(-1);
    on.begin.push_back(static_cast<int64_t>(rows.size()));
  }
  on.rows = from_ints(rows, device);
  on.slots = from_ints(slots, device);
  return on;
}

// The lists, and what the functions below make of a weight.
struct Heads {
  const Attributes& a;
  Tensor begin, rows, slots;  // begin on the host
  int64_t size;

  int64_t count() const { return a.always + a.routed; }
  int64_t at(int64_t i) const { return begin.data<int32_t>()[i]; }
  Tensor list(const Tensor& of, int64_t head) const { return of.rows(at(head), at(head + 1)); }
  // Of heads [from, to): (heads size, C), or (C, heads size).
  Tensor part(const Tensor& weight, int64_t from, int64_t to) const {
    return a.to_heads ? weight.rows(a.first + from * size, a.first + to * size)
                      : weight.columns(from * size, to * size);
  }
};

Tensor gathered(const Tensor& x, const Tensor& index) {
  const Tensor y = empty(x.shape().with(0, index.dim(0)), x.dtype(), x.device());
  ON_DEVICE(x.device(), gather_rows(y, x, index, 0));
  return y;
}

// f(routed head, its number among all) for those that have tokens.
template <class F>
void each_routed(const Heads& heads, F f) {
  for (int64_t i = 0; i < heads.a.routed; ++i)
    if (heads.at(i) < heads.at(i + 1)) f(i, heads.a.always + i);
}

// x (N, C) -> (N, H, size)
Tensor spread(const Tensor& x, const Tensor& weight, const Heads& heads) {
  const int64_t n = x.dim(0), h = heads.count(), always = heads.a.always * heads.size;
  const Transpose t{false, heads.a.to_heads};
  const Tensor y = empty({n, h * heads.size}, x.dtype(), x.device());
  if (heads.a.routed > 0) y.zero();
  if (always > 0) gemm(y.columns(0, always), x, heads.part(weight, 0, heads.a.always), t, 1, 0);
  const Tensor flat = y.reshape({n * h, heads.size});
  each_routed(heads, [&](int64_t i, int64_t head) {
    const Tensor mine = gathered(x, heads.list(heads.rows, i));
    const Tensor product = empty({mine.dim(0), heads.size}, x.dtype(), x.device());
    gemm(product, mine, heads.part(weight, head, head + 1), t, 1, 0);
    ON_DEVICE(y.device(), scatter_rows(flat, product, heads.list(heads.slots, i)));
  });
  return y.reshape({n, h, heads.size});
}

// x (N, H, size), dense -> (N, C)
Tensor collect(const Tensor& x, const Tensor& weight, const Heads& heads) {
  const int64_t n = x.dim(0), h = heads.count(), always = heads.a.always * heads.size;
  const int64_t width = weight.dim(heads.a.to_heads ? 1 : 0);
  const Transpose t{false, !heads.a.to_heads};
  const Tensor y = empty({n, width}, wide_of(x.dtype()), x.device());
  if (always > 0)
    gemm(y, x.reshape({n, h * heads.size}).columns(0, always), heads.part(weight, 0, heads.a.always), t, 1,
         0);
  else
    y.zero();
  const Tensor flat = x.reshape({n * h, heads.size});
  each_routed(heads, [&](int64_t i, int64_t head) {
    const Tensor mine = gathered(flat, heads.list(heads.slots, i));
    const Tensor product = empty({mine.dim(0), width}, y.dtype(), y.device());
    gemm(product, mine, heads.part(weight, head, head + 1), t, 1, 0);
    ON_DEVICE(y.device(), scatter_rows(y, product, heads.list(heads.rows, i)));
  });
  return y.to(x.dtype());
}

// Adds the gradient of the weight.  wide (N, C), narrow (N, H, size), dense
void add_products(const Tensor& gradient, const Tensor& wide, const Tensor& narrow, const Heads& heads) {
  const int64_t n = wide.dim(0), h = heads.count(), always = heads.a.always * heads.size;
  const auto add = [&](const Tensor& to, const Tensor& w, const Tensor& x) {
    if (heads.a.to_heads)
      gemm(to, x, w, {true, false}, 1, 1);
    else
      gemm(to, w, x, {true, false}, 1, 1);
  };
  if (always > 0)
    add(heads.part(gradient, 0, heads.a.always), wide,
        narrow.reshape({n, h * heads.size}).columns(0, always));
  const Tensor flat = narrow.reshape({n * h, heads.size});
  each_routed(heads, [&](int64_t i, int64_t head) {
    add(heads.part(gradient, head, head + 1), gathered(wide, heads.list(heads.rows, i)),
        gathered(flat, heads.list(heads.slots, i)));
  });
}

void backward(Backward& b, const Attributes& a) {
  const Tensor &x = b.saved(0), &weight = b.saved(1), g = b.grad().contiguous();
  const Tensor& narrow = a.to_heads ? g : x;
  const Heads heads{a, b.saved(2), b.saved(3), b.saved(4), narrow.dim(2)};
  if (b.wants(0)) b.add(0, a.to_heads ? collect(g, weight, heads) : spread(g, weight, heads));
  if (b.wants(1)) add_products(b.accumulator(1), a.to_heads ? x : g, narrow, heads);
}

Variable projected(const char* name, const Variable& x, const Variable& weight, int64_t size,
                   const HeadTokens& on, const Attributes& a) {
  const std::vector<int32_t> places(on.begin.begin(), on.begin.end());
  const Tensor begin = from_ints(places, Device::cpu), rows = x.value().contiguous();
  const Heads heads{a, begin, on.rows, on.slots, size};
  const Tensor y = a.to_heads ? spread(rows, weight, heads) : collect(rows, weight, heads);
  return record(name, {x, weight}, y, save(rows, weight, begin, on.rows, on.slots), a, backward);
}

}  // namespace

HeadTokens all_heads(int64_t tokens, int64_t heads) { return {.tokens = tokens, .always = heads}; }

HeadTokens heads_of(const Tensor& chosen, int64_t always, int64_t routed) {
  CHECK(chosen.rank() == 2 && chosen.dtype() == Dtype::i32 && chosen.dim(1) <= routed,
        "heads_of: ", chosen.shape(), " of ", routed);
  const int64_t n = chosen.dim(0), k = chosen.dim(1);
  if (k == routed) return all_heads(n, always + routed);
  if (chosen.device() == Device::meta) {
    HeadTokens on{.tokens = n, .always = always};
    for (int64_t i = 1; i <= routed; ++i) on.begin.push_back(n * k * i / routed);
    on.rows = empty({n * k}, Dtype::i32, Device::meta);
    on.slots = empty({n * k}, Dtype::i32, Device::meta);
    return on;
  }
  const Tensor host = chosen.contiguous().to(Device::cpu);
  std::vector<std::vector<int32_t>> lists(static_cast<size_t>(routed));
  for (int64_t i = 0; i < n * k; ++i)
    lists[static_cast<size_t>(host.data<int32_t>()[i])].push_back(static_cast<int32_t>(i / k));
  return from_lists(lists, n, always, chosen.device());
}

HeadTokens heads_of(const std::vector<bool>& on, int64_t tokens, Device device) {
  std::vector<int32_t> all(static_cast<size_t>(tokens));
  for (size_t t = 0; t < all.size(); ++t) all[t] = static_cast<int32_t>(t);
  std::vector<std::vector<int32_t>> lists;
  for (const bool head : on) lists.push_back(head ? all : std::vector<int32_t>());
  return from_lists(lists, tokens, 0, device);
}

Variable linear_to_heads(const Variable& x, const Variable& weight, int64_t first, int64_t size,
                         const HeadTokens& on) {
  CHECK(x.rank() == 2 && x.dim(0) == on.tokens && weight.rank() == 2 && weight.dim(1) == x.dim(1) &&
            first + on.heads() * size <= weight.dim(0) && weight.dtype() == x.dtype(),
        "linear_to_heads: x ", x.shape(), ", weight ", weight.shape(), " from ", first, ", ", on.heads(),
        " heads of ", size, " for ", on.tokens, " tokens");
  return projected("linear_to_heads", x, weight, size, on, {on.tokens, on.always, on.routed(), first, true});
}

Variable linear_from_heads(const Variable& x, const Variable& weight, const HeadTokens& on) {
  CHECK(x.rank() == 3 && x.dim(0) == on.tokens && x.dim(1) == on.heads() && weight.rank() == 2 &&
            weight.dim(1) == x.dim(1) * x.dim(2) && weight.dtype() == x.dtype(),
        "linear_from_heads: x ", x.shape(), ", weight ", weight.shape(), ", ", on.heads(), " heads for ",
        on.tokens, " tokens");
  return projected("linear_from_heads", x, weight, x.dim(2), on,
                   {on.tokens, on.always, on.routed(), 0, false});
}

}  // namespace weft
