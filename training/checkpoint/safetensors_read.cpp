#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "training/checkpoint/safetensors.h"

namespace weft {
namespace {

constexpr uint64_t longest_header = 100'000'000;

struct Half {
  uint16_t bits;
  operator float() const {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 1023u;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
    if (exponent == 0) {  // zero and subnormal: fraction * 2^-24, exact in f32
      const float value = static_cast<float>(fraction) * 0x1p-24f;
      return sign ? -value : value;
    }
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  }
};

// The data may start at any byte, hence memcpy; it costs nothing.
template <class From, class To>
void convert(const std::byte* in, To* out, int64_t count, const std::string& where) {
  if constexpr (std::is_same_v<From, To>) {
    if (count > 0) std::memcpy(out, in, static_cast<size_t>(count) * sizeof(To));
  } else {
    for (int64_t i = 0; i < count; ++i) {
      From value;
      std::memcpy(&value, in + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
      if constexpr (std::is_same_v<To, int32_t>) {
        if (!std::in_range<int32_t>(value))
          throw Error(Exit::data, text("element ", i, " is ", value, ", outside the 32-bit integers"), where,
                      "");
        out[i] = static_cast<int32_t>(value);
      } else if constexpr (std::is_same_v<To, double> && !std::is_same_v<From, Half> &&
                           !std::is_same_v<From, bf16>) {
        out[i] = static_cast<double>(value);
      } else {
        out[i] = static_cast<To>(static_cast<float>(value));
      }
    }
  }
}

template <class From>
void convert_from(const std::byte* in, const OwnedArray& out, const std::string& where) {
  constexpr bool integer = std::is_integral_v<From>;
  if (is_float(out.dtype)) {
    with_float(out.dtype, [&]<class To>() { convert<From, To>(in, out.as<To>(), out.count(), where); });
  } else if constexpr (integer) {
    convert<From, int32_t>(in, out.as<int32_t>(), out.count(), where);
  } else {
    throw Error(Exit::data, "has a floating-point type, integers are needed", where,
                "store it as I32 or I64");
  }
}

using Converter = void (*)(const std::byte*, const OwnedArray&, const std::string&);

Converter converter_of(const std::string& dtype) {
  static const std::map<std::string, Converter> table = {
      {"F64", convert_from<double>},   {"F32", convert_from<float>},    {"F16", convert_from<Half>},
      {"BF16", convert_from<bf16>},    {"I64", convert_from<int64_t>},  {"I32", convert_from<int32_t>},
      {"I16", convert_from<int16_t>},  {"I8", convert_from<int8_t>},    {"U64", convert_from<uint64_t>},
      {"U32", convert_from<uint32_t>}, {"U16", convert_from<uint16_t>}, {"U8", convert_from<uint8_t>},
      {"BOOL", convert_from<uint8_t>}};
  const auto found = table.find(dtype);
  return found == table.end() ? nullptr : found->second;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path), map_(path) {
  const auto refuse = [&](const std::string& what) {
    throw Error(Exit::data, "safetensors header: " + what, path,
                "the file is damaged or not a safetensors file");
  };
  uint64_t length = 0;
  if (map_.size() < sizeof(length)) refuse(text("the file has ", map_.size(), " bytes"));
  std::memcpy(&length, map_.data(), sizeof(length));
  if (length > longest_header)
    refuse(text("a length of ", length, " bytes, at most ", longest_header, " are allowed"));
  if (length > map_.size() - sizeof(length))
    refuse(text("a length of ", length, " bytes in a file of ", map_.size()));
  data_at_ = sizeof(length) + static_cast<size_t>(length);
  const std::string_view header(reinterpret_cast<const char*>(map_.data()) + sizeof(length), length);
  header_ = parse_safetensors_header(header, map_.size() - data_at_, path);
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found =
      std::find_if(entries().begin(), entries().end(), [&](const auto& e) { return e.name == name; });
  return found == entries().end() ? nullptr : &*found;
}

const SafetensorsEntry& SafetensorsFile::at(const std::string& name) const {
  if (const SafetensorsEntry* entry = find(name)) return *entry;
  throw Error(Exit::data, "the tensor " + name + " is missing", path_, "");
}

std::span<const std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const {
  return {map_.data() + data_at_ + entry.begin, static_cast<size_t>(entry.end - entry.begin)};
}

OwnedArray SafetensorsFile::read(const std::string& name, Dtype to) const {
  const SafetensorsEntry& entry = at(name);
  const std::string where = path_ + ": " + name;
  const Converter convert = converter_of(entry.dtype);
  if (!convert)
    throw Error(Exit::data, entry.dtype + " has no conversion here", where, "store it as F32 or BF16");
  OwnedArray out(name, to, entry.shape);
  convert(bytes(entry).data(), out, where);
  return out;
}

std::vector<int64_t> SafetensorsFile::integers(const SafetensorsEntry& entry) const {
  const auto stored_as = [&]<class T>(T) {
    std::vector<T> stored(static_cast<size_t>(entry.count()));
    if (!stored.empty()) std::memcpy(stored.data(), bytes(entry).data(), stored.size() * sizeof(T));
    return std::vector<int64_t>(stored.begin(), stored.end());
  };
  if (entry.dtype == "I64") return stored_as(int64_t{});
  if (entry.dtype == "I32") return stored_as(int32_t{});
  throw Error(Exit::data, entry.name + " holds " + entry.dtype, path_ + ": " + entry.name,
              "store it as I32 or I64");
}

}  // namespace weft
