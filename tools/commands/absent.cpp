// Stand-ins for commands whose files are not written yet; a file of its own replaces each at link time.

#include "autograd/check.h"
#include "tools/commands.h"

namespace weft {
namespace {

[[noreturn]] void absent(const char* name) {
  throw Error(Exit::internal, text("this build has no command ", name), name);
}

}  // namespace

[[gnu::weak]] int run_generate(const Words&) { absent("generate"); }
[[gnu::weak]] int run_logits(const Words&) { absent("logits"); }
[[gnu::weak]] int run_train(const Words&) { absent("train"); }
[[gnu::weak]] int run_validate(const Words&) { absent("validate"); }

}  // namespace weft
