#include "training/setup.h"

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "attention/recording_crossing.h"
#include "distributed/agree.h"
#include "training/checkpoint/hash.h"
#include "training/log/environment_file.h"

namespace weft {

Dtype precision_of(const Recipe& recipe) {
  return recipe.precision == "f64" ? Dtype::f64 : recipe.precision == "bf16" ? Dtype::bf16 : Dtype::f32;
}

void require_same_program(Communicator* world) {
  if (size_of(world) > 1)
    require_same(world, "the program",
                 text("commit ", build_commit().substr(0, 12), " ", hash_file("/proc/self/exe")));
}

namespace {

bool has_attribute(const std::string& mechanism, const std::string& name) {
  const std::vector<FieldDescription> all = find_mechanism(mechanism).describe({});
  return std::any_of(all.begin(), all.end(), [&](const FieldDescription& f) { return f.name == name; });
}

// Of any size.
std::unique_ptr<Mechanism> made(const std::string& mechanism, const FieldValue& attributes) {
  ParameterStore store(Dtype::f32, Device::meta);
  const Dimensions any{.heads = 2, .kv_heads = 2, .key = 8, .value = 8, .width = 16};
  return find_mechanism(mechanism).make(attributes, any, {store, ""});
}

// Else it takes x and projects by itself.
bool takes_queries(const std::string& mechanism) {
  const std::vector<Input> inputs = made(mechanism, {})->inputs();
  return std::any_of(inputs.begin(), inputs.end(),
                     [](const Input& input) { return std::string_view(input.name) == "q"; });
}

std::vector<std::string> mechanism_warnings(const Recipe& recipe) {
  std::vector<std::string> lines;
  try {
    const ModelConfig config = model_config(recipe, 1);
    for (const std::string& id : std::set(config.layers.begin(), config.layers.end()))
      if (const std::string warning = made(id, config.attributes(id))->warning(); !warning.empty())
        lines.push_back(text(id, ": ", warning));
  } catch (const Error&) {  // attributes that are wrong or do not fit: whoever makes the model says so
  }
  return lines;
}

// Keys that say something to which nothing listens.
std::vector<std::string> idle_keys(const Recipe& recipe) {
  std::vector<std::string> lines;
  const auto idle = [&](bool set, const char* key, const std::string& why) {
    if (set) lines.push_back(text(key, " changes nothing: ", why));
  };
  const Recipe::Optim &optim = recipe.optim, defaults;
  const std::string schedule = "optim.schedule is " + optim.schedule;
  idle(optim.decay > 0 && optim.schedule != "wsd", "optim.decay", schedule);
  idle(optim.min_lr > 0 && optim.schedule == "constant", "optim.min_lr", schedule);
  const bool muon = optim.kind == "muon";
  idle(!muon && optim.muon_lr != defaults.muon_lr, "optim.muon_lr", "optim.kind is " + optim.kind);
  idle(!muon && optim.muon_momentum != defaults.muon_momentum, "optim.muon_momentum",
       "optim.kind is " + optim.kind);
  try {
    const std::vector<std::string> layers = expand_layers(recipe.model.layers);
    const auto none = [&](const auto& listens) {
      return std::none_of(layers.begin(), layers.end(), listens);
    };
    idle(recipe.model.qk_norm && none([](const std::string& id) { return has_attribute(id, "qk_norm"); }),
         "model.qk_norm", "no mechanism of model.layers has it");
    idle(recipe.model.short_conv > 0 && none(takes_queries), "model.short_conv",
         "no mechanism of model.layers takes q, k and v from its layer");
  } catch (const Error&) {  // an unknown mechanism: whoever makes the model says so
  }
  return lines;
}

}  // namespace

std::vector<std::string> recipe_warnings(const Recipe& recipe) {
  std::vector<std::string> lines = idle_keys(recipe);
  for (std::string& line : mechanism_warnings(recipe)) lines.push_back(std::move(line));
  if (recipe.optim.schedule == "wsd" && recipe.optim.decay == 0)
    lines.emplace_back(
        "optim.schedule is wsd and optim.decay 0: the learning rate stays at optim.lr to the end");
  if (recipe.steps > 0 && recipe.optim.warmup >= recipe.steps)
    lines.push_back(text("optim.warmup is ", recipe.optim.warmup, " of ", recipe.steps,
                         " steps: the learning rate never arrives at optim.lr"));
  try {
    std::vector<std::string> train;
    for (const Recipe::Source& s : recipe.data.train.list) train.push_back(s.path);
    train = expand_paths(train);
    for (const std::string& path : expand_paths(recipe.data.val.paths))
      if (std::find(train.begin(), train.end(), path) != train.end())
        lines.push_back("data.val and data.train both name " + path + ": validation on text that is learned");
  } catch (const Error&) {  // a file that is missing: whoever reads it says so
  }
  return lines;
}

std::shared_ptr<const Tokenizer> open_tokenizer(const Recipe& recipe) {
  try {
    return load_tokenizer(recipe.data.tokenizer == "bytes" ? "byte" : recipe.data.tokenizer);
  } catch (const Error& e) {  // a broken file names itself; a missing one is the recipe's to mend
    throw Error(e.code, e.what(), e.where.empty() ? recipe.where("data.tokenizer") : e.where, e.advice);
  }
}

std::vector<TaskText> task_texts(const Recipe& recipe, const std::string& key,
                                 const std::vector<std::string>& texts) {
  const auto place = recipe.places.find(key);
  std::vector<TaskText> parsed;
  for (const std::string& text : texts)
    parsed.push_back(TaskText::parse(text, place == recipe.places.end() ? Place{} : place->second));
  return parsed;
}

namespace {

TaskSamples task_samples(const Recipe& recipe, const Tokenizer& tokenizer, TaskSplit split) {
  try {
    return TaskSamples(task_texts(recipe, "data.task", recipe.data.task), tokenizer, recipe.context,
                       static_cast<uint32_t>(recipe.seed), split);
  } catch (const Error& e) {
    const bool placed = e.where.find(':') != std::string::npos || e.where.starts_with("override");
    throw Error(e.code, e.what(), placed ? e.where : recipe.where("data.task"), e.advice);
  }
}

}  // namespace

int64_t vocabulary_of(const Recipe& recipe, const Tokenizer& tokenizer) {
  const bool task = !recipe.data.task.empty();
  const int64_t needed =
      task ? task_samples(recipe, tokenizer, TaskSplit::train).vocab() : tokenizer.vocab_size();
  if (recipe.model.vocab == 0) return needed;
  if (recipe.model.vocab < needed)
    throw Error(Exit::recipe,
                text("model.vocab is ", recipe.model.vocab, ", ", task ? "data.task" : "the tokenizer",
                     " has ", needed, " tokens"),
                recipe.where("model.vocab"), "leave it out to take that size");
  return recipe.model.vocab;
}

namespace {

// An attribute for every mechanism that has one of this name, unless the recipe says otherwise for it.
void add_default(FieldValue& map, const MechanismEntry& entry, const std::string& name,
                 const std::string& value) {
  if (map.find(name) != nullptr) return;
  for (const FieldDescription& f : entry.describe({})) {
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
  std::map<std::string, std::string> said;  // by id, as what
  for (const FieldValue& item : m.mechanisms.map.items) {
    try {
      const auto [first, fresh] = said.emplace(find_mechanism(item.key).id, item.key);
      if (!fresh)
        throw Error(Exit::recipe, text(first->second, " and ", item.key, " are the same mechanism"), {},
                    "give its attributes once");
    } catch (const Error& e) {
      throw Error(Exit::recipe, e.what(), item.key_place.text(), e.advice);
    }
    find_mechanism(item.key).describe(item);  // a wrong attribute is one also where no layer has it
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
  if (!recipe.data.task.empty()) {
    if (!recipe.data.train.list.empty())
      throw Error(Exit::recipe, "data.task and data.train are both set", recipe.where("data.task"),
                  "leave one of them out");
    const auto made = [&](TaskSplit split) {
      return Dataset(std::make_shared<TaskSamples>(task_samples(recipe, tokenizer, split)), recipe.context);
    };
    return {made(TaskSplit::train), made(TaskSplit::held_out)};
  }
  if (recipe.data.train.list.empty())
    throw Error(Exit::recipe, "data.train names no text", recipe.where("data.train"),
                "set data.train to a file or pattern, or data.task to a task");
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
