#include "tools/apply_run.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "distributed/thread_comm.h"

namespace weft {
namespace {

// Ranks may wait for a slow one; nobody watches them but the person who called.
constexpr std::chrono::hours kPatience{1};

// The mechanism with its parameters; one a rank.
struct Model {
  explicit Model(const ApplyTask& task) : store(task.dtype, default_device(), task.init.value_or(0)) {
    mechanism = task.mechanism->make(task.attributes, task.dims, {store, ""});
    // Also of what training leaves alone: a gradient for every tensor given.
    for (const auto& entry : store.entries()) entry->info.trainable = true;
    store.commit();
    for (const auto& [name, value] : task.parameters) store.find(name)->master.copy_from(value);
    store.refresh_working();
    store.begin_step();
  }
  ParameterStore store;
  std::unique_ptr<Mechanism> mechanism;
};

// Tokens of the line that are computed together, in order: their segments and places. Documents are numbered
// as in the task.
struct Share {
  Segments segments;
  std::vector<int32_t> tokens;

  void add(const ApplyTask& task, int document, int64_t begin, int64_t end) {
    const RowDocument& d = task.documents[static_cast<size_t>(document)];
    const int64_t start = d.row * task.tokens + d.begin;
    segments.push_back({document, begin, end});
    for (int64_t t = begin; t < end; ++t) tokens.push_back(static_cast<int32_t>(start + t));
  }
};

Share everything(const ApplyTask& task) {
  Share share;
  for (size_t d = 0; d < task.documents.size(); ++d)
    share.add(task, static_cast<int>(d), 0, task.documents[d].size());
  return share;
}

// Tokens [begin, end) of every row.
Share columns(const ApplyTask& task, int64_t begin, int64_t end) {
  Share share;
  for (size_t i = 0; i < task.documents.size(); ++i) {
    const RowDocument& d = task.documents[i];
    const int64_t from = std::max(begin, d.begin), to = std::min(end, d.end);
    if (from < to) share.add(task, static_cast<int>(i), from - d.begin, to - d.begin);
  }
  return share;
}

void put_rows(const Tensor& line, const Tensor& rows, const std::vector<int32_t>& places) {
  for (size_t i = 0; i < places.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    line.rows(places[i], places[i] + 1).copy_from(rows.rows(row, row + 1));
  }
}

Tensor line_like(const ApplyTask& task, const Tensor& rows) {
  return empty(rows.shape().with(0, task.rows * task.tokens), rows.dtype());
}

// What the tape has to know: inputs and given states as variables, those of one share.
class Leaves {
 public:
  Leaves(const ApplyTask& task, const Model& model, const Share& share, Tape* tape) : tape_(tape) {
    const auto n = static_cast<int64_t>(share.tokens.size());
    const Tensor places = from_ints(share.tokens);
    const Tensor same = from_ints(std::vector<int32_t>(share.tokens.size(), 0));
    for (size_t i = 0; i < task.inputs.size(); ++i) {
      const ApplyInput& input = task.inputs[i];
      if (!input.value.defined()) {
        tokens.push_back(
            fixed_rows(*model.mechanism, task.signature.inputs[i].input, n, task.dtype, default_device()));
        leaves_.emplace_back();
      } else if (input.per_head) {  // wide: its gradient is a sum over all tokens
        leaves_.push_back(leaf(input.value.to(task.wide)));
        tokens.push_back(
            cast(gather_rows(reshape(leaves_.back(), {1, input.value.dim(0)}), same), task.dtype));
      } else {
        leaves_.push_back(leaf(gather_rows(input.value, places)));
        tokens.push_back(leaves_.back());
      }
    }
    for (size_t i = 0; i < task.given.size(); ++i) {
      const StateInfo& info = task.signature.states[i];
      given_.push_back(task.given[i].defined() ? leaf(task.given[i]) : Variable());
      if (parts.size() <= info.part) parts.resize(info.part + 1);
      State& given = parts[info.part].given;
      if (given.size() <= info.index) given.resize(info.index + 1);
      given[info.index] = given_.back();
    }
  }

  Block block(const Layout& layout) const { return {tokens, layout.position, layout.document}; }

  // After backward(): of this share's rows, and of all given states.
  std::vector<Tensor> input_gradients() const { return gradients(leaves_); }
  std::vector<Tensor> given_gradients() const { return gradients(given_); }

  std::vector<Variable> tokens;   // as task.inputs
  std::vector<PartStates> parts;  // for StatesCrossing

 private:
  Variable leaf(const Tensor& value) const { return tape_ ? tape_->input(value) : Variable(value); }

  std::vector<Tensor> gradients(const std::vector<Variable>& leaves) const {
    std::vector<Tensor> out;
    for (const Variable& v : leaves) out.push_back(v.defined() ? tape_->gradient(v) : Tensor());
    return out;
  }

  Tape* tape_;
  std::vector<Variable> leaves_, given_;
};

// The last states of the rows whose last document ends here: for state i of the signature, row by row.
struct LastState {
  size_t state;
  int64_t row;
  Variable value;  // (1, ...)
};

std::vector<LastState> last_states(const ApplyTask& task, const std::vector<PartStates>& parts) {
  std::vector<LastState> out;
  for (size_t i = 0; i < task.signature.states.size(); ++i) {
    const StateInfo& info = task.signature.states[i];
    for (const auto& [document, state] : parts[info.part].last) {
      const RowDocument& d = task.documents[static_cast<size_t>(document)];
      if (d.end == task.tokens) out.push_back({i, d.row, state[info.index]});
    }
  }
  return out;
}

void backward(const ApplyTask& task, Tape& tape, const Variable& y, const Tensor& d_y,
              const std::vector<LastState>& last) {
  std::vector<Variable> outputs{y};
  std::vector<Tensor> seeds{d_y};
  for (const LastState& s : last) {
    if (!task.d_state[s.state].defined()) continue;
    outputs.push_back(s.value);
    seeds.push_back(task.d_state[s.state].rows(s.row, s.row + 1));
  }
  tape.backward(outputs, seeds);
}

// What several shares put together.
class Collector {
 public:
  explicit Collector(const ApplyTask& task) : task_(task) {
    for (const StateInfo& state : task.signature.states) {
      Shape shape{task.rows};
      for (const int64_t extent : state.shape) shape.push_back(extent);
      outcome.states.push_back(empty(shape, task.wide));
    }
    outcome.d_inputs.resize(task.inputs.size());
    outcome.d_given.resize(task.given.size());
  }

  void add_outputs(const Share& share, const Tensor& y, const std::vector<LastState>& last) {
    put(outcome.y, y, share);
    for (const LastState& s : last) outcome.states[s.state].rows(s.row, s.row + 1).copy_from(s.value.value());
  }

  void add_losses(const Crossing& cross) {
    for (const AuxiliaryLoss& loss : cross.losses())
      outcome.losses.emplace_back(loss.name, loss.value.value());
  }

  void add_gradients(const Share& share, const Leaves& leaves, Model& model) {
    const std::vector<Tensor> inputs = leaves.input_gradients(), given = leaves.given_gradients();
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].defined()) continue;
      if (task_.inputs[i].per_head)
        sum(outcome.d_inputs[i], inputs[i]);
      else
        put(outcome.d_inputs[i], inputs[i], share);
    }
    for (size_t i = 0; i < given.size(); ++i)
      if (given[i].defined()) sum(outcome.d_given[i], given[i]);
    model.store.finish_step();
    for (const auto& entry : model.store.entries())
      sum(outcome.d_parameters[entry->info.name],
          entry->info.trainable ? entry->gradient : zeros_like(entry->master));
  }

  ApplyOutcome finish(const Model& model) {
    for (size_t i = 0; i < task_.inputs.size(); ++i)
      if (outcome.d_inputs[i].defined()) outcome.d_inputs[i] = outcome.d_inputs[i].to(task_.dtype);
    for (const auto& entry : model.store.entries()) {
      const Tensor copy = empty_like(entry->master);
      copy.copy_from(entry->master);
      outcome.parameters[entry->info.name] = copy;
    }
    return std::move(outcome);
  }

  ApplyOutcome outcome;

 private:
  void put(Tensor& line, const Tensor& rows, const Share& share) const {
    if (static_cast<int64_t>(share.tokens.size()) == task_.rows * task_.tokens &&
        std::is_sorted(share.tokens.begin(), share.tokens.end())) {
      line = rows;
      return;
    }
    if (!line.defined()) line = line_like(task_, rows);
    put_rows(line, rows, share.tokens);
  }
  static void sum(Tensor& total, const Tensor& part) {
    const Tensor copy = empty_like(part);
    copy.copy_from(part);
    total = total.defined() ? add(total, copy).value() : copy;
  }

  const ApplyTask& task_;
};

ApplyOutcome apply_whole(const ApplyTask& task, bool by_definition, int64_t chunk) {
  Model model(task);
  const Share share = everything(task);
  const Layout layout = make_layout(share.segments);
  std::optional<Tape> tape;
  if (task.d_y.defined()) tape.emplace();
  Leaves leaves(task, model, share, tape ? &*tape : nullptr);
  LocalCrossing local(layout);
  StatesCrossing cross(local, task.state_documents(), leaves.parts, chunk);
  Variable y;
  if (!by_definition || !task.signature.states.empty() || task.signature.losses) {
    std::optional<NoTape> pause;  // without dstate, no gradient comes from here
    if (by_definition && !task.has_d_state()) pause.emplace();
    y = model.mechanism->forward(leaves.block(layout), cross);
  }
  if (by_definition) y = reference_by_document(*model.mechanism, leaves.block(layout));
  const std::vector<LastState> last = last_states(task, leaves.parts);
  Collector collector(task);
  collector.add_outputs(share, y, last);
  collector.add_losses(cross);
  if (tape) {
    backward(task, *tape, y, task.d_y, last);
    collector.add_gradients(share, leaves, model);
  }
  return collector.finish(model);
}

}  // namespace

ApplyOutcome apply_full(const ApplyTask& task, int64_t chunk) { return apply_whole(task, false, chunk); }

ApplyOutcome apply_reference(const ApplyTask& task) { return apply_whole(task, !task.has_given(), 1); }

ApplyOutcome apply_decode(const ApplyTask& task, int64_t prefill, int64_t chunk) {
  Model model(task);
  if (!model.mechanism->causal())
    throw Error(Exit::recipe, text(task.mechanism->id, " sees later tokens and cannot decode"), "--mode",
                "take --mode full");
  if (prefill > task.tokens)
    throw Error(Exit::recipe, text("a prefill of ", prefill, " tokens, the rows have ", task.tokens),
                "--mode", text("give decode:0 to decode:", task.tokens));
  Collector collector(task);
  Stream stream;
  for (int64_t at = 0; at < task.tokens;) {
    const int64_t end = at == 0 && prefill > 0 ? prefill : at + 1;
    const Share share = columns(task, at, end);
    const Layout layout = make_layout(share.segments);
    Leaves leaves(task, model, share, nullptr);
    LocalCrossing local(layout, &stream);
    StatesCrossing cross(local, task.state_documents(), leaves.parts, chunk);
    const Variable y = model.mechanism->forward(leaves.block(layout), cross);
    collector.add_outputs(share, y, last_states(task, leaves.parts));
    collector.outcome.losses.clear();  // the last ones are those of all tokens
    collector.add_losses(cross);
    at = end;
  }
  return collector.finish(model);
}

ApplyOutcome apply_segments(const ApplyTask& task, int ranks, SegmentPlan plan, CrossingStrategy strategy,
                            int64_t chunk) {
  Model first(task);
  std::vector<int64_t> lengths;
  for (const RowDocument& d : task.documents) lengths.push_back(d.size());
  const std::vector<Segments> segments = plan_segments(plan, lengths, ranks, first.mechanism->align());
  Collector collector(task);
  // In rank order, one at a time, so that sums do not depend on who is first.
  run_ranks(
      ranks,
      [&](Communicator& comm) {
        const auto in_turn = [&](const auto& collect) {
          for (int rank = 0; rank < comm.size(); ++rank) {
            if (rank == comm.rank()) collect();
            comm.barrier("apply.collect");
          }
        };
        Model model(task);
        Share share;
        for (const Segment& s : segments[static_cast<size_t>(comm.rank())])
          share.add(task, s.document, s.begin, s.end);
        const Layout layout = make_layout(share.segments);
        RankPlan rank_plan(segments, comm.rank());
        std::optional<Tape> tape;
        if (task.d_y.defined()) tape.emplace();
        Leaves leaves(task, model, share, tape ? &*tape : nullptr);
        RankCrossing over_ranks(layout, rank_plan, comm, strategy);
        StatesCrossing cross(over_ranks, task.state_documents(), leaves.parts, chunk);
        const Variable y = model.mechanism->forward(leaves.block(layout), cross);
        const std::vector<LastState> last = last_states(task, leaves.parts);
        in_turn([&] {
          collector.add_outputs(share, y, last);
          if (comm.rank() == 0) collector.add_losses(cross);  // the same on every rank
        });
        if (!tape) return;
        backward(task, *tape, y, gather_rows(task.d_y, from_ints(share.tokens)), last);
        in_turn([&] { collector.add_gradients(share, leaves, model); });
      },
      kPatience);
  return collector.finish(first);
}

}  // namespace weft
