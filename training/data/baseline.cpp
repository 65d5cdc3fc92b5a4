#include "training/data/baseline.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "training/data/ngram.h"

namespace weft {

namespace {

// Visits the text of each document until `bytes` are through. Returns how many there were.
int64_t for_each_text(const Corpus& corpus, const Tokenizer& tokenizer, int64_t bytes,
                      const std::function<void(const std::string&)>& visit) {
  constexpr int64_t piece = 1 << 16;  // tokens of a long document taken as one text
  int64_t seen = 0;
  std::vector<int32_t> tokens;
  std::string text;
  for (const Span& span : corpus.spans())
    for (int64_t at = span.begin; at < span.end; at += piece) {
      if (seen >= bytes) return seen;
      const int64_t end = std::min(span.end, at + piece);
      tokens.resize(static_cast<size_t>(end - at));
      span.source->read(span.document, at, end, tokens.data());
      text.clear();
      for (const int32_t token : tokens)
        if (token != tokenizer.eos_id() && token < tokenizer.vocab_size())
          text += tokenizer.token_bytes(token);
      seen += static_cast<int64_t>(text.size());
      visit(text);
    }
  return seen;
}

}  // namespace

double baseline_bits_per_byte(const Dataset& train, const Dataset& val, const Tokenizer& tokenizer,
                              const BaselineLimits& limits) {
  ByteNgram model;
  double weights = 0;
  for (const Dataset::Part& part : train.parts()) weights += part.weight;
  for (const Dataset::Part& part : train.parts())
    for_each_text(part.corpus, tokenizer, static_cast<int64_t>(limits.train_bytes * (part.weight / weights)),
                  [&](const std::string& text) { model.train(text); });
  double bits = 0;
  int64_t bytes = 0;
  for (const Dataset::Part& part : val.parts())
    bytes += for_each_text(part.corpus, tokenizer, limits.val_bytes - bytes,
                           [&](const std::string& text) { bits += model.bits(text); });
  return bytes > 0 ? bits / static_cast<double>(bytes) : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace weft
