#pragma once
// Needle in a haystack: a sentence with a number somewhere in generated stories (training/data/stories.h),
// begun once more at the end, as RULER asks (Hsieh et al. 2024, arXiv 2404.06654). In the tokens of a
// tokenizer, so that models of text can be asked, too.
//
//   ... had a red kite, and ... The secret number of the owl is 4071. ... The secret number of the owl is ->
//   4071
//
// With several needles, all but the one asked for are about other animals. Depth 0 puts the needle asked for
// at the start, 100 before the question. The labels are the tokens of the number; before each the model sees
// those that went before.

#include "training/tasks/task.h"

namespace weft {

class Tokenizer;

struct NeedleConfig {
  int64_t length = 256;
  int64_t depth = -1;
  int64_t digits = 4;
  int64_t needles = 1;
  void fields(FieldVisitor& f);
};

class Needle : public Task {
 public:
  using Config = NeedleConfig;
  // The tokenizer must outlive the task. Errors: Exit::recipe for a length that holds no needle.
  Needle(const Config& config, const Tokenizer& tokenizer);

  int64_t vocab() const override;
  int64_t length() const override { return config_.length; }
  Example make(Draws& draws) const override;

 private:
  Config config_;
  const Tokenizer& tokenizer_;
};

}  // namespace weft
