#pragma once
// Samples: pieces of equal length of a line of documents, or made ones; and batches of them as one token
// line.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "training/data/corpus.h"
#include "training/data/order.h"

namespace weft {

// One token line: all samples of a rank one after another, and in them (pieces of) documents one after
// another.
struct Batch {
  std::vector<int32_t> tokens;   // (N)
  std::vector<int32_t> targets;  // (N) the next token of the document; -1 after its last one: no loss there
  std::vector<int64_t> offsets;  // (documents + 1) where documents start, and N; states and masks reset there
  std::vector<int64_t> samples;  // which samples these are, in order
};

// Samples that no file holds: each is a pure function of its number, so ranks and restarts change nothing.
class SampleMaker {
 public:
  virtual ~SampleMaker() = default;
  // Appends sample `number`, >= 0, exactly `context` tokens, to a batch: tokens, targets, and to offsets the
  // size of tokens after each of its documents. Thread-safe.
  virtual void append(int64_t number, Batch& batch) const = 0;
  // Documents in a sample, at most.
  virtual int64_t documents() const = 0;
};

// Each part is cut into samples of exactly `context` tokens, documents in order; a document longer than what
// is left of a sample goes on in the next one, where it starts anew. Nothing is padded and no label is lost
// at a cut.
class Dataset {
 public:
  struct Part {
    Corpus corpus;
    double weight = 1;
  };
  // What happens to the tokens after a part's last full sample: left out (training), or one shorter sample
  // (evaluation).
  enum class Tail { drop, keep };

  // Errors: Exit::data when a part has no sample.
  Dataset(std::vector<Part> parts, int64_t context, Tail tail = Tail::drop);
  // Made samples, so many that they never come again.
  Dataset(std::shared_ptr<const SampleMaker> maker, int64_t context);

  int64_t context() const { return context_; }
  int64_t samples() const { return first_.back(); }  // numbered through the parts
  int64_t tokens() const;                            // in all samples
  int64_t bad_documents() const;                     // left out of the files, SourceOptions::skip_bad
  // How documents start: the first tokens of some in each part, evenly spread. None of made samples.
  std::vector<int32_t> first_tokens() const;
  void require_labels() const;  // Error (data) where a part has no token with one before it
  const std::vector<Part>& parts() const { return parts_; }  // none of made samples
  const SampleMaker* maker() const { return maker_.get(); }  // null where samples are read

  // Thread-safe. Errors: those of TokenSource::read.
  Batch batch(std::span<const int64_t> samples) const;

  // "1234 samples of 79000 tokens (HASH)": the hash of all tokens and documents of all parts, also those
  // after the last full sample. Tells whether files still hold what they did. Errors: those of batch.
  std::string fingerprint() const;
  // "1234 samples (HASH)", as runs of before kept it: of some samples evenly spread, a few million tokens.
  std::string sampled_fingerprint() const;

  // The endless shuffled order of the samples, in the proportions of the parts; made ones come by number.
  SampleOrder order(uint64_t seed, bool shuffle = true) const;

 private:
  std::vector<Part> parts_;
  std::shared_ptr<const SampleMaker> maker_;
  int64_t context_;
  std::vector<int64_t> first_;  // first sample of each part, and the end
};

// data.train and data.val of a recipe.
struct DataConfig {
  struct Source {
    std::string path;   // file, folder or pattern
    double weight = 0;  // 0: none given
  };
  // Without weights all sources are one part: every sample once an epoch. With weights (all of them) each is
  // a part, drawn in that proportion however large it is.
  std::vector<Source> train;
  double val_share = 0;                // of each part, held out; used where there are no val_paths
  std::vector<std::string> val_paths;  // files, folders or patterns
};

struct Datasets {
  Dataset train;
  std::optional<Dataset> val;

  // Of both.
  std::string fingerprint() const;
  std::string sampled_fingerprint() const;
  static bool is_sampled(const std::string& fingerprint);          // which of the two one is
  static std::string of_training(const std::string& fingerprint);  // the part of one that is train's
};

// Errors: Exit::recipe when only some sources have weights or one is not positive; Exit::data for the files.
Datasets open_datasets(const DataConfig& config, int64_t context, const SourceOptions& options);

}  // namespace weft
