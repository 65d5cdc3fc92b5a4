#include "training/trainer.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <optional>

#include "autograd/determinism.h"
#include "autograd/fault.h"
#include "autograd/flops.h"
#include "autograd/rank_error.h"
#include "distributed/agree.h"
#include "distributed/collectives.h"
#include "distributed/reduce.h"
#include "optim/gradient_norm.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/replay.h"
#endif

namespace weft {
namespace {

OptimizerConfig optimizer_config(const Recipe& recipe) {
  const Recipe::Optim& o = recipe.optim;
  return {.kind = o.kind,
          .lr = o.lr,
          .beta1 = o.beta1,
          .beta2 = o.beta2,
          .eps = o.eps,
          .weight_decay = o.weight_decay,
          .clip = o.clip,
          .ema = o.ema,
          .muon_lr = o.muon_lr,
          .muon_momentum = o.muon_momentum};
}

Schedule schedule_of(const Recipe& recipe) {
  const Recipe::Optim& o = recipe.optim;
  return {.kind = Schedule::kind_of(o.schedule),
          .steps = recipe.steps,
          .warmup = o.warmup,
          .decay = o.decay,
          .floor = o.lr > 0 ? o.min_lr / o.lr : 0};
}

CrossingStrategy strategy_of(const Recipe& recipe) {
  const std::string& s = recipe.mesh.strategy;
  return s == "gather"  ? CrossingStrategy::gather
         : s == "ring"  ? CrossingStrategy::ring
         : s == "heads" ? CrossingStrategy::heads
                        : CrossingStrategy::native;
}

Mesh mesh_of(const Recipe& recipe, Communicator* world, Device device) {
  const MeshShape shape =
      plan_mesh(size_of(world), static_cast<int>(recipe.mesh.cp), static_cast<int>(recipe.mesh.dp));
  if (world == nullptr) return {shape, nullptr, nullptr};
  if (device == Device::meta)
    return {shape, planned_communicator(world->rank() / shape.cp, shape.dp),
            planned_communicator(world->rank() % shape.cp, shape.cp)};
  return make_mesh(*world, shape);
}

// Where a number that is not finite came into a sum over ranks. Those that share sequences pass it on to each
// other.
struct Origin {
  int rank = 0;  // the first
  std::string ranks;
};

Origin origin_of(const std::vector<double>& losses, const std::vector<double>& gradients) {
  const auto count = std::ssize(losses);
  std::vector<int> bad;
  for (int r = 0; r < count; ++r)
    if (!std::isfinite(losses[r]) || !std::isfinite(gradients[r])) bad.push_back(r);
  if (count == 1 || bad.empty()) return {};
  if (std::ssize(bad) == count) return {0, "on all ranks"};
  if (bad.size() == 1) return {bad[0], text("on rank ", bad[0])};
  return {bad[0], text("on ", bad.size(), " of ", count, " ranks, first on rank ", bad[0])};
}

double value_of(const Tensor& scalar) { return scalar.device() == Device::meta ? 0 : to_values(scalar)[0]; }

// About four thousand tokens at a time keep the activations of a CPU run in its caches' reach.
constexpr int64_t kMicroTokens = 4096;

}  // namespace

Trainer::Trainer(const Recipe& recipe, const Tokenizer& tokenizer, Communicator* world, Device device)
    : recipe_(recipe),
      tokenizer_(tokenizer),
      world_(world),
      device_(device),
      mesh_(mesh_of(recipe, world, device)),
      store_(precision_of(recipe), device, static_cast<uint32_t>(recipe.seed)),
      model_(model_config(recipe, vocabulary_of(recipe, tokenizer)), store_),
      micro_step_(model_, store_, mesh_.shape.cp == 1 ? recipe.cuda_graphs : 0),
      schedule_(schedule_of(recipe)),
      guard_({.max_skips = recipe.numerics.max_skips,
              .window = recipe.numerics.window,
              .spike_zscore = recipe.numerics.spike_zscore,
              .rewinds = recipe.numerics.rewind}),
      plan_(segment_plan(recipe, model_)),
      samples_per_step_(recipe.batch_tokens / recipe.context) {
  if ((samples_per_step_ - 1) / mesh_.shape.dp >= INT32_MAX / recipe.context)
    throw Error(Exit::recipe,
                text("batch_tokens ", recipe.batch_tokens, " over ", mesh_.shape.dp,
                     " groups of ranks are more for each than 32 bits count"),
                recipe.where("batch_tokens"), "set fewer, or start more ranks");
  if (device != Device::meta) set_deterministic(recipe.determinism == "run");
  store_.commit();
  const MemoryScope scope("optimizer");
  optimizer_ = make_optimizer(optimizer_config(recipe), store_);
  const int64_t tokens = recipe.micro_tokens > 0 ? recipe.micro_tokens : kMicroTokens;
  // No more than a step has: an evaluation takes as many at a time, and must not need more memory than a
  // step.
  const Slice own = samples_of_step();
  micro_samples_ = std::max<int64_t>(1, std::min(tokens / recipe.context, own.end - own.begin));
}

Slice Trainer::samples_of_step() const {
  return slice_of(samples_per_step_, rank_of(mesh_.data.get()), mesh_.shape.dp);
}

std::string Trainer::idle_ranks() const {
  if (const int dp = mesh_.shape.dp; samples_per_step_ < dp)
    return text(
        "a step has ", samples_per_step_, " samples for ", dp,
        " groups of ranks, so the others have nothing to do; start fewer ranks, raise batch_tokens, or "
        "share sequences with mesh.cp");
  const int cp = mesh_.shape.cp;
  if (cp == 1) return {};
  const Slice own = samples_of_step();
  for (const int64_t samples : {micro_samples_, (own.end - own.begin) % micro_samples_}) {
    const std::vector<int64_t> lengths(static_cast<size_t>(samples), recipe_.context);
    for (const Segments& rank : plan_segments(plan_, lengths, cp, model_.align()))
      for (const Segment& s : rank)
        if (s.size() < recipe_.context) return {};
  }
  return text("mesh.cp ", cp,
              " cuts between samples only, so the ranks share no sequence; take mesh.cp=1, or ",
              "micro_tokens=", recipe_.context, " to cut each sample");
}

MicroBatch Trainer::cut(const Batch& batch, Device device) const {
  return cut_micro_batch(batch, plan_, mesh_.shape.cp, rank_of(mesh_.context.get()), model_.align(), device);
}

std::unique_ptr<CrossingFactory> Trainer::crossings(const MicroBatch& micro) const {
  return crossings_of(micro, mesh_.context.get(), strategy_of(recipe_), &expected_);
}

WireBytes Trainer::wire() const {
  WireBytes bytes;
  for (const Communicator* c :
       {static_cast<const Communicator*>(world_), static_cast<const Communicator*>(mesh_.data.get()),
        static_cast<const Communicator*>(mesh_.context.get())})
    if (c != nullptr) bytes += c->wire();
  if (device_ == Device::meta) bytes += expected_;  // nothing was sent
  return bytes;
}

// An exchange that silently does not happen would train a model that cannot see across ranks: count what was
// sent.
void Trainer::check_wire() const {
  if (mesh_.shape.cp == 1 || device_ == Device::meta) return;
  const WireBytes& sent = mesh_.context->wire();
  const auto total = [](const WireBytes& w) {
    return w.all_gather + w.reduce_scatter + w.send_recv + w.all_to_all;
  };
  if (total(sent) != total(expected_))
    throw Error(Exit::internal,
                text("accounting mismatch: ", total(sent),
                     " bytes were sent inside the context group, the formula says ", total(expected_)),
                "context parallelism", "report this: an exchange was skipped or doubled");
}

void Trainer::reduce_gradients() {
  if (size_of(world_) == 1) return;
  for (ParameterGroup& group : store_.groups()) {
    if (!group.trainable) continue;
    const Tensor sum = on_host(group.gradient);
    world_->all_reduce(sum.raw(), sum.numel(), sum.dtype(), Reduce::sum, "gradients");
    if (sum.buffer() != group.gradient.buffer()) group.gradient.copy_from(sum);
  }
}

// A flipped bit is the highest of the exponent: what is small becomes huge.
void Trainer::break_gradient(std::initializer_list<fault::Phase> phases) {
  const Tensor first = store_.groups()[0].gradient.rows(0, 1);
  for (const fault::Phase phase : phases) {
    if (fault::wants(fault::Kind::nan, phase)) first.copy_from(full({1}, NAN, first.dtype(), device_));
    if (!fault::wants(fault::Kind::flip, phase)) continue;
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(value_of(first))) ^ (1u << 30);
    first.copy_from(full({1}, std::bit_cast<float>(bits), first.dtype(), device_));
  }
}

StepResult Trainer::step(int64_t step, const Batch& batch) {
  using Clock = std::chrono::steady_clock;
  StepResult result;
  const double flops_before = counted_flops(), recomputed_before = recomputed_flops();
  const int64_t own_labels =
      static_cast<int64_t>(batch.targets.size()) - std::count(batch.targets.begin(), batch.targets.end(), -1);
  // Ranks of a context group hold the same samples: their labels count once.
  result.labels = sum_over_ranks(mesh_.data.get(), own_labels);
  const double share = 1 / static_cast<double>(std::max<int64_t>(1, result.labels));

  store_.begin_step();
  const std::vector<Batch> parts = split_batch(batch, recipe_.context, micro_samples_);
  // Read when all is asked for: a read waits for the device.
  const Tensor losses = empty({std::ssize(parts)}, wide_of(store_.precision()), device_);
  for (int64_t i = 0; i < losses.dim(0); ++i) {
    const MicroBatch micro = cut(parts[static_cast<size_t>(i)], micro_step_.made_on());
    if (world_ != nullptr) world_->beat(step + 1, "forward");
    fault::point(fault::Phase::forward);
    fault::point(fault::Phase::backward);
    const Tensor loss = losses.rows(i, i + 1);
    loss.copy_from(micro_step_(micro, share, [this](const MicroBatch& m) { return crossings(m); }));
    if (fault::wants(fault::Kind::nan, fault::Phase::forward))
      loss.copy_from(full({1}, NAN, loss.dtype(), device_));
  }
  store_.finish_step();
  check_wire();
  break_gradient({fault::Phase::forward, fault::Phase::backward, fault::Phase::collective});

  // The sum takes its place: afterwards nobody could say whose was not finite.
  const double own = size_of(world_) > 1 ? squared_gradient_norm(store_, whole(store_)) : 0;
  const auto start = Clock::now();
  fault::point(fault::Phase::collective);
  reduce_gradients();
  result.comm_s = std::chrono::duration<double>(Clock::now() - start).count();
  // The norm is asked for before anything is read: one wait for the device, not two.
  const GradientNorm norm = device_ == Device::meta ? GradientNorm{} : gradient_norm(store_);
  result.grad_norm = norm.value;
  double loss = 0;
  if (device_ != Device::meta)
    for (const double part : to_values(losses)) loss += part;
  const std::vector<double> losses_of = gather_values(world_, loss),
                            gradients_of = gather_values(world_, own);
  reduce_over_ranks(&loss, losses_of.data(), size_of(world_), 1, Dtype::f64, Reduce::sum);
  result.loss = loss * share;
  const SpikeGuard::Verdict verdict = guard_.judge(step, result.loss, result.grad_norm);
  const Origin origin = origin_of(losses_of, gradients_of);
  result.rank = origin.rank;
  if (verdict.action == SpikeGuard::Action::stop)
    throw RankError(
        result.rank,
        Error(Exit::numerics,
              text("step ", step + 1, ": ", verdict.reason, origin.ranks.empty() ? "" : ", " + origin.ranks,
                   guard_.rewinds() > 0 ? ", again after going back" : ""),
              norm.non_finite, "lower optim.lr, or look at the data of these steps"));
  result.applied = verdict.action == SpikeGuard::Action::apply;
  result.rewind = verdict.action == SpikeGuard::Action::rewind;
  result.reason = verdict.reason;
  std::string found = norm.non_finite.empty() ? "" : "first in the gradient of " + norm.non_finite;
  if (!origin.ranks.empty()) found += (found.empty() ? "" : ", ") + origin.ranks;
  if (!found.empty()) result.reason += " (" + found + ")";

  StepState state;
  state.rate = schedule_.at(step);
  state.gradient_norm = norm.value;
  state.skip = !result.applied;
  state.updates = updates_;
  result.lr = state.rate * recipe_.optim.lr;
  fault::point(fault::Phase::optimizer);
  break_gradient({fault::Phase::optimizer});  // behind the guard's back: the weights are lost
  optimizer_->begin(state);
  if (!state.skip)
    micro_step_.graphs().run({}, [&](bool) {
      for (const Range& range : optimizer_->owned()) optimizer_->update(range, state);
    });
  updates_ = state.updates;
  step_flops_ = counted_flops() - flops_before;
  recomputed_ = recomputed_flops() - recomputed_before;
  return result;
}

std::optional<Evaluation> Trainer::evaluate(const Dataset& data, int64_t samples,
                                            const std::function<bool()>& stop) {
  const AveragedWeights averaged(store_, *optimizer_);
  const int64_t count = std::min(samples, data.samples());
  const Slice own = slice_of(count, rank_of(mesh_.data.get()), mesh_.shape.dp);
  const bool task = data.maker() != nullptr;
  Evaluator evaluator(model_, {.tokenizer = task ? nullptr : &tokenizer_,
                               .documents = task ? count * data.maker()->documents() : 0});
  const int64_t rounds = max_over_ranks(world_, (own.end - own.begin + micro_samples_ - 1) / micro_samples_);
  for (int64_t round = 0; round < rounds; ++round) {
    if (stop && stop()) return {};
    const int64_t first = own.begin + round * micro_samples_;
    if (first >= own.end) continue;  // the others have more
    fault::point(fault::Phase::evaluate);
    std::vector<int64_t> which;
    for (int64_t i = first; i < std::min(own.end, first + micro_samples_); ++i) which.push_back(i);
    if (world_ != nullptr) world_->beat(updates_, "evaluation");
    const Batch batch = data.batch(which);
#ifdef WEFT_CUDA
    const cuda::Pass pass;  // in the memory of training steps
#endif
    const MicroBatch micro = cut(batch, device_);
    // The documents' offsets are those of the micro-batch: whatever keeps its own beyond a pass drops graphs.
    const DocumentBounds exact = bounds_of(micro.layout);
    std::optional<BoundsScope> bounds;
    if (micro.offsets.defined())
      bounds.emplace(micro.layout, exact, micro.offsets.rows(0, exact.documents + 1));
    const std::unique_ptr<CrossingFactory> cross = crossings(micro);
    evaluator.add(
        micro, *cross,
        task ? document_numbers(batch, recipe_.context, data.maker()->documents()) : std::vector<int64_t>{});
  }
  return evaluator.finish(world_);
}

}  // namespace weft
