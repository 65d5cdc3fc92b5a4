// The command around the function: flags, files, errors with their exit codes, and what it says of a
// mechanism.

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "tests/attention/conformance.h"
#include "tests/tools/apply_files.h"
#include "tools/apply.h"

namespace weft {
namespace {

using Json = nlohmann::json;
using Words = std::vector<std::string>;

ApplyCase gla() { return {"simple_gla", "", 2, 9}; }

TEST(ApplyCommand, Errors) {
  const ApplyCase c = gla();
  const auto with = [&](const std::string& name, const Tensor& value) {
    Tensors in = c.in;
    in[name] = value;
    return in;
  };
  const Tensor wrong = random_tensor({2, 9, 4}, 1);
  struct Row {
    Words words;
    Tensors in;
    Exit code;
    std::vector<std::string> says;  // in the message, the place or the advice
  };
  const Tensors& ok = c.in;
  const std::vector<Row> table{
      {{"simple_gal"}, ok, Exit::usage, {"simple_gal", "simple_gla"}},
      {{"simple_gla", "--dtyp", "f32"}, ok, Exit::usage, {"--dtyp", "--dtype"}},
      {{"simple_gla", "--dtype", "f16"}, ok, Exit::usage, {"f16", "bf16"}},
      {{"simple_gla", "--chunk", "0"}, ok, Exit::usage, {"--chunk"}},
      {{"simple_gla", "--chunk", "3x"}, ok, Exit::usage, {"3x"}},
      {{"simple_gla", "--init", "-1"}, ok, Exit::usage, {"--init"}},
      {{"simple_gla", "--mode", "decode"}, ok, Exit::usage, {"decode:"}},
      {{"simple_gla", "--segments", "0"}, ok, Exit::usage, {"--segments"}},
      {{"simple_gla", "--segments", "2:zagzig"}, ok, Exit::usage, {"zagzig", "zigzag"}},
      {{"simple_gla", "--segments", "2:zigzag:rings"}, ok, Exit::usage, {"rings", "ring"}},
      {{"simple_gla", "--reference=yes"}, ok, Exit::usage, {"--reference"}},
      {{"simple_gla", "scale"}, ok, Exit::usage, {"scale"}},
      {{"sliding_window", "window=99999999999"}, ok, Exit::recipe, {"window"}},
      {{"simple_gla", "scal=1"}, ok, Exit::recipe, {"scal", "scale"}},
      {{"simple_gla", "scale=x"}, ok, Exit::recipe, {"scale"}},
      {{"simple_gla", "causal=true"}, ok, Exit::recipe, {"causal"}},
      {{"simple_gla", "--mode", "decode:10"}, c.without({"dy", "dstate."}), Exit::recipe, {"10", "9"}},
      {{"simple_gla", "--mode", "decode:3", "--reference"}, ok, Exit::recipe, {"--reference"}},
      {{"simple_gla", "--segments", "2", "--reference"}, ok, Exit::recipe, {"--segments"}},
      {{"simple_gla", "--segments", "2", "--mode", "decode:3"}, ok, Exit::recipe, {"--segments"}},
#ifndef WEFT_CUDA
      {{"simple_gla", "--device", "cuda"}, ok, Exit::recipe, {"--device"}},
#endif
      {{"simple_gla"}, c.without({"v"}), Exit::data, {"v is missing", "(2, 9, 3, Dv)"}},
      {{"simple_gla"}, c.without({"g"}), Exit::data, {"g is missing", "(2, 9, 3)"}},
      {{"simple_gla"}, {}, Exit::data, {"q is missing", "(B, T, H, Dk)"}},
      {{"simple_gla"},
       with("k", random_tensor({2, 9, 2, 4}, 1)),
       Exit::data,
       {"(2, 9, 2, 4)", "(2, 9, 3, 4)"}},
      {{"simple_gla"}, with("q", random_tensor({2, 9, 12}, 1)), Exit::data, {"(2, 9, 12)", "B T H Dk"}},
      {{"simple_gla"}, with("g", wrong), Exit::data, {"(2, 9, 4)", "(2, 9, 3)"}},
      {{"simple_gla"}, with("g", random_tensor({4}, 1)), Exit::data, {"(4)", "(3)"}},
      {{"simple_gla"}, with("beta", wrong), Exit::data, {"beta", "(2, 9, 4)"}},
      {{"simple_gla"}, with("dy", wrong), Exit::data, {"(2, 9, 4)", "(2, 9, 3, 6)"}},
      {{"simple_gla"}, with("state0.S", wrong), Exit::data, {"(2, 9, 4)", "(2, 3, 4, 6)"}},
      {{"simple_gla"}, with("state0.s", wrong), Exit::data, {"state0.s", "state0.S"}},
      {{"simple_gla"}, with("doc", from_ints({1, 2})), Exit::data, {"(2)", "(2, 9)"}},
      {{"simple_gla"}, with("doc", random_tensor({2, 9}, 1)), Exit::data, {"doc", "I64"}},
      {{"simple_gla"},
       with("doc", from_ints({0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}).reshape({2, 9})),
       Exit::data,
       {"row 0, token 5"}},
      {{"simple_gla"},
       with("q", from_ints(std::vector<int32_t>(216, 1)).reshape({2, 9, 3, 4})),
       Exit::data,
       {"I32"}},
      {{"simple_gla"}, with("q", random_tensor({2, 0, 3, 4}, 1)), Exit::data, {"(2, 0, 3, 4)"}},
      {{"moh", "heads=3"}, {{"x", random_tensor({1, 2, 8}, 1)}}, Exit::recipe, {"3 heads", "divisors"}},
      {{"mega", "bias=rotary", "z_size=3"}, {{"x", random_tensor({1, 2, 8}, 1)}}, Exit::recipe, {"even"}},
  };
  for (const Row& row : table) {
    const Error e = apply_error(row.words, row.in);
    std::string command, all = std::string(e.what()) + " | " + e.where + " | " + e.advice;
    for (const std::string& w : row.words) command += w + " ";
    EXPECT_EQ(static_cast<int>(e.code), static_cast<int>(row.code)) << command << ": " << all;
    for (const std::string& words : row.says)
      EXPECT_NE(all.find(words), std::string::npos) << command << ": " << all;
    EXPECT_FALSE(e.where.empty() || e.advice.empty())
        << command << "does not say where, or what to do: " << all;
  }
}

TEST(ApplyCommand, MoreErrors) {
  const ApplyCase sink("softmax", "sink=true", 2, 9);
  const Error missing = apply_error(sink.words({}), sink.without({"p."}));
  EXPECT_EQ(missing.code, Exit::data);
  EXPECT_NE(missing.advice.find("(4)"), std::string::npos) << missing.advice;
  for (const char* id : {"softmax", "sparsek"}) {
    Tensors odd;
    for (const char* name : {"q", "k", "v"}) odd[name] = random_tensor({1, 2, 1, 3}, 1);
    if (id == std::string("sparsek")) odd["u"] = random_tensor({1, 2, 1}, 4);
    const Error rope = apply_error({id, "position=rope"}, odd);
    EXPECT_EQ(rope.code, Exit::recipe);
    EXPECT_NE(rope.advice.find("position=none"), std::string::npos) << rope.advice;
  }
  EXPECT_EQ(apply_error({"softmax"}, {{"q", random_tensor({1, 2, 3, 4}, 1)},
                                      {"k", random_tensor({1, 2, 2, 4}, 2)},
                                      {"v", random_tensor({1, 2, 2, 4}, 3)}})
                .code,
            Exit::data);
  const auto code_of = [](const Words& words) {
    try {
      run_apply(words);
    } catch (const Error& e) {
      EXPECT_FALSE(e.where.empty() || e.advice.empty()) << e.what();
      return e.code;
    }
    return Exit::ok;
  };
  EXPECT_EQ(code_of({}), Exit::usage);
  EXPECT_EQ(code_of({"softmax", "--in", "a"}), Exit::usage);
  EXPECT_EQ(code_of({"softmax", "--in"}), Exit::usage);
  EXPECT_EQ(code_of({"softmax", "--in", "/nowhere/a", "--out", "b"}), Exit::data);
}

TEST(ApplyCommand, AFailureLeavesTheOldFile) {
  const ApplyFolder folder;
  ApplyCase c = gla();
  write_tensors(folder.path("a"), c.in);
  write_tensors(folder.path("b"), {{"old", full({2}, 1, Dtype::f32)}});
  c.in.erase("q");
  write_tensors(folder.path("broken"), c.in);
  EXPECT_THROW(run_apply({"simple_gla", "--in", folder.path("broken"), "--out", folder.path("b")}), Error);
  EXPECT_EQ(read_tensors(folder.path("b")).count("old"), 1u);
  EXPECT_EQ(run_apply({"simple_gla", "--in", folder.path("a"), "--out", folder.path("b")}), 0);
  EXPECT_EQ(read_tensors(folder.path("b")).count("y"), 1u);
  try {
    run_apply({"simple_gla", "--in", folder.path("a"), "--out", folder.path("no/such/folder/b")});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::cannot_create);
  }
}

TEST(ApplyCommand, OnlyAFileIsReplaced) {
  const ApplyFolder folder;
  const ApplyCase c = gla();
  write_tensors(folder.path("a"), c.in);
  std::filesystem::create_directory(folder.path("folder"));
  ASSERT_EQ(mkfifo(folder.path("pipe").c_str(), 0600), 0);
  for (const char* name : {"folder", "pipe"}) {
    try {
      run_apply(c.words({"--in", folder.path("a"), "--out", folder.path(name)}));
      ADD_FAILURE() << name << " was replaced";
    } catch (const Error& e) {
      EXPECT_EQ(e.code, Exit::cannot_create) << e.what();
    }
    EXPECT_FALSE(std::filesystem::is_regular_file(folder.path(name)));
  }
  EXPECT_EQ(folder.names(), (Words{"a", "folder", "pipe"})) << "and nothing beside it";
}

TEST(ApplyCommand, Metadata) {
  const ApplyFolder folder;
  const ApplyCase c("lightning", "", 2, 9);
  write_tensors(folder.path("a"), c.in);
  const auto metadata = [&](const Words& words) {
    Words all{"--in", folder.path("a"), "--out", folder.path("b")};
    all.insert(all.end(), words.begin(), words.end());
    run_apply(all);
    return SafetensorsFile(folder.path("b")).metadata();
  };
  StringMap m = metadata({"retention", "scale=0.5", "normalize=off"});
  EXPECT_EQ(m.at("format"), "pt");
  EXPECT_EQ(m.at("weft"), "apply/1");
  EXPECT_EQ(m.at("mechanism"), "lightning");
  EXPECT_EQ(m.at("path"), "fused");
  EXPECT_EQ(metadata({"lightning", "--dtype", "f64"}).at("path"),
            best_device() == Device::cuda ? "derived" : "fused")
      << "no kernel of a GPU computes in f64";
  EXPECT_EQ(metadata({"lightning", "--segments", "2"}).at("path"), "derived") << "a scan over ranks";
  EXPECT_EQ(Json::parse(m.at("attributes")), Json({{"scale", 0.5},
                                                   {"chunk", 64},
                                                   {"feature_map", "identity"},
                                                   {"normalize", false},
                                                   {"decay", "alibi"}}));
  EXPECT_EQ(metadata({"lightning", "--reference"}).at("path"), "reference");
  write_tensors(folder.path("a"), ApplyCase("softmax", "", 2, 9).in);
  EXPECT_EQ(metadata({"softmax"}).at("path"), "fused");
}

// One decay a head is that decay at every token; its gradient is the sum. Without g lightning has its own.
TEST(ApplyCommand, DecayAHead) {
  for (const char* dtype : {"f64", "bf16"}) {
    ApplyCase c("lightning", "", 2, 9);
    const Tensor slopes = from_values({3}, Dtype::f64, {-0.5, -0.25, -0.0625});
    std::vector<double> repeated;
    for (int t = 0; t < 18; ++t) repeated.insert(repeated.end(), {-0.5, -0.25, -0.0625});
    c.in["g"] = from_values({2, 9, 3}, Dtype::f64, repeated);
    const Tensors full = apply_to(c.words({"--dtype", dtype}), c.in);
    c.in["g"] = slopes;
    for (const Words& more : {Words{}, {"--segments", "3"}}) {
      Words words = c.words({"--dtype", dtype});
      words.insert(words.end(), more.begin(), more.end());
      Tensors one = apply_to(words, c.in);
      std::vector<double> sum(3), terms = to_values(full.at("grad.g"));
      for (size_t i = 0; i < terms.size(); ++i) sum[i % 3] += terms[i];
      EXPECT_EQ(one.at("grad.g").dtype(), full.at("grad.g").dtype());
      EXPECT_LE(difference(one.at("grad.g"), from_values({3}, Dtype::f64, sum)),
                dtype == std::string("f64") ? 1e-10 : 0.05);
      one.erase("grad.g");
      Tensors rest = full;
      rest.erase("grad.g");
      expect_same(one, rest, dtype == std::string("f64") ? 1e-10 : 0.05, "per head");
    }
  }
  ApplyCase c("lightning", "", 2, 9);
  c.in["g"] = from_values({3}, Dtype::f64, {-0.0625, -0.00390625, -0.25});  // ALiBi's slopes of three heads
  Tensors given = apply_to(c.words({"--dtype", "f64"}), c.in);
  given.erase("grad.g");
  c.in.erase("g");
  expect_same(apply_to(c.words({"--dtype", "f64"}), c.in), given, 1e-12, "its own decay");
}

// A token that forgets all before it begins as a document does, however far below e^g = 0 its g is.
class DecayOfNothing : public testing::TestWithParam<std::tuple<const char*, const char*, double>> {};
INSTANTIATE_TEST_SUITE_P(
    Gated, DecayOfNothing,
    testing::Combine(testing::Values("simple_gla", "lightning", "gla", "regla", "gated_delta_rule"),
                     testing::Values("f64", "f32"), testing::Values(-1e4, -1e30, -HUGE_VAL)));

TEST_P(DecayOfNothing, IsABorder) {
  const auto& [id, dtype, nothing] = GetParam();
  const int64_t tokens = 21;
  const ApplyCase c(id, "", 1, tokens);
  Tensors bordered = c.without({"state0.", "dstate.", "doc"});
  bordered["k"] = scale(abs(Variable(bordered.at("k"))), -1).value();  // ReGLA's unit is that of larger ones
  Tensors plain = bordered;
  const Shape shape = plain.at("g").shape();
  std::vector<double> g = to_values(random_tensor(shape, 7));
  std::vector<int32_t> doc;
  for (double& value : g) value = -std::abs(value) / 8;
  for (int64_t t = 0; t < tokens; ++t) doc.push_back(t < 5 ? 0 : t < 12 ? 1 : 2);
  bordered["g"] = from_values(shape, Dtype::f64, g);
  bordered["doc"] = from_ints(doc).reshape({1, tokens});
  const auto row = static_cast<int64_t>(g.size()) / tokens;
  for (const int64_t t : {5, 12}) std::fill_n(g.begin() + t * row, row, nothing);
  plain["g"] = from_values(shape, Dtype::f64, g);
  const Tensors expected = apply_to(c.words({"--dtype", dtype}), bordered);
  for (const Words& more : {Words{}, {"--reference"}, {"--mode", "decode:8"}, {"--segments", "2"}}) {
    Words words = c.words({"--dtype", dtype});
    words.insert(words.end(), more.begin(), more.end());
    for (const auto& [name, value] : apply_to(words, plain)) {
      EXPECT_LE(difference(value, expected.at(name)), 10 * tolerance::of(value.dtype()))
          << id << " " << dtype << " " << nothing << " " << (more.empty() ? "" : more[0]) << " " << name;
    }
  }
}

TEST(ApplyCommand, InitDrawsWhatIsMissing) {
  ApplyCase c("softmax", "qk_norm=true sink=true", 2, 9);
  c.in.erase("p.q_norm");
  c.in.erase("p.sink");
  const Tensors out = apply_to(c.words({"--dtype", "bf16", "--init", "5"}), c.in);
  EXPECT_EQ(out.count("p.k_norm"), 0u);  // the file has it
  ASSERT_EQ(out.count("p.q_norm"), 1u);
  ASSERT_EQ(out.count("p.sink"), 1u);
  EXPECT_EQ(out.at("p.sink").dtype(), Dtype::f32);
  Tensors again = c.in;
  for (const char* name : {"p.q_norm", "p.sink"}) again[name] = out.at(name);
  Tensors expected = out;
  expected.erase("p.q_norm");
  expected.erase("p.sink");
  expect_same(apply_to(c.words({"--dtype", "bf16"}), again), expected, 0, "with what was drawn");
}

TEST(ApplyCommand, InputsOfAnyWidth) {
  const ApplyCase c("softmax", "", 2, 9);
  Tensors narrow, wide;
  for (const auto& [name, value] : c.in) {
    narrow[name] = value.dtype() == Dtype::i32 ? value : value.to(Dtype::bf16);
    wide[name] = value.dtype() == Dtype::i32 ? value : narrow[name].to(Dtype::f64);
  }
  expect_same(apply_to({"softmax"}, narrow), apply_to({"softmax"}, wide), 0, "bf16 and f64 in the file");
}

// The conformance suite cannot hold this: what a weight of 1 passes on is no slope of it.
TEST(ApplyCommand, TheDefinitionPassesGradientsStraightThroughToo) {
  for (const char* attributes :
       {"heads=4 shared=1 top_k=2 router=norm", "heads=4 kv_heads=2 router=norm position=rope"}) {
    const ApplyCase c("moh", attributes, 2, 9);
    const Tensors fast = apply_to(c.words({"--dtype", "f64"}), c.in);
    expect_same(apply_to(c.words({"--dtype", "f64", "--reference"}), c.in), fast, 1e-10, attributes);
    Words cut = c.words({"--dtype", "f64"});
    cut.push_back("straight_through=false");
    EXPECT_GT(difference(apply_to(cut, c.in).at("grad.x"), fast.at("grad.x")), 1e-3) << attributes;
  }
}

TEST(ApplyCommand, DecodingGivesNoGradients) {
  const ApplyCase c = gla();
  const Words decode = c.words({"--mode", "decode:3", "--dtype", "f64"});
  expect_same(apply_to(decode, c.in), apply_to(decode, c.without({"dy", "dstate."})), 0,
              "adjoints in the file");
}

TEST(ApplyCommand, WithoutAdjointsNoGradients) {
  const ApplyCase c = gla();
  for (const Words& absent : {Words{"dy", "dstate."}, {"dy"}}) {
    const Tensors out = apply_to(c.words({}), c.without(absent));
    EXPECT_EQ(out.size(), 2u);
    EXPECT_EQ(out.count("y") + out.count("state.S"), 2u);
  }
}

std::string printed(const Words& words) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_apply(words), 0);
  return testing::internal::GetCapturedStdout();
}

TEST(ApplyCommand, Describe) {
  for (const MechanismEntry& entry : mechanisms()) {
    const std::string line = printed({entry.id, "--describe", "--json"});
    EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
    const Json j = Json::parse(line);
    EXPECT_EQ(j.at("weft"), "describe/1");
    EXPECT_EQ(j.at("id"), entry.id);
    EXPECT_EQ(j.at("aliases"), Json(entry.aliases));
    for (const char* key : {"attributes", "inputs", "optional", "parameters", "states"})
      EXPECT_TRUE(j.contains(key));
    for (const auto& [name, a] : j.at("attributes").items()) {
      const std::string type = a.at("type");
      EXPECT_TRUE(!a.at("help").get<std::string>().empty()) << name;
      const Json& value = a.at("default");
      EXPECT_TRUE(type == "int"     ? value.is_number_integer()
                  : type == "float" ? value.is_number()
                  : type == "bool"  ? value.is_boolean()
                                    : value.is_string())
          << entry.id << " " << name;
    }
    EXPECT_FALSE(printed({entry.id, "--describe"}).empty());
  }
}

TEST(ApplyCommand, DescribeShapes) {
  const auto of = [](Words words) {
    words.insert(words.end(), {"--describe", "--json"});
    return Json::parse(printed(words));
  };
  const Json softmax = of({"softmax", "qk_norm=true", "sink=true"});
  EXPECT_EQ(softmax.at("inputs"), Json({{"q", "B T H Dk"}, {"k", "B T Hkv Dk"}, {"v", "B T Hkv Dv"}}));
  EXPECT_EQ(softmax.at("parameters"), Json({{"q_norm", "Dk"}, {"k_norm", "Dk"}, {"sink", "H"}}));
  EXPECT_TRUE(softmax.at("states").empty());
  EXPECT_EQ(softmax.at("optional"), Json({"doc"}));
  EXPECT_EQ(softmax.at("attributes").at("scale").at("type"), "float");
  EXPECT_TRUE(of({"softmax"}).at("parameters").empty());
  const Json lightning = of({"tnl_lightning"});
  EXPECT_EQ(lightning.at("id"), "lightning");
  EXPECT_EQ(lightning.at("inputs").at("g"), "B T H");
  EXPECT_EQ(lightning.at("optional"), Json({"g", "doc", "state0.S"}));
  EXPECT_EQ(lightning.at("states").at("S"), "B H Dk Dv");
  EXPECT_EQ(of({"linear", "normalize=true"}).at("states").at("S"), "B H Dk Dv+1");
  EXPECT_EQ(of({"based"}).at("states").at("S"), "B H f(Dk) Dv+1");
  EXPECT_EQ(of({"delta_rule"}).at("states").at("S"), "B H Dk Dv");
}

// A width of 15 has 3 or 5 heads, whatever the sizes with which shapes are looked at.
TEST(ApplyCommand, AnyNumberOfHeadsThatDividesTheWidth) {
  for (const Words& of : {Words{"moh"}, Words{"transnormer_llm"}, Words{"titans_mac", "position=none"}})
    for (const char* heads : {"heads=3", "heads=5"}) {
      Words words = of, described = of;
      words.insert(words.end(), {heads, "--init", "1"});
      described.insert(described.end(), {heads, "--describe"});
      EXPECT_EQ(apply_to(words, {{"x", random_tensor({1, 7, 15}, 1)}}).at("y").shape(), (Shape{1, 7, 15}))
          << of[0] << " " << heads;
      EXPECT_FALSE(printed(described).empty()) << of[0] << " " << heads;
    }
}

TEST(ApplyCommand, JsonIsOneLine) {
  const ApplyFolder folder;
  write_tensors(folder.path("a"), gla().in);
  const std::string line =
      printed({"simple_gla", "--json", "--in", folder.path("a"), "--out", folder.path("b")});
  EXPECT_EQ(Json::parse(line), Json({{"weft", "apply/1"}, {"exit", 0}}));
  EXPECT_EQ(line.back(), '\n');
}

}  // namespace
}  // namespace weft
