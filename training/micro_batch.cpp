#include "training/micro_batch.h"

#include <algorithm>

namespace weft {
namespace {

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

MicroBatch cut_micro_batch(const Batch& batch, SegmentPlan plan, int ranks, int rank, int64_t align,
                           Device device) {
  std::vector<int64_t> lengths;
  for (size_t d = 0; d + 1 < batch.offsets.size(); ++d)
    lengths.push_back(batch.offsets[d + 1] - batch.offsets[d]);
  MicroBatch micro;
  micro.all = plan_segments(plan, lengths, ranks, align);
  micro.labels =
      static_cast<int64_t>(batch.targets.size()) - std::count(batch.targets.begin(), batch.targets.end(), -1);
  std::vector<int32_t> tokens, targets;
  for (const Segment& s : micro.all[static_cast<size_t>(rank)]) {
    const int64_t start = batch.offsets[static_cast<size_t>(s.document)];
    tokens.insert(tokens.end(), batch.tokens.begin() + start + s.begin, batch.tokens.begin() + start + s.end);
    targets.insert(targets.end(), batch.targets.begin() + start + s.begin,
                   batch.targets.begin() + start + s.end);
  }
  micro.layout = make_layout(micro.all[static_cast<size_t>(rank)], device);
  micro.tokens = from_ints(tokens, device);
  micro.targets = from_ints(targets, device);
  return micro;
}

std::unique_ptr<CrossingFactory> crossings_of(const MicroBatch& micro, Communicator* ranks,
                                              CrossingStrategy strategy, WireBytes* expected) {
  if (ranks == nullptr || ranks->size() == 1) return std::make_unique<LocalCrossings>();
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
