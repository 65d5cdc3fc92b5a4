#pragma once
// Selective copying (Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
// arXiv 2312.00752, after Arjovsky et al. 2016): some tokens stand at random places among noise, and have to
// be said again in their order, one at each marker at the end.
//
//   noise 5 noise noise 3 noise 7 | mark -> 5  mark -> 3  mark -> 7
//
// 0 is noise, 1 the marker, symbols start at 2. Markers say nothing of the answer so far.

#include "training/tasks/task.h"

namespace weft {

struct SelectiveCopyConfig {
  int64_t symbols = 14;
  int64_t length = 64;
  int64_t count = 8;
  void fields(FieldVisitor& f);
};

class SelectiveCopy : public Task {
 public:
  using Config = SelectiveCopyConfig;
  explicit SelectiveCopy(const Config& config);  // Errors: Exit::recipe

  int64_t vocab() const override { return 2 + config_.symbols; }
  int64_t length() const override { return config_.length; }
  Example make(Draws& draws) const override;

 private:
  Config config_;
};

}  // namespace weft
