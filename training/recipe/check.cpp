// What no single key of a recipe can tell, and the patterns of model.layers.

#include <charconv>
#include <cstdint>

#include "autograd/check.h"
#include "training/recipe/recipe.h"

namespace weft {

namespace {

constexpr int64_t kMaxLayers = 10'000;

void require(bool holds, const Recipe& recipe, const std::string& key, const std::string& what,
             const std::string& advice) {
  if (!holds) throw Error(Exit::recipe, what, recipe.where(key), advice);
}

void check_model(const Recipe& recipe) {
  const Recipe::Model& m = recipe.model;
  const int64_t layers = static_cast<int64_t>(expand_layers(m.layers, recipe.where("model.layers")).size());
  require(layers > 0, recipe, "model.layers", "model.layers is empty",
          "list a mechanism a layer, such as [softmax*4]");
  require(m.head_size > 0 || m.width % m.heads == 0, recipe, "model.heads",
          text("model.width ", m.width, " does not divide into ", m.heads, " heads"),
          "make the width a multiple of the heads, or set model.head_size");
  const int64_t head_size = m.head_size > 0 ? m.head_size : m.width / m.heads;
  require(m.position != "rope" || head_size % 2 == 0, recipe,
          m.head_size > 0 ? "model.head_size" : "model.heads",
          text("a head of ", head_size, " features, odd, cannot carry model.position rope"),
          "rotary positions turn pairs: make the head size even");
  require(m.kv_heads == 0 || (m.kv_heads <= m.heads && m.heads % m.kv_heads == 0), recipe, "model.kv_heads",
          text("model.heads ", m.heads, " is not a multiple of model.kv_heads ", m.kv_heads),
          "let each key and value head serve the same number of query heads");
}

void check_batch(const Recipe& recipe) {
  const int64_t batch = recipe.batch_tokens, context = recipe.context;
  const std::string key = recipe.places.count("batch_tokens") ? "batch_tokens" : "context";
  require(batch >= context, recipe, key,
          text("batch_tokens ", batch, " is less than one context of ", context),
          text("set batch_tokens to ", context, " or a multiple, or shorten the context"));
  const int64_t below = batch / context * context;
  require(below == batch, recipe, key,
          text("batch_tokens ", batch, " is not a multiple of the context ", context),
          text("set batch_tokens to ", below, " or ", below + context));
  require(recipe.steps <= INT64_MAX / batch, recipe, recipe.places.count("steps") ? "steps" : key,
          text(recipe.steps, " steps of ", batch, " tokens are more than can be counted"),
          "set fewer steps, or fewer batch_tokens");
  require(recipe.micro_tokens <= batch, recipe, "micro_tokens",
          text("micro_tokens ", recipe.micro_tokens, " is more than batch_tokens ", batch),
          "set it to 0 to derive it");
}

}  // namespace

void check_recipe(const Recipe& recipe) {
  check_model(recipe);
  check_batch(recipe);
  require(!recipe.run.starts_with("~"), recipe, "run",
          text("the folder ", recipe.run, " starts with ~, which only a shell replaces"),
          "write the path out");
  const Recipe::Optim& optim = recipe.optim;
  require(optim.min_lr <= optim.lr, recipe, recipe.places.count("optim.min_lr") ? "optim.min_lr" : "optim.lr",
          text("optim.min_lr ", optim.min_lr, " is above optim.lr ", optim.lr),
          "lower min_lr, the rate at the end");
}

std::vector<std::string> expand_layers(const std::vector<std::string>& patterns, const std::string& where) {
  std::vector<std::string> layers;
  for (const std::string& pattern : patterns) {
    const size_t star = pattern.find('*');
    const std::string name = pattern.substr(0, star);
    int64_t count = 1;
    bool valid = !name.empty() && name.find_first_of(" \t,[]{}()") == std::string::npos;
    if (star != std::string::npos) {
      const char* end = pattern.data() + pattern.size();
      const auto [stop, error] = std::from_chars(pattern.data() + star + 1, end, count);
      valid = valid && stop == end && error == std::errc{} && count >= 1;
    }
    if (!valid)
      throw Error(Exit::recipe, "the layer pattern " + shown(text_value(pattern, true)) + " is malformed",
                  where, "write NAME or NAME*COUNT, several in brackets: [lightning*3, softmax]");
    if (count > kMaxLayers - static_cast<int64_t>(layers.size()))
      throw Error(Exit::recipe, text("more than ", kMaxLayers, " layers"), where,
                  "lower a count in model.layers");
    layers.insert(layers.end(), static_cast<size_t>(count), name);
  }
  return layers;
}

}  // namespace weft
