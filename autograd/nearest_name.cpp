#include "autograd/nearest_name.h"

#include <algorithm>

namespace weft {

std::string last_part(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? name : name.substr(dot + 1);
}

namespace {

// Levenshtein's distance, an exchange of neighbours counted as one.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> cost(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i)
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        cost[i][j] = i + j;
        continue;
      }
      cost[i][j] =
          std::min({cost[i - 1][j] + 1, cost[i][j - 1] + 1, cost[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        cost[i][j] = std::min(cost[i][j], cost[i - 2][j - 2] + 1);
    }
  return cost[a.size()][b.size()];
}

}  // namespace

std::string nearest_name(const std::string& name, const std::vector<std::string>& names) {
  if (name.size() > 100) return {};
  const std::string last = last_part(name);
  const size_t limit = std::max<size_t>(1, std::min<size_t>(4, last.size() / 2));
  size_t best = 2 * limit + 2;  // in half edits: being in another section is half an edit
  std::string nearest;
  for (const std::string& candidate : names) {
    size_t distance =
        std::min(2 * edit_distance(name, candidate), 2 * edit_distance(last, last_part(candidate)) + 1);
    const bool longer = candidate.size() >= 3 && name.rfind(candidate, 0) == 0;  // optimizer for optim
    if (longer && name.find('.', candidate.size()) == std::string::npos)
      distance = std::min<size_t>(distance, 1);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string suggest_name(const std::string& name, const std::vector<std::string>& names,
                         const std::string& what) {
  const std::string nearest = nearest_name(name, names);
  if (!nearest.empty()) return "did you mean " + nearest + "?";
  if (names.empty()) return "there are no " + what;
  std::string known;
  for (const std::string& candidate : names) known += (known.empty() ? "" : ", ") + candidate;
  return "known " + what + ": " + known;
}

}  // namespace weft
