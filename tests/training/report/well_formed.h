#pragma once
// Whether a page is well-formed XML, as far as a report uses it: tags balance, attributes are quoted, text
// holds no stray < or &.

#include <cctype>
#include <set>
#include <string>
#include <vector>

namespace weft {

// Empty, or what is wrong, with its place.
inline std::string what_is_malformed(const std::string& page) {
  std::vector<std::string> open;
  std::set<std::string> ids;
  const auto at = [&](size_t i, const std::string& what) { return what + " at: " + page.substr(i, 60); };
  const auto reference = [&](size_t i) {
    for (const char* known : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"})
      if (page.compare(i, std::string(known).size(), known) == 0) return true;
    return false;
  };
  size_t i = std::string("<!DOCTYPE html>\n").size();
  if (!page.starts_with("<!DOCTYPE html>\n")) return "no document type";
  while (i < page.size()) {
    if (page[i] == '&' && !reference(i)) return at(i, "a stray &");
    if (page[i] != '<') {
      if (open.empty() && std::isspace(static_cast<unsigned char>(page[i])) == 0)
        return at(i, "text outside");
      ++i;
      continue;
    }
    if (page.compare(i, 4, "<!--") == 0) {
      i = page.find("-->", i) + 3;
      continue;
    }
    const size_t start = i++;
    const bool closes = page[i] == '/';
    i += closes;
    std::string name;
    while (std::isalnum(static_cast<unsigned char>(page[i])) != 0) name += page[i++];
    if (name.empty()) return at(start, "a stray <");
    if (closes) {
      if (open.empty() || open.back() != name)
        return at(start, "closes " + (open.empty() ? "nothing" : open.back()));
      open.pop_back();
      if (page[i++] != '>') return at(start, "a closing tag with more in it");
      continue;
    }
    while (page[i] == ' ') {
      std::string key;
      for (++i; std::isalnum(static_cast<unsigned char>(page[i])) != 0 || page[i] == '-' || page[i] == ':';)
        key += page[i++];
      if (key.empty() || page.compare(i, 2, "=\"") != 0) return at(start, "an attribute without quotes");
      const size_t begin = i += 2;
      for (; page[i] != '"'; ++i)
        if (page[i] == '<' || (page[i] == '&' && !reference(i)))
          return at(start, "a stray character in " + key);
      if (key == "id" && !ids.insert(page.substr(begin, i - begin)).second)
        return at(start, "an id that stands twice");
      ++i;
    }
    const bool empty = page[i] == '/';
    i += empty;
    if (page[i++] != '>') return at(start, "a tag that does not end");
    if (!empty) open.push_back(name);
  }
  return open.empty() ? "" : "open at the end: " + open.back();
}

}  // namespace weft
