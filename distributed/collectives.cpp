#include "distributed/collectives.h"

#include <numeric>

#include "autograd/checkpoint.h"
#include "autograd/fault.h"

namespace weft {
namespace {

using Counts = std::vector<int64_t>;

int64_t total(const Counts& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

Counts elements(const Counts& rows, const Tensor& x) {
  Counts result = rows;
  for (int64_t& n : result) n *= x.row_size();
  return result;
}

Tensor apply(Recompute rule, const std::function<Tensor()>& exchange) {
  return rule == Recompute::kept ? keep(exchange) : exchange();
}

Tensor gather(Communicator& ranks, const Tensor& rows, const Counts& counts) {
  const Tensor x = on_host(rows.contiguous()),
               y = empty(x.shape().with(0, total(counts)), x.dtype(), x.device());
  if (exchanges(x))
    ranks.all_gather_v(x.raw(), y.raw(), elements(counts, x), x.dtype(), "all_gather_rows");
  else
    y.zero();
  return y.to(rows.device());
}

Tensor reduce_scatter(Communicator& ranks, const Tensor& rows, const Counts& counts) {
  const Tensor x = on_host(rows.contiguous());
  const Tensor y = empty(x.shape().with(0, counts[static_cast<size_t>(ranks.rank())]), x.dtype(), x.device());
  if (exchanges(x))
    ranks.reduce_scatter_v(x.raw(), y.raw(), elements(counts, x), x.dtype(), Reduce::sum, "all_gather_rows");
  else
    y.zero();
  return y.to(rows.device());
}

Tensor exchange(Communicator& ranks, const Tensor& rows, const Counts& sent, const Counts& received) {
  const Tensor x = on_host(rows.contiguous()),
               y = empty(x.shape().with(0, total(received)), x.dtype(), x.device());
  if (exchanges(x))
    ranks.all_to_all_v(x.raw(), elements(sent, x), y.raw(), elements(received, x), x.dtype(),
                       "exchange_rows");
  else
    y.zero();
  return y.to(rows.device());
}

// What a tensor on its way from rank to rank is, and is not on the others.
struct Parcel {
  Shape shape;
  Dtype dtype;
  Device device;
};

Tensor pass(Communicator& ranks, const Tensor& x, int from, int to, const Parcel& parcel) {
  const Tensor y = on_host(empty(ranks.rank() == to ? parcel.shape : Shape{0}, parcel.dtype, parcel.device));
  if (!exchanges(y))
    y.zero();
  else if (ranks.rank() == from)
    ranks.send(on_host(x.contiguous()).raw(), x.numel(), x.dtype(), to, "hand_on");
  else if (ranks.rank() == to)
    ranks.recv(y.raw(), y.numel(), y.dtype(), from, "hand_on");
  return y.to(parcel.device);
}

}  // namespace

Tensor on_host(const Tensor& x) { return x.device() == Device::cuda ? x.to(Device::cpu) : x; }

bool exchanges(const Tensor& x) {
  return x.device() != Device::meta && !fault::wants(fault::Kind::skip_exchange, fault::Phase::collective);
}

std::vector<Variable> record_collective(const char* name, std::vector<Variable> inputs,
                                        const std::vector<Tensor>& outputs, std::vector<Tensor> saved,
                                        Function adjoint) {
  struct Attributes {
    int outputs;
  };
  return record_many(
      name, inputs, outputs, Saved{std::move(saved), std::move(adjoint)},
      Attributes{static_cast<int>(outputs.size())},
      [](Backward& b, const Attributes& a) {
        const std::vector<Tensor> saved = b.all_saved();
        std::vector<Variable> arguments(saved.begin(), saved.end());
        for (int i = 0; i < a.outputs; ++i) arguments.emplace_back(b.grad(i).contiguous());
        const std::vector<Variable> gradients = b.replay(arguments);
        for (size_t i = 0; i < gradients.size(); ++i) b.add(static_cast<int>(i), gradients[i].value());
      },
      true);
}

Variable all_gather_rows(Communicator& ranks, const Variable& x, const Counts& counts, Recompute rule) {
  CHECK(std::ssize(counts) == ranks.size() && x.dim(0) == counts[static_cast<size_t>(ranks.rank())],
        "all_gather_rows: x ", x.shape(), " on rank ", ranks.rank(), " of ", ranks.size());
  const Tensor y = apply(rule, [&] { return gather(ranks, x, counts); });
  return record_collective("all_gather_rows", {x}, {y}, {}, [&ranks, counts](const std::vector<Variable>& g) {
    return std::vector<Variable>{reduce_scatter(ranks, g[0], counts)};
  })[0];
}

Variable exchange_rows(Communicator& ranks, const Variable& x, const Counts& sent, const Counts& received,
                       Recompute rule) {
  CHECK(std::ssize(sent) == ranks.size() && std::ssize(received) == ranks.size() && x.dim(0) == total(sent),
        "exchange_rows: x ", x.shape(), ", ", total(sent), " rows to ", sent.size(), " ranks");
  const Tensor y = apply(rule, [&] { return exchange(ranks, x, sent, received); });
  return record_collective("exchange_rows", {x}, {y}, {},
                           [&ranks, sent, received](const std::vector<Variable>& g) {
                             return std::vector<Variable>{exchange(ranks, g[0], received, sent)};
                           })[0];
}

Variable hand_on(Communicator& ranks, const Variable& x, int from, int to, const Tensor& like) {
  const bool mine = ranks.rank() == from;
  CHECK(from != to && (!mine || (x.shape() == like.shape() && x.dtype() == like.dtype())),
        "hand_on: ", mine ? x.shape() : like.shape(), " like ", like.shape(), " from rank ", from, " to ",
        to);
  const Parcel parcel{like.shape(), like.dtype(), like.device()};
  const Tensor y = keep([&] { return pass(ranks, x, from, to, parcel); });
  const Variable source = mine ? x : Variable(empty({0}, like.dtype(), like.device()));
  return record_collective("hand_on", {source}, {y}, {},
                           [&ranks, from, to, parcel](const std::vector<Variable>& g) {
                             return std::vector<Variable>{pass(ranks, g[0], to, from, parcel)};
                           })[0];
}

}  // namespace weft
