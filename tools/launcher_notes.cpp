#include "tools/launcher_notes.h"

#include <utility>

namespace weft {
namespace {

constexpr size_t rule_length = 70, longest_note = 4000;

bool is_rule(const std::string& line) {
  return line.size() > rule_length && line.find_first_not_of('-') == line.size() - 1;
}

bool tells_which_process_ended(const std::string& note) {
  for (const char* words : {"run detected that one or more processes exited", "run noticed that process rank",
                            "run has exited due to process rank", "Primary job  terminated normally, but"})
    if (note.find(words) != note.npos) return true;  // of prterun, and of mpirun of Open MPI 4
  return false;
}

}  // namespace

std::string LauncherNotes::pass(std::string_view bytes) {
  std::string shown;
  for (const char c : bytes) {
    if (plain_) {
      shown += c;
      plain_ = c != '\n';
      continue;
    }
    line_ += c;
    const bool may_be_note = !note_.empty() || c == '-' || is_rule(line_);
    if (!may_be_note) {
      shown += std::exchange(line_, {});
      plain_ = c != '\n';
      continue;
    }
    if (c != '\n') continue;
    const bool closes = !note_.empty() && is_rule(line_);
    note_ += std::exchange(line_, {});
    if (closes && tells_which_process_ended(note_))
      note_.clear();
    else if (closes || note_.size() > longest_note)
      shown += std::exchange(note_, {});
  }
  return shown;
}

std::string LauncherNotes::rest() { return std::exchange(note_, {}) + std::exchange(line_, {}); }

}  // namespace weft
