#pragma once
// Files named by a recipe, as one list of documents; and the share of it that is held out for validation.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "training/data/token_source.h"

namespace weft {

// The files that paths and patterns (glob) name: patterns in the order given, each sorted by bytes, a folder
// stands for the files in it (of `weft tokenize`: the shards to train on), and a file named twice counts
// once. A Megatron pair is named by its prefix. Errors: Exit::data when a pattern matches no file.
std::vector<std::string> expand_paths(const std::vector<std::string>& patterns);

// A run of one document. Context, states and masks never reach over its ends.
struct Span {
  std::shared_ptr<const TokenSource> source;
  int64_t document = 0, begin = 0, end = 0;
};

// Spans one after another, read as one line of tokens. Reads are safe from several threads.
class Corpus {
 public:
  Corpus() = default;
  explicit Corpus(std::vector<Span> spans);

  int64_t documents() const { return static_cast<int64_t>(spans_.size()); }
  int64_t tokens() const { return ends_.empty() ? 0 : ends_.back(); }
  const std::vector<Span>& spans() const { return spans_; }

  // Appends tokens [begin, end) of the line. targets: the token after each one in its document, -1 after the
  // last. offsets: appends the size of `tokens` after each (piece of a) document.
  void append(int64_t begin, int64_t end, std::vector<int32_t>& tokens, std::vector<int32_t>& targets,
              std::vector<int64_t>& offsets) const;

  // XXH3-128 of all tokens as little-endian i32 and of where documents end, in hex: the same whatever files
  // hold them. Reads everything, on all cores; of more than `most` blocks of 2^20 tokens every second,
  // third,
  // ... and the last, so that a start need not read terabytes. Errors: those of TokenSource::read.
  std::string hash(size_t most = 4096) const;

 private:
  void read(int64_t begin, int64_t end, int32_t* out) const;

  std::vector<Span> spans_;
  std::vector<int64_t> ends_;  // of each span on the line
};

// Opens all files that the patterns name.
Corpus open_corpus(const std::vector<std::string>& patterns, const SourceOptions& options);

struct CorpusSplit {
  Corpus train, held_out;
};

// Holds out that share of the documents, chosen by the hash of their tokens: the same ones in any order of
// files and whatever is added to the corpus, and equal documents fall on the same side. A document over 8192
// tokens is chosen by blocks of 8192, so that a single long text can be shared out as well. At least one unit
// is held out. share in [0, 1); 0 holds out nothing and reads nothing. Errors: Exit::data when nothing would
// be left to train on.
CorpusSplit split_corpus(const Corpus& corpus, double share);

}  // namespace weft
