#include "tools/segments_flag.h"

#include "tools/flags.h"

namespace weft {

constexpr int64_t kMostRanks = 256;  // threads of this process

SegmentsFlag parse_segments(const std::string& value) {
  SegmentsFlag s;
  if (value.empty()) return s;
  const std::string flag = "--segments";
  std::vector<std::string> parts(1);
  for (const char c : value) c == ':' ? parts.emplace_back() : parts.back() += c;
  if (parts.size() > 3)
    throw Error(Exit::usage, text(flag, " is ", value), flag, text("give ", kSegmentsUnit));
  s.ranks = static_cast<int>(flag_number(flag, parts[0], 1, kMostRanks));
  if (parts.size() > 1)
    s.plan = flag_choice<SegmentPlan>(
        flag, parts[1], {{"contiguous", SegmentPlan::contiguous}, {"zigzag", SegmentPlan::zigzag}});
  if (parts.size() > 2)
    s.strategy = flag_choice<CrossingStrategy>(flag, parts[2],
                                               {{"native", CrossingStrategy::native},
                                                {"gather", CrossingStrategy::gather},
                                                {"ring", CrossingStrategy::ring},
                                                {"heads", CrossingStrategy::heads}});
  return s;
}

}  // namespace weft
