// The JSON header. It is read event by event: nlohmann's tree keeps the last of two equal keys in silence,
// and would let a small hostile file build a large tree.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "training/checkpoint/safetensors.h"

namespace weft {
namespace {

using nlohmann::json;

int bits_of(const std::string& dtype) {
  static const std::map<std::string, int> table = {
      {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8},        {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  const auto found = table.find(dtype);
  return found == table.end() ? 0 : found->second;
}

// The grammar: { NAME: {"dtype": string, "shape": [n...], "data_offsets": [n, n]}..., "__metadata__": {key:
// string} }. Unknown keys of a tensor are skipped, as the reference implementation does.
class HeaderReader : public nlohmann::json_sax<json> {
 public:
  HeaderReader(SafetensorsHeader& out, const std::string& file) : out_(out), file_(file) {}

  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(Exit::data, "safetensors header: " + what, name_.empty() ? file_ : file_ + ": " + name_,
                "the file is damaged or not a safetensors file");
  }

  bool start_object(size_t) override {
    if (skipping()) return descend();
    switch (place_) {
      case Place::outside: place_ = Place::top; return true;
      case Place::top:
        place_ = metadata_next_ ? Place::metadata : Place::tensor;
        fields_ = 0;
        return true;
      default: refuse("an object where none belongs");
    }
  }

  bool key(string_t& key) override {
    if (skip_depth_ > 0) return true;
    switch (place_) {
      case Place::top:
        name_ = key;
        metadata_next_ = key == "__metadata__";
        if (!seen_.insert(key).second) refuse("the name appears twice");
        if (!metadata_next_) {
          out_.entries.emplace_back();
          out_.entries.back().name = key;
        }
        return true;
      case Place::metadata:
        metadata_key_ = key;
        if (out_.metadata.count(key)) refuse("the key " + key + " appears twice");
        return true;
      default:  // in a tensor
        field_ = key == "dtype" ? dtype : key == "shape" ? shape : key == "data_offsets" ? offsets : unknown;
        if (field_ != unknown && (fields_ & field_)) refuse("the key " + key + " appears twice");
        fields_ |= field_;
        return true;
    }
  }

  bool end_object() override {
    if (ascend()) return true;
    if (place_ == Place::tensor && fields_ != (dtype | shape | offsets))
      refuse("needs dtype, shape and data_offsets");
    if (place_ == Place::tensor && offset_count_ != 2) refuse("data_offsets needs two numbers");
    place_ = place_ == Place::top ? Place::done : Place::top;
    offset_count_ = 0;
    name_.clear();
    return true;
  }

  bool start_array(size_t) override {
    if (skipping()) return descend();
    if (place_ != Place::tensor || (field_ != shape && field_ != offsets))
      refuse("an array where none belongs");
    place_ = Place::numbers;
    return true;
  }

  bool end_array() override {
    if (ascend()) return true;
    place_ = Place::tensor;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (skipping()) return true;
    if (place_ != Place::numbers) refuse("a number where none belongs");
    SafetensorsEntry& entry = out_.entries.back();
    if (field_ == shape) {
      if (value > uint64_t{std::numeric_limits<int64_t>::max()}) refuse("a dimension is too large");
      entry.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (++offset_count_ > 2) refuse("data_offsets needs two numbers");
    (offset_count_ == 1 ? entry.begin : entry.end) = value;
    return true;
  }

  bool string(string_t& value) override {
    if (skipping()) return true;
    if (place_ == Place::metadata)
      out_.metadata[metadata_key_] = value;
    else if (place_ == Place::tensor && field_ == dtype)
      out_.entries.back().dtype = value;
    else
      refuse("a string where none belongs");
    return true;
  }

  bool null() override {
    if (place_ == Place::top && metadata_next_) return true;  // "__metadata__": null means none
    return other();
  }
  bool boolean(bool) override { return other(); }
  bool number_integer(number_integer_t) override { return other(); }
  bool number_float(number_float_t, const string_t&) override { return other(); }
  bool binary(binary_t&) override { return other(); }
  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception&) override {
    name_.clear();
    refuse(text("not valid JSON near byte ", at));
  }

 private:
  enum class Place { outside, top, metadata, tensor, numbers, done };
  enum Field { unknown = 0, dtype = 1, shape = 2, offsets = 4 };
  static constexpr int deepest = 64;

  bool skipping() const { return skip_depth_ > 0 || (place_ == Place::tensor && field_ == unknown); }
  bool descend() {
    if (++skip_depth_ > deepest) refuse("nested too deeply");
    return true;
  }
  bool ascend() { return skip_depth_ > 0 && (--skip_depth_, true); }
  bool other() const {
    if (!skipping()) refuse("a value of the wrong type");
    return true;
  }

  SafetensorsHeader& out_;
  const std::string& file_;
  Place place_ = Place::outside;
  bool metadata_next_ = false;
  int field_ = unknown, fields_ = 0, offset_count_ = 0, skip_depth_ = 0;
  std::string name_, metadata_key_;
  std::set<std::string> seen_;
};

// The bytes that `entry` must have.
uint64_t expected_bytes(const SafetensorsEntry& entry, const HeaderReader& reader) {
  const auto bits = static_cast<uint64_t>(bits_of(entry.dtype));
  if (bits == 0) reader.refuse(entry.name + ": unknown dtype " + entry.dtype);
  // In bits, which are more than elements: so count() cannot overflow either.
  uint64_t total = bits;
  for (const int64_t dim : entry.shape)
    if (__builtin_mul_overflow(total, static_cast<uint64_t>(dim), &total))
      reader.refuse(entry.name + ": the product of its shape overflows");
  if (total % 8 != 0) reader.refuse(entry.name + ": does not fill whole bytes");
  return total / 8;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view header, uint64_t data_bytes,
                                           const std::string& file) {
  SafetensorsHeader out;
  HeaderReader reader(out, file);
  if (header.empty() || header.front() != '{') reader.refuse("does not start with {");
  json::sax_parse(header.begin(), header.end(), &reader);

  std::sort(out.entries.begin(), out.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : out.entries) {
    if (entry.end < entry.begin) reader.refuse(entry.name + ": data_offsets run backwards");
    if (entry.end > data_bytes)
      reader.refuse(text(entry.name, ": ends at byte ", entry.end, " of ", data_bytes, " bytes of data"));
    if (entry.begin != at)
      reader.refuse(text(entry.name, entry.begin < at ? ": overlaps" : ": leaves a hole after",
                         " the tensor before it, at byte ", at));
    const uint64_t expected = expected_bytes(entry, reader);
    if (entry.end - entry.begin != expected)
      reader.refuse(text(entry.name, ": ", entry.dtype, " of its shape needs ", expected,
                         " bytes, data_offsets give ", entry.end - entry.begin));
    at = entry.end;
  }
  if (at != data_bytes) reader.refuse(text(data_bytes - at, " bytes after the last tensor"));
  return out;
}

}  // namespace weft
