#pragma once
// Results for scripts. For the .cpp files beside it only: it brings the JSON library along.

#include <nlohmann/json.hpp>

#include "tools/command.h"

namespace weft {

// One line on stdout. Text that is not UTF-8, as file names may be, comes with replacement characters.
inline void print_line(const nlohmann::ordered_json& result) {
  print(result.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace weft
