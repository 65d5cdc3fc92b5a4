#include "training/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace weft {
namespace {

int64_t longest(const std::vector<std::vector<int32_t>>& prompts) {
  size_t most = 0;
  for (const std::vector<int32_t>& p : prompts) most = std::max(most, p.size());
  return static_cast<int64_t>(most);
}

// Of a prompt that the model reads at once: what it holds meanwhile stays small beside what it keeps.
constexpr int64_t kPiece = 4096;

int64_t host_copies() {
#ifdef WEFT_CUDA
  return cuda::host_copies();
#else
  return 0;
#endif
}

}  // namespace

Decoder::Decoder(const Model& model, const std::vector<std::vector<int32_t>>& prompts, int64_t steps,
                 const DrawOptions& draws, int64_t vocab, int64_t at_once)
    : model_(model),
      draws_(draws),
      vocab_(vocab),
      crossings_(static_cast<int>(model.config().layers.size()), longest(prompts) + steps),
      left_(steps) {
  const NoTape pause;
  const auto texts = std::ssize(prompts);
  const Device device = default_device();
  if (at_once == 0) at_once = device == Device::cpu ? 1 : std::max<int64_t>(1, texts);
  for (int64_t i = 0; i < texts; i += at_once) groups_.push_back({i, std::min(texts, i + at_once)});
  std::vector<int32_t> numbers(prompts.size());
  std::iota(numbers.begin(), numbers.end(), 0);
  document_ = from_ints(numbers, device);
  tokens_ = empty({texts}, Dtype::i32, device);
  drawn_ = from_ints(std::vector<int32_t>(prompts.size(), 0), device);
  std::vector<int32_t> last;
  for (const std::vector<int32_t>& p : prompts) {
    CHECK(!p.empty(), "decoder: an empty prompt");
    lengths_.push_back(std::ssize(p));
    last.push_back(static_cast<int32_t>(p.size()) - 1);  // before a token is drawn
  }
  position_ = from_ints(last, device);
  for (int64_t i = 0; i < texts; ++i) prefill(prompts[static_cast<size_t>(i)], i);
}

// Each prompt by itself: what is drawn after it does not depend on the others.
void Decoder::prefill(const std::vector<int32_t>& prompt, int64_t text) {
  const auto count = std::ssize(prompt);
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t end = std::min(count, at + kPiece);
    const Layout layout = make_layout({{static_cast<int>(text), at, end}});
    const Tensor h =
        model_.hidden(from_ints({prompt.begin() + at, prompt.begin() + end}), layout, crossings_);
    if (end < count) continue;
    const Tensor logits = model_.logits(h.rows(end - at - 1, end - at));
    for (const double z : to_values(logits))
      if (!std::isfinite(z))
        throw Error(Exit::numerics, "the model's logits are not finite: its training diverged", {},
                    "train it again with a lower optim.lr");
    draw(logits, {text, text + 1});
  }
}

void Decoder::draw(const Tensor& logits, const Group& group) {
  const int64_t columns = vocab_ > 0 ? std::min(vocab_, logits.dim(1)) : logits.dim(1);
  const Tensor counted = drawn_.rows(group.begin, group.end);
  sample_rows_into(tokens_.rows(group.begin, group.end), logits.columns(0, columns), counted, draws_);
  increment(counted, position_.rows(group.begin, group.end));
}

// The model's step for a group: reads its tokens, draws the next ones. Positions are counted on after all
// that reads them, since kernels of a recording may start early and read them at once.
void Decoder::advance(const Group& group) {
  Layout layout{{}, position_.rows(group.begin, group.end), document_.rows(group.begin, group.end)};
  for (int64_t i = group.begin; i < group.end; ++i) {
    int64_t& length = lengths_[static_cast<size_t>(i)];
    layout.segments.push_back({static_cast<int>(i), length, length + 1});
    ++length;
  }
  draw(model_.next_logits(tokens_.rows(group.begin, group.end), layout, crossings_), group);
}

void Decoder::step(const std::vector<bool>& finished) {
  CHECK(left_-- > 0, "decoder: more steps than were announced");
  const NoTape pause;
  if (replays() || same_work_) return step_by_replay();
  const int64_t copies = host_copies();
  for (const Group& group : groups_)
    if (!std::all_of(finished.begin() + group.begin, finished.begin() + group.end, [](bool f) { return f; }))
      advance(group);
  same_work_ = tokens_.device() == Device::cuda && groups_.size() == 1 && host_copies() == copies &&
               crossings_.steady();
}

#ifdef WEFT_CUDA
bool Decoder::replays() const { return replay_.recorded(); }
void Decoder::step_by_replay() {
  if (!replay_.recorded()) replay_.record([&] { advance(groups_[0]); }, true);
  replay_.run();
}
#else
bool Decoder::replays() const { return false; }
void Decoder::step_by_replay() {}
#endif

std::vector<int32_t> Decoder::tokens() const {
  const Tensor here = tokens_.to(Device::cpu);
  return {here.data<int32_t>(), here.data<int32_t>() + here.numel()};
}

}  // namespace weft
