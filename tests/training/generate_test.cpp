// `weft generate`: text that depends on the model, the prompt and the seed alone.

#include <gtest/gtest.h>

#include "tests/training/tiny_run.h"

#include <algorithm>
#include <set>

#include "training/checkpoint/safetensors.h"

namespace weft {
namespace {

class Generate : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    tiny_ = new TinyRun;
    ASSERT_EQ(tiny_->train({"steps=40", "optim.lr=0.01"}).code, 0);
  }
  static void TearDownTestSuite() { delete tiny_; }

  static std::string text(Words words) {
    words.insert(words.begin(), {"generate", "runs/tiny"});
    const Ran ran = tiny_->weft(words);
    EXPECT_EQ(ran.code, 0) << ran.err;
    return ran.out;
  }

  static TinyRun* tiny_;
};
TinyRun* Generate::tiny_ = nullptr;

TEST_F(Generate, IsAFunctionOfTheSeed) {
  const Words words{"--prompt", "Once upon", "--tokens", "40", "--seed"};
  const auto seeded = [&](const char* seed) {
    Words all = words;
    all.push_back(seed);
    return text(all);
  };
  const std::string first = seeded("1");
  EXPECT_EQ(first.substr(0, 9), "Once upon");
  EXPECT_EQ(first.back(), '\n');
  EXPECT_EQ(seeded("1"), first);
  EXPECT_NE(seeded("2"), first);
  EXPECT_EQ(text({"--prompt", "Once upon", "--tokens", "40", "--top-k", "1", "--seed", "3"}),
            text({"--prompt", "Once upon", "--tokens", "40", "--temperature", "0"}));
  EXPECT_EQ(text({"--prompt", "Once upon", "--tokens", "40", "--top-p", "1e-9", "--seed", "3"}),
            text({"--prompt", "Once upon", "--tokens", "40", "--temperature", "0"}));
  EXPECT_EQ(text({"--prompt", "Once upon", "--tokens", "40", "--top-p", "1.0"}), first);
  EXPECT_FALSE(text({"--tokens", "3"}).empty()) << "from nothing";
}

// After anything else it would draw from a state that no loss has read.
TEST_F(Generate, AnEmptyPromptStartsAsTrainingDocumentsDo) {
  const std::string stories = tiny_->folder().read("stories.txt");
  std::set<char> letters{stories[0]}, found;
  for (size_t at = 0; (at = stories.find("\n\n\n", at)) != std::string::npos; at += 3)
    if (at + 3 < stories.size()) letters.insert(stories[at + 3]);
  const auto flags = [](int seed) {
    return Words{"--tokens", "12", "--temperature", "3", "--seed", std::to_string(seed)};
  };
  for (int seed = 1; seed <= 12; ++seed) {
    const std::string out = text(flags(seed));
    EXPECT_TRUE(letters.contains(out[0])) << out;
    found.insert(out[0]);
    Words words = flags(seed);
    words.insert(words.end(), {"--prompt", out.substr(0, 1)});
    EXPECT_EQ(text(words), out);
  }
  EXPECT_GT(found.size(), 1u) << "not always the same document";
  const Ran run = tiny_->train({"run=runs/unprompted", "steps=1", "sample.prompt="});
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string sample = run.json()["sample"];
  EXPECT_TRUE(letters.contains(sample[0])) << sample;
}

TEST_F(Generate, GreedyTakesTheLikeliestTokenEachTime) {
  const std::string out = text({"--prompt", "Tom and ", "--tokens", "24", "--temperature", "0"});
  const std::string whole = out.substr(0, out.size() - 1);
  ASSERT_GT(whole.size(), 12u) << "it says more than the prompt";
  std::vector<int32_t> ids;
  for (const char c : whole) {
    ASSERT_LT(static_cast<unsigned char>(c), 128) << "letters of the stories";
    ids.push_back(c);
  }
  const auto count = static_cast<int64_t>(ids.size());
  write_safetensors(tiny_->folder() / "ids.safetensors", {{"ids", Dtype::i32, {1, count}, ids.data()}}, {});
  const Ran ran = tiny_->weft({"logits", "runs/tiny", "--in", "ids.safetensors", "--out", "l.safetensors"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const OwnedArray logits = SafetensorsFile(tiny_->folder() / "l.safetensors").read("logits", Dtype::f32);
  const int64_t vocab = logits.shape[2];
  for (int64_t t = 7; t + 1 < count; ++t) {
    const float* row = logits.as<float>() + t * vocab;
    EXPECT_EQ(std::max_element(row, row + vocab) - row, ids[static_cast<size_t>(t + 1)])
        << "after token " << t;
  }
}

TEST_F(Generate, SeveralPromptsAreEachAsAlone) {
  const Words prompts{"Tom and ", "Once upon", "T"}, flags{"--tokens", "20", "--temperature", "0.4"};
  const auto with = [&](Words words) {
    words.insert(words.end(), flags.begin(), flags.end());
    return words;
  };
  Words alone, all;
  std::string lines, expected;
  for (const std::string& prompt : prompts) {
    alone.push_back(text(with({"--prompt", prompt})));
    expected += (expected.empty() ? "" : "\n") + alone.back();
    lines += prompt + (prompt == "T" ? "\n" : "\r\n");
    all.insert(all.end(), {"--prompt", prompt});
  }
  EXPECT_EQ(text(with(all)), expected);
  tiny_->folder().write("prompts.txt", lines);
  EXPECT_EQ(text(with({"--prompts", "prompts.txt"})), expected);
  for (const char* wrong : {"missing.txt", "runs"})
    EXPECT_EQ(tiny_->weft({"generate", "runs/tiny", "--prompts", wrong}).code, 65) << wrong;
  all.push_back("--json");
  const Ran ran = tiny_->weft([&] {
    Words words = with(all);
    words.insert(words.begin(), {"generate", "runs/tiny"});
    return words;
  }());
  const nlohmann::json json = ran.json();
  EXPECT_EQ(json["weft"], "generate/1");
  ASSERT_EQ(json["texts"].size(), prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(json["texts"][i]["prompt"], prompts[i]);
    EXPECT_EQ(prompts[i] + json["texts"][i]["text"].get<std::string>() + "\n", alone[i]);
    EXPECT_LE(json["texts"][i]["tokens"], 20);
  }
  EXPECT_EQ(tiny_->weft({"generate", "runs/tiny", "--prompts", "absent.txt"}).code, 65);
}

// A vocabulary rounded up has rows of the embedding that stand for nothing.
TEST_F(Generate, DrawsOnlyTokensThatAreText) {
  const TinyRun padded;
  const Ran ran = padded.train({"steps=1", "model.vocab=4096", "sample.every=1"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(padded.weft({"generate", "runs/tiny", "--tokens", "50"}).code, 0);
}

TEST_F(Generate, Refuses) {
  EXPECT_EQ(tiny_->weft({"generate", "."}).code, 66);
  EXPECT_EQ(tiny_->weft({"generate", "absent"}).code, 66);
  EXPECT_EQ(tiny_->weft({"generate"}).code, 64);
  for (const char* temperature : {"-1", "nan", "inf", "warm", "", "1x"})
    EXPECT_EQ(tiny_->weft({"generate", "runs/tiny", "--temperature", temperature}).code, 64) << temperature;
  for (const char* top_p : {"-0.1", "0", "1.01", "nan", "inf", "most", "", "0.9x"})
    EXPECT_EQ(tiny_->weft({"generate", "runs/tiny", "--top-p", top_p}).code, 64) << top_p;
  EXPECT_EQ(tiny_->weft({"generate", "runs/tiny", "--top-k", "-1"}).code, 64);
  EXPECT_EQ(tiny_->weft({"generate", "runs/tiny", "--tokens", "0"}).code, 64);
  EXPECT_EQ(tiny_->weft({"generate", "runs/tiny", "--seed", "4294967296"}).code, 64) << "32 bits";
}

}  // namespace
}  // namespace weft
