#pragma once
// Softmax attention (Vaswani et al. 2017), causal or full, multi-head, grouped (Ainslie et al. 2023) or
// multi-query, and its sliding-window form (Beltagy et al. 2020). Both prepare queries and keys alike:
// optional RMS norm per head (Henry et al. 2020), rotary positions (Su et al. 2021) or ALiBi (Press et al.
// 2022), and an optional learned sink: one more key per head with value zero (Gu et al. 2024).

#include "attention/mechanism.h"

namespace weft {

struct SoftmaxConfig {
  double scale = 0;
  bool causal = true;
  std::string position = "none";
  double rope_theta = 10000;
  bool qk_norm = false;
  bool sink = false;
  void fields(FieldVisitor& f);
};

class Softmax : public Mechanism {
 public:
  using Config = SoftmaxConfig;
  Softmax(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  bool causal() const override { return config_.causal; }

 protected:
  // q and k normalised and rotated.
  // turn: apply rotary positions, if the mechanism has them.
  Block prepare(const Block& block, bool turn = true) const;
  AttentionOptions options() const;
  // The sink's share of each row taken away from o.
  Variable drain(const Variable& o, const Variable& lse) const;
  // The naive form with keys at distance < window only (0: all).
  Variable reference_in_window(const Block& block, int64_t window) const;

  Config config_;
  Parameter q_gain_, k_gain_, sink_;
};

struct SlidingWindowConfig : SoftmaxConfig {
  int64_t window = 64;
  void fields(FieldVisitor& f);
};

class SlidingWindow : public Softmax {
 public:
  using Config = SlidingWindowConfig;
  SlidingWindow(const Config& config, Dimensions dims, const ParameterScope& scope);

  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;

 private:
  int64_t window_;
};

// The part of all softmax attention.
Merge softmax_merge(const AttentionOptions& options);

// More is likely a typing error: a Halo keeps that many rows for each segment, where plain attention keeps
// only existing rows.
constexpr int64_t kLongestWindow = 1 << 20;

// The keys of attention over a Halo: the block's own rows, then those before it, so that tiles of keys and of
// queries begin at the same tokens. There are none of x[0], the queries.
Block own_then_before(const Block& block, const Block& before);

// Attention over the last `window` tokens as a Halo, for mechanisms that have one among their parts.
Halo window_attention(AttentionOptions options, int64_t window, const Layout& layout);

}  // namespace weft
