// `weft cp`: a recipe to edit.

#include <filesystem>
#include <sstream>

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "tools/recipe_path.h"
#include "training/checkpoint/files.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// `extends` names a file relative to the recipe: from another folder the way there is another.
std::string moved(const std::string& recipe, const fs::path& from, const fs::path& to) {
  std::string out;
  std::istringstream lines(recipe);
  for (std::string line; std::getline(lines, line);) {
    const std::string key = "extends:";
    if (line.starts_with(key)) {
      std::string base = line.substr(key.size(), line.find(" #") - key.size());
      std::erase_if(base, [](char c) { return c == '"' || c == '\'' || c == '\r'; });
      base.erase(0, base.find_first_not_of(' '));
      base.erase(base.find_last_not_of(' ') + 1);
      const fs::path source = fs::absolute(from.parent_path() / base);
      line = key + " \"" + fs::proximate(source, fs::absolute(to).parent_path()).string() + "\"";
    }
    out += line + "\n";
  }
  return out;
}

}  // namespace

int run_cp(const Words& words) {
  Flags flags("cp", "NAME [FILE]",
              "Copies a recipe to FILE, by default ./NAME.yaml, for editing. Never overwrites a file.");
  bool json = false;
  flags.add("--json", json, "one line of JSON, cp/1");
  if (!flags.parse(words)) return 0;
  const fs::path from = recipe_path(flags.argument(0));
  fs::path to = flags.argument(1, from.filename());
  std::error_code failed;
  if (fs::is_directory(to, failed)) to /= from.filename();
  if (exists(to.string()))  // where nothing but a link is, too: fs::exists would follow it
    throw Error(Exit::cannot_create, "the file already exists", to,
                "name another one: weft cp " + flags.argument(0) + " FILE");
  load_recipe(from);  // a broken recipe is no start
  write_file_atomically(to, moved(read_text_file(from, 10'000'000), from, to));
  if (json) {
    print_line({{"weft", "cp/1"}, {"exit", 0}, {"from", from.string()}, {"path", to.string()}});
  } else {
    print(to.string() + "\n");
  }
  return 0;
}

}  // namespace weft
