#include "training/checkpoint/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <algorithm>
#include <bit>

#include "training/checkpoint/files.h"

namespace weft {
namespace {

static_assert(std::endian::native == std::endian::little, "every file format here is little-endian");

std::string to_hex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  std::string out;
  for (const unsigned char byte : canonical.digest) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

}  // namespace

struct Hash128::State {
  XXH3_state_t xxh;
};

Hash128::Hash128() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh); }
Hash128::~Hash128() = default;

void Hash128::add(const void* data, size_t bytes) {
  if (bytes > 0) XXH3_128bits_update(&state_->xxh, data, bytes);
}

std::string Hash128::hex() const { return to_hex(XXH3_128bits_digest(&state_->xxh)); }

std::string hash128(const void* data, size_t bytes) { return to_hex(XXH3_128bits(data, bytes)); }

std::string hash_file(const std::string& path, const std::function<void()>& pulse) {
  const File file = File::open_read(path);
  std::vector<std::byte> buffer(size_t{1} << 20);
  Hash128 hash;
  for (size_t at = 0;;) {
    const size_t got = file.read_some(buffer.data(), buffer.size(), at);
    if (got == 0) return hash.hex();
    hash.add(buffer.data(), got);
    at += got;
    if (pulse) pulse();
  }
}

std::string weights_hash(std::vector<NamedArray> masters) {
  std::sort(masters.begin(), masters.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  WeightsHash hash;
  for (const NamedArray& array : masters) {
    CHECK(array.dtype == Dtype::f32, "weights_hash: ", array.name, " is not f32");
    hash.begin(array.name, array.shape);
    hash.add(static_cast<const float*>(array.data), array.count());
  }
  return hash.hex();
}

void WeightsHash::begin(const std::string& name, const std::vector<int64_t>& shape) {
  CHECK(!any_ || last_ < name, "weights_hash: ", name, " after ", last_, ", not in name order");
  any_ = true;
  last_ = name;
  hash_.add(name);
  hash_.add(shape.data(), shape.size() * sizeof(int64_t));
}

void WeightsHash::add(const float* data, int64_t count) {
  hash_.add(data, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace weft
