#include "training/tasks/listops.h"

#include <algorithm>
#include <numeric>

#include "autograd/check.h"

namespace weft {

void ListOpsConfig::fields(FieldVisitor& f) {
  f("length", length, "length of an example, at most", {.unit = "tokens", .min = 5, .max = 1e8});
  f("depth", depth, "depth of nested expressions, at most", {.min = 1, .max = 100});
  f("arguments", arguments, "arguments of an expression, at most", {.min = 2, .max = 1000});
  f("nesting", nesting, "chance that an argument is an expression", {.min = 0, .max = 1});
}

int32_t ListOps::value_of(int32_t op, std::vector<int32_t> values) {
  CHECK(!values.empty() && op >= Token::min && op <= Token::sum, "listops: operator ", op);
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  switch (op) {
    case Token::min: return values.front();
    case Token::max: return values.back();
    case Token::median: return (values[(n - 1) / 2] + values[n / 2]) / 2;
    default: return std::accumulate(values.begin(), values.end(), 0) % 10;
  }
}

int32_t ListOps::expression(int64_t depth, int64_t most, Draws& draws, std::vector<int32_t>& out) const {
  const auto op = static_cast<int32_t>(Token::min + draws.below(4));
  const int64_t count = 2 + draws.below(most - 1);
  std::vector<int32_t> values;
  out.push_back(op);
  for (int64_t i = 0; i < count; ++i) {
    if (depth > 1 && draws.uniform() <= config_.nesting) {
      values.push_back(expression(depth - 1, most, draws, out));
    } else {
      values.push_back(static_cast<int32_t>(draws.below(10)));
      out.push_back(values.back());
    }
    if (values.back() < 0 || static_cast<int64_t>(out.size()) + 2 > config_.length) return -1;
  }
  out.push_back(Token::close);
  return value_of(op, values);
}

Example ListOps::make(Draws& draws) const {
  constexpr int kTries = 1000;
  Example e;
  int32_t value = -1;
  for (int tries = 0; value < 0 && tries < kTries; ++tries) {
    e.tokens.clear();
    value = expression(config_.depth, config_.arguments, draws, e.tokens);
    if (static_cast<int64_t>(e.tokens.size()) >= config_.length) value = -1;
  }
  if (value < 0) {  // settings that hardly ever fit: two digits always do
    e.tokens.clear();
    value = expression(1, 2, draws, e.tokens);
  }
  e.tokens.push_back(Token::equals);
  e.targets.assign(e.tokens.size(), -1);
  e.targets.back() = value;
  return e;
}

}  // namespace weft
