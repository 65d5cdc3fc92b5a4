#include "training/checkpoint/safetensors.h"

#include <sys/mman.h>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "tests/training/checkpoint/support.h"

namespace weft {
namespace {

// A file from a header as text and its data.
std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), sizeof(length));
  return out + header + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

class SafetensorsTest : public testing::Test {
 protected:
  std::string store(const std::string& content) {
    write_bytes(path_, content);
    return path_;
  }
  SafetensorsFile load(const std::string& header, const std::string& data) {
    return SafetensorsFile(store(file_of(header, data)));
  }
  void refused(const std::string& content, const std::vector<std::string>& words) {
    std::vector<std::string> all = words;
    all.push_back(path_);
    expect_error(Exit::data, all, [&] { SafetensorsFile(store(content)); });
  }

  TemporaryFolder folder_;
  std::string path_ = folder_ / "a.safetensors";
};

TEST_F(SafetensorsTest, RoundTripOfEveryTypeAndOddShapes) {
  const std::vector<double> f64 = {1.5, -2, std::numeric_limits<double>::quiet_NaN()};
  const std::vector<float> f32 = {3.25f, -0.0f, std::numeric_limits<float>::infinity(), 1e-45f, 5, 6};
  const std::vector<bf16> half = {bf16(1.0f), bf16(-7.5f), bf16(0.001f)};
  const std::vector<int32_t> i32 = {-1, 2147483647};
  const std::vector<float> scalar = {42};
  write_safetensors(path_,
                    {{"b.half", Dtype::bf16, {3, 1}, half.data()},
                     {"a", Dtype::f64, {3}, f64.data()},
                     {"w", Dtype::f32, {1, 2, 3}, f32.data()},
                     {"i", Dtype::i32, {2}, i32.data()},
                     {"s", Dtype::f32, {}, scalar.data()},
                     {"none", Dtype::f32, {0, 7}, nullptr}},
                    {{"format", "pt"}, {"weft", "apply/1"}});
  const SafetensorsFile file(path_);
  EXPECT_EQ(file.metadata(), (StringMap{{"format", "pt"}, {"weft", "apply/1"}}));
  EXPECT_EQ(file.entries().size(), 6u);
  EXPECT_EQ(std::memcmp(file.read("a", Dtype::f64).as<double>(), f64.data(), 24), 0);
  EXPECT_EQ(std::memcmp(file.read("w", Dtype::f32).as<float>(), f32.data(), 24), 0);
  EXPECT_EQ(std::memcmp(file.read("b.half", Dtype::bf16).as<bf16>(), half.data(), 6), 0);
  EXPECT_EQ(std::memcmp(file.read("i", Dtype::i32).as<int32_t>(), i32.data(), 8), 0);
  EXPECT_EQ(file.read("s", Dtype::f32).as<float>()[0], 42);
  EXPECT_EQ(file.read("s", Dtype::f32).shape, std::vector<int64_t>());
  EXPECT_EQ(file.read("none", Dtype::f32).shape, (std::vector<int64_t>{0, 7}));
  EXPECT_EQ(file.find("absent"), nullptr);
  expect_error(Exit::data, {"absent", path_}, [&] { file.read("absent", Dtype::f32); });
  for (const SafetensorsEntry& entry : file.entries())
    EXPECT_EQ(reinterpret_cast<uintptr_t>(file.bytes(entry).data()) % (entry.dtype == "F64" ? 8 : 2), 0u)
        << entry.name;
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()), {}), 1)
      << "a temporary file remains";
}

TEST_F(SafetensorsTest, WritesTheseBytes) {
  const std::vector<int32_t> i32 = {1, 2};
  write_safetensors(path_, {{"t", Dtype::i32, {2}, i32.data()}}, {{"format", "pt"}});
  std::string header =
      R"({"__metadata__":{"format":"pt"},"t":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  EXPECT_EQ(read_bytes(path_), file_of(header, bytes_of(i32)));
}

TEST_F(SafetensorsTest, ConvertsEveryIntegerAndFloatType) {
  const std::string header = R"({"h":{"dtype":"F16","shape":[8],"data_offsets":[0,16]},)"
                             R"("l":{"dtype":"I64","shape":[2],"data_offsets":[16,32]},)"
                             R"("u":{"dtype":"U8","shape":[2],"data_offsets":[32,34]},)"
                             R"("b":{"dtype":"BOOL","shape":[2],"data_offsets":[34,36]},)"
                             R"("q":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[36,37]},)"
                             R"("big":{"dtype":"I64","shape":[1],"data_offsets":[37,45]},)"
                             R"("d":{"dtype":"F64","shape":[1],"data_offsets":[45,53]},)"
                             R"("x":{"dtype":"U64","shape":[1],"data_offsets":[53,61]}})";
  const SafetensorsFile file =
      load(header, bytes_of<uint16_t>({0x3c00, 0xc000, 0x0001, 0x8001, 0x7bff, 0x7c00, 0x7e00, 0x03ff}) +
                       bytes_of<int64_t>({-5, 2147483647}) + bytes_of<uint8_t>({0, 255, 1, 0, 0x38}) +
                       bytes_of<int64_t>({2147483648}) + bytes_of<double>({0.1}) +
                       bytes_of<uint64_t>({18446744073709551615u}));
  const OwnedArray half = file.read("h", Dtype::f32);
  const float* h = half.as<float>();
  EXPECT_EQ(h[0], 1.0f);
  EXPECT_EQ(h[1], -2.0f);
  EXPECT_EQ(h[2], std::ldexp(1.0f, -24));
  EXPECT_EQ(h[3], -std::ldexp(1.0f, -24));
  EXPECT_EQ(h[4], 65504.0f);
  EXPECT_TRUE(std::isinf(h[5]));
  EXPECT_TRUE(std::isnan(h[6]));
  EXPECT_EQ(h[7], 1023 * std::ldexp(1.0f, -24));
  EXPECT_EQ(file.read("l", Dtype::i32).as<int32_t>()[0], -5);
  EXPECT_EQ(file.read("l", Dtype::f64).as<double>()[1], 2147483647.0);
  EXPECT_EQ(file.read("u", Dtype::i32).as<int32_t>()[1], 255);
  EXPECT_EQ(static_cast<float>(file.read("b", Dtype::bf16).as<bf16>()[0]), 1.0f);
  EXPECT_EQ(file.read("d", Dtype::f32).as<float>()[0], 0.1f);
  EXPECT_EQ(file.read("d", Dtype::f64).as<double>()[0], 0.1);
  EXPECT_EQ(file.read("x", Dtype::f64).as<double>()[0], 18446744073709551615.0);
  expect_error(Exit::data, {"big", "2147483648"}, [&] { file.read("big", Dtype::i32); });
  expect_error(Exit::data, {"x", "18446744073709551615"}, [&] { file.read("x", Dtype::i32); });
  expect_error(Exit::data, {"q", "F8_E4M3"}, [&] { file.read("q", Dtype::f32); });
  expect_error(Exit::data, {"h", "integers"}, [&] { file.read("h", Dtype::i32); });
}

TEST_F(SafetensorsTest, AcceptsWhatTheFormatAllows) {
  EXPECT_TRUE(load("{}", "").entries().empty());
  EXPECT_TRUE(load("{}      ", "").entries().empty());
  EXPECT_TRUE(load(R"({"__metadata__":null})", "").metadata().empty());
  EXPECT_EQ(load(R"({"t":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", "x").entries()[0].count(), 2);
  EXPECT_EQ(load(R"({"t":{"note":{"a":[1,{}]},"dtype":"U8","shape":[],"data_offsets":[0,1]}})", "x")
                .entries()
                .size(),
            1u);
  // Empty tensors may share a place with the one that follows.
  EXPECT_EQ(load(R"({"z":{"dtype":"F32","shape":[0,9000000000],"data_offsets":[0,0]},)"
                 R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                 "x")
                .entries()
                .size(),
            2u);
}

TEST_F(SafetensorsTest, RefusesLyingHeaders) {
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  const std::string four = tensor("U8", "[4]", "[0,4]");
  refused("", {"0 bytes"});
  refused("1234567", {"7 bytes"});
  refused(bytes_of<uint64_t>({0}), {"does not start with {"});
  refused(bytes_of<uint64_t>({uint64_t{1} << 63}) + "{}", {"length"});
  refused(bytes_of<uint64_t>({~uint64_t{0}}) + "{}", {"length"});
  refused(bytes_of<uint64_t>({100'000'001}) + "{}", {"100000000"});
  refused(bytes_of<uint64_t>({3}) + "{}", {"length of 3"});
  refused(file_of(" {}", ""), {"does not start with {"});
  refused(file_of("[]", ""), {"does not start with {"});
  refused(file_of("{", ""), {"JSON"});
  refused(file_of("{}}", ""), {"JSON"});
  refused(file_of("{\"\xff\":1}", ""), {"JSON"});
  refused(file_of("{\"a\":" + four + "}", "123"), {"a", "ends at byte 4 of 3"});
  refused(file_of("{\"a\":" + four + "}", "12345"), {"1 bytes after the last tensor"});
  refused(file_of("{\"a\":" + four + ",\"b\":" + tensor("U8", "[3]", "[2,5]") + "}", "12345"),
          {"b: overlaps"});
  refused(file_of("{\"a\":" + four + ",\"b\":" + tensor("U8", "[1]", "[5,6]") + "}", "123456"),
          {"b: leaves a hole"});
  refused(file_of("{\"a\":" + four + ",\"a\":" + four + "}", "1234"), {"a", "twice"});
  refused(file_of("{\"a\":" + tensor("F32", "[4]", "[0,4]") + "}", "1234"), {"a", "needs 16 bytes"});
  refused(file_of("{\"a\":" + tensor("F33", "[1]", "[0,4]") + "}", "1234"), {"a", "unknown dtype F33"});
  refused(file_of("{\"a\":" + tensor("F4", "[3]", "[0,1]") + "}", "1"), {"a", "whole bytes"});
  refused(file_of("{\"a\":" + tensor("U8", "[4294967296,4294967296]", "[0,0]") + "}", ""),
          {"a", "overflows"});
  refused(file_of("{\"a\":" + tensor("F64", "[2305843009213693952]", "[0,0]") + "}", ""), {"a", "overflows"});
  refused(file_of("{\"a\":" + tensor("U8", "[9223372036854775808]", "[0,0]") + "}", ""), {"a", "too large"});
  refused(file_of("{\"a\":" + tensor("U8", "[99999999999999999999999]", "[0,0]") + "}", ""),
          {"a", "wrong type"});
  refused(file_of("{\"a\":" + tensor("U8", "[-4]", "[0,4]") + "}", "1234"), {"a", "wrong type"});
  refused(file_of("{\"a\":" + tensor("U8", "[4.0]", "[0,4]") + "}", "1234"), {"a", "wrong type"});
  refused(file_of("{\"a\":" + tensor("U8", "[[4]]", "[0,4]") + "}", "1234"), {"a", "array"});
  refused(file_of("{\"a\":" + tensor("U8", "4", "[0,4]") + "}", "1234"), {"a", "number"});
  refused(file_of("{\"a\":" + tensor("U8", "[4]", "[4,0]") + "}", "1234"), {"a", "backwards"});
  refused(file_of("{\"a\":" + tensor("U8", "[4]", "[0,4,4]") + "}", "1234"), {"a", "two numbers"});
  refused(file_of("{\"a\":" + tensor("U8", "[4]", "[0]") + "}", "1234"), {"a", "two numbers"});
  refused(file_of("{\"a\":" + tensor("U8", "[4]", "[0,18446744073709551615]") + "}", "1234"), {"a"});
  refused(file_of(R"({"a":{"dtype":"U8","shape":[4]}})", "1234"), {"a", "needs dtype"});
  refused(file_of(R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "1234"),
          {"a", "twice"});
  refused(file_of(R"({"a":5})", ""), {"a", "number"});
  refused(file_of(R"({"__metadata__":{"a":1}})", ""), {"number"});
  refused(file_of(R"({"__metadata__":{"a":{}}})", ""), {"object"});
  refused(file_of(R"({"__metadata__":{"a":"1","a":"1"}})", ""), {"twice"});
  const std::string deep(1'000'000, '[');
  refused(file_of("{\"a\":" + deep, ""), {"a"});
  refused(file_of("{\"a\":{\"x\":" + deep, ""), {"a", "too deeply"});
  expect_error(Exit::data, {folder_ / "none"}, [&] { SafetensorsFile(folder_ / "none"); });
  expect_error(Exit::data, {"regular"}, [&] { SafetensorsFile(folder_.path()); });
}

// Whatever a mutation does, the reader refuses with Exit::data, or what it accepts tiles the data exactly.
TEST_F(SafetensorsTest, Fuzz) {
  const std::vector<float> values(64, 1.0f);
  write_safetensors(path_,
                    {{"layer.weight", Dtype::f32, {4, 8}, values.data()},
                     {"layer.bias", Dtype::bf16, {8}, values.data()},
                     {"steps", Dtype::i32, {2}, values.data()},
                     {"empty", Dtype::f64, {0}, values.data()}},
                    {{"format", "pt"}, {"note", "\"\\u00e9"}});
  const std::string good = read_bytes(path_);
  const int memory = ::memfd_create("fuzz", 0);  // a disk would take minutes
  const std::string path = text("/proc/self/fd/", memory);
  std::mt19937 random(1);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  const std::string tokens = "{}[]:,\"0123456789-.eE\\ntfu \xff";
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bad = good;
    for (size_t change = 0; change <= below(3); ++change) {
      const size_t at = below(10) == 0 ? below(bad.size()) : below(std::min<size_t>(bad.size(), 340));
      switch (below(6)) {
        case 0: bad[at] = static_cast<char>(bad[at] ^ (1 << below(8))); break;
        case 1: bad[at] = tokens[below(tokens.size())]; break;
        case 2: bad.erase(at, 1 + below(8)); break;
        case 3: bad.insert(at, 1, tokens[below(tokens.size())]); break;
        case 4: bad.insert(at, bad.substr(below(bad.size()), below(40))); break;
        case 5: bad.resize(at); break;
      }
      if (bad.empty()) break;
      // Half the time the length is put right, so that the mutation reaches the JSON.
      if (bad.size() > 8 && bad.size() != good.size() && below(2) == 0) {
        const size_t data = good.size() - 8 - static_cast<unsigned char>(good[0]) -
                            256u * static_cast<unsigned char>(good[1]);
        const uint64_t length = bad.size() - 8 > data ? bad.size() - 8 - data : 0;
        std::memcpy(bad.data(), &length, 8);
      }
    }
    ASSERT_EQ(::ftruncate(memory, 0), 0);
    ASSERT_EQ(::pwrite(memory, bad.data(), bad.size(), 0), std::ssize(bad));
    try {
      const SafetensorsFile file(path);
      ++accepted;
      uint64_t total = 0;
      for (const SafetensorsEntry& entry : file.entries()) total += file.bytes(entry).size();
      uint64_t length = 0;
      std::memcpy(&length, bad.data(), 8);
      ASSERT_EQ(8 + length + total, bad.size());
    } catch (const Error& error) {
      ASSERT_EQ(error.code, Exit::data) << error.what();
    }
  }
  ::close(memory);
  EXPECT_GT(accepted, 20) << "the mutations never reach past the first check";
}

TEST_F(SafetensorsTest, AFailedWriteLeavesTheOldFile) {
  const std::vector<float> values(1, 1.0f);
  expect_error(Exit::cannot_create, {"missing"}, [&] {
    write_safetensors(folder_ / "missing/a.safetensors", {{"a", Dtype::f32, {1}, values.data()}}, {});
  });
  write_safetensors(path_, {{"a", Dtype::f32, {1}, values.data()}}, {});
  const std::string before = read_bytes(path_);
  EXPECT_THROW(write_safetensors(
                   path_, {{"a", Dtype::f32, {1}, values.data()}, {"a", Dtype::f32, {1}, values.data()}}, {}),
               Error);
  EXPECT_EQ(read_bytes(path_), before);
}

}  // namespace
}  // namespace weft
