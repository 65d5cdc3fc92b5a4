#pragma once
// Mega (Ma et al. 2022): a gated single-head attention whose queries, keys and gates come from a damped
// moving average of the tokens. A whole layer, with its norm and its residual:
//
//   n = layer_norm(x)                          v = silu(W_v n + b_v)
//   m = silu(ema(n) + omega n)                 [u z r c] = W_m m + b_m
//   phi = sigmoid(u)   z = silu(z)   r = silu(r)
//   q = gamma_q z + beta_q                     k = gamma_k z + beta_k
//   o_t = sum over s <= t of f(score(q_t, k_s) + b(t - s)) v_s
//   y = x + phi (silu(c + W_h (r o) + b_h) - x)
//
// with x (T, C), z, q, k (T, Z), v, r, o (T, H). f is softmax, with the score q . k / sqrt(Z); or laplace or
// relu2 (part.h), with q . k over the number of keys that the query sees. The bias b is a table over
// distances, or the product of alpha and beta rotated by their positions (Su et al. 2021). Mega-chunk sees
// only keys of the token's own chunk of positions, while the moving average runs on.
//
// causal=false is the paper's encoder: ema is the sum of two averages with parameters of their own, one from
// the start and one from the end of the document, both including the token itself; the sum over s is that of
// all tokens of the document (chunk), and the table of biases has distances of both signs.
//
// What the paper leaves open is as in the authors' moving_average_gated_attention.py,
// exponential_moving_average.py and relative_positional_bias.py (github.com/facebookresearch/mega): omega and
// the silu after it, the biases of the projections, the number of keys seen as divisor before the bias is
// added, base 10000, the two averages. A distance beyond the table, which they refuse, takes its last entry.

#include <optional>

#include "attention/ema.h"

namespace weft {

struct MegaConfig {
  bool causal = true;
  std::string attention = "softmax";
  int64_t attention_chunk = 0;
  std::string bias = "simple";
  int64_t positions = 1024;
  int64_t z_size = 0;
  int64_t hidden = 0;
  int64_t ema_size = 16;
  std::string ema = "scan";
  int64_t chunk = 64;
  void fields(FieldVisitor& f);
};

class Mega : public Mechanism {
 public:
  using Config = MegaConfig;
  Mega(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  int64_t align() const override { return std::max<int64_t>(1, config_.attention_chunk); }
  bool causal() const override { return config_.causal; }
  bool whole_layer() const override { return true; }

 private:
  // How many keys each token sees, (N, 1): the same divisor in training and in decoding.
  Variable keys_seen(const Block& block, Crossing& cross, Dtype dtype) const;
  // z by row 0 (query) or 1 (key) of the scales and shifts, in f32 (f64).
  Variable projected(const Variable& z, int which) const;
  Variable rotary_bias(const Parameter& direction, const Block& block, Dtype dtype) const;
  Variable reference_weights(const Variable& q, const Variable& k) const;

  Config config_;
  DampedEma ema_;
  std::optional<DampedEma> back_;  // from the end, unless causal
  Parameter norm_gain_, norm_bias_, omega_;
  Parameter value_, value_bias_, mix_, mix_bias_, out_, out_bias_;
  Parameter scale_, shift_;          // (2, Z)
  Parameter table_;                  // (1, positions), or (1, 2 positions - 1) unless causal
  Parameter query_bias_, key_bias_;  // (1, 1, Z)
};

}  // namespace weft
