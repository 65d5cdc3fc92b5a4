#pragma once
// Text from anywhere (file names, library messages, generated samples), made safe to print.

#include <string>
#include <string_view>

namespace weft {

// Valid UTF-8 without control characters: invalid bytes become U+FFFD, control characters and line
// separators a space. keep_lines: newlines and tabs stay.
std::string printable(std::string_view text, bool keep_lines = false);

}  // namespace weft
