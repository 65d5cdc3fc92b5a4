#include "training/report/table.h"

#include <charconv>
#include <cstdio>

#include "training/log/console_text.h"
#include "training/log/printable.h"

namespace weft {
namespace {

std::string shown_cell(const Cell& cell, Shown how) {
  if (const auto* words = std::get_if<std::string>(&cell)) return *words;
  const double number = std::get<double>(cell);
  if (!std::isfinite(number)) return "–";
  char fixed[64];
  switch (how) {
    case Shown::whole: return grouped(number);
    case Shown::short_: return with_prefix(number);
    case Shown::time: return duration_text(3600 * number);
    case Shown::text:
    case Shown::fixed: break;
  }
  std::snprintf(fixed, sizeof fixed, "%.4f", number);
  return fixed;
}

}  // namespace

std::string html_table(const Table& table) {
  std::string out = "<div class=\"wide\"><table>\n<thead><tr>";
  const auto cell = [&](const std::string& name, size_t column, const std::string& words) {
    const Column& c = table.columns[column];
    if (c.title.empty()) return;
    const bool number = c.shown != Shown::text;
    out += "<" + name + (number ? " class=\"number\">" : ">") + escaped(words) + "</" + name + ">";
  };
  for (size_t c = 0; c < table.columns.size(); ++c) cell("th", c, table.columns[c].title);
  out += "</tr></thead>\n<tbody>\n";
  for (const std::vector<Cell>& row : table.rows) {
    out += "<tr>";
    for (size_t c = 0; c < row.size(); ++c) cell("td", c, shown_cell(row[c], table.columns[c].shown));
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string csv(const Table& table) {
  std::string out;
  bool first = true;
  const auto cell = [&](size_t column, const std::string& field) {
    if (table.columns[column].name.empty()) return;
    out += (first ? "" : ",") + field;
    first = false;
  };
  for (size_t c = 0; c < table.columns.size(); ++c) cell(c, csv_field(table.columns[c].name));
  for (const std::vector<Cell>& row : table.rows) {
    out += "\n";
    first = true;
    for (size_t c = 0; c < row.size(); ++c) {
      const auto* words = std::get_if<std::string>(&row[c]);
      cell(c, words ? csv_field(*words) : csv_number(std::get<double>(row[c])));
    }
  }
  return out + "\n";
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + "\"";
}

std::string csv_number(double number) {
  if (!std::isfinite(number)) return "";
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
  return {digits, end};
}

std::string escaped(const std::string& text, bool keep_lines) {
  std::string out;
  for (const char c : printable(text, keep_lines)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string with_prefix(double number) {
  size_t prefix = 0;
  constexpr const char* prefixes[] = {"", " k", " M", " G", " T", " P", " E"};
  while (std::abs(number) >= 999.5 && prefix + 1 < std::size(prefixes)) number /= 1000, ++prefix;
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.3g", number);
  return std::string(digits) + prefixes[prefix];
}

}  // namespace weft
