#include "training/mechanism_settings.h"

#include "attention/registry.h"
#include "training/setup.h"

namespace weft {

MechanismSettings mechanism_settings(const Recipe& recipe) {
  MechanismSettings all;
  const ModelConfig config = model_config(recipe, 1);
  for (const std::string& id : config.layers) {
    if (all.contains(id)) continue;
    for (const FieldDescription& field : find_mechanism(id).describe(config.attributes(id)))
      if (!field.traits.speed_only) all[id][field.name] = field.default_value;
  }
  return all;
}

bool same_function(const Recipe& a, const Recipe& b) {
  return mechanism_settings(a) == mechanism_settings(b);
}

void require_settings(const MechanismSettings& kept, const Recipe& recipe) {
  for (const auto& [id, settings] : mechanism_settings(recipe)) {
    const auto before = kept.find(id);
    if (before == kept.end()) continue;
    for (const auto& [name, value] : settings)
      if (const auto old = before->second.find(name); old != before->second.end() && old->second != value)
        throw Error(Exit::recipe,
                    text(id, "'s ", name, " was ", old->second, " when this was saved, now it is ", value),
                    recipe.where("model.mechanisms"),
                    text("write mechanisms: {", id, ": {", name, ": ", old->second,
                         "}} under model in recipe.yaml of its run"));
  }
}

}  // namespace weft
