#pragma once
// Shared by mechanisms that are a learning memory (memory.h) between q, k, v and their gates: the Carry, and
// the definition token by token.

#include "attention/mechanism.h"
#include "attention/memory.h"

namespace weft {

struct MemoryConfig {
  int64_t chunk = 16;
  std::string memory = "mlp";
  int64_t expansion = 4;
  void fields(FieldVisitor& f);
};

class MemoryAttention : public Mechanism {
 public:
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  int64_t align() const override { return config_.chunk; }
  bool normalize_output() const override { return true; }

  // For mechanisms of which this is a part. Inputs of this dtype, as in a block of forward().
  Carry carry(Dtype dtype, Device device) const;
  const ChunkedMemory& memory() const { return memory_; }

  // The definition, token by token with whole weights.
  struct Naive {
    State a, s, start, weights;
    int64_t tokens = 0;
  };
  Naive naive_begin(Dtype dtype, Device device) const;
  Variable naive_recall(Naive& memory, const Variable& q) const;  // (1, H, k) -> (1, H, v)
  // Learns from one token and answers its query: (1, H, v).
  Variable naive_learn(Naive& memory, const Block& token) const;

 protected:
  MemoryAttention(const MemoryConfig& config, Dimensions dims, const ParameterScope& scope, Bias bias,
                  Retention retention, bool momentum);

  // Each (n, H), wide; undefined where the policy does not have it.
  struct Gates {
    Variable step, keep, momentum, bound;
  };
  virtual Gates gates(const Block& block) const = 0;

  // For reference(). error (H, 1, v), bound (H, 1, 1)
  virtual Variable naive_slope(const Variable& error, const Variable& bound) const = 0;
  // W of A, and W inside a chunk that began at a_start.
  virtual Variable naive_weights(const Variable& a) const { return a; }
  virtual Variable naive_weights_inside(const Variable& a, const Variable& a_start) const;

  // The memory before the first token, in this type.
  State initial(Dtype type, Device device) const;

  MemoryConfig config_;

 private:
  Variable naive_answer(const State& w, const Variable& x) const;
  State naive_gradient(const State& w, const Variable& k, const Variable& v, const Variable& bound) const;

  bool momentum_;
  ChunkedMemory memory_;
  std::vector<Parameter> start_;  // of an MLP; a matrix starts at zero
};

}  // namespace weft
