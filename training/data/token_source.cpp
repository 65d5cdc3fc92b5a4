#include "training/data/token_source.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <functional>
#include <utility>

#include "autograd/check.h"
#include "training/data/formats.h"

namespace weft {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

namespace {

constexpr int64_t piece_tokens = 1 << 14;  // tokens looked at in one go

// Calls visit(position of the first, the tokens) over [begin, end).
void for_each_piece(const TokenArray& array, int64_t begin, int64_t end,
                    const std::function<void(int64_t, std::span<const int64_t>)>& visit) {
  std::vector<int64_t> piece(static_cast<size_t>(std::min(piece_tokens, end - begin)));
  for (int64_t at = begin; at < end; at += piece_tokens) {
    const std::span<int64_t> part(piece.data(), static_cast<size_t>(std::min(piece_tokens, end - at)));
    array.read(at, part);
    visit(at, part);
  }
}

bool has_suffix(const std::string& name, std::initializer_list<const char*> suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(), [&](const char* s) { return name.ends_with(s); });
}

bool exists(const std::string& path) {
  std::error_code unreadable;
  return std::filesystem::exists(path, unreadable);
}

uint32_t swapped(uint32_t x) { return x >> 24 | (x >> 8 & 0xff00u) | (x << 8 & 0xff0000u) | x << 24; }

}  // namespace

TokenSource::TokenSource(std::string path, std::string format, std::unique_ptr<TokenArray> array,
                         std::vector<DocumentRange> ranges, const SourceOptions& options, int64_t bad)
    : path_(std::move(path)),
      format_(std::move(format)),
      array_(std::move(array)),
      vocab_size_(options.vocab_size),
      bad_(bad) {
  CHECK(vocab_size_ > 0, "open_source: the vocabulary size is not set");
  CHECK(options.eos < vocab_size_, "open_source: end token ", options.eos, ", vocabulary ", vocab_size_);
  for (const DocumentRange& range : ranges) {
    CHECK(range.begin >= 0 && range.length >= 0 && range.begin + range.length <= array_->size(),
          "TokenSource: document [", range.begin, ", +", range.length, ") of ", array_->size(), " tokens");
    int64_t only = -1;
    if (range.length == 1 && options.eos >= 0) array_->read(range.begin, {&only, 1});
    if (range.length == 0 || (options.eos >= 0 && only == options.eos)) {
      ++empty_;
    } else if (options.skip_bad && !is_valid(range)) {
      ++bad_;
    } else {
      documents_.push_back(range);
      tokens_ += range.length;
    }
  }
  if (documents_.empty())
    throw Error(Exit::data, text("holds no tokens (", empty_, " empty documents, ", bad_, " unusable)"),
                path_, "leave the file out, or write it again");
}

bool TokenSource::is_valid(const DocumentRange& range) const {
  bool valid = true;
  for_each_piece(*array_, range.begin, range.begin + range.length,
                 [&](int64_t, std::span<const int64_t> tokens) {
                   for (int64_t token : tokens) valid &= token >= 0 && token < vocab_size_;
                 });
  return valid;
}

void TokenSource::read_checked(int64_t begin, int64_t end, int32_t* out) const {
  for_each_piece(*array_, begin, end, [&](int64_t at, std::span<const int64_t> tokens) {
    for (const int64_t token : tokens) {
      if (token < 0 || token >= vocab_size_)
        throw Error(Exit::data, text("token ", token, " is outside the vocabulary of ", vocab_size_),
                    array_->where(at), "the file was made with another tokenizer or another element type");
      *out++ = static_cast<int32_t>(token);
      ++at;
    }
  });
}

void TokenSource::read(int64_t document, int64_t begin, int64_t end, int32_t* out) const {
  CHECK(document >= 0 && document < documents(), "read: document ", document, " of ", documents());
  const DocumentRange& range = documents_[document];
  CHECK(0 <= begin && begin <= end && end <= range.length, "read: tokens [", begin, ", ", end,
        ") of a document of ", range.length);
  read_checked(range.begin + begin, range.begin + end, out);
}

uint64_t TokenSource::hash(int64_t document, int64_t begin, int64_t end) const {
  std::vector<int32_t> tokens(static_cast<size_t>(std::min(end - begin, piece_tokens)));
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), XXH3_freeState);
  XXH3_64bits_reset(state.get());
  for (int64_t at = begin; at < end; at += piece_tokens) {
    const int64_t stop = std::min(end, at + piece_tokens);
    read(document, at, stop, tokens.data());
    XXH3_64bits_update(state.get(), tokens.data(), static_cast<size_t>(stop - at) * sizeof(int32_t));
  }
  return XXH3_64bits_digest(state.get());
}

std::vector<DocumentRange> split_at_end_tokens(const TokenArray& array, int32_t eos) {
  if (eos < 0) return {{0, array.size()}};
  std::vector<DocumentRange> ranges;
  int64_t begin = 0;
  for_each_piece(array, 0, array.size(), [&](int64_t at, std::span<const int64_t> tokens) {
    for (int64_t token : tokens) {
      ++at;
      if (token != eos) continue;
      ranges.push_back({begin, at - begin});
      begin = at;
    }
  });
  if (begin < array.size()) ranges.push_back({begin, array.size() - begin});
  return ranges;
}

std::unique_ptr<TokenSource> open_source(const std::string& path, const SourceOptions& options) {
  if (!exists(path) && exists(path + ".idx")) return open_megatron(path, options);
  const std::string stem = path.substr(0, path.size() - std::min<size_t>(4, path.size()));
  if (path.ends_with(".bin") && exists(stem + ".idx")) return open_megatron(stem, options);

  auto file = std::make_unique<InputFile>(path);
  std::array<char, 9> magic{};
  file->read(0, std::min<int64_t>(file->size(), magic.size()), magic.data());
  const std::string_view start(magic.data(), magic.size());
  if (start == std::string_view("MMIDIDX\0\0", 9) || path.ends_with(".idx"))
    return open_megatron(stem, options);
  if (start.starts_with("\x89HDF\r\n\x1a\n") || has_suffix(path, {".h5", ".hdf5"}))
    return open_hdf5(std::move(file), options);

  const auto number = file->size() >= 4 ? file->get<uint32_t>(0) : 0u;
  if (number == 20240520u || number == 20240801u) return open_llmc(std::move(file), options);
  if (swapped(number) == 20240520u || swapped(number) == 20240801u)
    throw Error(Exit::data, "is an llm.c file in big-endian byte order", byte_of(path, 0),
                "write it on a little-endian machine");
  if (number == 20240522u)
    throw Error(Exit::data, "is an llm.c multiple-choice evaluation file, not training tokens",
                byte_of(path, 0));
  if (path.ends_with(".bin")) return open_nanogpt(std::move(file), options);

  if (has_suffix(path, {".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst"}))
    return open_jsonl(path, options);
  return open_plain_text(path, options);
}

}  // namespace weft
