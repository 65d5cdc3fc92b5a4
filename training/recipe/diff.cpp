#include "training/recipe/diff.h"

#include "autograd/check.h"

namespace weft {

namespace {

void write_section(std::string& out, const FieldVisitor& visitor, const std::string& section, int depth) {
  const std::string indent(static_cast<size_t>(2 * depth), ' ');
  for (const std::string& name : visitor.names_in(section)) {
    const std::string full = section.empty() ? name : section + "." + name;
    if (const Field* field = visitor.find(full)) {
      out += indent + name + ": " + to_text(write_field(*field)) + "\n";
    } else {
      out += indent + name + ":\n";
      write_section(out, visitor, full, depth + 1);
    }
  }
}

}  // namespace

std::string resolved_recipe(const Recipe& recipe) {
  Recipe copy = recipe;  // fields() hands out pointers that could write
  std::string out = "# Every key of a weft recipe; `weft help KEY` says what it means.\n";
  write_section(out, visit_fields(copy), "", 0);
  return out;
}

std::vector<RecipeDifference> recipe_diff(const Recipe& before, const Recipe& after, bool same_function) {
  Recipe old_copy = before, new_copy = after;
  const FieldVisitor olds = visit_fields(old_copy), news = visit_fields(new_copy);
  std::vector<RecipeDifference> differences;
  for (size_t i = 0; i < olds.fields.size(); ++i) {
    const Field& field = olds.fields[i];
    const std::string old_text = to_text(write_field(field)), new_text = to_text(write_field(news.fields[i]));
    const bool speed_only = same_function && std::string(field.name) == "model.mechanisms";
    if (old_text != new_text)
      differences.push_back({field.name, old_text, new_text, field.traits.fixed && !speed_only, speed_only});
  }
  return differences;
}

std::vector<RecipeDifference> check_resume(const Recipe& saved, const Recipe& now, bool same_function) {
  std::vector<RecipeDifference> allowed;
  std::string refused, where;
  for (const RecipeDifference& difference : recipe_diff(saved, now, same_function)) {
    // A mean that the run did not keep so far is not in its checkpoints; one that it kept may be given up.
    const bool missing = difference.key == "optim.ema" && saved.optim.ema == 0;
    if (!difference.fixed && !missing) {
      allowed.push_back(difference);
      continue;
    }
    if (refused.empty()) where = now.where(difference.key);
    refused += (refused.empty() ? "" : "; ") + difference.line();
  }
  if (!refused.empty())
    throw Error(Exit::recipe, "a resumed run has to keep its recipe, but " + refused, where,
                "set it back, or start a new run with run=FOLDER");
  return allowed;
}

}  // namespace weft
