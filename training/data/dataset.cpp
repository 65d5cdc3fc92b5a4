#include "training/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "autograd/check.h"
#include "training/checkpoint/hash.h"

namespace weft {
namespace {

const char* const made_samples = "made samples";  // from the recipe alone
const char* const held_out_mark = " and, held out, ";

}  // namespace

Dataset::Dataset(std::vector<Part> parts, int64_t context, Tail tail)
    : parts_(std::move(parts)), context_(context), first_{0} {
  CHECK(context > 0, "Dataset: context ", context);
  CHECK(!parts_.empty(), "Dataset: no parts");
  for (const Part& part : parts_) {
    const int64_t tokens = part.corpus.tokens();
    const int64_t samples = tail == Tail::keep ? (tokens + context - 1) / context : tokens / context;
    if (samples == 0)
      throw Error(Exit::data, text("has ", tokens, " tokens, less than one sample of ", context),
                  tokens > 0 ? part.corpus.spans().front().source->path() : "",
                  "give more text or a shorter context");
    first_.push_back(first_.back() + samples);
  }
}

Dataset::Dataset(std::shared_ptr<const SampleMaker> maker, int64_t context)
    : maker_(std::move(maker)), context_(context), first_{0, int64_t{1} << 40} {
  CHECK(context > 0 && maker_, "Dataset: context ", context, " of made samples");
}

int64_t Dataset::tokens() const {
  if (maker_) return samples() * context_;
  int64_t sum = 0;
  for (size_t p = 0; p < parts_.size(); ++p)
    sum += std::min(parts_[p].corpus.tokens(), (first_[p + 1] - first_[p]) * context_);
  return sum;
}

int64_t Dataset::bad_documents() const {
  std::set<const TokenSource*> sources;
  for (const Part& part : parts_)
    for (const Span& span : part.corpus.spans()) sources.insert(span.source.get());
  int64_t bad = 0;
  for (const TokenSource* source : sources) bad += source->bad_documents();
  return bad;
}

std::vector<int32_t> Dataset::first_tokens() const {
  constexpr size_t kDocuments = 64;
  std::vector<int32_t> tokens;
  for (const Part& part : parts_) {
    const std::vector<Span>& spans = part.corpus.spans();
    const size_t apart = (spans.size() + kDocuments - 1) / kDocuments;
    for (size_t i = 0; i < spans.size(); i += apart) {
      const Span& s = spans[i];
      if (i == 0 || s.begin == 0)  // what others begin with is within a document
        s.source->read(s.document, s.begin, s.begin + 1, &tokens.emplace_back());
    }
  }
  return tokens;
}

void Dataset::require_labels() const {
  for (const Part& part : parts_) {
    const std::vector<Span>& spans = part.corpus.spans();
    if (std::none_of(spans.begin(), spans.end(), [](const Span& s) { return s.end - s.begin > 1; }))
      throw Error(Exit::data, "has no token to predict: each document here is a single token",
                  spans.empty() ? "" : spans.front().source->path(), "give text with longer documents");
  }
}

Batch Dataset::batch(std::span<const int64_t> samples) const {
  Batch batch;
  batch.tokens.reserve(samples.size() * static_cast<size_t>(context_));
  batch.targets.reserve(samples.size() * static_cast<size_t>(context_));
  batch.offsets.push_back(0);
  batch.samples.assign(samples.begin(), samples.end());
  for (const int64_t sample : samples) {
    CHECK(0 <= sample && sample < this->samples(), "batch: sample ", sample, " of ", this->samples());
    if (maker_) {
      maker_->append(sample, batch);
      continue;
    }
    const auto part = std::upper_bound(first_.begin(), first_.end(), sample) - first_.begin() - 1;
    const Corpus& corpus = parts_[part].corpus;
    const int64_t begin = (sample - first_[part]) * context_;
    corpus.append(begin, std::min(begin + context_, corpus.tokens()), batch.tokens, batch.targets,
                  batch.offsets);
  }
  return batch;
}

std::string Dataset::fingerprint() const {
  if (maker_) return made_samples;
  Hash128 hash;
  int64_t tokens = 0;
  for (const Part& part : parts_) {
    hash.add(part.corpus.hash());
    tokens += part.corpus.tokens();
  }
  return text(samples(), " samples of ", tokens, " tokens (", hash.hex().substr(0, 16), ")");
}

std::string Dataset::sampled_fingerprint() const {
  if (maker_) return made_samples;
  constexpr int64_t kTokens = int64_t{1} << 22;
  const int64_t apart = std::max<int64_t>(1, samples() / std::max<int64_t>(1, kTokens / context_));
  OrderHash hash;
  for (int64_t sample = 0; sample < samples(); sample += apart) {
    const Batch one = batch({&sample, 1});
    hash.update(std::vector<int64_t>(one.tokens.begin(), one.tokens.end()));
    hash.update(one.offsets);
  }
  return text(samples(), " samples (", hash.hex().substr(0, 16), ")");
}

std::string Datasets::fingerprint() const {
  return train.fingerprint() + (val ? held_out_mark + val->fingerprint() : "");
}

std::string Datasets::sampled_fingerprint() const {
  return train.sampled_fingerprint() + (val ? held_out_mark + val->sampled_fingerprint() : "");
}

bool Datasets::is_sampled(const std::string& fingerprint) {
  return fingerprint.find(" tokens (") == fingerprint.npos;
}

std::string Datasets::of_training(const std::string& fingerprint) {
  return fingerprint.substr(0, fingerprint.find(held_out_mark));
}

SampleOrder Dataset::order(uint64_t seed, bool shuffle) const {
  if (maker_) return SampleOrder({{samples(), 1}}, seed, false);
  std::vector<SampleOrder::Part> parts;
  for (size_t p = 0; p < parts_.size(); ++p) parts.push_back({first_[p + 1] - first_[p], parts_[p].weight});
  return SampleOrder(std::move(parts), seed, shuffle);
}

Datasets open_datasets(const DataConfig& config, int64_t context, const SourceOptions& options) {
  std::vector<std::string> together;
  std::vector<Dataset::Part> train;
  for (const DataConfig::Source& source : config.train) {
    if (!std::isfinite(source.weight) || source.weight < 0)
      throw Error(Exit::recipe, text("weight ", source.weight, " is not positive"), "data.train");
    if (source.weight == 0)
      together.push_back(source.path);
    else
      train.push_back({open_corpus({source.path}, options), source.weight});
  }
  if (!together.empty() && !train.empty())
    throw Error(Exit::recipe, "some sources have a weight and some have none", "data.train",
                "give all of them one, or none");
  if (!together.empty()) train.push_back({open_corpus(together, options), 1});
  if (train.empty())
    throw Error(Exit::recipe, "names no file", "data.train", "give a path, a list, or {path, weight}");

  std::vector<Span> held_out;
  if (!config.val_paths.empty()) {
    held_out = open_corpus(config.val_paths, options).spans();
  } else {
    for (Dataset::Part& part : train) {
      CorpusSplit split = split_corpus(part.corpus, config.val_share);
      part.corpus = std::move(split.train);
      held_out.insert(held_out.end(), split.held_out.spans().begin(), split.held_out.spans().end());
    }
  }
  Datasets sets{Dataset(std::move(train), context), {}};
  if (!held_out.empty())
    sets.val.emplace(std::vector<Dataset::Part>{{Corpus(std::move(held_out)), 1}}, context,
                     Dataset::Tail::keep);
  sets.train.require_labels();
  if (sets.val) sets.val->require_labels();
  return sets;
}

}  // namespace weft
