// What each command does when it goes well.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/tools/program.h"
#include "training/checkpoint/files.h"
#include "training/data/stories.h"
#include "training/data/tokenizer.h"
#include "training/recipe/load.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

TEST(Ls, KnowsRecipesAndMechanisms) {
  const TestFolder folder;
  folder.write("recipes/small.yaml",
               "# a small one\nmodel:\n  layers: [linear, softmax]\n  width: 8\n  heads: 2\n  ffn: 8\n");
  folder.write("recipes/broken.yaml", "# not right\nstep: 3\n");
  folder.write("recipes/mechanisms/linear.yaml",
               "precision: f32\nmodel:\n  layers: [linear]\n  width: 8\n  heads: 2\n  head_size: 6\n");
  folder.write("recipes/mechanisms/softmax.yaml", "steps: none\n");
  folder.write("recipes/tasks/one.yaml", "steps: 1\n");
  folder.write("recipes/tasks/two.yaml", "steps: 1\n");
  const Ran ran = run_weft({"ls", "--json"}, {.folder = folder.path()});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.err, "");
  const Json all = ran.json();
  EXPECT_EQ(all["weft"], "ls/1");
  EXPECT_EQ(all["tasks"], (Json{"mqar", "selective_copy", "induction", "needle", "listops", "lm"}));

  ASSERT_EQ(all["recipes"].size(), 2u);
  EXPECT_EQ(all["recipes"][0]["name"], "broken");
  EXPECT_TRUE(all["recipes"][0]["parameters"].is_null());
  EXPECT_NE(all["recipes"][0]["error"].get<std::string>().find("step"), std::string::npos);
  EXPECT_EQ(all["recipes"][1]["name"], "small");
  EXPECT_EQ(all["recipes"][1]["summary"], "a small one");
  // 257 rows of 8, two layers of at least 4 x 8 x 8 and 3 x 8 x 8
  EXPECT_GT(all["recipes"][1]["parameters"].get<int>(), 257 * 8 + 2 * 7 * 64);

  bool linear = false;
  for (const Json& m : all["mechanisms"]) {
    for (const char* key : {"id", "aliases", "kinds", "causal", "bidirectional", "streaming", "state_bytes",
                            "crosses", "devices", "dtypes", "context_parallel", "paper", "recipe"})
      EXPECT_TRUE(m.contains(key)) << m["id"] << key;
    EXPECT_TRUE(m["devices"].contains("cpu") && m["devices"].contains("cuda"));
    EXPECT_FALSE(m["context_parallel"]["contiguous"].empty()) << m["id"];
    EXPECT_EQ(m["paper"]["url"].get<std::string>().substr(0, 8), "https://") << m["id"];
    EXPECT_EQ(m.contains("error"), m["id"] == "softmax") << m;
    if (m["id"] != "linear") continue;
    linear = true;
    EXPECT_NE(m["recipe"].get<std::string>().find("recipes/mechanisms/linear.yaml"), std::string::npos);
    EXPECT_EQ(m["state_bytes"], 2 * 6 * 6 * 4 + 2 * 4) << "the recipe's sizes, and the decay of each head";
  }
  EXPECT_TRUE(linear);

  const std::string table = run_weft({"ls"}, {.folder = folder.path()}).out;
  for (const char* word : {"softmax", "lightning2", "small", "a small one", "broken: ", "tasks/  one two\n"})
    EXPECT_NE(table.find(word), std::string::npos) << word;
}

TEST(Cp, CopiesARecipeThatStaysTheSame) {
  const TestFolder folder;
  folder.write("recipes/base.yaml", "# base\nsteps: 7\noptim:\n  lr: 0.5\n");
  folder.write("recipes/child.yaml", "# child\nextends: 'base.yaml'  # and more\nsteps: 9\n");
  const Ran ran = run_weft({"cp", "child", "--json"}, {.folder = folder.path()});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.json()["path"], "child.yaml");
  ASSERT_EQ(run_weft({"cp", "child", "other/mine.yaml"}, {.folder = folder.path()}).code, 73);
  fs::create_directory(folder / "other");
  EXPECT_EQ(run_weft({"cp", "child", "other/mine.yaml"}, {.folder = folder.path()}).out, "other/mine.yaml\n");
  EXPECT_EQ(run_weft({"cp", "child", "other"}, {.folder = folder.path()}).out, "other/child.yaml\n");
  for (const char* copy : {"child.yaml", "other/mine.yaml", "other/child.yaml"}) {
    const Recipe recipe = load_recipe(folder / copy);
    EXPECT_EQ(recipe.steps, 9) << copy;
    EXPECT_EQ(recipe.optim.lr, 0.5) << copy;
  }
  EXPECT_EQ(run_weft({"cp", "base", "b.yaml"}, {.folder = folder.path()}).code, 0);
  EXPECT_EQ(folder.read("b.yaml"), folder.read("recipes/base.yaml"));
}

TEST(Cp, KnowsMechanismsByAllTheirNames) {
  const TestFolder folder;
  folder.write("recipes/any.yaml", "# any\n");
  folder.write("recipes/mechanisms/lightning.yaml", "# a mechanism\nmodel:\n  layers: [lightning]\n");
  for (const char* name : {"lightning", "lightning2"})
    EXPECT_EQ(run_weft({"cp", name, std::string(name) + "-mine.yaml"}, {.folder = folder.path()}).code, 0)
        << name;
  EXPECT_EQ(run_weft({"cp", "softmax"}, {.folder = folder.path()}).code, 64) << "it has no recipe here";
}

TEST(Help, ExplainsKeysSectionsAndMechanisms) {
  const Ran key = run_weft({"help", "optim.lr"});
  EXPECT_EQ(key.code, 0);
  EXPECT_NE(key.out.find("default  0.0003"), std::string::npos) << key.out;
  EXPECT_NE(run_weft({"help", "optim"}).out.find("optim.lr"), std::string::npos);
  EXPECT_NE(run_weft({"help"}).out.find("optim.*"), std::string::npos);
  const std::string mechanism = run_weft({"help", "model.mechanisms.lightning"}).out;
  EXPECT_NE(mechanism.find("chunk"), std::string::npos) << mechanism;
  EXPECT_EQ(run_weft({"help", "lightning2"}).out, mechanism);
  const std::string task = run_weft({"help", "mqar"}).out;
  EXPECT_NE(task.find("pairs"), std::string::npos) << task;
  EXPECT_NE(run_weft({"help", "lm"}).out.find("buckets"), std::string::npos)
      << "weft ls lists it among the tasks";
  const Json json = run_weft({"help", "optim.lr", "--json"}).json();
  EXPECT_EQ(json["weft"], "help/1");
  EXPECT_EQ(json["text"], key.out);
  EXPECT_NE(run_weft({"help", "optim.lrr"}).err.find("did you mean optim.lr?"), std::string::npos);
}

TEST(Help, ExplainsCommandsAndEveryKey) {
  for (const char* name : {"train", "eval"})
    EXPECT_EQ(run_weft({"help", name, "--json"}).json()["text"], run_weft({"help", name}).out) << name;
  const std::string eval = run_weft({"help", "eval"}).out;
  EXPECT_NE(eval.find("usage: weft eval"), std::string::npos) << eval;
  EXPECT_NE(eval.find("eval.batches"), std::string::npos) << "it is a section of recipes, too: " << eval;
  EXPECT_EQ(run_weft({"help", "extends"}).code, 0) << "a key of recipes that is no field";
  const std::string attribute = run_weft({"help", "model.mechanisms.lightning2.chunk"}).out;
  EXPECT_NE(attribute.find("model.mechanisms.lightning\n  chunk:"), std::string::npos) << attribute;
  EXPECT_EQ(std::count(attribute.begin(), attribute.end(), '\n'), 3) << "one attribute: " << attribute;
  const Ran wrong = run_weft({"help", "model.mechanisms.lightning.chunkk"});
  EXPECT_EQ(wrong.code, 64);
  EXPECT_NE(wrong.err.find("did you mean chunk?"), std::string::npos) << wrong.err;
}

// Whatever help explains is among the names that a misspelt one may have meant.
TEST(Help, KnowsWhatWasMeant) {
  for (const auto& [wrong, meant] :
       std::vector<std::pair<std::string, std::string>>{{"glaa", "gla"},
                                                        {"retenton", "retention"},
                                                        {"mqarr", "mqar"},
                                                        {"tokenise", "tokenize"},
                                                        {"extend", "extends"},
                                                        {"optim.lrr", "optim.lr"},
                                                        {"stepz", "steps"}}) {
    const Ran ran = run_weft({"help", wrong});
    EXPECT_EQ(ran.code, 64) << wrong;
    EXPECT_EQ(ran.err, "weft: there is no key, mechanism, task or command " + wrong + "; did you mean " +
                           meant + "?\n");
  }
  const Ran none = run_weft({"help", "entirely_else"});
  EXPECT_EQ(none.code, 64);
  for (const char* list : {"weft help", "weft ls", "weft --help"})
    EXPECT_NE(none.err.find(std::string("`") + list + "`"), std::string::npos) << none.err;
}

TEST(Schema, IsAJsonSchema) {
  const Json schema = Json::parse(run_weft({"schema"}).out);
  EXPECT_EQ(schema["properties"]["optim"]["properties"]["lr"]["type"], "number");
  EXPECT_EQ(run_weft({"schema", "--json"}).json()["schema"], schema);
}

TEST(Diff, OfRecipesAndRuns) {
  const TestFolder folder;
  folder.write("a.yaml", "steps: 7\nseed: 1\nrun: r\n");
  folder.write("runs/b/recipe.yaml", "steps: 8\nseed: 2\nrun: r\n");
  const Ran same = run_weft({"diff", "a.yaml", "a.yaml"}, {.folder = folder.path()});
  EXPECT_EQ(same.code, 0);
  EXPECT_EQ(same.out, "");
  const Ran ran = run_weft({"diff", "a.yaml", "runs/b"}, {.folder = folder.path()});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.out, "* seed: 1 -> 2\n  steps: 7 -> 8\n");
  const Json json = run_weft({"diff", "a.yaml", "runs/b", "--json"}, {.folder = folder.path()}).json();
  EXPECT_EQ(json["differences"][0],
            (Json{{"key", "seed"}, {"before", "1"}, {"after", "2"}, {"fixed", true}}));
}

// Each row once; the peer is a script that knows one of them.
TEST(Bench, ALineARow) {
  const TestFolder folder;
  folder.write("peer.sh", R"(echo 'not a row'
echo '{"peer":"other 1.0","name":"gemm","shape":"512x512x512","ms":1e9}')");
  const Ran ran = run_weft({"bench", "cpu", "--ms", "0", "--json", "--peer", "sh", "--script", "peer.sh"},
                           {.folder = folder.path()});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.out_lines().size(), 10u);
  for (const std::string& line : ran.out_lines()) {
    const Json row = Json::parse(line);
    SCOPED_TRACE(line);
    EXPECT_EQ(row["weft"], "bench/1");
    EXPECT_EQ(row["exit"], 0);
    for (const char* key : {"name", "shape", "dtype", "device", "commit", "date"}) {
      ASSERT_TRUE(row[key].is_string()) << key;
      EXPECT_NE(row[key], "") << key;
    }
    for (const char* key :
         {"tflops", "tbs", "floor_ms", "of_floor", "peer", "peer_ms", "ratio", "max_rel_err"})
      EXPECT_TRUE(row.contains(key)) << key;
    EXPECT_GT(row["ms"], 0);
    EXPECT_LE(row["ms_p10"], row["ms"]);
    EXPECT_GE(row["ms_p90"], row["ms"]);
    const bool known = row["shape"] == "512x512x512";
    EXPECT_EQ(row["peer"], known ? Json("other 1.0") : Json());
    EXPECT_EQ(row["ratio"].is_null(), !known);
    if (!known) continue;
    EXPECT_GT(row["ratio"], 1) << "above 1: the peer is slower";
  }
  EXPECT_EQ(run_weft({"bench", "abacus"}).code, 64);
  EXPECT_EQ(run_weft({"bench", "cpu", "gemm", "--ms", "0"}).code, 64) << "it would run all";
}

// Everything small and once, on whatever device is there.
TEST(Bench, KernelsOfAGpu) {
  const Ran ran = run_weft({"bench", "gpu", "--ms", "0", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  std::set<std::string> names;
  for (const std::string& line : ran.out_lines()) {
    const Json row = Json::parse(line);
    SCOPED_TRACE(line);
    EXPECT_EQ(row["dtype"], "bf16");
    EXPECT_GT(row["ms"], 0);
    EXPECT_TRUE(row["note"].is_null() || row["note"].is_string());
    const bool bytes = row["tbs"].is_number(), work = row["tflops"].is_number();
    EXPECT_FALSE(bytes && work);
    const std::string name = row["name"];
    EXPECT_EQ(row["of_floor"].is_number(), (bytes || work) && name != "copy" && name != "product");
    names.insert(name);
  }
  for (const char* name : {"rms_norm backward", "add_rms_norm backward", "rotary", "swiglu backward", "adamw",
                           "1.3B down dw", "projection + cross-entropy", "attention forward+backward",
                           "gla forward+backward", "gated_delta_rule forward", "ema forward+backward",
                           "linear op forward+backward, host included", "step lightning, packed"})
    EXPECT_TRUE(names.contains(name)) << name;
  EXPECT_EQ(run_weft({"bench", "gpu", "abacus", "--ms", "0"}).code, 64);
}

TEST(Bench, TimeOverLength) {
  const Ran ran = run_weft({"bench", "length", "retention", "--rounds", "1", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto lines = ran.out_lines();
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(Json::parse(lines[0])["name"], "lightning");
  EXPECT_EQ(Json::parse(lines[0])["shape"], "32 x 1024, H4 D32");
  EXPECT_EQ(Json::parse(lines[5])["shape"], "1 x 32768, H4 D32");
  EXPECT_TRUE(Json::parse(lines[5])["rise"].is_number());
  for (const std::string& line : lines) EXPECT_EQ(Json::parse(line)["rise"], Json::parse(lines[5])["rise"]);
  EXPECT_EQ(run_weft({"bench", "length", "retentoin"}).code, 64);
  EXPECT_EQ(run_weft({"bench", "length", "window=64"}).code, 64) << "of no mechanism";
  EXPECT_EQ(run_weft({"bench", "length", "sliding_window", "windw=64"}).code, 78);
}

TEST(Bench, HeadsThatAreOff) {
  const Ran ran = run_weft({"bench", "heads", "--ms", "0", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  std::set<std::string> names;
  for (const std::string& line : ran.out_lines()) {
    const Json row = Json::parse(line);
    EXPECT_GT(row["ms"], 0) << line;
    EXPECT_GT(row["tokens_per_s"], 0) << line;
    names.insert(row["name"]);
  }
  EXPECT_EQ(names.size(), 4u * 5u);
  for (const char* name :
       {"attention forward, 2 of 8 heads", "attention decode, 8 of 8 heads", "moh decode, 6 of 8 heads"})
    EXPECT_TRUE(names.contains(name)) << name;
}

TEST(Bench, DecodingBesideTheTimeOfItsBytes) {
  const Ran ran =
      run_weft({"bench", "decode", "hybrid", "tiny", "--steps", "3", "--device", "cpu", "--json"});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const auto lines = ran.out_lines();
  ASSERT_EQ(lines.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const Json row = Json::parse(lines[i]);
    EXPECT_EQ(row["name"], "decode tiny hybrid");
    EXPECT_EQ(row["shape"], i == 0 ? "B1 T64" : "B2 T64");
    EXPECT_EQ(row["dtype"], "f32");
    EXPECT_GT(row["floor_ms"], 0);
    EXPECT_GT(row["of_floor"], 0);
    EXPECT_GT(row["tbs"], 0);
    EXPECT_GT(row["tokens_per_s"], 0);
  }
  EXPECT_EQ(run_weft({"bench", "decode", "huge"}).code, 64);
}

TEST(Corpus, IsTheLibrarysAndTheSameEveryTime) {
  const TestFolder folder;
  const Json json = run_weft({"corpus", "--bytes", "2500000", "--seed", "9", "--out", "c.txt", "--json"},
                             {.folder = folder.path()})
                        .json();
  const std::string text = folder.read("c.txt");
  EXPECT_TRUE(text == story_corpus(9, 2'500'000));
  EXPECT_EQ(json["bytes"], text.size());
  const Ran quiet = run_weft({"corpus", "--bytes=1", "--seed=9", "--out=one.txt"}, {.folder = folder.path()});
  EXPECT_EQ(quiet.out + quiet.err, "");
  EXPECT_EQ(folder.read("one.txt"), story(9, 0));
}

TEST(Corpus, ASignalLeavesNothingBehind) {
  const TestFolder folder;
  Ran ran;
  for (int ms = 300; ms < 30'000; ms *= 3) {  // on a busy machine the first may come before it listens
    ran = run_weft({"corpus", "--bytes", "100000000000", "--out", "c.txt", "--json"},
                   {.folder = folder.path(), .stop_after_ms = ms});
    if (ran.code != 128 + 15) break;
  }
  EXPECT_EQ(ran.code, 75) << ran.err;
  EXPECT_EQ(ran.json()["exit"], 75);
  EXPECT_TRUE(fs::is_empty(folder.path())) << "not even the part that was written";
}

TEST(Corpus, TakesAnyFileName) {
  const TestFolder folder;
  const Ran ran =
      run_weft({"corpus", "--bytes", "1", "--out", "\xff\n.txt", "--json"}, {.folder = folder.path()});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.json()["exit"], 0) << ran.out;
  EXPECT_TRUE(exists(folder / "\xff\n.txt"));
}

TEST(Tokenize, WithItsOwnVocabularyAndAgain) {
  const TestFolder folder;
  folder.write("text.txt", story_corpus(1, 50'000));
  const std::vector<std::string> words{"tokenize",
                                       "text.txt",
                                       "--out",
                                       "t",
                                       "--train-vocab",
                                       "300",
                                       "--shard-tokens",
                                       "5000",
                                       "--validation-tokens",
                                       "1000",
                                       "--name",
                                       "s",
                                       "--threads",
                                       "2",
                                       "--json"};
  const Ran ran = run_weft(words, {.folder = folder.path()});
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  const Json json = ran.json();
  EXPECT_EQ(json["weft"], "tokenize/1");
  EXPECT_EQ(json["vocab"], 300);
  EXPECT_GT(json["shards"], 2);
  EXPECT_TRUE(exists(folder / "t/s_val_000000.bin"));
  EXPECT_TRUE(exists(folder / "t/s_train_000001.bin"));
  EXPECT_EQ(json["tokenizer_hash"], load_tokenizer(folder / "t")->hash());

  const Json again = run_weft(words, {.folder = folder.path()}).json();
  EXPECT_EQ(again["exit"], 0) << "what is done stays";
  EXPECT_EQ(again["tokens"], json["tokens"]);
  EXPECT_EQ(again["text_bytes"], json["text_bytes"]);
  folder.write("other.txt", "zzzz zzzz zzzz qqqq qqqq");
  std::vector<std::string> other = words;
  other[1] = "other.txt";
  EXPECT_EQ(run_weft(other, {.folder = folder.path()}).code, 73) << "the folder holds another corpus";
  EXPECT_EQ(json["tokenizer_hash"], load_tokenizer(folder / "t")->hash()) << "and is left alone";

  EXPECT_EQ(
      run_weft({"tokenize", "text.txt", "--out", "u", "--tokenizer", "t"}, {.folder = folder.path()}).code,
      0);
  EXPECT_EQ(folder.read("u/corpus_train_000000.bin").substr(0, 4),
            folder.read("t/s_val_000000.bin").substr(0, 4));
}

TEST(Tokenize, StopsOnASignalAndGoesOn) {
  const TestFolder folder;
  const std::string text = story_corpus(1, 400'000);
  std::string large;
  for (int i = 0; i < 100; ++i) large += text + "\n\n\n";
  folder.write("small.txt", text);
  folder.write("large.txt", large);
  ASSERT_EQ(
      run_weft({"tokenize", "small.txt", "--out", "v", "--train-vocab", "1000"}, {.folder = folder.path()})
          .code,
      0);
  const std::vector<std::string> words{"tokenize",       "large.txt", "--out",     "t", "--tokenizer", "v",
                                       "--shard-tokens", "200000",    "--threads", "1", "--json"};
  const Ran stopped = run_weft(words, {.folder = folder.path(), .stop_at_file = "t/corpus_train_000000.bin"});
  EXPECT_EQ(stopped.code, 75);
  EXPECT_EQ(stopped.json()["exit"], 75);
  EXPECT_EQ(run_weft(words, {.folder = folder.path()}).json()["exit"], 0);
}

}  // namespace
}  // namespace weft
