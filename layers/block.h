#pragma once
// One pre-norm residual block: x + attention(norm(x)), or a mechanism that is a whole layer, attention(x);
// then x + feed_forward(norm(x)). A sum waits for the norm after it, perhaps that of the next block, and is
// one kernel with it. So a block takes and returns a stream x and a branch that is yet to be added.

#include <algorithm>
#include <optional>

#include "layers/attention_layer.h"
#include "layers/feed_forward.h"
#include "layers/norm.h"

namespace weft {

// Makes the crossing of one layer for one forward. Called again when a checkpointed block runs again, so it
// must outlive the backward.
class CrossingFactory {
 public:
  virtual ~CrossingFactory() = default;
  virtual std::unique_ptr<Crossing> make(const Layout& layout, int layer) = 0;
};

// Training or scoring whole documents on one rank.
class LocalCrossings : public CrossingFactory {
 public:
  std::unique_ptr<Crossing> make(const Layout& layout, int) override {
    return std::make_unique<LocalCrossing>(layout);
  }
};

// Prefill and decoding: one stream a layer. expected: tokens that a document will have, if known.
class StreamCrossings : public CrossingFactory {
 public:
  explicit StreamCrossings(int layers, int64_t expected = 0) : streams_(static_cast<size_t>(layers)) {
    for (Stream& s : streams_) s.expected = expected;
  }
  std::unique_ptr<Crossing> make(const Layout& layout, int layer) override {
    return std::make_unique<LocalCrossing>(layout, &streams_[static_cast<size_t>(layer)]);
  }
  int64_t bytes() const {
    int64_t bytes = 0;
    for (const Stream& s : streams_) bytes += s.bytes();
    return bytes;
  }
  // As Stream's.
  bool steady() const {
    return std::all_of(streams_.begin(), streams_.end(), [](const Stream& s) { return s.steady(); });
  }

 private:
  std::vector<Stream> streams_;
};

struct BlockConfig {
  AttentionLayerConfig attention;
  std::string norm = "rms";
  std::string ffn_kind = "swiglu";
  int64_t ffn = 0;
  std::string checkpointing = "none";  // none, attention, ffn or block
};

class TransformerBlock {
 public:
  TransformerBlock(const BlockConfig& config, const ParameterScope& scope);

  struct Output {
    Variable x, branch;            // (N, C) each; the branch may be undefined
    std::vector<Variable> losses;  // the auxiliary losses of the mechanism, scalars
  };
  Output operator()(const Variable& x, const Variable& branch, const Layout& layout,
                    CrossingFactory& crossings, int layer) const;
  const AttentionLayer& attention() const { return attention_; }

 private:
  // The few rows of a decoding step: norms and sums are inside the products (autograd/ops/few_rows.h).
  Output step(const Tensor& x, const Layout& layout, CrossingFactory& crossings, int layer) const;

  std::string checkpointing_;
  AttentionLayer attention_;
  std::optional<Norm> attention_norm_;  // none where the mechanism has its own
  Norm ffn_norm_;
  FeedForward ffn_;
};

}  // namespace weft
