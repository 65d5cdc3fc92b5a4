#include "autograd/tape.h"

#include <unordered_set>

#include "autograd/ops/convert.h"

namespace weft {
namespace {

thread_local Tape* current_tape = nullptr;

void add_in_place(const Tensor& to, const Tensor& from) { ON_DEVICE(to.device(), accumulate(to, from)); }

}  // namespace

const std::vector<Variable>& Backward::inputs() const { return tape_.entries_[entry_].inputs; }
const Saved& Backward::saved() const { return tape_.entries_[entry_].saved; }
const Tensor& Backward::saved(int i) const { return tape_.entries_[entry_].saved.tensors[i]; }
const Shape& Backward::shape(int i) const { return tape_.entries_[entry_].shapes[i]; }
bool Backward::wants(int i) const { return inputs()[i].differentiable(); }
bool Backward::has_grad(int i) const {
  return tape_.slots_[tape_.entries_[entry_].outputs[i]].gradient.defined();
}

const Tensor& Backward::grad(int i) {
  Tape::Slot& slot = tape_.slots_[tape_.entries_[entry_].outputs[i]];
  if (!slot.gradient.defined()) slot.gradient = zeros(slot.shape, slot.dtype, slot.device);
  return slot.gradient;
}

Tensor Backward::joined() {
  const std::vector<int>& outputs = tape_.entries_[entry_].outputs;
  for (int i = 0; i < static_cast<int>(outputs.size()); ++i) {
    const Tensor place = tape_.slots_[outputs[i]].place(), &gradient = grad(i);
    const bool there = place.buffer() == gradient.buffer() && place.raw() == gradient.raw();
    if (!there) place.copy_from(gradient);
  }
  return tape_.slots_[outputs[0]].joined->whole;
}

void Backward::add(int i, const Tensor& gradient) {
  const Variable& input = inputs()[i];
  if (!input.differentiable()) return;
  if (input.parameter_.defined()) {
    const Into target = into(i);
    CHECK(gradient.numel() == target.target.numel(), tape_.entries_[entry_].name, ": gradient ",
          gradient.shape(), " for ", input.parameter_->info.name, " ", target.target.shape());
    const Tensor shaped = gradient.contiguous().reshape(target.target.shape());
    if (target.beta == 0)
      target.target.copy_from(shaped);
    else
      add_in_place(target.target, shaped);
    return;
  }
  Tape::Slot& slot = tape_.slots_[input.slot_];
  CHECK(gradient.shape() == slot.shape && gradient.dtype() == slot.dtype, tape_.entries_[entry_].name,
        ": gradient ", gradient.shape(), " ", name_of(gradient.dtype()), " of input ", i, " ", slot.shape,
        " ", name_of(slot.dtype));
  if (!slot.gradient.defined()) {
    slot.gradient = gradient;
    return;
  }
  if (!slot.gradient.unique()) {  // somebody else holds it: a sum in place would change theirs
    const Tensor copy = empty_like(slot.gradient);
    copy.copy_from(slot.gradient);
    slot.gradient = copy;
  }
  add_in_place(slot.gradient, gradient);
}

Tensor Backward::room(int i, const Tensor& like) {
  const Variable& input = inputs()[i];
  if (input.tape_ != nullptr) {
    Tape::Slot& slot = tape_.slots_[input.slot_];
    const bool free = slot.joined != nullptr && !slot.taken && !slot.gradient.defined();
    if (free && slot.dtype == like.dtype()) {
      slot.taken = true;  // an input may be there twice
      return slot.place();
    }
  }
  return empty(shape(i), like.dtype(), like.device());
}

Into Backward::into(int i) {
  const Variable& input = inputs()[i];
  CHECK(input.differentiable(), tape_.entries_[entry_].name, ": nobody wants the gradient of input ", i);
  if (input.parameter_.defined()) {
    ParameterEntry& p = *input.parameter_;
    const double beta = p.written ? 1.0 : 0.0;
    p.written = true;
    return {p.gradient, beta};
  }
  Tape::Slot& slot = tape_.slots_[input.slot_];
  if (!slot.gradient.defined()) {
    slot.gradient = empty(slot.shape, slot.dtype, slot.device);
    return {slot.gradient, 0.0};
  }
  if (!slot.gradient.unique()) {
    const Tensor copy = empty_like(slot.gradient);
    copy.copy_from(slot.gradient);
    slot.gradient = copy;
  }
  return {slot.gradient, 1.0};
}

Tensor Backward::accumulator(int i) {
  const Into where = into(i);
  if (where.beta == 0) where.target.zero();
  return where.target;
}

Tape::Tape() : previous_(current_tape) { current_tape = this; }
Tape::~Tape() { current_tape = previous_; }
Tape* Tape::current() { return current_tape; }

NoTape::NoTape() : previous_(current_tape) { current_tape = nullptr; }
NoTape::~NoTape() { current_tape = previous_; }

Tensor Tape::Slot::place() const {
  if (!joined->whole.defined()) joined->whole = empty({shape[0], joined->columns}, dtype, device);
  return joined->whole.columns(column, column + shape.product(1, shape.rank())).reshape(shape);
}

void Tape::join(const std::vector<Variable>& parts) {
  const auto joined = std::make_shared<Joined>();
  for (const Variable& v : parts) {
    if (v.tape_ == nullptr) return;  // nobody wants their gradients
    CHECK(v.tape_ == this, "join: a part belongs to another tape");
    Slot& slot = slots_[v.slot_];
    slot.joined = joined;
    slot.column = joined->columns;
    joined->columns += slot.shape.product(1, slot.shape.rank());
  }
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

std::vector<Variable> Tape::push(const char* name, std::vector<Variable> inputs,
                                 const std::vector<Tensor>& outputs, Saved saved, bool collective,
                                 const void* attributes, size_t attribute_bytes, void (*rule)(),
                                 Invoke invoke) {
  CHECK(!walked_, name, ": recorded after backward()");
  std::vector<Shape> shapes;
  for (Variable& v : inputs) {
    CHECK(v.tape_ == nullptr || v.tape_ == this, name, ": an input belongs to another tape");
    shapes.push_back(v.shape());
    v.value_ = Tensor();
  }
  Entry entry{name, std::move(inputs), std::move(shapes), {}, std::move(saved), collective, {}, rule, invoke};
  std::memcpy(entry.attributes, attributes, attribute_bytes);
  std::vector<Variable> variables;
  for (const Tensor& output : outputs) {
    Variable v(output);
    v.tape_ = this;
    v.slot_ = new_slot(output);
    entry.outputs.push_back(v.slot_);
    variables.push_back(v);
  }
  entries_.push_back(std::move(entry));
  return variables;
}

void Tape::run(int index) {
  Entry& entry = entries_[index];
  bool reached = entry.collective;
  for (int slot : entry.outputs) reached |= slots_[slot].gradient.defined();
  if (reached) {
    Backward b(*this, index);
    entry.invoke(b, entry.attributes, entry.rule);
  }
  entry.saved = {};  // its memory is free from here on
  for (int slot : entry.outputs)
    if (!slots_[slot].keep) {
      slots_[slot].gradient = Tensor();
      slots_[slot].joined = nullptr;
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
    CHECK(seed.shape() == slot.shape && seed.dtype() == slot.dtype, "backward: seed ", seed.shape(), " for ",
          slot.shape);
    if (!slot.gradient.defined()) {
      slot.gradient = seed;
    } else {
      const Tensor sum = empty_like(seed);
      sum.copy_from(slot.gradient);
      add_in_place(sum, seed);
      slot.gradient = sum;
    }
  }
  for (int i = size() - 1; i >= 0; --i) run(i);
}

Tensor Tape::gradient(const Variable& input) const {
  CHECK(input.tape_ == this && slots_[input.slot_].keep, "gradient: not an input of this tape");
  const Slot& slot = slots_[input.slot_];
  return slot.gradient.defined() ? slot.gradient : zeros(slot.shape, slot.dtype, slot.device);
}

int64_t Tape::saved_bytes() const {
  std::unordered_set<const Buffer*> seen;
  int64_t bytes = 0;
  for (const Entry& entry : entries_)
    for (const Tensor& t : entry.saved.tensors)
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
