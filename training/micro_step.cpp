#include "training/micro_step.h"

#include "autograd/ops/projected_cross_entropy.h"
#include "autograd/planned_device.h"

namespace weft {

MicroStep::MicroStep(const Model& model, ParameterStore& store, int64_t graphs)
    : model_(model),
      store_(store),
      graphs_(store, graphs),
      seeds_(zeros({2}, Dtype::f64, store.device())),
      loss_(zeros({1}, wide_of(store.precision()), store.device())) {}

Device MicroStep::made_on() const { return store_.device() == Device::cuda ? Device::cpu : store_.device(); }

Tensor MicroStep::operator()(const MicroBatch& micro, double share, const Crossings& crossings) {
  // An auxiliary loss weighs as much as the tokens it comes from. Every rank of a context group holds the
  // whole of it and sends its share of the gradient.
  const double extra = share * static_cast<double>(micro.labels) / static_cast<double>(micro.all.size());
  seeds_.copy_from(from_values({2}, Dtype::f64, {share, extra}, Device::cpu));
  if (store_.device() != Device::cuda) {
    bounded_work(micro, crossings, false);
    return loss_;
  }
  const int64_t room = micro.lists.numel();
  if (!lists_.defined() || lists_.numel() < room) {
    graphs_.forget();
    lists_ = empty({room}, Dtype::i32, Device::cuda);
  }
  const Tensor lists = lists_.rows(0, room);
  lists.copy_from(micro.lists);
  const MicroBatch here = at(micro, lists);
  const DocumentBounds& bounds = micro.bounds;
  double pairs = 0;
  for (const Segment& s : micro.layout.segments)
    pairs += 0.5 * static_cast<double>(s.size()) * static_cast<double>(s.size() + 1);
  graphs_.run(
      {micro.tokens.numel(), bounds.documents, bounds.longest},
      [&](bool recorded) { bounded_work(here, crossings, recorded); }, pairs);
  return loss_;
}

// On a GPU kernels are launched for the bounds, whether as a graph or not, so that the bits are the same.
// While work is recorded nobody learns which documents there are, so that what others do with it does not
// depend on them.
void MicroStep::bounded_work(MicroBatch micro, const Crossings& crossings, bool recorded) const {
  if (computed_on(store_.device()) != Device::cuda || micro.bounds.documents == 0)
    return work(micro, crossings);
  const BoundsScope bounds(micro.layout, micro.bounds, micro.offsets);
  if (recorded) micro.layout.segments.clear();
  work(micro, crossings);
}

void MicroStep::work(const MicroBatch& micro, const Crossings& crossings) const {
  const std::unique_ptr<CrossingFactory> cross = crossings(micro);
  Tape tape;
  std::vector<Variable> extra;
  const Variable h = model_.hidden(micro.tokens, micro.layout, *cross, &extra);
  std::vector<Variable> outputs;
  {
    const MemoryScope scope("loss");
    outputs.push_back(
        projected_cross_entropy(h, model_.output_weight(), micro.targets, {.seed = seeds_.rows(0, 1)}).loss);
  }
  loss_.copy_from(outputs[0].value().reshape({1}));
  outputs.insert(outputs.end(), extra.begin(), extra.end());
  std::vector<Tensor> seeds;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const Tensor seed = i == 0 ? seeds_.rows(0, 1) : seeds_.rows(1, 2);
    seeds.push_back(seed.to(outputs[i].dtype()).reshape(outputs[i].shape()));
  }
  tape.backward(outputs, seeds);
}

}  // namespace weft
