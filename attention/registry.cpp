#include "attention/registry.h"

#include <sstream>

#include "attention/based.h"
#include "attention/delta_rule.h"
#include "attention/diag_attention.h"
#include "attention/gla.h"
#include "attention/linear_attention.h"
#include "attention/mega.h"
#include "attention/miras.h"
#include "attention/moh.h"
#include "attention/regla.h"
#include "attention/softmax.h"
#include "attention/sparsek.h"
#include "attention/titans.h"
#include "attention/titans_layers.h"
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
  const auto config_of = [id](const FieldValue& attributes) {
    Config config;
    if (attributes.kind != FieldValue::Kind::none) read_config(config, attributes, id);
    return config;
  };
  e.make = [=](const FieldValue& attributes, const Dimensions& dims, const ParameterScope& scope) {
    return std::make_unique<M>(config_of(attributes), dims, scope);
  };
  e.describe = [=](const FieldValue& attributes) { return weft::describe(config_of(attributes)); };
  return e;
}

constexpr const char* kTitans = "Titans: Learning to Memorize at Test Time";
constexpr const char* kMiras =
    "It's All Connected: A Journey Through Test-Time Memorization, Attentional Bias, "
    "Retention, and Online Optimization";

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
                             {"feature_map=elu normalize=true chunk=16", "feature_map=relu normalize=true",
                              "feature_map=taylor normalize=true", "feature_map=hedgehog normalize=true",
                              "feature_map=favor normalize=true", "feature_map=lln normalize=true"}),
      entry<Lightning>("lightning", {"lightning2", "tnl_lightning", "retention"}, "Lightning Attention-2",
                       "https://arxiv.org/abs/2401.04658", {"decay=retnet chunk=16"}),
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
                            {"layer=1 layers=3 chunk=16", "decay=paper heads=2 layer=2 layers=4",
                             "form=lightning phase=false layer=1 layers=3", "form=lightning chunk=16"}),
      entry<DeltaRule>("delta_rule", {}, "Linear Transformers Are Secretly Fast Weight Programmers",
                       "https://arxiv.org/abs/2102.11174", {"chunk=16"}),
      entry<GatedDeltaRule>("gated_delta_rule", {}, "Gated Delta Networks: Improving Mamba2 with Delta Rule",
                            "https://arxiv.org/abs/2412.06464", {"chunk=7"}),
      entry<Based>("based", {},
                   "Simple linear attention language models balance the recall-throughput tradeoff",
                   "https://arxiv.org/abs/2402.18668", {"window=6 chunk=16"}),
      entry<Mega>("mega", {}, "Mega: Moving Average Equipped Gated Attention",
                  "https://arxiv.org/abs/2209.10655",
                  {"attention_chunk=16 ema_size=3 chunk=7", "attention=laplace bias=rotary chunk=16",
                   "attention=relu2 positions=9", "attention=laplace attention_chunk=5",
                   "causal=false positions=9", "causal=false attention=laplace attention_chunk=5 chunk=16",
                   "causal=false attention=relu2 bias=rotary"}),
      entry<Titans>("titans", {}, kTitans, "https://arxiv.org/abs/2501.00663",
                    {"chunk=1", "memory=mlp chunk=4", "step_limit=1.5 chunk=5"}),
      entry<MemoryAsContext>("titans_mac", {}, kTitans, "https://arxiv.org/abs/2501.00663",
                             {"memory=mlp chunk=8 persistent=1 convolution=0 position=none",
                              "chunk=5 convolution=2 step_limit=1"}),
      entry<MemoryAsGate>("titans_mag", {}, kTitans, "https://arxiv.org/abs/2501.00663",
                          {"memory=mlp chunk=4 window=5 persistent=1 convolution=0 position=none"}),
      entry<MemoryAsLayer>("titans_mal", {}, kTitans, "https://arxiv.org/abs/2501.00663",
                           {"memory=mlp chunk=4 window=5 persistent=1 convolution=0 position=none"}),
      entry<Moneta>("moneta", {}, kMiras, "https://arxiv.org/abs/2504.13173",
                    {"memory=matrix chunk=1", "p=2.5 q=5 chunk=4"}),
      entry<Yaad>("yaad", {}, kMiras, "https://arxiv.org/abs/2504.13173",
                  {"chunk=1", "memory=matrix chunk=4"}),
      entry<Memora>("memora", {}, kMiras, "https://arxiv.org/abs/2504.13173",
                    {"chunk=1", "memory=matrix chunk=4"}),
      entry<Moh>("moh", {}, "MoH: Multi-Head Attention as Mixture-of-Head Attention",
                 "https://arxiv.org/abs/2410.11842",
                 {"heads=4 kv_heads=2 shared=2 position=rope", "heads=4 shared=0 top_k=2 form=paper",
                  "heads=4 shared=1 router=norm straight_through=false", "heads=4 shared=1 top_k=2"}),
      entry<SparseK>(
          "sparsek", {},
          "Sparser is Faster and Less is More: Efficient Sparse Attention for Long-Range Transformers",
          "https://arxiv.org/abs/2406.16747",
          {"k=3 window=4 chunk=7 position=rope slope=0.0625", "k=8 support=20 window=0 gate=v"}),
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
      throw Error(Exit::usage, text("expected attribute=value, got ", setting), setting,
                  "write it as attribute=value");
    FieldValue item = text_value(setting.substr(equals + 1));
    item.key = setting.substr(0, equals);
    item.place.source = item.key_place.source = std::make_shared<const std::string>(setting);
    map.items.push_back(item);
  }
  return map;
}

}  // namespace weft
