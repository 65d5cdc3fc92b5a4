#pragma once
// A mechanism: its definition, its fast form, and what it declares about itself. Everything else (context
// parallelism, prefill, decoding, checkpointing, tests, `weft apply`) is derived from these.

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "attention/crossing.h"
#include "autograd/fields.h"
#include "autograd/parameter.h"

namespace weft {

// What the values of an input mean, and from where tests draw random ones.
enum class Domain : uint8_t {
  real,       // any
  log_decay,  // <= 0: natural log of a decay
  unit,       // (0, 1)
  positive,   // > 0
  direction,  // vectors of length 1
};

struct Input {
  const char* name;  // as in `weft apply`
  const char*
      dims;  // after the token axis, of: h heads, g key-value heads, k key size, v value size, c width
  Domain domain = Domain::real;
  // The initial value of a layer's gate for this input, before it is mapped into the domain (-3 in the domain
  // unit is 0.05); tests draw around it.
  double start = 0;
};

// Sizes that the caller chooses.
struct Dimensions {
  int64_t heads = 1, kv_heads = 1, key = 1, value = 1, width = 1;
  // Its place in the model: layer `layer`, from 0, of `layers`.
  int64_t layer = 0, layers = 1;
  int64_t of(char letter) const;
};

// An Error (recipe) unless every query head has a key head of its own.
void require_equal_heads(const Dimensions& dims, const char* mechanism);

// "h k" with these sizes, for n tokens: (n, heads, key).
Shape input_shape(const Input& input, const Dimensions& dims, int64_t n);

// An exact statement of the paper: deviation() of both sides must not exceed the tolerance.
struct Identity {
  std::string says;
  double tolerance;
  std::function<double()> deviation;
};

// Declares a mechanism's parameters under a prefix of a store.
class ParameterScope {
 public:
  ParameterScope(ParameterStore& store, std::string prefix) : store_(store), prefix_(std::move(prefix)) {}
  Parameter declare(ParameterInfo info) const {
    info.name = prefix_ + info.name;
    return store_.declare(std::move(info));
  }
  ParameterScope inner(const std::string& name) const { return {store_, prefix_ + name + "."}; }
  ParameterStore& store() const { return store_; }

 private:
  ParameterStore& store_;
  std::string prefix_;
};

class Mechanism {
 public:
  explicit Mechanism(Dimensions dims) : dims_(dims) {}
  virtual ~Mechanism() = default;

  const Dimensions& dims() const { return dims_; }

  virtual std::vector<Input> inputs() const = 0;
  // Tokens (N, ...) in; (N, H, Dv), or (N, C) for a mechanism that takes x.
  virtual Variable forward(const Block& block, Crossing& cross) const = 0;
  // The definition, naive and independent of forward, written from the paper: one document at a time, from
  // the start.
  virtual Variable reference(const Block& block) const = 0;
  // The paper's exact statements.
  virtual std::vector<Identity> identities() const { return {}; }
  // The largest chunk that is part of the function: rank cuts fall on its multiples.
  virtual int64_t align() const { return 1; }
  virtual bool causal() const { return true; }
  // The values of an input that a layer does not learn, one for each head. Empty: the layer learns it.
  virtual std::vector<double> fixed_input(const std::string&) const { return {}; }
  // Outputs that grow with the text, as sums do, need a norm after them in a layer.
  virtual bool normalize_output() const { return false; }
  // What a training run should be warned of; empty: nothing.
  virtual std::string warning() const { return {}; }
  // It norms its input and adds it to its output itself, so a block does neither.
  virtual bool whole_layer() const { return false; }

 private:
  Dimensions dims_;
};

// A fixed input for n tokens, (n, heads): one row, repeated; kernels recognise it by that.
Tensor fixed_rows(const Mechanism& mechanism, const Input& input, int64_t n, Dtype dtype, Device device);

// Rows that stand for all tokens, (n, values), made once and not at every call. A row stays in its place,
// because a recorded step (autograd/cuda/replay.h) may read it. Ranks that are threads share a model, so
// several may ask at once.
class RepeatedRows {
 public:
  Tensor operator()(const std::string& name, const std::vector<double>& values, int64_t n, Dtype dtype,
                    Device device) const;

 private:
  struct Known {
    std::mutex asking;
    std::map<std::string, std::vector<Tensor>> rows;
  };
  std::shared_ptr<Known> known_ = std::make_shared<Known>();
};

// Random inputs in their domains for so many tokens, drawn in f64 and rounded to dtype.
std::vector<Tensor> random_inputs(const Mechanism& mechanism, int64_t tokens, Dtype dtype = Dtype::f64,
                                  uint32_t seed = 1);
// The same as a block of these documents.
Block random_block(const Mechanism& mechanism, const Layout& layout);

// Runs reference() document by document and puts the outputs back on the token line.
Variable reference_by_document(const Mechanism& mechanism, const Block& block);

}  // namespace weft
