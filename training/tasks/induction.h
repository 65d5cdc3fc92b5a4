#pragma once
// Induction (Olsson et al. 2022, arXiv 2209.11895; as a task in Fu et al. 2022, "Hungry Hungry Hippos", arXiv
// 2212.14052): random symbols, among them once a trigger; at the end the trigger comes again, and what
// followed it is asked for.
//
//   3 7 trigger 5 2 9 ... trigger -> 5
//
// 0 is the trigger, symbols start at 1.

#include "training/tasks/task.h"

namespace weft {

struct InductionConfig {
  int64_t symbols = 15;
  int64_t length = 64;
  void fields(FieldVisitor& f);
};

class Induction : public Task {
 public:
  using Config = InductionConfig;
  explicit Induction(const Config& config) : config_(config) {}

  int64_t vocab() const override { return 1 + config_.symbols; }
  int64_t length() const override { return config_.length; }
  Example make(Draws& draws) const override;

 private:
  Config config_;
};

}  // namespace weft
