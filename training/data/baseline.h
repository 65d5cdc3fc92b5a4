#pragma once
// What a five-byte model (ngram.h) reaches on the same text: the number a trained model is printed beside.

#include "training/data/dataset.h"
#include "training/data/tokenizer.h"

namespace weft {

struct BaselineLimits {
  int64_t train_bytes = 64'000'000;  // shared among the parts by weight, taken from their starts
  int64_t val_bytes = 4'000'000;     // from the start of the validation text
};

// Bits per byte on the text of val after training on that of train, end tokens left out; NaN where val has no
// text. About 0.1 s a megabyte. Errors: those of TokenSource::read.
double baseline_bits_per_byte(const Dataset& train, const Dataset& val, const Tokenizer& tokenizer,
                              const BaselineLimits& limits = {});

}  // namespace weft
