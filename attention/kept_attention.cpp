#include "attention/kept_attention.h"

#include <algorithm>

#include "attention/seen_pairs.h"
#include "autograd/flops.h"

namespace weft {
namespace {

KeptRows rows_of(const Layout& layout, Device device) {
  std::vector<int32_t> first{0}, tiles, tile;
  for (const Segment& s : layout.segments) {
    const int64_t start = first.back(), end = start + s.size();
    for (int64_t at = start; at < end; at += kKeptTile) {
      const int64_t stop = std::min(at + kKeptTile, end);
      for (int64_t i = at; i < stop; ++i) tile.push_back(static_cast<int32_t>(tiles.size() / 3));
      for (const int64_t number : {at, stop, start}) tiles.push_back(static_cast<int32_t>(number));
    }
    first.push_back(static_cast<int32_t>(end));
  }
  const auto count = static_cast<int64_t>(tiles.size() / 3);
  return {from_ints(first, device), from_ints(tiles, device).reshape({count, 3}), from_ints(tile, device)};
}

// Pairs of a query and a key that it keeps: all up to it among the first `kept` of a document, then so many.
double kept_pairs(const Layout& layout, int64_t kept) {
  double pairs = 0;
  for (const Segment& s : layout.segments) {
    const auto most = static_cast<double>(std::min(s.size(), kept));
    pairs += most * (static_cast<double>(s.size()) - 0.5 * (most - 1));
  }
  return pairs;
}

struct Attributes {
  KeptOptions options;
  double operations;  // of the way back
};

}  // namespace

std::vector<Variable> kept_attention(const Variable& q, const Variable& k, const Variable& v,
                                     const Variable& u, const Layout& layout, const KeptOptions& options) {
  CHECK(q.rank() == 3 && k.rank() == 3 && v.rank() == 3 && q.dim(2) == k.dim(2) && k.dim(1) == v.dim(1) &&
            q.dim(1) % k.dim(1) == 0 && k.dim(0) == q.dim(0) && v.dim(0) == q.dim(0) &&
            u.shape() == Shape({q.dim(0), q.dim(1)}) && layout.tokens() == q.dim(0),
        "kept attention: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape(), ", u ", u.shape(), ", ",
        layout.tokens(), " tokens");
  CHECK(q.dtype() == wide_of(q.dtype()) && k.dtype() == q.dtype() && v.dtype() == q.dtype() &&
            u.dtype() == q.dtype(),
        "kept attention: q ", name_of(q.dtype()), ", k ", name_of(k.dtype()));
  CHECK(options.kept >= 1 && options.support > options.kept, "kept attention: ", options.kept, " of ",
        options.support);
  const int64_t n = q.dim(0), h = q.dim(1);
  const Device device = q.device();
  const Tensor Q = q.value().contiguous(), K = k.value().contiguous(), V = v.value().contiguous(),
               U = u.value().contiguous();
  const KeptRows rows = rows_of(layout, device);
  const KeptPairs pairs{empty({2, h, n}, Dtype::i32, device), empty({n, h}, q.dtype(), device),
                        empty({n, h}, Dtype::i32, device)};
  const Tensor o = empty({n, h, v.dim(2)}, q.dtype(), device), lse = empty({n, h}, q.dtype(), device);
  if (n > 0) {
    ON_DEVICE(device, kept_select(pairs, U, rows, options));
    ON_DEVICE(device, kept_forward(o, lse, Q, K, V, U, pairs, rows, options));
  }
  const double seen = kept_pairs(layout, options.kept);
  count_flops(attention_operations(Merge{}, seen, Q, V, false));
  return record_many(
      "kept_attention", {q, k, v, u}, {o, lse},
      save(Q, K, V, U, pairs.leave, pairs.tau, pairs.between, rows.first, rows.tiles, rows.tile, o, lse),
      Attributes{options, attention_operations(Merge{}, seen, Q, V, true)},
      [](Backward& b, const Attributes& a) {
        const Tensor dq = empty_like(b.saved(0)), dk = empty_like(b.saved(1)), dv = empty_like(b.saved(2)),
                     du = empty_like(b.saved(3));
        const Tensor d_o = b.grad(0).contiguous(), d_lse = b.grad(1).contiguous();
        const KeptPairs pairs{b.saved(4), b.saved(5), b.saved(6)};
        const KeptRows rows{b.saved(7), b.saved(8), b.saved(9)};
        if (dq.numel() > 0)
          ON_DEVICE(dq.device(), kept_backward(dq, dk, dv, du, b.saved(0), b.saved(1), b.saved(2), b.saved(3),
                                               pairs, rows, b.saved(10), b.saved(11), d_o, d_lse, a.options));
        count_flops(a.operations);
        b.add(0, dq);
        b.add(1, dk);
        b.add(2, dv);
        b.add(3, du);
      });
}

}  // namespace weft
