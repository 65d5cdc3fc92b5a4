#pragma once
// Mixture-of-head attention (Jin et al. 2024, "MoH: Multi-Head Attention as Mixture-of-Head Attention",
// arXiv 2410.11842). The first `shared` heads are always on; of the other E, a router picks `top_k` for each
// token; the outputs of the heads that are on are weighted before the output projection:
//   y_t = sum_h g_th W_out^h softmax(scale q_th K_h^T) V_h
// A head that is off costs no attention and no projection of queries and outputs, forward or backward; its
// keys and values are still seen by tokens for which it is on, and are left out only where it is on for no
// token and no token may follow. (router=norm chooses by the queries, so it projects them all. On a GPU
// projections are whole: otherwise the host would have to read lists of tokens before every product.)
//
// router=learned, with the routed share p = softmax(W_routed x) and [a0, a1] = softmax(W_mix x):
//   form=code   shared s a0 softmax(W_shared x) 2,  routed k a1 p_e / (sum of the chosen p) 2
//               (the factors of the authors' released code: the mean weight of a head that is on is 1)
//   form=paper  shared a0 softmax(W_shared x),      routed a1 p_e
//   Without shared heads there is no W_mix, and with one, no W_shared: its share is 1.
// router=norm continues a dense model without new parameters, as the released MoH-LLaMA3 does: p is the
//   softmax of the norms of the queries, before rotation, over their deviation among the routed heads; all
//   weights are 1. With straight_through a weight that is on has the gradient of p, else none.
//
// The auxiliary loss `balance` is E sum_e mean_t(p_te) mean_t(e is chosen by t) over all tokens computed
// together: top_k where routing is even, E top_k at most.

#include "attention/mechanism.h"
#include "autograd/ops/head_linear.h"

namespace weft {

struct MohConfig {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t shared = 0;
  int64_t top_k = 1;
  std::string router = "learned";
  std::string form = "code";
  bool straight_through = true;
  double balance_weight = 0.01;
  double scale = 0;
  std::string position = "none";
  double rope_theta = 10000;
  void fields(FieldVisitor& f);
};

class Moh : public Mechanism {
 public:
  using Config = MohConfig;
  Moh(Config config, Dimensions dims, const ParameterScope& scope);

  std::vector<Input> inputs() const override;
  Variable forward(const Block& block, Crossing& cross) const override;
  Variable reference(const Block& block) const override;
  std::vector<Identity> identities() const override;
  std::string warning() const override;  // of a router that the loss cannot train

 private:
  struct Routing {
    Variable weights;  // (N, H), f32 (f64)
    Tensor active;     // (N, H) in x's dtype, 0 or 1
    HeadTokens on;
    std::vector<bool> looked_at;  // of each key head, whether any token does
  };
  // x (N, C), q (N, H, Dk) before rotation, which only router=norm needs.
  Routing route(const Variable& x, const Variable& q, Crossing& cross) const;
  Variable routed_logits(const Variable& x, const Variable& q) const;  // (N, E)
  Variable weights(const Variable& x, const Variable& share, const Tensor& chosen) const;
  // Gives how often each routed head is chosen, over all tokens computed together: (E).
  Tensor balance(const Variable& share, const Tensor& chosen, Crossing& cross) const;
  std::vector<bool> looked_at(const Tensor& times_chosen, const Crossing& cross) const;
  std::pair<Variable, Variable> keys_and_values(const Variable& x, const std::vector<bool>& looked_at) const;
  int64_t routed() const { return dims().heads - config_.shared; }
  bool learned() const { return config_.router == "learned"; }

  Config config_;
  Parameter in_, out_;  // named and laid out as a layer of plain attention has them
  Parameter router_routed_, router_shared_, router_mix_;  // f32: routing must not depend on rounding
};

}  // namespace weft
