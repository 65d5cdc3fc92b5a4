// Tokens in an HDF5 file.

#include <algorithm>

#include "autograd/check.h"
#include "training/checkpoint/hdf5_integers.h"
#include "training/data/formats.h"

namespace weft {

namespace {

class Hdf5Tokens : public TokenArray {
 public:
  explicit Hdf5Tokens(std::unique_ptr<InputFile> file)
      : watched_(std::move(file)), tokens_(watched_->path(), "tokens", byte_of(watched_->path(), 0)) {}

  int64_t size() const override { return tokens_.size(); }
  std::string where(int64_t index) const override { return tokens_.where(index); }
  void read(int64_t begin, std::span<int64_t> out) const override {
    tokens_.read(begin, out);
    watched_->check_unchanged();
  }

  std::vector<DocumentRange> documents(int32_t eos) const {
    if (!tokens_.beside("offsets")) return split_at_end_tokens(*this, eos);
    const hdf5::Integers dataset(watched_->path(), "offsets", byte_of(watched_->path(), 0));
    // Piece by piece: a damaged size must end in a message, not in an allocation of it.
    std::vector<DocumentRange> ranges;
    std::vector<int64_t> piece(1 << 16);
    int64_t before = 0;
    for (int64_t i = 0; i < dataset.size(); ++i) {
      const int64_t place = i % static_cast<int64_t>(piece.size());
      if (place == 0) {
        piece.resize(std::min(piece.size(), static_cast<size_t>(dataset.size() - i)));
        dataset.read(i, piece);
      }
      const int64_t offset = piece[place];
      if (i == 0 ? offset != 0 : offset < before || offset > size())
        throw Error(
            Exit::data,
            text("is ", offset, "; offsets start at 0, never fall and stay within ", size(), " tokens"),
            dataset.where(i));
      if (i > 0) ranges.push_back({before, offset - before});
      before = offset;
    }
    if (dataset.size() == 0 || before != size())
      throw Error(Exit::data, text("ends at ", before, ", the last offset must be the ", size(), " tokens"),
                  dataset.where(std::max<int64_t>(0, dataset.size() - 1)));
    return ranges;
  }

 private:
  std::unique_ptr<InputFile> watched_;
  hdf5::Integers tokens_;
};

}  // namespace

SourcePtr open_hdf5(std::unique_ptr<InputFile> file, const SourceOptions& options) {
  const std::string path = file->path();
  auto array = std::make_unique<Hdf5Tokens>(std::move(file));
  auto documents = array->documents(options.eos);
  return std::make_unique<TokenSource>(path, "HDF5", std::move(array), std::move(documents), options);
}

}  // namespace weft
