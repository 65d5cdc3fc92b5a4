#pragma once
// Results for scripts. For the .cpp files beside it only: it brings the JSON library along.

#include <cmath>
#include <nlohmann/json.hpp>

#include "tools/command.h"

namespace weft {

inline nlohmann::ordered_json number_or_null(double x) {
  return std::isfinite(x) ? nlohmann::ordered_json(x) : nlohmann::ordered_json();
}

// One line on stdout. Text that is not UTF-8, as file names may be, comes with replacement characters.
inline void print_line(const nlohmann::ordered_json& result) {
  print(result.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace weft
