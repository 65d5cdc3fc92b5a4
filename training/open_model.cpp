#include "training/open_model.h"

#include <filesystem>

#include "training/checkpoint/load.h"
#include "training/recipe/load.h"
#include "training/state.h"

namespace weft {

OpenModel open_model(const std::string& path, std::optional<Dtype> dtype) {
  const ckpt::Named from = ckpt::named(path);
  const std::string recipe = from.run + "/recipe.yaml";
  if (!std::filesystem::exists(recipe))
    throw Error(Exit::no_checkpoint, "not a run: it has no recipe.yaml", path,
                "name the folder that weft train wrote, or a checkpoint in it: RUN/checkpoints/step-N");
  OpenModel m;
  m.recipe = load_recipe(recipe);
  m.tokenizer = open_tokenizer(m.recipe);
  m.store = std::make_unique<ParameterStore>(dtype.value_or(precision_of(m.recipe)));
  m.model = std::make_unique<Model>(model_config(m.recipe, vocabulary_of(m.recipe, *m.tokenizer)), *m.store);
  m.store->commit();
  const ckpt::Loaded loaded = ckpt::load(from.run, {.step = from.step});
  if (loaded.checkpoint.manifest().tokenizer_hash != m.tokenizer->hash())
    throw Error(Exit::recipe, "the tokenizer is not that of the model", m.recipe.where("data.tokenizer"),
                "put back the tokenizer it was trained with");
  require_saved_recipe(loaded.checkpoint, m.recipe, "model.");
  require_saved_settings(loaded.checkpoint, m.recipe);
  restore_weights(*m.store, loaded.checkpoint);
  m.warnings = loaded.warnings;
  m.step = loaded.checkpoint.manifest().step;
  m.starts = saved_starts(loaded.checkpoint);
  m.weights_hash = loaded.checkpoint.manifest().weights_hash;
  return m;
}

}  // namespace weft
