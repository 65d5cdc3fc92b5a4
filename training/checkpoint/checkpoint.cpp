#include "training/checkpoint/checkpoint.h"

#include <algorithm>

#include "training/checkpoint/files.h"
#include "training/checkpoint/hash.h"

namespace weft::ckpt {

Checkpoint::Checkpoint(std::string folder, Manifest manifest)
    : folder_(std::move(folder)), manifest_(std::move(manifest)) {
  for (int64_t rank = 0; rank < manifest_.world; ++rank) {
    const std::string path = folder_ + "/" + manifest_.files.at(static_cast<size_t>(rank)).name;
    for (StoredPiece& piece :
         read_shard_index(path, {manifest_.run, manifest_.step, rank, manifest_.world})) {
      Array& array = arrays_[piece.name];
      if (array.pieces.empty()) {
        array.dtype = piece.dtype;
        array.shape = piece.shape;
      }
      if (piece.dtype != array.dtype || piece.shape != array.shape)
        throw Error(Exit::data, piece.name + ": two shards disagree about its type or shape", path, "");
      array.pieces.push_back(std::move(piece));
    }
  }
  for (auto& [name, array] : arrays_) {
    std::sort(array.pieces.begin(), array.pieces.end(), [](const auto& a, const auto& b) {
      return std::tie(a.begin, a.count) < std::tie(b.begin, b.count);
    });
    int64_t at = 0;
    for (const StoredPiece& piece : array.pieces) {
      if (piece.begin != at)
        throw Error(Exit::data,
                    text(name, piece.begin < at ? ": held twice" : ": missing", " from element ",
                         std::min(at, piece.begin)),
                    piece.file, "");
      at += piece.count;
    }
    if (at != count_of(array.shape))
      throw Error(Exit::data, text(name, ": missing from element ", at), folder_, "");
  }
}

const Checkpoint::Array& Checkpoint::at(const std::string& name) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) throw Error(Exit::data, "the checkpoint has no array " + name, folder_, "");
  return found->second;
}

OwnedArray Checkpoint::read(const std::string& name) const {
  const Array& array = at(name);
  OwnedArray out(name, array.dtype, array.shape);
  read(name, 0, out.count(), out.data.get());
  return out;
}

void Checkpoint::read(const std::string& name, int64_t begin, int64_t count, void* out) const {
  const Array& array = at(name);
  const int64_t total = count_of(array.shape), size = size_of(array.dtype);
  CHECK(begin >= 0 && count >= 0 && begin + count <= total, "checkpoint: ", name, " [", begin, ", +", count,
        ") is outside its ", total, " elements");
  for (const StoredPiece& piece : array.pieces) {
    const int64_t from = std::max(begin, piece.begin),
                  to = std::min(begin + count, piece.begin + piece.count);
    if (from >= to) continue;
    File::open_read(piece.file)
        .read(static_cast<std::byte*>(out) + (from - begin) * size, static_cast<size_t>((to - from) * size),
              static_cast<size_t>(piece.offset + (from - piece.begin) * size));
  }
}

std::string Checkpoint::weights_hash(const std::string& prefix) const {
  WeightsHash hash;
  std::vector<float> block(size_t{1} << 18);
  for (auto it = arrays_.lower_bound(prefix); it != arrays_.end() && it->first.starts_with(prefix); ++it) {
    const auto& [name, array] = *it;
    CHECK(array.dtype == Dtype::f32, "weights_hash: ", name, " is not f32");
    hash.begin(name.substr(prefix.size()), array.shape);
    const int64_t total = count_of(array.shape), step = static_cast<int64_t>(block.size());
    for (int64_t at = 0; at < total; at += step) {
      const int64_t count = std::min(step, total - at);
      read(name, at, count, block.data());
      hash.add(block.data(), count);
    }
  }
  return hash.hex();
}

}  // namespace weft::ckpt
