// Tokens in binary files: llm.c, nanoGPT, Megatron.

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "autograd/check.h"
#include "training/data/formats.h"
#include "training/data/tokenizer.h"

namespace weft {

namespace {

class FileTokens : public TokenArray {
 public:
  FileTokens(std::unique_ptr<InputFile> file, int64_t start, int64_t count, Width width)
      : file_(std::move(file)), start_(start), count_(count), width_(width) {}

  int64_t size() const override { return count_; }
  std::string where(int64_t index) const override { return byte_of(file_->path(), start_ + index * bytes()); }
  void read(int64_t begin, std::span<int64_t> out) const override {
    switch (width_) {
      case Width::u16: return read_as<uint16_t>(begin, out);
      case Width::u32: return read_as<uint32_t>(begin, out);
      case Width::i32: return read_as<int32_t>(begin, out);
    }
  }

 private:
  int64_t bytes() const { return width_ == Width::u16 ? 2 : 4; }
  template <class T>
  void read_as(int64_t begin, std::span<int64_t> out) const {
    // The narrow elements land in the last part of out and are widened from the front: no second buffer.
    char* raw = reinterpret_cast<char*>(out.data() + out.size()) - out.size() * sizeof(T);
    file_->read(start_ + begin * static_cast<int64_t>(sizeof(T)),
                static_cast<int64_t>(out.size() * sizeof(T)), raw);
    for (size_t i = 0; i < out.size(); ++i) {
      T token;
      std::memcpy(&token, raw + i * sizeof(T), sizeof token);
      out[i] = token;
    }
  }

  std::unique_ptr<InputFile> file_;
  int64_t start_, count_;
  Width width_;
};

// Whoever wrote a larger vocabulary so has cut ids to their low 16 bits, and none of them is out of range.
void require_room(const std::string& path, const SourceOptions& options) {
  const int32_t ids = options.tokenizer == nullptr ? 0 : options.tokenizer->vocab_size();
  if (ids > 1 << 16)
    throw Error(Exit::data, text("holds 16-bit tokens, too few for the ", ids, " of the tokenizer"), path,
                "write it with 32 bits a token, as weft tokenize does");
}

// 32-bit tokens of a file without a header: read as 16-bit ones, every second is 0.
bool looks_like_u32(const TokenArray& tokens) {
  std::vector<int64_t> first(static_cast<size_t>(std::min<int64_t>(tokens.size() / 2 * 2, 1 << 14)));
  tokens.read(0, first);
  int64_t high = 0, low = 0;
  for (size_t i = 0; i < first.size(); i += 2) low |= first[i], high |= first[i + 1];
  return first.size() >= 64 && tokens.size() % 2 == 0 && high == 0 && low != 0;
}

// The index beside a Megatron .bin: sequences with lengths and byte pointers, and documents as runs of
// sequences.
class MegatronIndex {
 public:
  explicit MegatronIndex(const std::string& path) : file_(path) {
    char magic[9];
    file_.read(0, sizeof magic, magic);
    if (std::memcmp(magic, "MMIDIDX\0\0", sizeof magic) != 0) fail(0, "is not a Megatron index (magic)");
    const auto version = file_.get<uint64_t>(9);
    if (version == uint64_t{1} << 56) fail(9, "is in big-endian byte order");
    if (version != 1) fail(9, text("has version ", version, ", version 1 is understood"));
    const int code = file_.get<uint8_t>(17);
    if (code != 4 && code != 8) fail(17, text("has element type ", code, ", tokens are u16 (8) or i32 (4)"));
    width = code == 8 ? Width::u16 : Width::i32;
    const auto sequences = file_.get<uint64_t>(18), marks = file_.get<uint64_t>(26);
    const auto room = static_cast<uint64_t>(file_.size());
    if (sequences > room / 12)
      fail(18, text("counts ", sequences, " sequences, more than the file can hold"));
    if (marks > room / 8) fail(26, text("counts ", marks, " document marks, more than the file can hold"));
    const auto body = static_cast<int64_t>(34 + 12 * sequences + 8 * marks);
    if (file_.size() != body &&
        file_.size() != body + static_cast<int64_t>(sequences))  // the latter: with modes
      fail(file_.size(), text("is cut off or too long: ", file_.size(), " bytes, ", body, " expected"));

    const auto lengths = array<int32_t>(34, sequences);
    pointers_at_ = 34 + 4 * static_cast<int64_t>(sequences);
    const auto pointers = array<int64_t>(pointers_at_, sequences);
    marks_at_ = pointers_at_ + 8 * static_cast<int64_t>(sequences);
    starts_.push_back(0);
    const int64_t bytes = width == Width::u16 ? 2 : 4;
    for (size_t s = 0; s < sequences; ++s) {
      const auto place = static_cast<int64_t>(s);
      if (lengths[s] < 0) fail(34 + 4 * place, text("sequence ", s, " has length ", lengths[s]));
      if (pointers[s] != starts_.back() * bytes)
        fail(pointers_at_ + 8 * place, text("sequence ", s, " points at byte ", pointers[s],
                                            ", the one before it ends at ", starts_.back() * bytes));
      starts_.push_back(starts_.back() + lengths[s]);
    }
    read_marks(marks);
  }

  int64_t tokens() const { return starts_.back(); }

  Width width = Width::u16;
  std::vector<DocumentRange> documents;

 private:
  [[noreturn]] void fail(int64_t offset, const std::string& what) const {
    throw Error(Exit::data, what, byte_of(file_.path(), offset), "write .idx and .bin again");
  }
  template <class T>
  std::vector<T> array(int64_t offset, uint64_t count) const {
    std::vector<T> values(count);
    file_.read(offset, static_cast<int64_t>(count * sizeof(T)), values.data());
    return values;
  }
  void read_marks(uint64_t count) {
    const auto marks = array<int64_t>(marks_at_, count);
    const auto sequences = static_cast<int64_t>(starts_.size()) - 1;
    int64_t before = 0;
    for (size_t d = 0; d < marks.size(); ++d) {
      const int64_t place = marks_at_ + 8 * static_cast<int64_t>(d);
      if (marks[d] < before || marks[d] > sequences || (d == 0 && marks[d] != 0))
        fail(place,
             text("document ", d, " starts at sequence ", marks[d], ", after ", before, " of ", sequences));
      if (d > 0) documents.push_back({starts_[before], starts_[marks[d]] - starts_[before]});
      before = marks[d];
    }
    if (before != sequences)
      fail(marks_at_, text("the last document ends at sequence ", before, " of ", sequences));
  }

  InputFile file_;
  std::vector<int64_t> starts_;  // first token of each sequence, and the end
  int64_t pointers_at_ = 0, marks_at_ = 0;
};

}  // namespace

std::unique_ptr<TokenArray> tokens_in_file(std::unique_ptr<InputFile> file, int64_t start, int64_t count,
                                           Width width) {
  return std::make_unique<FileTokens>(std::move(file), start, count, width);
}

SourcePtr open_llmc(std::unique_ptr<InputFile> file, const SourceOptions& options) {
  const std::string path = file->path();
  const bool wide = file->get<int32_t>(0) == 20240801;
  const auto version = file->get<int32_t>(4), count = file->get<int32_t>(8);
  if (version != (wide ? 7 : 1))
    throw Error(Exit::data, text("has version ", version, ", ", wide ? 7 : 1, " is understood"),
                byte_of(path, 4));
  const int64_t expected = 1024 + int64_t{count} * (wide ? 4 : 2);
  if (count < 0 || file->size() != expected)
    throw Error(Exit::data,
                text("is cut off or too long: its header counts ", count, " tokens, ", expected,
                     " bytes in all, the file has ", file->size()),
                byte_of(path, 8), "write the file again");
  if (!wide) require_room(path, options);
  auto array = tokens_in_file(std::move(file), 1024, count, wide ? Width::u32 : Width::u16);
  auto documents = split_at_end_tokens(*array, options.eos);
  return std::make_unique<TokenSource>(path, wide ? "llm.c u32" : "llm.c u16", std::move(array),
                                       std::move(documents), options);
}

SourcePtr open_nanogpt(std::unique_ptr<InputFile> file, const SourceOptions& options) {
  const std::string path = file->path();
  const int64_t size = file->size();
  if (size % 2 != 0)
    throw Error(Exit::data, text("is cut off: ", size, " bytes is not a whole number of u16 tokens"),
                byte_of(path, size));
  auto array = tokens_in_file(std::move(file), 0, size / 2, Width::u16);
  if (looks_like_u32(*array))
    throw Error(Exit::data, "looks like 32-bit tokens: of 16-bit ones, every second would be 0",
                byte_of(path, 2),
                "begin it with the header of llm.c, as weft tokenize does, or write 16 bits");
  require_room(path, options);
  auto documents = split_at_end_tokens(*array, options.eos);
  return std::make_unique<TokenSource>(path, "nanoGPT u16", std::move(array), std::move(documents), options);
}

SourcePtr open_megatron(const std::string& prefix, const SourceOptions& options) {
  MegatronIndex index(prefix + ".idx");
  auto file = std::make_unique<InputFile>(prefix + ".bin");
  const int64_t expected = index.tokens() * (index.width == Width::u16 ? 2 : 4);
  if (file->size() != expected)
    throw Error(
        Exit::data,
        text("is cut off or too long: the index counts ", expected, " bytes, the file has ", file->size()),
        byte_of(file->path(), std::min(expected, file->size())), "write .idx and .bin again");
  if (index.width == Width::u16) require_room(file->path(), options);
  auto array = tokens_in_file(std::move(file), 0, index.tokens(), index.width);
  return std::make_unique<TokenSource>(prefix + ".bin",
                                       index.width == Width::u16 ? "Megatron u16" : "Megatron i32",
                                       std::move(array), std::move(index.documents), options);
}

}  // namespace weft
