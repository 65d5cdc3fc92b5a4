#include "training/micro_batch.h"

#include "distributed/agree.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace weft {
namespace {

// Lists begin at multiples of 256 bytes, as tensors of their own do.
int64_t aligned(int64_t count) { return (count + 63) / 64 * 64; }

class RankCrossings : public CrossingFactory {
 public:
  RankCrossings(const MicroBatch& micro, Communicator& ranks, CrossingStrategy strategy, WireBytes* expected)
      : plan_(micro.all, ranks.rank(), micro.tokens.device()),
        ranks_(ranks),
        strategy_(strategy),
        expected_(expected) {}
  std::unique_ptr<Crossing> make(const Layout& layout, int) override {
    return std::make_unique<RankCrossing>(layout, plan_, ranks_, strategy_, expected_);
  }

 private:
  RankPlan plan_;
  Communicator& ranks_;
  CrossingStrategy strategy_;
  WireBytes* expected_;
};

}  // namespace

MicroBatch at(MicroBatch micro, const Tensor& lists) {
  const int64_t tokens = count_tokens(micro.layout.segments), apart = aligned(tokens);
  const auto list = [&](int64_t i, int64_t size) { return lists.rows(i * apart, i * apart + size); };
  micro.tokens = list(0, tokens);
  micro.targets = list(1, tokens);
  micro.layout.position = list(2, tokens);
  micro.layout.document = list(3, tokens);
  if (const int64_t documents = micro.bounds.documents; documents > 0) micro.offsets = list(4, documents + 1);
  micro.lists = lists;
  return micro;
}

MicroBatch cut_micro_batch(const Batch& batch, SegmentPlan plan, int ranks, int rank, int64_t align,
                           Device device) {
  std::vector<int64_t> lengths;
  for (size_t d = 0; d + 1 < batch.offsets.size(); ++d)
    lengths.push_back(batch.offsets[d + 1] - batch.offsets[d]);
  MicroBatch micro;
  micro.all = plan_segments(plan, lengths, ranks, align);
  micro.labels =
      static_cast<int64_t>(batch.targets.size()) - std::count(batch.targets.begin(), batch.targets.end(), -1);
  const Segments& own = micro.all[static_cast<size_t>(rank)];
  micro.layout.segments = own;
  if (ranks == 1) micro.bounds = rounded_bounds(own);
  const int64_t tokens = count_tokens(own), documents = micro.bounds.documents;
  const Tensor lists({4 * aligned(tokens) + (documents > 0 ? documents + 1 : 0)}, Dtype::i32, Device::cpu);
  micro = at(std::move(micro), lists);
  int32_t *token = micro.tokens.data<int32_t>(), *target = micro.targets.data<int32_t>(),
          *position = micro.layout.position.data<int32_t>(),
          *document = micro.layout.document.data<int32_t>();
  std::vector<int32_t> ends{0};
  for (const Segment& s : own) {
    const int64_t start = batch.offsets[static_cast<size_t>(s.document)] + s.begin;
    token = std::copy_n(batch.tokens.begin() + start, s.size(), token);
    target = std::copy_n(batch.targets.begin() + start, s.size(), target);
    std::iota(position, position + s.size(), static_cast<int32_t>(s.begin));
    position += s.size();
    document = std::fill_n(document, s.size(), s.document);
    ends.push_back(ends.back() + static_cast<int32_t>(s.size()));
  }
  if (documents > 0) {
    ends.resize(static_cast<size_t>(documents) + 1, ends.back());
    std::copy(ends.begin(), ends.end(), micro.offsets.data<int32_t>());
  }
  return device == Device::cpu ? micro : at(std::move(micro), lists.to(device));
}

std::unique_ptr<CrossingFactory> crossings_of(const MicroBatch& micro, Communicator* ranks,
                                              CrossingStrategy strategy, WireBytes* expected) {
  if (size_of(ranks) == 1) return std::make_unique<LocalCrossings>();
  return std::make_unique<RankCrossings>(micro, *ranks, strategy, expected);
}

std::vector<Batch> split_batch(const Batch& batch, int64_t context, int64_t samples) {
  std::vector<Batch> parts;
  const auto count = static_cast<int64_t>(batch.samples.size()),
             tokens = static_cast<int64_t>(batch.tokens.size());
  for (int64_t first = 0; first < count; first += samples) {
    const int64_t last = std::min(count, first + samples);
    const int64_t begin = first * context, end = std::min(tokens, last * context);
    Batch part;
    part.tokens.assign(batch.tokens.begin() + begin, batch.tokens.begin() + end);
    part.targets.assign(batch.targets.begin() + begin, batch.targets.begin() + end);
    part.samples.assign(batch.samples.begin() + first, batch.samples.begin() + last);
    for (int64_t offset : batch.offsets)
      if (offset >= begin && offset <= end) part.offsets.push_back(offset - begin);
    parts.push_back(std::move(part));
  }
  return parts;
}

}  // namespace weft
