#include "training/recipe/load.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "autograd/check.h"
#include "autograd/nearest_name.h"
#include "training/recipe/yaml.h"

namespace weft {

namespace {

namespace fs = std::filesystem;
using Kind = FieldValue::Kind;

constexpr size_t kMaxChain = 16;  // files that extend each other

void note_places(Recipe& recipe, const FieldValue& map, const std::string& prefix) {
  for (const FieldValue& item : map.items) {
    const std::string name = prefix.empty() ? item.key : prefix + "." + item.key;
    recipe.places[name] = item.kind == Kind::map ? item.key_place : item.place;
    if (item.kind == Kind::map) note_places(recipe, item, name);
  }
}

void apply(Recipe& recipe, const FieldValue& map) {
  read_config(recipe, map);
  note_places(recipe, map, "");
}

void read_file(Recipe& recipe, const fs::path& path, std::vector<fs::path>& chain,
               const std::string& asked_at);

// chain: the files whose `extends` led here, this one last.
void read_text(Recipe& recipe, const std::string& text, const std::string& source,
               std::vector<fs::path>& chain) {
  FieldValue root = parse_yaml(text, source);
  const auto extends = std::find_if(root.items.begin(), root.items.end(), [&](const FieldValue& item) {
    return root.kind == Kind::map && item.key == "extends";
  });
  if (extends != root.items.end()) {
    const std::string where = extends->place.text();
    if (extends->kind != Kind::text || extends->text.empty())
      throw Error(Exit::recipe, "extends is " + shown(*extends) + ", not a path", where,
                  "give the path of another recipe, relative to this file");
    read_file(recipe, (fs::path(source).parent_path() / extends->text).lexically_normal(), chain, where);
    root.items.erase(extends);
  }
  apply(recipe, root);
}

// asked_at: where `extends` stands, empty for the first file.
void read_file(Recipe& recipe, const fs::path& path, std::vector<fs::path>& chain,
               const std::string& asked_at) {
  std::error_code error;
  const bool first = asked_at.empty();
  if (!fs::is_regular_file(path, error))
    throw Error(first ? Exit::usage : Exit::recipe, "there is no recipe file " + path.string(), asked_at,
                first ? "`weft ls` lists the recipes" : "extends takes a path relative to this file");
  const fs::path canonical = fs::weakly_canonical(path, error);
  if (std::find(chain.begin(), chain.end(), canonical) != chain.end())
    throw Error(Exit::recipe, "recipes that extend each other: " + path.string() + " leads back to itself",
                asked_at, "remove one extends");
  if (chain.size() >= kMaxChain)
    throw Error(Exit::recipe, text("more than ", kMaxChain, " recipes that extend each other"), asked_at,
                "merge some of them");
  const auto bytes = fs::file_size(path, error);
  if (bytes > kMaxRecipeBytes)  // also where the size is not to be had
    throw Error(Exit::recipe, "a recipe of more than 10 MB", path.string(), "point at a recipe, not at data");
  std::string content(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(content.data(), static_cast<std::streamsize>(bytes)))
    throw Error(Exit::recipe, "cannot read " + path.string(), asked_at, "check its permissions");
  chain.push_back(canonical);
  read_text(recipe, content, path.string(), chain);
}

// The value of an override is YAML where it begins like a list, a map or a quoted text, else a bare scalar.
// So data.train=*.bin needs no quotes beyond the shell's.
FieldValue override_value(const std::string& text, const std::string& source) {
  if (text.empty()) return text_value("", true);
  if (std::string("[{\"'").find(text[0]) == std::string::npos) return text_value(text);
  try {
    return parse_yaml(text, source);
  } catch (const Error& error) {
    throw Error(error.code, error.what(), source, error.advice);  // a line and column would not help
  }
}

// Places inside an override name the override alone.
void set_places(FieldValue& value, const Place& place) {
  value.place = value.key_place = place;
  for (FieldValue& item : value.items) set_places(item, place);
}

void apply_override(Recipe& recipe, const std::string& text) {
  check_utf8(text, "override");
  const std::string source = "override " + shown(text);
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw Error(Exit::recipe, "an override without a key or a value", source,
                "write KEY=VALUE, such as optim.lr=3e-4");
  FieldValue value = override_value(text.substr(equals + 1), source);
  std::string path = text.substr(0, equals);
  for (size_t dot = path.rfind('.');; dot = path.rfind('.')) {  // a.b=c is {a: {b: c}}
    FieldValue map;
    map.kind = Kind::map;
    value.key = dot == std::string::npos ? path : path.substr(dot + 1);
    map.items.push_back(std::move(value));
    value = std::move(map);
    if (dot == std::string::npos) break;
    path.resize(dot);
  }
  set_places(value, {std::make_shared<const std::string>(source)});
  apply(recipe, value);
}

Recipe finish(Recipe recipe, const std::string& source, const std::vector<std::string>& overrides) {
  for (const std::string& text : overrides) apply_override(recipe, text);
  if (recipe.run.empty()) recipe.run = (fs::path("runs") / fs::path(source).stem()).string();
  check_utf8(recipe.run, "run, from the name of the recipe");
  check_recipe(recipe);
  return recipe;
}

}  // namespace

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides) {
  Recipe recipe;
  std::vector<fs::path> chain;
  read_file(recipe, path, chain, "");
  return finish(std::move(recipe), path, overrides);
}

Recipe parse_recipe(const std::string& text, const std::string& source,
                    const std::vector<std::string>& overrides) {
  Recipe recipe;
  std::vector<fs::path> chain;
  read_text(recipe, text, source, chain);
  return finish(std::move(recipe), source, overrides);
}

std::vector<std::string> split_overrides(const std::vector<std::string>& words) {
  Recipe defaults;
  const FieldVisitor visitor = visit_fields(defaults);
  std::vector<std::string> overrides;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const bool flag = word.rfind("--", 0) == 0;
    const std::string text = flag ? word.substr(2) : word;
    const std::string key = text.substr(0, text.find('='));
    // A flag with a dot is meant for the recipe even where it is misspelt; the recipe then says so.
    if (flag && key.find('.') == std::string::npos && !visitor.find(key))
      throw Error(Exit::usage, "unknown flag --" + key, "", suggest_name(key, visitor.names_in(""), "keys"));
    if (text.size() > key.size()) {
      overrides.push_back(text);
    } else if (flag && i + 1 < words.size() && words[i + 1].rfind("--", 0) != 0) {
      overrides.push_back(key + "=" + words[++i]);
    } else if (flag) {
      throw Error(Exit::usage, word + " without a value", "", "write " + word + " VALUE");
    } else {
      throw Error(Exit::usage, "unexpected argument " + shown(word), "",
                  "overrides are written KEY=VALUE, such as optim.lr=3e-4");
    }
  }
  return overrides;
}

}  // namespace weft
