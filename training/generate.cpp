#include "training/generate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace weft {

int32_t sample_token(const Tensor& logits, const SamplingOptions& options, uint64_t index) {
  std::vector<double> z = to_values(logits);
  if (options.vocab > 0 && options.vocab < std::ssize(z)) z.resize(static_cast<size_t>(options.vocab));
  const auto vocab = static_cast<int64_t>(z.size());
  CHECK(vocab > 0, "sample: no logits");
  if (options.temperature == 0) return static_cast<int32_t>(std::max_element(z.begin(), z.end()) - z.begin());
  std::vector<int32_t> order(z.size());
  std::iota(order.begin(), order.end(), 0);
  const int64_t kept = options.top_k > 0 ? std::min(options.top_k, vocab) : vocab;
  if (kept < vocab)
    std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                      [&](int32_t a, int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); });
  double top = -INFINITY, total = 0;
  for (int64_t i = 0; i < kept; ++i) top = std::max(top, z[order[i]]);
  std::vector<double> weight(static_cast<size_t>(kept));
  for (int64_t i = 0; i < kept; ++i) total += weight[i] = std::exp((z[order[i]] - top) / options.temperature);
  double left = total * RandomKey{options.seed, stream_of("generate"), 0}.uniform(index);
  for (int64_t i = 0; i < kept; ++i)
    if ((left -= weight[i]) <= 0) return order[i];
  return order[kept - 1];
}

std::vector<int32_t> generate(const Model& model, const std::vector<int32_t>& prompt,
                              const SamplingOptions& options, const std::function<bool(int32_t)>& each) {
  CHECK(!prompt.empty(), "generate: an empty prompt");
  const NoTape pause;
  StreamCrossings stream(static_cast<int>(model.config().layers.size()));
  std::vector<int32_t> out, next = prompt;
  int64_t at = 0;
  while (static_cast<int64_t>(out.size()) < options.tokens) {
    const auto count = static_cast<int64_t>(next.size());
    const Layout layout = make_layout({{0, at, at + count}});
    const Tensor h = model.hidden(from_ints(next), layout, stream);
    at += count;
    const int32_t token = sample_token(model.logits(h.rows(count - 1, count)), options, out.size());
    if (token == options.stop) break;
    out.push_back(token);
    if (each && !each(token)) break;
    next = {token};
  }
  return out;
}

}  // namespace weft
