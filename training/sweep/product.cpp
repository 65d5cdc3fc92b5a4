#include "training/sweep/product.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <cstdio>

#include "autograd/check.h"
#include "autograd/field_value.h"

namespace weft {
namespace {

constexpr size_t kMostPoints = 100'000;
constexpr size_t kLongestName = 150;  // a folder's name has room for 255 bytes

[[noreturn]] void refuse(const std::string& override_, const std::string& what, const std::string& advice) {
  throw Error(Exit::usage, what, "override " + shown(override_), advice);
}

// At commas outside brackets and quotes. A quote opens only where a value begins: don't stays as it is.
std::vector<std::string> split_values(const std::string& values, const std::string& override_) {
  std::vector<std::string> parts{""};
  std::string open;  // closing brackets that are awaited
  char quote = 0, last = ',';
  for (const char c : values) {
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if ((c == '"' || c == '\'') && std::string(",[{: ").find(last) != std::string::npos) {
      quote = c;
    } else if (c == '[' || c == '{') {
      open += c == '[' ? ']' : '}';
    } else if (c == ']' || c == '}') {
      if (open.empty() || open.back() != c)
        refuse(override_, text("a ", c, " without its opening bracket"),
               "open it, or put quotes around the value");
      open.pop_back();
    } else if (c == ',' && open.empty()) {
      parts.emplace_back();
      last = c;
      continue;
    }
    parts.back() += c;
    last = c;
  }
  if (quote != 0 || !open.empty()) refuse(override_, "a bracket or quote stays open", "close it");
  return parts;
}

// "2..5" as its numbers; none where the text is something else.
std::vector<std::string> range_of(const std::string& text, const std::string& override_) {
  const size_t dots = text.find("..");
  if (dots == std::string::npos) return {};
  int64_t first = 0, last = 0;
  const auto read = [&](const char* begin, const char* end, int64_t& number) {
    const auto [stop, failed] = std::from_chars(begin, end, number);
    return failed == std::errc{} && stop == end;
  };
  const char* begin = text.data();
  if (!read(begin, begin + dots, first) || !read(begin + dots + 2, begin + text.size(), last)) return {};
  if (last < first)
    refuse(override_, "the range " + text + " runs backwards", "write the smaller number first");
  if (static_cast<uint64_t>(last) - static_cast<uint64_t>(first) >= kMostPoints)
    refuse(override_, "the range " + text + " is too long", "");
  std::vector<std::string> numbers;
  for (int64_t n = 0; n <= last - first; ++n) numbers.push_back(std::to_string(first + n));
  return numbers;
}

// As a part of a file name: [lightning*3, softmax] is lightningx3-softmax.
std::string plain(const std::string& value) {
  std::string out;
  for (const char c : value) {
    const bool keep = std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '+' || c == '-';
    if (c == '*')
      out += 'x';
    else if (keep || c == '_')
      out += c;
    else if (!out.empty() && out.back() != '-')
      out += '-';
  }
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? "empty" : out;
}

// Of the texts that a name stands for, where it does not tell them all (FNV-1a).
std::string short_hash(const std::vector<std::string>& texts) {
  uint32_t hash = 2166136261u;
  for (const std::string& text : texts)
    for (const char c : text + "\n") hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  char out[9];
  std::snprintf(out, sizeof out, "%08x", hash);
  return out;
}

// The last part of a dotted key, or all of it where another key that varies ends alike.
std::string short_key(const SweepAxis& axis, const std::vector<SweepAxis>& axes) {
  const auto last = [](const std::string& key) { return key.substr(key.rfind('.') + 1); };
  const auto alike = std::count_if(axes.begin(), axes.end(), [&](const SweepAxis& other) {
    return other.values.size() > 1 && last(other.key) == last(axis.key);
  });
  return alike > 1 ? axis.key : last(axis.key);
}

}  // namespace

std::vector<SweepAxis> sweep_axes(const std::vector<std::string>& overrides) {
  std::vector<SweepAxis> axes;
  size_t points = 1;
  for (const std::string& override_ : overrides) {
    const size_t equals = override_.find('=');
    SweepAxis axis{override_.substr(0, equals), {}};
    for (const SweepAxis& other : axes)
      if (other.key == axis.key)
        refuse(override_, axis.key + " is given twice", "give its values once, with commas");
    const std::vector<std::string> parts = split_values(override_.substr(equals + 1), override_);
    for (const std::string& part : parts) {
      if (part.empty() && parts.size() > 1) refuse(override_, "an empty value", "remove one comma");
      const std::vector<std::string> range = range_of(part, override_);
      const std::vector<std::string> values = range.empty() ? std::vector{part} : range;
      for (const std::string& value : values) {
        if (std::find(axis.values.begin(), axis.values.end(), value) != axis.values.end())
          refuse(override_, "the value " + shown(value) + " is given twice", "give each value once");
        axis.values.push_back(value);
      }
    }
    points *= axis.values.size();
    if (points > kMostPoints)
      refuse(override_, text("more than ", kMostPoints, " runs"), "give fewer values");
    axes.push_back(axis);
  }
  return axes;
}

std::vector<SweepPoint> sweep_points(const std::vector<SweepAxis>& axes) {
  std::vector<SweepPoint> points{{}};
  for (const SweepAxis& axis : axes) {
    std::vector<SweepPoint> longer;
    // Two values that look alike as names are told apart by a hash: it depends on nothing but the value.
    const auto looks = [&](const std::string& value) {
      return std::count_if(axis.values.begin(), axis.values.end(),
                           [&](const std::string& other) { return plain(other) == plain(value); });
    };
    for (const SweepPoint& point : points)
      for (const std::string& value : axis.values) {
        SweepPoint next = point;
        next.overrides.push_back(axis.key + "=" + value);
        if (axis.values.size() > 1) {
          next.name += (next.name.empty() ? "" : "_") + short_key(axis, axes) + "-" + plain(value);
          if (looks(value) > 1) next.name += "-" + short_hash({value});
        }
        longer.push_back(std::move(next));
      }
    points = std::move(longer);
  }
  for (SweepPoint& point : points) {
    if (point.name.empty()) point.name = "run";
    if (point.name.size() > kLongestName)
      point.name = point.name.substr(0, kLongestName - 9) + "-" + short_hash(point.overrides);
  }
  return points;
}

}  // namespace weft
