#include "training/evaluate.h"

#include <algorithm>

#include "autograd/ops/arrange.h"
#include "autograd/ops/projected_cross_entropy.h"
#include "distributed/agree.h"

namespace weft {

Evaluator::Evaluator(const Model& model, const Options& options) : model_(model), options_(options) {
  asked_.resize(static_cast<size_t>(options.documents));
  wrong_.resize(asked_.size());
}

void Evaluator::add(const MicroBatch& micro, CrossingFactory& crossings,
                    const std::vector<int64_t>& numbers) {
  const NoTape pause;
  const Variable h = model_.hidden(micro.tokens, micro.layout, crossings);
  const std::vector<double> nll =
      to_values(projected_cross_entropy(h, model_.output_weight(), micro.targets).nll);
  const std::vector<double> target = to_values(micro.targets), position = to_values(micro.layout.position);
  for (size_t i = 0; i < nll.size(); ++i) {
    if (target[i] < 0) continue;
    Sums one{nll[i], 0, 0, 1};
    if (const auto id = static_cast<int32_t>(target[i]);
        options_.tokenizer != nullptr && id != options_.tokenizer->eos_id()) {
      one.text_nats = nll[i];
      one.bytes = static_cast<double>(options_.tokenizer->token_bytes(id).size());
    }
    const auto into = [&](Sums& sums) {
      sums = {sums.nats + one.nats, sums.text_nats + one.text_nats, sums.bytes + one.bytes, sums.tokens + 1};
    };
    into(sums_);
    if (options_.bucket == 0) continue;
    const auto b = static_cast<size_t>(position[i]) / static_cast<size_t>(options_.bucket);
    if (b >= buckets_.size()) buckets_.resize(b + 1);
    into(buckets_[b]);
  }
  if (options_.documents > 0) judge(micro, h, numbers);
}

void Evaluator::judge(const MicroBatch& micro, const Tensor& hidden, const std::vector<int64_t>& numbers) {
  const std::vector<double> target = to_values(micro.targets), document = to_values(micro.layout.document);
  std::vector<int32_t> labelled;
  for (size_t i = 0; i < target.size(); ++i)
    if (target[i] >= 0) labelled.push_back(static_cast<int32_t>(i));
  const int64_t vocab = model_.config().vocab;
  const int64_t rows = std::max<int64_t>(1, (int64_t{1} << 21) / vocab);  // whose logits exist at a time
  const auto count = static_cast<int64_t>(labelled.size());
  for (int64_t begin = 0; begin < count; begin += rows) {
    const int64_t end = std::min(count, begin + rows);
    const std::vector<int32_t> which(labelled.begin() + begin, labelled.begin() + end);
    const std::vector<double> logits =
        to_values(model_.logits(gather_rows(hidden, from_ints(which, hidden.device()))));
    for (int64_t r = begin; r < end; ++r) {
      // The first of the largest; a NaN is larger than nothing, so it is no answer.
      const double* z = logits.data() + (r - begin) * vocab;
      int64_t best = -1;
      for (int64_t v = 0; v < vocab; ++v)
        if (z[v] > (best < 0 ? -INFINITY : z[best])) best = v;
      const auto i = static_cast<size_t>(labelled[r]);
      const int64_t number = numbers[static_cast<size_t>(document[i])];
      CHECK(0 <= number && number < options_.documents, "Evaluator: document ", number);
      ++asked_[number];
      wrong_[number] += best != static_cast<int64_t>(target[i]);
    }
  }
}

Evaluation Evaluator::Sums::mean() const {
  Evaluation e;
  e.tokens = static_cast<int64_t>(tokens);
  if (tokens > 0) e.loss = nats / tokens;
  if (bytes > 0) e.bits_per_byte = text_nats / (bytes * std::log(2.0));
  return e;
}

Evaluation Evaluator::finish(Communicator* world) const {
  Sums sums = sums_;
  std::vector<double> asked = asked_, wrong = wrong_;
  if (size_of(world) > 1) {
    double four[4] = {sums.nats, sums.text_nats, sums.bytes, sums.tokens};
    world->all_reduce(four, 4, Dtype::f64, Reduce::sum, "evaluation");
    sums = {four[0], four[1], four[2], four[3]};
    for (std::vector<double>* counts : {&asked, &wrong})
      if (options_.documents > 0)
        world->all_reduce(counts->data(), options_.documents, Dtype::f64, Reduce::sum, "right answers");
  }
  Evaluation e = sums.mean();
  double errors = 0;
  int64_t whole = 0;
  for (size_t d = 0; d < asked.size(); ++d) {
    if (asked[d] == 0) continue;
    ++e.examples;
    errors += wrong[d];
    whole += wrong[d] == 0;
  }
  if (e.examples > 0) {
    e.accuracy = 1 - errors / static_cast<double>(e.tokens);
    e.exact = static_cast<double>(whole) / static_cast<double>(e.examples);
  }
  return e;
}

std::vector<Evaluation> Evaluator::buckets() const {
  std::vector<Evaluation> all;
  for (const Sums& sums : buckets_) all.push_back(sums.mean());
  return all;
}

std::vector<int64_t> document_numbers(const Batch& batch, int64_t context, int64_t most) {
  std::vector<int64_t> numbers;
  int64_t sample = -1, place = 0;
  for (size_t d = 0; d + 1 < batch.offsets.size(); ++d) {
    const int64_t of = batch.offsets[d] / context;
    place = of == sample ? place + 1 : 0;
    sample = of;
    CHECK(place < most, "document_numbers: more than ", most, " in a sample");
    numbers.push_back(batch.samples[static_cast<size_t>(sample)] * most + place);
  }
  return numbers;
}

}  // namespace weft
