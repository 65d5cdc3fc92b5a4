// `weft corpus`: text to train on where there is none.

#include <optional>
#include <utility>

#include "tools/commands.h"
#include "tools/commands/json_line.h"
#include "tools/flags.h"
#include "training/checkpoint/files.h"
#include "training/data/stories.h"
#include "training/log/stop_request.h"

namespace weft {

int run_corpus(const Words& words) {
  Flags flags(
      "corpus", "",
      "Writes short generated stories with two blank lines between them. The same seed gives the same "
      "bytes on\n"
      "every machine.");
  int64_t bytes = 0, seed = 1;
  std::string out;
  bool json = false;
  flags.add("--bytes", bytes, "N", "length; the last story is completed", {.required = true, .min = 1});
  flags.add("--out", out, "FILE", "file to create", {.required = true});
  flags.add("--seed", seed, "S", "seed of the stories; default 1", {.min = 0});
  flags.add("--json", json, "one line of JSON, corpus/1");
  if (!flags.parse(words)) return 0;
  if (exists(out))
    throw Error(Exit::cannot_create, "the file already exists", out, "name another one, or remove it");

  std::optional<StopRequest> stop(std::in_place, false);
  AtomicFile file(out);
  std::string part;
  int64_t written = 0, stories = 0;
  for (; written < bytes; ++stories) {
    const std::string next = (stories > 0 ? "\n\n\n" : "") + story(static_cast<uint64_t>(seed), stories);
    part += next;
    written += static_cast<int64_t>(next.size());
    if (part.size() < (1 << 20) && written < bytes) continue;
    if (stop->requested())  // leaves nothing behind
      throw Error(Exit::stopped, "stopped by a signal", out, "the same command starts again");
    file.write(part.data(), part.size());
    part.clear();
  }
  file.commit();
  stop.reset();  // a reader that leaves ends what prints
  if (json)
    print_line({{"weft", "corpus/1"}, {"exit", 0}, {"path", out}, {"bytes", written}, {"stories", stories}});
  return 0;
}

}  // namespace weft
