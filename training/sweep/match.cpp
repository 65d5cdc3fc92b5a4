#include "training/sweep/match.h"

#include <algorithm>
#include <cmath>

#include "training/log/console_text.h"
#include "training/model_size.h"

namespace weft {
namespace {

constexpr int64_t kRoundest = 64;  // widths that divide by it suit kernels
constexpr int64_t kLargest = int64_t{1} << 24;

const char* what_is(MatchBy by) {
  return by == MatchBy::parameters ? "parameters" : by == MatchBy::flops ? "FLOPs a token" : "bytes of state";
}

class Search {
 public:
  Search(const RecipeWith& recipe_with, MatchBy by, double target, const Planner& planner)
      : recipe_with_(recipe_with), by_(by), target_(target), planner_(planner) {}

  // Tries values of a key, beside other overrides, from the roundest to the finest. The size grows with the
  // value, so two neighbours with the target between them are halved. True: found.
  bool along(const std::string& key, const std::vector<std::string>& beside) {
    int64_t low = 0, high = kRoundest;  // at low the model is too small, or low is 0
    for (std::optional<double> before;; low = high, high *= 2) {
      const std::optional<double> size = size_from(key, high, high + kRoundest, beside);
      if (found()) return true;
      if (!size || *size >= target_) break;                  // too large, or out of the key's range
      if (size == before || high >= kLargest) return false;  // the key has no influence
      before = size;
    }
    while (high - low > kRoundest) {
      const int64_t middle = low + (high - low) / kRoundest / 2 * kRoundest;
      halve(key, middle, low, high, beside);
      if (found()) return true;
    }
    while (high - low > 1 && !found()) halve(key, low + (high - low) / 2, low, high, beside);
    return found();
  }

  bool found() const { return best_ && off(best_->size) <= kMatchTolerance; }
  bool fits(double size) const { return off(size) <= kMatchTolerance; }
  const std::optional<Match>& best() const { return best_; }

 private:
  double off(double size) const { return std::abs(size / target_ - 1); }

  void halve(const std::string& key, int64_t middle, int64_t& low, int64_t& high,
             const std::vector<std::string>& beside) {
    const std::optional<double> size = size_from(key, middle, high, beside);
    (size && *size < target_ ? low : high) = middle;
  }

  // At the first value from `value` on, below `end`, that the recipe accepts: a width has to divide into
  // heads.
  std::optional<double> size_from(const std::string& key, int64_t value, int64_t end,
                                  const std::vector<std::string>& beside) {
    for (; value < end; ++value) {
      std::vector<std::string> overrides = beside;
      overrides.push_back(text(key, "=", value));
      try {
        const double size = model_size(recipe_with_(overrides), by_, planner_);
        if (!best_ || off(size) < off(best_->size)) best_ = Match{overrides, size};
        return size;
      } catch (const Error& error) {
        if (error.code != Exit::recipe) throw;
      }
    }
    return {};
  }

  const RecipeWith& recipe_with_;
  MatchBy by_;
  double target_;
  const Planner& planner_;
  std::optional<Match> best_;
};

bool is_accepted(const RecipeWith& recipe_with, const std::vector<std::string>& more) {
  try {
    recipe_with(more);
    return true;
  } catch (const Error& error) {
    if (error.code != Exit::recipe) throw;
    return false;
  }
}

}  // namespace

double model_size(const Recipe& recipe, MatchBy by, const Planner& planner) {
  const int64_t vocab = vocabulary_of(recipe, planner.tokenizer());
  switch (by) {
    case MatchBy::parameters: return static_cast<double>(count_parameters(recipe, vocab));
    case MatchBy::flops: return planner.plan(recipe, 1).flops_per_token;
    case MatchBy::state: return static_cast<double>(count_state_bytes(recipe, vocab));
    case MatchBy::none: break;
  }
  CHECK(false, "model_size: nothing to measure by");
  return 0;
}

Match match_size(const RecipeWith& recipe_with, MatchBy by, const std::string& key, double target,
                 const Planner& planner) {
  const Recipe own = recipe_with({});
  const double size = model_size(own, by, planner);
  Search search(recipe_with, by, target, planner);
  if (search.fits(size)) return {{}, size};
  const bool state = by == MatchBy::state;
  const std::string name = !key.empty() ? key : state ? "model.head_size" : "model.ffn";
  const std::string second = !key.empty() ? "" : state ? "model.heads" : "model.width";
  search.along(name, {});
  // Then with the second key changed too, its values nearest to the recipe's own first.
  const int64_t now = state ? own.model.heads : own.model.width, most = state ? now + 8 : now;
  for (int64_t away = 1; !second.empty() && !search.found() && away <= most; ++away)
    for (const int64_t value : {now - away, now + away}) {
      const std::vector<std::string> beside{text(second, "=", value)};
      if (value > 0 && !search.found() && is_accepted(recipe_with, beside)) search.along(name, beside);
    }
  if (search.found()) return *search.best();
  std::string nearest = "no value of it is accepted";
  if (search.best()) {
    nearest = "the nearest is " + grouped(search.best()->size);
    for (const std::string& override_ : search.best()->overrides) nearest += " with " + override_;
  }
  throw Error(Exit::recipe,
              text("no ", name, second.empty() ? "" : " with any " + second, " brings the model's ",
                   grouped(size), " ", what_is(by), " within 2 % of ", grouped(target), ": ", nearest),
              own.where("model.layers"), "choose another key with --match-by, or other sizes");
}

}  // namespace weft
