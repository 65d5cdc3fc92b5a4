#pragma once
// What mpirun of Open MPI adds when a rank ends the job, which the rank has said better. Its --quiet, where
// it still has that, would also hide why it cannot start ranks.

#include <string>
#include <string_view>

namespace weft {

// Takes out of a stream the notes between two lines of dashes that say which process ended first. All else,
// other notes included, comes through at once but for the lines that may become such a note.
class LauncherNotes {
 public:
  std::string pass(std::string_view bytes);  // what may be shown now
  std::string rest();                        // what is still held back, at the end of the stream

 private:
  bool plain_ = false;       // within a line that is none of a note
  std::string line_, note_;  // held back
};

}  // namespace weft
