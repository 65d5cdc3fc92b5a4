#include "training/setup.h"

#include "attention/recording_crossing.h"

namespace weft {

Dtype precision_of(const Recipe& recipe) {
  return recipe.precision == "f64" ? Dtype::f64 : recipe.precision == "bf16" ? Dtype::bf16 : Dtype::f32;
}

std::shared_ptr<const Tokenizer> open_tokenizer(const Recipe& recipe) {
  try {
    return load_tokenizer(recipe.data.tokenizer == "bytes" ? "byte" : recipe.data.tokenizer);
  } catch (const Error& e) {  // a broken file names itself; a missing one is the recipe's to mend
    throw Error(e.code, e.what(), e.where.empty() ? recipe.where("data.tokenizer") : e.where, e.advice);
  }
}

int64_t vocabulary_of(const Recipe& recipe, const Tokenizer& tokenizer) {
  if (recipe.model.vocab == 0) return tokenizer.vocab_size();
  if (recipe.model.vocab < tokenizer.vocab_size())
    throw Error(Exit::recipe,
                text("model.vocab is ", recipe.model.vocab, ", the tokenizer has ", tokenizer.vocab_size(),
                     " tokens"),
                recipe.where("model.vocab"), "leave it out to take the tokenizer's size");
  return recipe.model.vocab;
}

namespace {

// An attribute for every mechanism that has one of this name, unless the recipe says otherwise for it.
void add_default(FieldValue& map, const MechanismEntry& entry, const std::string& name,
                 const std::string& value) {
  if (map.find(name) != nullptr) return;
  for (const FieldDescription& f : entry.describe()) {
    if (f.name != name) continue;
    map.kind = FieldValue::Kind::map;
    FieldValue item = text_value(value);
    item.key = name;
    map.items.push_back(item);
  }
}

}  // namespace

ModelConfig model_config(const Recipe& recipe, int64_t vocab) {
  const Recipe::Model& m = recipe.model;
  ModelConfig c;
  c.layers = expand_layers(m.layers, recipe.where("model.layers"));
  for (std::string& layer : c.layers) {
    try {
      layer = find_mechanism(layer).id;
    } catch (const Error& e) {
      throw Error(e.code, e.what(), recipe.where("model.layers"), e.advice);
    }
  }
  for (const FieldValue& item : m.mechanisms.map.items) {
    try {
      find_mechanism(item.key);
    } catch (const Error& e) {
      throw Error(Exit::recipe, e.what(), item.key_place.text(), e.advice);
    }
  }
  c.attributes = [&m](const std::string& id) {
    const MechanismEntry& entry = find_mechanism(id);
    FieldValue map;
    if (const FieldValue* own = m.mechanisms.find(id)) map = *own;
    for (const std::string& alias : entry.aliases)
      if (const FieldValue* own = m.mechanisms.find(alias)) map = *own;
    add_default(map, entry, "position", m.position);
    add_default(map, entry, "rope_theta", text(m.rope_theta));
    add_default(map, entry, "qk_norm", m.qk_norm ? "true" : "false");
    return map;
  };
  c.width = m.width;
  c.heads = m.heads;
  c.kv_heads = m.kv_heads > 0 ? m.kv_heads : m.heads;
  c.head_size = m.head_size > 0 ? m.head_size : m.width / m.heads;
  c.ffn = m.ffn;
  c.ffn_kind = m.ffn_kind;
  c.norm = m.norm;
  c.norm_eps = m.norm_eps;
  c.checkpointing = m.checkpointing;
  c.tied = m.tied;
  c.scale_embedding = m.scale_embedding;
  c.vocab = vocab;
  c.short_conv = m.short_conv;
  return c;
}

Datasets open_recipe_data(const Recipe& recipe, const Tokenizer& tokenizer, int64_t vocab) {
  if (recipe.data.train.list.empty())
    throw Error(Exit::recipe, "data.train names no text", recipe.where("data.train"),
                "set data.train to a file or pattern");
  DataConfig config;
  for (const Recipe::Source& s : recipe.data.train.list) config.train.push_back({s.path, s.weight});
  config.val_share = recipe.data.val.paths.empty() ? recipe.data.val.share : 0;
  config.val_paths = recipe.data.val.paths;
  SourceOptions options;
  options.eos = tokenizer.eos_id();
  options.vocab_size = vocab;
  options.tokenizer = &tokenizer;
  options.skip_bad = recipe.data.skip_bad;
  return open_datasets(config, recipe.context, options);
}

namespace {

// Whether a block of the model crosses with such a part: asked of one token and a mechanism without values.
bool has_part(const Model& model, PartKind kind) {
  const NoTape pause;
  const Layout layout = whole_documents({1}, Device::meta);
  for (const TransformerBlock& block : model.blocks()) {
    const AttentionLayerConfig& config = block.attention().config();
    ParameterStore store(Dtype::f32, Device::meta);
    const auto m = find_mechanism(config.mechanism).make(config.attributes, config.dims, {store, ""});
    store.commit();
    Block one{{}, layout.position, layout.document};
    for (const Input& input : m->inputs())
      one.x.push_back(empty(input_shape(input, m->dims(), 1), Dtype::f32, Device::meta));
    LocalCrossing local(layout);
    RecordingCrossing record(local);
    m->forward(one, record);
    for (const PartCall& call : record.calls())
      if (call.kind == kind) return true;
  }
  return false;
}

}  // namespace

SegmentPlan segment_plan(const Recipe& recipe, const Model& model) {
  const std::string& layout = recipe.mesh.layout;
  if (layout == "contiguous") return SegmentPlan::contiguous;
  if (layout == "zigzag") return SegmentPlan::zigzag;
  if (layout == "balanced") return SegmentPlan::balanced;
  // A carried state runs from rank to rank: with contiguous parts it crosses each border once. Otherwise the
  // cost of causal attention decides.
  if (has_part(model, PartKind::carry)) return SegmentPlan::contiguous;
  return SegmentPlan::zigzag;
}

}  // namespace weft
