#include "attention/registry.h"

#include <sstream>

#include "attention/based.h"
#include "attention/delta_rule.h"
#include "attention/diag_attention.h"
#include "attention/gla.h"
#include "attention/linear_attention.h"
#include "attention/regla.h"
#include "attention/softmax.h"
#include "attention/transnormer.h"
#include "attention/transnormer_llm.h"
#include "autograd/nearest_name.h"

namespace weft {
namespace {

template <class M>
MechanismEntry entry(std::string id, std::vector<std::string> aliases, std::string title, std::string url,
                     std::vector<std::string> variants) {
  using Config = typename M::Config;
  MechanismEntry e{id,     std::move(aliases), std::move(title), std::move(url), std::move(variants), nullptr,
                   nullptr};
  e.make = [id](const FieldValue& attributes, const Dimensions& dims, const ParameterScope& scope) {
    Config config;
    if (attributes.kind != FieldValue::Kind::none) read_config(config, attributes, id);
    return std::make_unique<M>(std::move(config), dims, scope);
  };
  e.describe = [] { return weft::describe(Config{}); };
  return e;
}

}  // namespace

// One line a mechanism.
const std::vector<MechanismEntry>& mechanisms() {
  static const std::vector<MechanismEntry> all{
      entry<Softmax>("softmax", {}, "Attention Is All You Need", "https://arxiv.org/abs/1706.03762",
                     {"position=rope qk_norm=true", "position=alibi sink=true", "causal=false"}),
      entry<SlidingWindow>("sliding_window", {}, "Longformer: The Long-Document Transformer",
                           "https://arxiv.org/abs/2004.05150",
                           {"window=5 position=rope sink=true", "window=1"}),
      entry<LinearAttention>("linear", {}, "Transformers are RNNs", "https://arxiv.org/abs/2006.16236",
                             {"feature_map=elu normalize=true chunk=16", "feature_map=taylor normalize=true",
                              "feature_map=hedgehog normalize=true", "feature_map=favor normalize=true",
                              "feature_map=lln normalize=true"}),
      entry<Lightning>("lightning", {"lightning2", "tnl_lightning", "retention"}, "Lightning Attention-2",
                       "https://arxiv.org/abs/2401.04658", {"chunk=16"}),
      entry<SimpleGla>("simple_gla", {},
                       "Gated Linear Attention Transformers with Hardware-Efficient Training",
                       "https://arxiv.org/abs/2312.06635", {"chunk=7"}),
      entry<Gla>("gla", {}, "Gated Linear Attention Transformers with Hardware-Efficient Training",
                 "https://arxiv.org/abs/2312.06635", {"chunk=10"}),
      entry<Regla>("regla", {}, "ReGLA: Refining Gated Linear Attention", "https://arxiv.org/abs/2502.01578",
                   {"chunk=16"}),
      entry<DiagAttention>("diag_attention", {}, "The Devil in Linear Transformer",
                           "https://arxiv.org/abs/2210.10340", {"block=5"}),
      entry<TransNormer>("transnormer", {}, "The Devil in Linear Transformer",
                         "https://arxiv.org/abs/2210.10340",
                         {"norm_per_head=true feature_map=relu chunk=16"}),
      entry<TransNormerLlm>("transnormer_llm", {}, "Scaling TransNormer to 175 Billion Parameters",
                            "https://arxiv.org/abs/2307.14995",
                            {"layer=1 layers=3 chunk=16", "decay=paper heads=2 layer=3 layers=4"}),
      entry<DeltaRule>("delta_rule", {}, "Linear Transformers Are Secretly Fast Weight Programmers",
                       "https://arxiv.org/abs/2102.11174", {"chunk=16"}),
      entry<GatedDeltaRule>("gated_delta_rule", {}, "Gated Delta Networks: Improving Mamba2 with Delta Rule",
                            "https://arxiv.org/abs/2412.06464", {"chunk=7"}),
      entry<Based>("based", {},
                   "Simple linear attention language models balance the recall-throughput tradeoff",
                   "https://arxiv.org/abs/2402.18668", {"window=6 chunk=16"}),
  };
  return all;
}

const MechanismEntry& find_mechanism(const std::string& name) {
  std::vector<std::string> names;
  for (const MechanismEntry& e : mechanisms()) {
    names.push_back(e.id);
    names.insert(names.end(), e.aliases.begin(), e.aliases.end());
    if (e.id == name) return e;
    for (const std::string& alias : e.aliases)
      if (alias == name) return e;
  }
  throw Error(Exit::usage, text("unknown mechanism ", name), name, suggest_name(name, names, "mechanisms"));
}

std::vector<std::string> split_settings(std::string_view settings) {
  std::istringstream in{std::string(settings)};
  std::vector<std::string> out;
  for (std::string s; in >> s;) out.push_back(s);
  return out;
}

FieldValue parse_attributes(const std::vector<std::string>& settings) {
  FieldValue map;
  map.kind = FieldValue::Kind::map;
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    if (equals == std::string::npos || equals == 0)
      throw Error(Exit::usage, text("expected attribute=value, got ", setting), setting);
    FieldValue item = text_value(setting.substr(equals + 1));
    item.key = setting.substr(0, equals);
    map.items.push_back(item);
  }
  return map;
}

}  // namespace weft
