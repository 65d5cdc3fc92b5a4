#pragma once
// The three models of Titans (Behrouz et al. 2024): a learning memory (titans.h) beside attention of short
// reach. Whole layers, x (N, C) -> (N, C), with projections and P learned persistent tokens that every query
// sees, whatever the text.
//
//   MAC, memory as context   by segments: h = M(q(x)) with the memory before the segment; attention over
//                            [P | h | segment]; the memory learns from attention's output y, and gates it:
//                            y * M(y)
//   MAG, memory as a gate    sliding window over [P | x], gated by M(x)
//   MAL, memory as a layer   sliding window over [P | M(x)]
//
// A gate is norm(y) * sigmoid(norm(m)), and other uses of m take norm(m) too: in MAC the memory's answers
// come back to it through attention. Inside a segment of MAC token t sees the h and x of tokens up to t, and
// the answer that gates it is the memory's after t, so nothing looks ahead.
//
// A memory's queries, keys and values are a projection, a short depthwise convolution along the text, and
// SiLU, queries and keys then of length 1 (section 4.4 of the paper). In MAC the memory learns from another
// sequence than it is asked about, so the same filter runs along both. Attention turns queries and keys by
// their positions (rotary); h_t stands where x_t does. Persistent tokens have no position: they meet queries
// that are not rotated, so what a token takes from them does not depend on where it is. The paper says
// neither how positions enter nor whether attention's projections are convolved too; here they are not.
// Unlike in the paper, persistent tokens are keys of attention only: what a memory knows before the text is
// its learned initial weights.

#include "attention/titans.h"

namespace weft {

struct TitansLayerConfig : TitansConfig {
  int64_t heads = 0;
  int64_t persistent = 4;
  int64_t convolution = 4;
  std::string position = "rope";
  double rope_theta = 10000;
  void fields(FieldVisitor& f);
};

struct TitansWindowConfig : TitansLayerConfig {
  int64_t window = 64;
  void fields(FieldVisitor& f);
};

struct TitansContextConfig : TitansLayerConfig {
  // A chunk is also the segment of attention, and 16 tokens are too small a window for a text.
  TitansContextConfig() { chunk = 64; }
};

class TitansLayer : public Mechanism {
 public:
  std::vector<Input> inputs() const override { return {{"x", "c"}}; }
  int64_t align() const override { return memory_.align(); }
  std::string warning() const override { return memory_.warning(); }

 protected:
  // What attention's queries, keys and values are made of: x, or the memory's answers.
  enum class Attended : uint8_t { tokens, answers };
  TitansLayer(const TitansLayerConfig& config, const Dimensions& sizes, Attended attended, bool gate,
              const ParameterScope& scope);

  // The memory's q, k and v side by side, (n, 2 H k + H v), before the convolution; and what it takes, from
  // them after it and the gates' x (n, C).
  Variable packed(const Variable& x) const;
  Block memory_inputs(const Variable& packed, const Variable& x, const Tensor& position,
                      const Tensor& document) const;
  // Queries or keys of length 1, (n, H, k), from columns (n, H k).
  Variable directions(const Variable& columns) const;
  // All of it for the tokens of a block, and by the equation for one document from its start.
  Block memory_block(const Block& block, Crossing& cross) const;
  Block naive_memory_block(const Block& block) const;
  bool convolves() const { return convolution_.defined(); }
  // {q, k (n, H, k), v (n, H, v)}, from x, or from answers as (n, H v).
  std::vector<Variable> attention_inputs(const Variable& x) const;
  // Queries or keys (n, H, k) turned by their positions; and by the equation, the first at `first`.
  Variable turned(const Variable& x, const Tensor& position) const;
  Variable naive_turned(const Variable& x, int64_t first) const;
  // {keys, values} of the persistent tokens.
  std::vector<Variable> persistent_inputs() const;
  // Attention of the window and the persistent tokens, (n, H v), and the same by its equation.
  Variable windowed(const Variable& x, int64_t window, const Block& block, Crossing& cross) const;
  Variable naive_windowed(const Variable& x, int64_t window) const;
  double score_scale() const;
  // Of queries, of keys of the text and of persistent ones, (n, H, k) -> (n, H, 2 k): their products are
  // those of turned ones for the text, of plain ones for persistent tokens.
  Variable naive_query(const Variable& q, int64_t first) const;
  Variable naive_text_key(const Variable& k, int64_t first) const;
  Variable naive_persistent_key(const Variable& k) const;
  // The memory's answers (n, H, v), normed, as (n, H v); and by the equation.
  Variable answered(const Variable& m) const;
  Variable naive_answered(const Variable& m) const;
  // norm(y) * sigmoid(norm(m)) projected to (n, C), and by its equation.  y (n, H v), m (n, H, v)
  Variable gated(const Variable& y, const Variable& m) const;
  Variable naive_gated(const Variable& y, const Variable& m) const;

  TitansLayerConfig config_;
  Titans memory_;
  Parameter memory_in_, convolution_, memory_gate_, memory_bias_, attention_in_, persistent_, out_;
  Parameter memory_gain_, attention_gain_;  // the second where there is a gate
};

class MemoryAsGate : public TitansLayer {
 public:
  using Config = TitansWindowConfig;
  MemoryAsGate(const Config& config, const Dimensions& dims, const ParameterScope& scope);
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;

 private:
  int64_t window_;
};

class MemoryAsLayer : public TitansLayer {
 public:
  using Config = TitansWindowConfig;
  MemoryAsLayer(const Config& config, const Dimensions& dims, const ParameterScope& scope);
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;

 private:
  int64_t window_;
};

// One Carry over x. Its state: the memory's; the keys and values of the open segment, (2, chunk, H, ...),
// those of h before those of x; and what the convolution still reads of the last tokens: of x (W - 1, H k)
// for queries, of y (W - 1, 2 H k + H v) for what is learned.
class MemoryAsContext : public TitansLayer {
 public:
  using Config = TitansContextConfig;
  MemoryAsContext(const Config& config, const Dimensions& dims, const ParameterScope& scope);
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;

 private:
  // Segments of B documents abreast, or a part of the open one.
  std::pair<Variable, State> step_in_segments(const Block& block, const ChunkedMemory::Cut& cut,
                                              const State& state) const;
  struct Segments;  // what does not depend on the state, of all of them
  Segments segments_of(const Block& block, const ChunkedMemory::Cut& cut, const State& state) const;
  // Rows of a line for each of B documents, (B n, C), convolved with those kept in front of them: (B, W - 1 +
  // n, C), of which the first W - 1 rows mean nothing; and what is kept then.
  std::pair<Variable, Variable> convolved(const Variable& rows, const Variable& filter, const Variable& kept,
                                          const Tensor& places, int64_t documents) const;
  // The memory's part of a state.
  State memory_part(const State& state) const;
  int64_t reach() const { return convolves() ? config_.convolution - 1 : 0; }

  Parameter recalled_out_, attention_out_;
};

}  // namespace weft
