#pragma once
// Reverse-mode differentiation by a linear tape (Wengert list). An op computes at once and, if a tape is in
// scope on this thread, records how to go back. The tape is walked backward entry by entry, not as a graph
// from the loss: entries marked collective run whether or not a gradient reached them, so that no rank waits
// forever for another.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <type_traits>
#include <vector>

#include "autograd/parameter.h"
#include "autograd/tensor.h"

namespace weft {

class Tape;
class Backward;

// A tensor, and where its gradient goes: to a slot of a tape, to a parameter, or nowhere.
class Variable {
 public:
  Variable() = default;
  Variable(Tensor value) : value_(std::move(value)) {}  // NOLINT: a constant
  Variable(const Parameter& parameter)                  // NOLINT: the working copy
      : value_(parameter->working), parameter_(parameter->info.trainable ? parameter : Parameter()) {}

  const Tensor& value() const { return value_; }
  operator const Tensor&() const { return value_; }  // NOLINT: kernels take tensors
  bool defined() const { return value_.defined(); }
  const Shape& shape() const { return value_.shape(); }
  int rank() const { return value_.rank(); }
  int64_t dim(int axis) const { return value_.dim(axis); }
  int64_t numel() const { return value_.numel(); }
  Dtype dtype() const { return value_.dtype(); }
  Device device() const { return value_.device(); }
  bool differentiable() const { return tape_ != nullptr || parameter_.defined(); }
  // The same elements, which must be dense, in another shape: no op, gradients go where those of this one go.
  Variable in_shape(const Shape& shape) const;
  const Parameter& parameter() const { return parameter_; }  // undefined if it is none, or not trained

 private:
  friend class Tape;
  friend class Backward;
  Tensor value_;
  Tape* tape_ = nullptr;
  int slot_ = -1;
  Parameter parameter_;
};

using Function = std::function<std::vector<Variable>(const std::vector<Variable>&)>;

// What an entry keeps for its backward: only tensors, seen and counted by the engine. `replay` is what the
// backward calls where plain attributes do not suffice: the function that a checkpoint runs again, or the
// adjoint of a collective, which knows its communicator.
struct Saved {
  std::vector<Tensor> tensors;
  Function replay;
};
template <class... Tensors>
Saved save(const Tensors&... tensors) {
  Saved saved;
  saved.tensors.reserve(sizeof...(tensors));
  (saved.tensors.push_back(tensors), ...);
  return saved;
}

// What a call is given, in braces or in a vector; no longer than the call. Ops record themselves some hundred
// times in a step, and a vector of their own would be made and thrown away each time.
template <class T>
class Given {
 public:
  Given(std::initializer_list<T> list) : first_(std::data(list)), size_(list.size()) {}  // NOLINT
  Given(const std::vector<T>& list) : first_(list.data()), size_(list.size()) {}         // NOLINT
  const T* begin() const { return first_; }
  const T* end() const { return first_ + size_; }
  size_t size() const { return size_; }

 private:
  const T* first_;
  size_t size_;
};

// Where a gradient lands: target = beta * target + contribution, in target's own dtype.
struct Into {
  Tensor target;
  double beta;
};

// The backward of one entry, as its rule sees it.
class Backward {
 public:
  // Gradient of output i; zeros if none arrived.
  const Tensor& grad(int i = 0);
  bool has_grad(int i = 0) const;
  // Whether the gradient of input i is needed.
  bool wants(int i) const;
  const Shape& shape(int i) const;  // of input i
  const Tensor& saved(int i) const;
  // The gradient of input i, whole. The first is kept as it is, later ones are added.
  void add(int i, const Tensor& gradient);
  // A tensor to write the next argument of add() into, of the dtype and on the device of `like`: the final
  // place of the gradient, if possible. May be a column view.
  Tensor room(int i, const Tensor& like);
  // What others have added to the gradient of input i so far, perhaps undefined. The rule takes it over, and
  // must include it in the sum that it hands to add(). For kernels that can add while they compute.
  Tensor collect(int i);
  // The same, for ops that can write or accumulate themselves. Must be followed by the write.
  Into into(int i);
  // The same for ops that touch a part of it: what they add to, zero where nothing was added yet.
  Tensor accumulator(int i);
  // The gradient of a matrix, g^T x.  g (N, out), x (N, in). For a variable from Tape::gather it is computed
  // later.
  void add_product(int i, const Tensor& g, const Tensor& x);
  // The gradients of outputs that Tape::join puts together, as one tensor; zero where none arrived.
  Tensor joined();
  int inputs() const;  // how many
  std::vector<Tensor> all_saved() const;
  std::vector<Variable> replay(const std::vector<Variable>& arguments) const;

 private:
  friend class Tape;
  Backward(Tape& tape, int entry) : tape_(tape), entry_(entry) {}
  inline const auto& input(int i) const;
  inline auto& output(int i) const;
  Tape& tape_;
  int entry_;
};

struct NoAttributes {};

class Tape {
 public:
  Tape();
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  // The innermost tape of this thread, or null: nothing is recorded.
  static Tape* current();

  // An input whose gradient is kept after backward().
  Variable input(const Tensor& value);
  // From the last entry to the first. seed is the gradient of output; a scalar needs none (it is 1). Called
  // once.
  void backward(const Variable& output, const Tensor& seed = {});
  void backward(const std::vector<Variable>& outputs, const std::vector<Tensor>& seeds);
  // The outputs of one op are consecutive columns of a tensor (N, C), or its rows (axis 0). Their gradients
  // will be too: writing them into room() assembles the whole gradient without a copy.
  void join(const std::vector<Variable>& parts, int axis);
  // Rows [begin, end) of a weight (out, in) for many products of few rows each, such as those of a text's
  // segments. Their shares of its gradient wait until there are enough rows for one product, which adds to
  // the store once instead of once for each.
  Variable gather(const Parameter& weight, int64_t begin, int64_t end);
  // Of an input(); zeros if nothing reached it.
  Tensor gradient(const Variable& input) const;

  int size() const { return static_cast<int>(entries_.size()); }
  // Bytes kept for the way back; storage saved twice is counted once.
  int64_t saved_bytes() const;
  // Names of the entries marked collective, in order: equal on every rank.
  std::vector<const char*> collectives() const;

  using Invoke = void (*)(Backward&, const std::byte* attributes, void (*rule)());

  // results: as many as outputs.
  void push(Variable* results, const char* name, Given<Variable> inputs, Given<Tensor> outputs, Saved saved,
            bool collective, const void* attributes, size_t attribute_bytes, void (*rule)(), Invoke invoke);

 private:
  friend class Backward;
  static constexpr size_t kAttributeBytes = 64;
  // Where a gradient goes; without slot and parameter, nowhere.
  struct Input {
    Shape shape;
    int slot;
    Parameter parameter;
    bool wanted() const { return slot >= 0 || parameter.defined(); }
  };
  struct Entry {
    const char* name;
    int first_input, inputs;    // in inputs_
    int first_output, outputs;  // in slots_
    int first_saved, saved;     // in saved_
    Function replay;
    bool collective;
    void (*rule)();
    Invoke invoke;
    alignas(std::max_align_t) std::byte attributes[kAttributeBytes];
  };
  struct Joined {
    int axis;
    int64_t size = 0;   // of that axis
    Tensor whole = {};  // once somebody writes a part
  };
  struct Gathered {
    Parameter weight;
    int64_t begin, end;
    std::vector<Tensor> g, x;  // what waits
    int64_t rows = 0;          // of them
  };
  struct Slot {
    Shape shape;
    Dtype dtype;
    Device device;
    Tensor gradient;
    bool keep = false;
    std::shared_ptr<Joined> joined = nullptr;
    int64_t first = 0;     // where its part of joined begins
    bool taken = false;    // it was given away as room
    int gathered = -1;     // which of gathered_ it is
    Tensor place() const;  // its part
  };
  int new_slot(const Tensor& value);
  void run(int entry);
  void make_product(Gathered& of);

  // Flat, so that an entry allocates nothing of its own. The backward frees what is saved from the end on.
  std::vector<Entry> entries_;
  std::vector<Input> inputs_;
  std::vector<Slot> slots_;
  std::vector<Tensor> saved_;
  std::vector<Gathered> gathered_;
  Tape* previous_;
  bool walked_ = false;
};

// No recording while it lives.
class NoTape {
 public:
  NoTape();
  ~NoTape();
  NoTape(const NoTape&) = delete;
  NoTape& operator=(const NoTape&) = delete;

 private:
  Tape* previous_;
};

// As record_many, into `results`, as many as outputs.
template <class Attributes>
void record_into(Variable* results, const char* name, Given<Variable> inputs, Given<Tensor> outputs,
                 Saved saved, const Attributes& attributes, void (*rule)(Backward&, const Attributes&),
                 bool collective) {
  static_assert(std::is_trivially_copyable_v<Attributes> && !std::is_pointer_v<Attributes>,
                "attributes are a plain struct; tensors go through save()");
  static_assert(sizeof(Attributes) <= 64);
  Tape* tape = Tape::current();
  bool wanted = collective;
  for (const Variable& v : inputs) wanted |= v.differentiable();
  if (tape == nullptr || !wanted) {
    std::copy(outputs.begin(), outputs.end(), results);
    return;
  }
  tape->push(results, name, inputs, outputs, std::move(saved), collective, &attributes, sizeof(Attributes),
             reinterpret_cast<void (*)()>(rule), [](Backward& b, const std::byte* bytes, void (*erased)()) {
               Attributes a;
               std::memcpy(static_cast<void*>(&a), bytes, sizeof(Attributes));
               reinterpret_cast<void (*)(Backward&, const Attributes&)>(erased)(b, a);
             });
}

// Records an op, and returns its outputs as variables. The rule is a function without captures (a lambda that
// captures does not compile here); what it needs besides tensors is a small plain struct.
template <class Attributes>
std::vector<Variable> record_many(const char* name, Given<Variable> inputs, Given<Tensor> outputs,
                                  Saved saved, const Attributes& attributes,
                                  std::type_identity_t<void (*)(Backward&, const Attributes&)> rule,
                                  bool collective = false) {
  std::vector<Variable> results(outputs.size());
  record_into<Attributes>(results.data(), name, inputs, outputs, std::move(saved), attributes, rule,
                          collective);
  return results;
}

template <class Attributes>
Variable record(const char* name, Given<Variable> inputs, const Tensor& output, Saved saved,
                const Attributes& attributes,
                std::type_identity_t<void (*)(Backward&, const Attributes&)> rule) {
  Variable result;
  record_into<Attributes>(&result, name, inputs, {output}, std::move(saved), attributes, rule, false);
  return result;
}

}  // namespace weft
