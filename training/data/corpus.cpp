#include "training/data/corpus.h"

#include <glob.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <unordered_set>
#include <utility>

#include "autograd/check.h"
#include "training/checkpoint/hash.h"
#include "training/data/token_folder.h"
#include "training/data/tokenizer_threads.h"

namespace weft {

namespace {

namespace fs = std::filesystem;

constexpr int64_t block_tokens = 8192;               // tokens that are held out, or not, together
constexpr int64_t hashed_tokens = int64_t{1} << 20;  // tokens that are hashed together

// The name under which a file is opened: both halves of a Megatron pair have that of the .idx.
std::string opened_as(const std::string& path) {
  if (!path.ends_with(".bin")) return path;
  const std::string index = path.substr(0, path.size() - 4) + ".idx";
  std::error_code unreadable;
  return fs::exists(index, unreadable) ? index : path;
}

std::vector<std::string> matches(const std::string& pattern) {
  std::error_code unreadable;
  std::vector<std::string> found;
  if (fs::is_directory(pattern, unreadable)) {
    if (const auto shards = training_shards(pattern)) return *shards;
    for (const auto& entry : fs::directory_iterator(pattern))
      if (entry.is_regular_file() && !entry.path().filename().string().starts_with('.'))
        found.push_back(entry.path());
  } else if (fs::exists(pattern, unreadable)) {
    found.push_back(pattern);  // as it stands, even where its name holds a * or [
  } else if (fs::exists(pattern + ".idx", unreadable)) {
    found.push_back(pattern + ".idx");
  } else {
    glob_t result{};
    if (::glob(pattern.c_str(), GLOB_NOSORT | GLOB_TILDE, nullptr, &result) == 0)
      for (size_t i = 0; i < result.gl_pathc; ++i)
        if (!fs::is_directory(result.gl_pathv[i], unreadable)) found.emplace_back(result.gl_pathv[i]);
    ::globfree(&result);
  }
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

std::vector<std::string> expand_paths(const std::vector<std::string>& patterns) {
  std::vector<std::string> files;
  std::unordered_set<std::string> seen;
  for (const std::string& pattern : patterns) {
    const auto found = matches(pattern);
    if (found.empty())
      throw Error(Exit::data, "no such file, and no file matches", pattern, "check the path or pattern");
    for (const std::string& path : found) {
      const std::string name = opened_as(path);
      if (seen.insert(name).second) files.push_back(name);
    }
  }
  return files;
}

Corpus::Corpus(std::vector<Span> spans) : spans_(std::move(spans)) {
  ends_.reserve(spans_.size());
  for (const Span& span : spans_) {
    CHECK(span.begin < span.end, "Corpus: an empty span");
    ends_.push_back(tokens() + span.end - span.begin);
  }
}

void Corpus::append(int64_t begin, int64_t end, std::vector<int32_t>& tokens, std::vector<int32_t>& targets,
                    std::vector<int64_t>& offsets) const {
  CHECK(0 <= begin && begin <= end && end <= this->tokens(), "Corpus::append: tokens [", begin, ", ", end,
        ") of ", this->tokens());
  auto at = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
  std::vector<int32_t> piece;
  for (; begin < end; ++at) {
    const Span& span = spans_[at];
    const int64_t start = ends_[at] - (span.end - span.begin);
    const int64_t stop = std::min(end, ends_[at]);
    // One token more where the document goes on: it is the last target.
    const int64_t reach = std::min(stop + 1, ends_[at]);
    piece.resize(static_cast<size_t>(reach - begin));
    span.source->read(span.document, span.begin + begin - start, span.begin + reach - start, piece.data());
    tokens.insert(tokens.end(), piece.begin(), piece.begin() + (stop - begin));
    targets.insert(targets.end(), piece.begin() + 1, piece.end());
    if (reach == stop) targets.push_back(-1);
    offsets.push_back(static_cast<int64_t>(tokens.size()));
    begin = stop;
  }
}

void Corpus::read(int64_t begin, int64_t end, int32_t* out) const {
  auto at = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), begin) - ends_.begin());
  for (; begin < end; ++at) {
    const Span& span = spans_[at];
    const int64_t start = ends_[at] - (span.end - span.begin), stop = std::min(end, ends_[at]);
    span.source->read(span.document, span.begin + begin - start, span.begin + stop - start, out);
    out += stop - begin;
    begin = stop;
  }
}

std::string Corpus::hash(size_t most) const {
  // By blocks of the line, so that many threads can share a single long document.
  const auto count = static_cast<size_t>((tokens() + hashed_tokens - 1) / hashed_tokens);
  const size_t stride = (count + most - 1) / std::max<size_t>(1, most);
  std::vector<std::string> blocks(count);
  std::atomic<size_t> next{0};
  run_threads(std::min(omp_get_max_threads(), static_cast<int>(std::min(count, most))), [&](int) {
    std::vector<int32_t> piece;
    for (size_t b; (b = next++) < count;) {
      if (b % stride != 0 && b + 1 < count) continue;
      const int64_t begin = static_cast<int64_t>(b) * hashed_tokens;
      piece.resize(static_cast<size_t>(std::min(hashed_tokens, tokens() - begin)));
      read(begin, begin + static_cast<int64_t>(piece.size()), piece.data());
      blocks[b] = hash128(piece.data(), piece.size() * sizeof(int32_t));
    }
  });
  Hash128 all;
  all.add(ends_.data(), ends_.size() * sizeof(int64_t));
  for (const std::string& block : blocks) all.add(block);
  return all.hex();
}

Corpus open_corpus(const std::vector<std::string>& patterns, const SourceOptions& options) {
  std::vector<Span> spans;
  for (const std::string& path : expand_paths(patterns)) {
    if (options.tokenizer != nullptr && path.ends_with(".bin"))
      require_same_tokenizer(path, *options.tokenizer);
    const std::shared_ptr<const TokenSource> source = open_source(path, options);
    for (int64_t d = 0; d < source->documents(); ++d) spans.push_back({source, d, 0, source->length(d)});
  }
  return Corpus(std::move(spans));
}

CorpusSplit split_corpus(const Corpus& corpus, double share) {
  CHECK(share >= 0 && share < 1, "split_corpus: share ", share);
  if (share == 0) return {corpus, {}};

  std::vector<Span> units;
  std::vector<uint64_t> hashes;
  for (const Span& span : corpus.spans())
    for (int64_t begin = span.begin; begin < span.end; begin += block_tokens) {
      units.push_back({span.source, span.document, begin, std::min(span.end, begin + block_tokens)});
      hashes.push_back(span.source->hash(span.document, begin, units.back().end));
    }
  if (hashes.empty()) throw Error(Exit::data, "no documents from which to hold out a share");
  const auto limit = static_cast<uint64_t>(share * 0x1p64);
  const uint64_t least = *std::min_element(hashes.begin(), hashes.end());

  std::vector<Span> sides[2];
  const Span* before = nullptr;
  bool before_held = false;
  for (size_t i = 0; i < units.size(); ++i) {
    const Span& unit = units[i];
    const bool held = hashes[i] < limit || hashes[i] == least;
    // Blocks of one document that stay together become one span again.
    const bool goes_on = before && held == before_held && before->source == unit.source &&
                         before->document == unit.document && before->end == unit.begin;
    if (goes_on)
      sides[held].back().end = unit.end;
    else
      sides[held].push_back(unit);
    before = &unit;
    before_held = held;
  }
  if (sides[0].empty())
    throw Error(Exit::data,
                text("too little text to hold out a share of ", share, ": ", units.size(), " documents"),
                corpus.spans().front().source->path(), "give data.val a path, or 0 for no validation");
  return {Corpus(std::move(sides[0])), Corpus(std::move(sides[1]))};
}

}  // namespace weft
