#pragma once
// A table as a page and as a CSV file have it: the one rounded for people, the other in full.

#include <cmath>
#include <string>
#include <variant>
#include <vector>

namespace weft {

// NaN: not known.
using Cell = std::variant<std::string, double>;

enum class Shown {
  text,
  whole,   // 12,345
  short_,  // 12.3 k
  fixed,   // 1.2345
  time,    // 1h05m; the cell holds hours
};

struct Column {
  std::string title;  // for people; empty: in the CSV file only
  std::string name;   // of the CSV column; empty: on the page only
  Shown shown = Shown::text;
};

struct Table {
  std::vector<Column> columns;
  std::vector<std::vector<Cell>> rows;
};

// Without script and outside files, well-formed XML.
std::string html_table(const Table& table);
// RFC 4180, with a head line. Numbers read back to the same double; unknown ones are empty.
std::string csv(const Table& table);

std::string csv_field(const std::string& text);  // quoted where it has to be
std::string csv_number(double number);

// Text for an element or an attribute: markup characters become entities, control characters spaces.
std::string escaped(const std::string& text, bool keep_lines = false);
// 12.3 k, 4.5 M; three digits.
std::string with_prefix(double number);

}  // namespace weft
