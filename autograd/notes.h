#pragma once
// Notes that a run should log once, from code that cannot reach the log: which library is used, what takes a
// slower path.

#include <string>
#include <vector>

namespace weft {

// The same words again are dropped. Any thread.
void note_once(const std::string& what);
// Those since the last call.
std::vector<std::string> take_notes();

}  // namespace weft
