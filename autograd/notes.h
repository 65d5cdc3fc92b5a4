#pragma once
// What a run should say once and where the log is out of reach: which library serves, what is left to a
// slower path.

#include <string>
#include <vector>

namespace weft {

// The same words again are dropped. Any thread.
void note_once(const std::string& what);
// Those since the last call.
std::vector<std::string> take_notes();

}  // namespace weft
