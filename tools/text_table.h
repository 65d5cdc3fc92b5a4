#pragma once
// A table for a terminal.

#include <string>
#include <vector>

namespace weft {

// Rows of cells, columns as wide as their widest cell.
std::string text_table(const std::vector<std::vector<std::string>>& rows);

}  // namespace weft
