#include "training/tasks/mqar.h"

#include <cmath>

#include "autograd/check.h"

namespace weft {

void MqarConfig::fields(FieldVisitor& f) {
  f("vocab", vocab, "size of the vocabulary; half of it keys, half values",
    {.unit = "tokens", .min = 4, .max = 1e8});
  f("length", length, "length of an example", {.unit = "tokens", .min = 4, .max = 1e8});
  f("pairs", pairs, "pairs of a key and a value, at most length / 4", {.unit = "pairs", .min = 1});
  f("power", power,
    "a in the probability a n^(a-1) of the distance n to a key's question: the smaller, the sooner it is "
    "asked",
    {.min = 0, .above_min = true});
  f("random_filler", random_filler, "fill gaps with random tokens instead of 0");
}

Mqar::Mqar(const Config& config) : config_(config) {
  const int64_t places = (config.length - 2 * config.pairs) / 2;
  if (config.pairs > places)
    throw Error(Exit::recipe,
                text("mqar with ", config.pairs, " pairs needs a length of ", 4 * config.pairs, ", it has ",
                     config.length),
                "pairs", "ask for fewer pairs, or make it longer");
  if (config.pairs > config.vocab / 2 - 1)
    throw Error(Exit::recipe, text("mqar with ", config.pairs, " pairs, and ", config.vocab / 2 - 1, " keys"),
                "vocab", text("give a vocab of ", 2 * config.pairs + 2, " or more"));
  for (int64_t n = 1; n <= places; ++n)
    chances_.push_back(config.power * std::pow(static_cast<double>(n), config.power - 1));
}

Example Mqar::make(Draws& draws) const {
  const int64_t half = config_.vocab / 2, pairs = config_.pairs;
  const std::vector<int64_t> keys = draws.choose(pairs, half - 1),
                             values = draws.choose(pairs, config_.vocab - half),
                             places = draws.choose(pairs, chances_);
  Example e;
  e.tokens.assign(static_cast<size_t>(config_.length), 0);
  e.targets.assign(static_cast<size_t>(config_.length), -1);
  if (config_.random_filler)
    for (int64_t i = 2 * pairs; i < config_.length; ++i)
      e.tokens[i] = static_cast<int32_t>(draws.below(config_.vocab));
  for (int64_t i = 0; i < pairs; ++i) {
    const auto key = static_cast<int32_t>(1 + keys[i]), value = static_cast<int32_t>(half + values[i]);
    const int64_t asked = 2 * pairs + 2 * places[i];
    e.tokens[2 * i] = e.tokens[asked] = key;
    e.tokens[2 * i + 1] = e.targets[asked] = value;
  }
  return e;
}

}  // namespace weft
