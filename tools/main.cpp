// The weft command: its list of commands.

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

#include "tools/commands.h"
#include "tools/run_command.h"

namespace weft {

// One line a command, in the order of `weft --help`.
const std::vector<Command>& commands() {
  static const std::vector<Command> all{
      {"ls", "list mechanisms, with what each can do, and recipes", run_ls},
      {"cp", "copy a recipe to edit", run_cp},
      {"help", "explain a recipe key, a mechanism or a task", run_help},
      {"schema", "print the JSON Schema of recipes", run_schema},
      {"diff", "show how two recipes or runs differ", run_diff},
      {"validate", "show what a run will need, without running it", run_validate},
      {"train", "train a recipe, or resume a run", run_train, true},
      {"launch", "run a command on several ranks", run_launch},
      {"sweep", "train every combination of some values", run_sweep},
      {"report", "compare runs on one page", run_report},
      {"generate", "continue texts with a trained model", run_generate},
      {"eval", "score a run on tasks or text; `eval zoo`: all mechanisms on all tasks", run_eval},
      {"logits", "compute logits and losses of given tokens", run_logits, true},
      {"apply", "run one mechanism on tensors of a file", run_apply},
      {"bench", "measure how fast this machine computes, beside PyTorch", run_bench},
      {"tokenize", "turn text files into token shards", run_tokenize},
      {"corpus", "generate a text to train on", run_corpus},
  };
  return all;
}

}  // namespace weft

namespace {

// GNU OpenMP lets a waiting thread spin for milliseconds: where another program wants the core, a step takes
// eight times as long (docs/benchmarks/cpu.md). It reads the setting before main begins, so the program
// starts itself once more, unless someone has chosen.
void wait_politely(char** words) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  setenv("GOMP_SPINCOUNT", "1000", 1);
  execv("/proc/self/exe", words);  // returns only where it cannot
}

// A stream that the starter closed leaves its number to the next file that is opened, be it metrics.jsonl or
// a checkpoint, and what is said would be written there. In its place: something that refuses a write, as a
// closed stream does.
void fill_closed_streams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(stream, F_GETFD) < 0 && open("/dev/null", O_RDONLY) < 0)
      return;  // open takes the lowest number
}

}  // namespace

int main(int count, char** words) {
  fill_closed_streams();
  wait_politely(words);
  return weft::run_command({words + 1, words + count});
}
