// The zoo's mechanisms, sizes and claims: a line each.

#include "tools/zoo.h"

namespace weft {
namespace {

// Two layers of it, with settings in the words of `weft apply`.
ZooMechanism two(const std::string& name, const std::string& id,
                 const std::vector<std::string>& settings = {}) {
  ZooMechanism m{name, {"model.layers=[" + id + "*2]"}};
  for (const std::string& setting : settings) m.overrides.push_back("model.mechanisms." + id + "." + setting);
  return m;
}

}  // namespace

const std::vector<ZooMechanism>& zoo_mechanisms() {
  static const std::vector<ZooMechanism> all{
      two("softmax", "softmax"),
      two("sliding_window", "sliding_window", {"window=8"}),
      two("sparsek", "sparsek", {"window=8", "k=16"}),
      // Three of four heads on.
      {"moh",
       {"model.layers=[moh*2]", "model.heads=4", "model.mechanisms.moh.shared=2",
        "model.mechanisms.moh.top_k=1"}},
      {"softmax_4_heads", {"model.layers=[softmax*2]", "model.heads=4"}},
      // With the denominator; with a norm of the output in its place; with a denominator that may vanish.
      two("linear", "linear", {"feature_map=elu", "normalize=true"}),
      two("linear_norm", "linear"),
      two("linear_identity", "linear", {"feature_map=identity", "normalize=true"}),
      two("lightning", "lightning"),
      two("simple_gla", "simple_gla"),
      two("gla", "gla"),
      two("regla", "regla"),
      two("based", "based", {"window=8"}),
      two("delta_rule", "delta_rule"),
      two("gated_delta_rule", "gated_delta_rule"),
      two("transnormer", "transnormer"),
      two("transnormer_llm", "transnormer_llm"),
      two("mega", "mega"),
      two("titans", "titans"),
      two("titans_mac", "titans_mac", {"chunk=16"}),
      two("titans_mag", "titans_mag"),
      two("titans_mal", "titans_mal"),
      two("moneta", "moneta"),
      two("yaad", "yaad"),
      two("memora", "memora"),
  };
  return all;
}

const std::vector<ZooSize>& zoo_sizes() {
  static const std::vector<ZooSize> all{
      {"cpu", "tasks", {32}, {3e-3, 1e-2}},
      {"gpu", "zoo", {64, 128, 256}, {1e-3, 3e-3, 1e-2}},
  };
  return all;
}

const std::vector<ZooClaim>& zoo_claims() {
  using enum ZooClaim::Relation;
  static const std::vector<ZooClaim> all{
      {"softmax attention recalls more than linear attention", "Zoology", "mqar", "softmax", "linear"},
      {"the delta rule recalls more than linear attention", "fast weight programmers", "mqar", "delta_rule",
       "linear"},
      {"the delta rule recalls more than linear attention with a norm", "fast weight programmers", "mqar",
       "delta_rule", "linear_norm"},
      {"a memory that learns at test time recalls more than linear attention", "Titans", "mqar", "titans",
       "linear"},
      {"a memory that learns at test time recalls more than linear attention with a norm", "Titans", "mqar",
       "titans", "linear_norm"},
      {"the Miras memories recall more than linear attention", "Miras", "mqar", "moneta", "linear"},
      {"Taylor linear attention with a window recalls more than linear attention", "Based", "mqar", "based",
       "linear"},
      {"gates that depend on the data recall more than fixed decays", "GLA", "mqar", "gla", "lightning"},
      {"kept pairs and a window recall more than the window alone", "SPARSEK", "mqar", "sparsek",
       "sliding_window"},
      {"gates that depend on the data copy selectively where fixed decays do not", "Mamba, GLA",
       "selective_copy", "gla", "lightning"},
      {"gated delta rule against delta rule on text", "Gated Delta Networks", "lm", "gated_delta_rule",
       "delta_rule"},
      {"a refined gate is better on text than a plain one", "ReGLA", "lm", "regla", "gla"},
      {"a norm is better on text than the denominator", "TransNormer", "lm", "transnormer", "linear"},
      {"with a norm gradients do not peak as with a denominator that may vanish", "TransNormer", "lm",
       "transnormer", "linear_identity", better, "grad_peak"},
      {"with a norm gradients peak less than with the denominator of elu + 1", "TransNormer", "lm",
       "transnormer", "linear", better, "grad_peak"},
      {"three heads of four are as good as all", "MoH", "lm", "moh", "softmax_4_heads", equal},
      {"memory as context finds the needle that memory alone does not", "Titans", "needle", "titans_mac",
       "titans"},
      {"moving averages and gates beat softmax attention on ListOps", "Mega", "listops", "mega", "softmax"},
  };
  return all;
}

}  // namespace weft
