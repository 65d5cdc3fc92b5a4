#include "autograd/tape.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <span>
#include <unordered_set>
#include <utility>

#include "autograd/ops/convert.h"
#include "autograd/ops/matmul.h"

namespace weft {
namespace {

thread_local Tape* current_tape = nullptr;

Tensor in_shape(const Tensor& x, const Shape& shape) {
  return x.shape() == shape ? x : x.contiguous().reshape(shape);
}

void add_in_place(const Tensor& to, const Tensor& from) { ON_DEVICE(to.device(), accumulate(to, from)); }

// The same values in a buffer that nobody else holds, so that a sum in place changes nobody else's.
Tensor copy_of(const Tensor& x) {
  const Tensor copy = empty_like(x);
  copy.copy_from(x);
  return copy;
}

constexpr int64_t kEnoughRows = 256;  // of a product: as deep as the CPU's kernel packs at a time

Tensor rows_together(const std::vector<Tensor>& parts, int64_t rows) {
  if (parts.size() == 1) return parts[0];
  const Tensor whole = empty(parts[0].shape().with(0, rows), parts[0].dtype(), parts[0].device());
  int64_t at = 0;
  for (const Tensor& part : parts) {
    whole.rows(at, at + part.dim(0)).copy_from(part);
    at += part.dim(0);
  }
  return whole;
}

}  // namespace

const auto& Backward::input(int i) const { return tape_.inputs_[tape_.entries_[entry_].first_input + i]; }
auto& Backward::output(int i) const { return tape_.slots_[tape_.entries_[entry_].first_output + i]; }
int Backward::inputs() const { return tape_.entries_[entry_].inputs; }
const Tensor& Backward::saved(int i) const { return tape_.saved_[tape_.entries_[entry_].first_saved + i]; }
std::vector<Tensor> Backward::all_saved() const {
  const Tape::Entry& entry = tape_.entries_[entry_];
  const auto first = tape_.saved_.begin() + entry.first_saved;
  return {first, first + entry.saved};
}
std::vector<Variable> Backward::replay(const std::vector<Variable>& arguments) const {
  return tape_.entries_[entry_].replay(arguments);
}
const Shape& Backward::shape(int i) const { return input(i).shape; }
bool Backward::wants(int i) const { return input(i).wanted(); }
bool Backward::has_grad(int i) const { return output(i).gradient.defined(); }

const Tensor& Backward::grad(int i) {
  Tape::Slot& slot = output(i);
  if (!slot.gradient.defined()) slot.gradient = zeros(slot.shape, slot.dtype, slot.device);
  return slot.gradient;
}

Tensor Backward::joined() {
  for (int i = 0; i < tape_.entries_[entry_].outputs; ++i) {
    const Tensor place = output(i).place(), &gradient = grad(i);
    const bool there = place.buffer() == gradient.buffer() && place.raw() == gradient.raw();
    if (!there) place.copy_from(gradient);
  }
  return output(0).joined->whole;
}

void Backward::add(int i, const Tensor& gradient) {
  const Tape::Input& to = input(i);
  if (!to.wanted()) return;
  if (to.parameter.defined()) {
    const Into target = into(i);
    CHECK(gradient.numel() == target.target.numel(), tape_.entries_[entry_].name, ": gradient ",
          gradient.shape(), " for ", to.parameter->info.name, " ", target.target.shape());
    const Tensor shaped = gradient.contiguous().reshape(target.target.shape());
    if (target.beta == 0)
      target.target.copy_from(shaped);
    else
      add_in_place(target.target, shaped);
    return;
  }
  Tape::Slot& slot = tape_.slots_[to.slot];
  CHECK(slot.gathered < 0, tape_.entries_[entry_].name, ": of a gathered weight it makes no product");
  CHECK(gradient.shape() == to.shape && gradient.dtype() == slot.dtype, tape_.entries_[entry_].name,
        ": gradient ", gradient.shape(), " ", name_of(gradient.dtype()), " of input ", i, " ", to.shape, " ",
        name_of(slot.dtype));
  const Tensor shaped = in_shape(gradient, slot.shape);
  if (!slot.gradient.defined()) {
    slot.gradient = shaped;
    return;
  }
  if (!slot.gradient.unique()) slot.gradient = copy_of(slot.gradient);
  add_in_place(slot.gradient, shaped);
}

Tensor Backward::room(int i, const Tensor& like) {
  if (const int at = input(i).slot; at >= 0) {
    Tape::Slot& slot = tape_.slots_[at];
    const bool free = slot.joined != nullptr && !slot.taken && !slot.gradient.defined();
    if (free && slot.dtype == like.dtype() && slot.shape == shape(i)) {
      slot.taken = true;  // an input may be there twice
      return slot.place();
    }
  }
  return empty(shape(i), like.dtype(), like.device());
}

Tensor Backward::collect(int i) {
  const Tape::Input& to = input(i);
  if (to.slot < 0 || to.parameter.defined()) return {};
  Tape::Slot& slot = tape_.slots_[to.slot];
  const Tensor gradient = std::exchange(slot.gradient, Tensor());
  // What was written where it belongs may be written over there.
  if (slot.taken && gradient.defined() && gradient.buffer() == slot.joined->whole.buffer())
    slot.taken = false;
  return gradient.defined() ? in_shape(gradient, to.shape) : gradient;
}

Into Backward::into(int i) {
  const Tape::Input& to = input(i);
  CHECK(to.wanted(), tape_.entries_[entry_].name, ": nobody wants the gradient of input ", i);
  if (to.parameter.defined()) {
    ParameterEntry& p = *to.parameter;
    const double beta = p.written ? 1.0 : 0.0;
    p.written = true;
    return {p.gradient, beta};
  }
  Tape::Slot& slot = tape_.slots_[to.slot];
  CHECK(slot.gathered < 0, tape_.entries_[entry_].name, ": of a gathered weight it makes no product");
  if (!slot.gradient.defined()) {
    slot.gradient = empty(slot.shape, slot.dtype, slot.device);
    return {slot.gradient.reshape(to.shape), 0.0};
  }
  // In place, unless somebody else holds it or it cannot be seen in the input's shape.
  if (!slot.gradient.unique() || (to.shape != slot.shape && !slot.gradient.dense()))
    slot.gradient = copy_of(slot.gradient);
  return {in_shape(slot.gradient, to.shape), 1.0};
}

void Backward::add_product(int i, const Tensor& g, const Tensor& x) {
  const Tape::Input& to = input(i);
  if (!to.wanted()) return;
  if (to.slot < 0 || tape_.slots_[to.slot].gathered < 0) {
    const Into where = into(i);
    return gemm(where.target, g, x, {true, false}, 1, where.beta);
  }
  Tape::Gathered& waiting = tape_.gathered_[tape_.slots_[to.slot].gathered];
  waiting.g.push_back(g);
  waiting.x.push_back(x);
  waiting.rows += x.dim(0);
  if (waiting.rows >= kEnoughRows) tape_.make_product(waiting);
}

Tensor Backward::accumulator(int i) {
  const Into where = into(i);
  if (where.beta == 0) where.target.zero();
  return where.target;
}

Variable Variable::in_shape(const Shape& shape) const {
  CHECK(value_.dense(), "in_shape: ", value_.shape(), " is not dense");
  Variable v = *this;
  v.value_ = value_.reshape(shape);
  return v;
}

Tape::Tape() : previous_(current_tape) {
  constexpr size_t kOfABlock = 32;  // entries of a transformer block; no lists that grow one by one
  entries_.reserve(kOfABlock);
  inputs_.reserve(2 * kOfABlock);
  slots_.reserve(2 * kOfABlock);
  saved_.reserve(4 * kOfABlock);
  current_tape = this;
}
Tape::~Tape() { current_tape = previous_; }
Tape* Tape::current() { return current_tape; }

NoTape::NoTape() : previous_(current_tape) { current_tape = nullptr; }
NoTape::~NoTape() { current_tape = previous_; }

Tensor Tape::Slot::place() const {
  Tensor& whole = joined->whole;
  if (joined->axis == 0) {
    if (!whole.defined()) whole = empty(shape.with(0, joined->size), dtype, device);
    return whole.rows(first, first + shape[0]);
  }
  if (!whole.defined()) whole = empty({shape[0], joined->size}, dtype, device);
  return whole.columns(first, first + shape.product(1, shape.rank())).reshape(shape);
}

void Tape::join(const std::vector<Variable>& parts, int axis) {
  const auto joined = std::make_shared<Joined>(Joined{axis});
  for (const Variable& v : parts) {
    if (v.tape_ == nullptr) return;  // nobody wants their gradients
    CHECK(v.tape_ == this, "join: a part belongs to another tape");
    Slot& slot = slots_[v.slot_];
    slot.joined = joined;
    slot.first = joined->size;
    joined->size += axis == 0 ? slot.shape[0] : slot.shape.product(1, slot.shape.rank());
  }
}

Variable Tape::gather(const Parameter& weight, int64_t begin, int64_t end) {
  Variable v(weight->working.rows(begin, end));
  v.tape_ = this;
  v.slot_ = new_slot(v.value());
  slots_.back().gathered = static_cast<int>(gathered_.size());
  gathered_.push_back({weight, begin, end, {}, {}});
  return v;
}

void Tape::make_product(Gathered& of) {
  ParameterEntry& p = *of.weight;
  const bool whole = of.begin == 0 && of.end == p.gradient.dim(0);
  if (!p.written && !whole) p.gradient.zero();
  const double beta = p.written || !whole ? 1 : 0;
  p.written = true;
  gemm(p.gradient.rows(of.begin, of.end), rows_together(of.g, of.rows), rows_together(of.x, of.rows),
       {true, false}, 1, beta);
  of.g.clear();
  of.x.clear();
  of.rows = 0;
}

int Tape::new_slot(const Tensor& value) {
  slots_.push_back({value.shape(), value.dtype(), value.device(), {}});
  return static_cast<int>(slots_.size()) - 1;
}

Variable Tape::input(const Tensor& value) {
  Variable v(value);
  v.tape_ = this;
  v.slot_ = new_slot(value);
  slots_.back().keep = true;
  return v;
}

void Tape::push(Variable* results, const char* name, Given<Variable> inputs, Given<Tensor> outputs,
                Saved saved, bool collective, const void* attributes, size_t attribute_bytes, void (*rule)(),
                Invoke invoke) {
  CHECK(!walked_, name, ": recorded after backward()");
  for (const Variable& v : inputs)
    CHECK(v.tape_ == nullptr || v.tape_ == this, name, ": an input belongs to another tape");
  const auto count = [](const auto& list) { return static_cast<int>(list.size()); };
  entries_.push_back({name,
                      count(inputs_),
                      count(inputs),
                      count(slots_),
                      count(outputs),
                      count(saved_),
                      count(saved.tensors),
                      std::move(saved.replay),
                      collective,
                      rule,
                      invoke,
                      {}});
  saved_.insert(saved_.end(), std::move_iterator(saved.tensors.begin()),
                std::move_iterator(saved.tensors.end()));
  std::memcpy(entries_.back().attributes, attributes, attribute_bytes);
  for (const Variable& v : inputs)
    inputs_.push_back({v.shape(), v.tape_ == nullptr ? -1 : v.slot_, v.parameter_});
  for (const Tensor& output : outputs) {
    Variable& v = *results++;
    v.value_ = output;
    v.tape_ = this;
    v.slot_ = new_slot(output);
  }
}

void Tape::run(int index) {
  Entry& entry = entries_[index];
  const std::span<Slot> outputs(slots_.data() + entry.first_output, entry.outputs);
  bool reached = entry.collective;
  for (const Slot& slot : outputs) reached |= slot.gradient.defined();
  if (reached) {
    Backward b(*this, index);
    entry.invoke(b, entry.attributes, entry.rule);
  }
  saved_.resize(entry.first_saved);  // their memory is free from here on
  entry.replay = nullptr;
  for (Slot& slot : outputs)
    if (!slot.keep) {
      slot.gradient = Tensor();
      slot.joined = nullptr;
    }
}

void Tape::backward(const Variable& output, const Tensor& seed) { backward(std::vector{output}, {seed}); }

void Tape::backward(const std::vector<Variable>& outputs, const std::vector<Tensor>& seeds) {
  CHECK(!walked_, "backward: this tape was walked before");
  walked_ = true;
  const NoTape pause;  // rules may call ops
  const MemoryScope scope("backward");
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].tape_ == nullptr) continue;
    CHECK(outputs[i].tape_ == this, "backward: the output belongs to another tape");
    Tensor seed = i < seeds.size() ? seeds[i] : Tensor();
    if (!seed.defined()) {
      CHECK(outputs[i].numel() == 1, "backward: ", outputs[i].shape(), " needs a seed");
      seed = empty_like(outputs[i].value());
      if (seed.device() != Device::meta) seed.copy_from(from_values(seed.shape(), seed.dtype(), {1.0}));
    }
    Slot& slot = slots_[outputs[i].slot_];
    CHECK(seed.shape() == outputs[i].shape() && seed.dtype() == slot.dtype, "backward: seed ", seed.shape(),
          " for ", outputs[i].shape());
    seed = in_shape(seed, slot.shape);
    if (!slot.gradient.defined()) {
      slot.gradient = seed;
    } else {
      slot.gradient = copy_of(slot.gradient);
      add_in_place(slot.gradient, seed);
    }
  }
  for (int i = size() - 1; i >= 0; --i) run(i);
  for (Gathered& g : gathered_)
    if (g.rows > 0) make_product(g);
}

Tensor Tape::gradient(const Variable& input) const {
  CHECK(input.tape_ == this && slots_[input.slot_].keep, "gradient: not an input of this tape");
  const Slot& slot = slots_[input.slot_];
  return in_shape(slot.gradient.defined() ? slot.gradient : zeros(slot.shape, slot.dtype, slot.device),
                  input.shape());
}

int64_t Tape::saved_bytes() const {
  std::unordered_set<const Buffer*> seen;
  int64_t bytes = 0;
  for (const Tensor& t : saved_)
    if (t.defined() && seen.insert(t.buffer()).second) bytes += t.buffer()->bytes();
  return bytes;
}

std::vector<const char*> Tape::collectives() const {
  std::vector<const char*> names;
  for (const Entry& entry : entries_)
    if (entry.collective) names.push_back(entry.name);
  return names;
}

}  // namespace weft
