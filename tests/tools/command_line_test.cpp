// What holds for every command: help, usage lines, exit codes, one line of JSON, quiet streams.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <regex>
#include <set>

#include "tests/tools/program.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

// As `weft --help` lists them.
Words listed_commands() {
  Words names;
  const std::regex row("^  ([a-z]+) +[^ ].*");
  std::smatch match;
  for (const std::string& line : run_weft({}).out_lines())
    if (std::regex_match(line, match, row)) names.push_back(match[1]);
  return names;
}

TEST(CommandLine, WithoutACommandItShowsTheList) {
  const Ran plain = run_weft({});
  EXPECT_EQ(plain.code, 0);
  EXPECT_EQ(plain.err, "");
  for (const char* word : {"--help", "-h"}) EXPECT_EQ(run_weft({word}).out, plain.out);
  const Words names = listed_commands();
  for (const char* name : {"ls", "cp", "help", "schema", "diff", "train", "launch", "generate", "logits",
                           "apply", "tokenize", "corpus"})
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
}

TEST(CommandLine, Version) {
  EXPECT_TRUE(std::regex_match(run_weft({"--version"}).out,
                               std::regex("weft [0-9]+\\.[0-9]+\\.[0-9]+ \\(cpu.*\\)\n")));
  EXPECT_EQ(run_weft({"--version", "--json"}).json()["weft"], "version/1");
}

TEST(CommandLine, AnUnknownCommandNamesTheNearest) {
  const Ran ran = run_weft({"tokenise"});
  EXPECT_EQ(ran.code, 64);
  EXPECT_EQ(ran.out, "");
  EXPECT_EQ(ran.err, "weft: unknown command tokenise; did you mean tokenize?\n");
}

TEST(CommandLine, EveryCommandExplainsItself) {
  for (const std::string& name : listed_commands()) {
    const Ran ran = run_weft({name, "--help"});
    EXPECT_EQ(ran.code, 0) << name;
    EXPECT_EQ(ran.err, "") << name;
    EXPECT_NE(ran.out_lines().at(0).find("weft " + name), std::string::npos) << ran.out;
  }
}

// Of the commands that read their flags with Flags: what the usage line shows is what they take.
TEST(CommandLine, UsageLinesAreRight) {
  const std::regex flag("(-n|--[a-z-]+)( [A-Z]+)?");
  for (const std::string name : {"ls", "cp", "help", "schema", "diff", "launch", "tokenize", "corpus",
                                 "sweep", "report", "train", "validate"}) {
    const Ran help = run_weft({name, "--help"});
    const std::string usage = help.out_lines().at(0);
    ASSERT_TRUE(usage.starts_with("usage: weft " + name)) << usage;
    int flags = 0;
    for (std::sregex_iterator it(usage.begin(), usage.end(), flag), end; it != end; ++it, ++flags) {
      const std::string word = (*it)[1];
      EXPECT_NE(help.out.find("\n  " + word + " "), std::string::npos)
          << name << " does not explain " << word;
      const Ran ran = run_weft({name, word + "=/x"});  // a wrong value, or one too many, but a known flag
      EXPECT_EQ(ran.err.find("unknown flag"), std::string::npos) << ran.err;
    }
    EXPECT_GE(flags, 1) << name;
    EXPECT_EQ(run_weft({"help", name}).out, help.out);
  }
}

// Words that fail, and the code of docs/contract.md for it.
struct Failing {
  Words words;
  int code;
  RunOptions options = {};
};

// In a folder with: good.yaml, bad.yaml (an unknown key), text.txt, full (a file).
std::vector<Failing> failing_commands() {
  return {
      {{"no_such_command"}, 64},
      {{"ls", "--no-such-flag"}, 64},
      {{"ls", "word"}, 64},
      {{"cp"}, 64},
      {{"cp", "no_such_recipe"}, 64},
      {{"cp", "good.yaml", "full"}, 73},
      {{"cp", "good.yaml", "missing/folder/x.yaml"}, 73},
      {{"cp", "good.yaml", ""}, 73},
      {{"cp", "good.yaml", std::string(300, 'x')}, 73},
      {{"cp", "bad.yaml", "x.yaml"}, 78},
      {{"help", "optim.lrr"}, 64},
      {{"help", "model.mechanisms.no_such"}, 64},
      {{"help", "a", "b"}, 64},
      {{"schema", "x"}, 64},
      {{"diff", "good.yaml"}, 64},
      {{"diff", "good.yaml", "no_such_recipe"}, 64},
      {{"diff", "good.yaml", "/dev/null"}, 64},
      {{"diff", "good.yaml", "bad.yaml"}, 78},
      {{"corpus", "--bytes", "10"}, 64},
      {{"corpus", "--bytes", "0", "--out", "x"}, 64},
      {{"corpus", "--bytes", "1e3", "--out", "x"}, 64},
      {{"corpus", "--bytes", "99999999999999999999", "--out", "x"}, 64},
      {{"corpus", "--bytes", "10", "--out"}, 64},
      {{"corpus", "--bytes", "10", "--out="}, 64},
      {{"corpus", "--bytes", "10", "--out", "full"}, 73},
      {{"corpus", "--bytes", "10", "--out", "missing/folder/x"}, 73},
      {{"corpus", "--bytes", "3000000", "--out", "x"}, 74, {.file_limit = 100'000}},
      {{"tokenize", "--out", "t"}, 64},
      {{"tokenize", "text.txt", "--out", "t", "--threads", "0"}, 64},
      {{"tokenize", "text.txt", "--out", "t", "--special", "all"}, 64},
      {{"tokenize", "text.txt", "--out", "t", "--tokenizer", "bytes", "--train-vocab", "300"}, 64},
      {{"tokenize", "missing.txt", "--out", "t"}, 65},
      {{"tokenize", "made", "--out", "t"}, 65},
      {{"tokenize", "/dev/zero", "--out", "t"}, 65},
      {{"tokenize", "text.txt", "--out", "t", "--tokenizer", "missing.json"}, 65},
      {{"tokenize", "text.txt", "--out", "full"}, 73},
      {{"tokenize", "text.txt", "--out", "made"}, 73},
      {{"launch"}, 64},
      {{"launch", "-n", "2"}, 64},
      {{"launch", "-n", "0", "train", "good.yaml"}, 64},
      {{"launch", "-n", "2", "ls"}, 64},
      {{"launch", "-n", "2", "trian", "good.yaml"}, 64},
      {{"launch", "-n", "2", "--with", "nothing", "train", "good.yaml"}, 64},
      {{"launch", "-n", "2", "--with", "srun", "train", "good.yaml"},
       64,
       {.environment = {"PATH=/nonexistent"}}},
      {{"launch", "-n", "2", "--with", "mpirun", "train", "good.yaml"},
       64,
       {.environment = {"PATH=/nonexistent"}}},
      {{"sweep"}, 64},
      {{"sweep", "no_such_recipe"}, 64},
      {{"sweep", "good.yaml", "seed=2..1"}, 64},
      {{"sweep", "good.yaml", "--no-such-flag"}, 64},
      {{"sweep", "bad.yaml", "seed=1,2"}, 78},
      {{"sweep", "good.yaml", "seed=1,2"}, 78},
      {{"sweep", "good.yaml", "seed=1,2", "-n", "1", "-n", "2"}, 64},
      {{"validate", "good.yaml", "--ranks", "1", "--ranks", "2"}, 64},
      {{"report"}, 64},
      {{"report", "missing"}, 66},
      {{"report", "made"}, 66},
      {{"ls"}, 64, {.environment = {"WORLD_SIZE=4", "RANK=0", "LOCAL_RANK=0"}}},  // torchrun
  };
}

class Failures : public testing::Test {
 protected:
  void SetUp() override {
    folder_.write("good.yaml", "# good\nsteps: 10\n");
    folder_.write("bad.yaml", "optim:\n  lrr: 1\n");
    folder_.write("text.txt", "Once upon a time.\n");
    folder_.write("full", "something of value");
    folder_.write("made/other.bin", "x");
  }
  void expect_nothing_new() {
    Words names;
    for (const auto& entry : fs::recursive_directory_iterator(folder_.path()))
      if (entry.is_regular_file() && entry.path().filename() != "lock")
        names.push_back(fs::relative(entry.path(), folder_.path()));
    std::sort(names.begin(), names.end());
    EXPECT_EQ(names, (Words{"bad.yaml", "full", "good.yaml", "made/other.bin", "text.txt"}));
    EXPECT_EQ(folder_.read("full"), "something of value");
  }
  TestFolder folder_;
};

TEST_F(Failures, HaveTheirCodeAndOneLine) {
  for (Failing f : failing_commands()) {
    f.options.folder = folder_.path();
    const Ran ran = run_weft(f.words, f.options);
    const std::string shown = nlohmann::json(f.words).dump() + " says " + ran.err;
    EXPECT_EQ(ran.code, f.code) << shown;
    EXPECT_EQ(ran.out, "") << shown;
    EXPECT_TRUE(ran.err.starts_with("weft: ")) << shown;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << shown;
  }
  expect_nothing_new();
}

TEST_F(Failures, AreOneLineOfJsonToo) {
  std::set<std::string> commands;
  for (Failing f : failing_commands()) {
    f.options.folder = folder_.path();
    f.words.push_back("--json");
    // A flag without its value takes --json for it.
    if (f.words[f.words.size() - 2] == "--out") continue;
    const Ran ran = run_weft(f.words, f.options);
    const nlohmann::json json = ran.json();
    const std::string shown = nlohmann::json(f.words).dump() + " prints " + ran.out;
    ASSERT_TRUE(json.is_object()) << shown;
    // What launch would have run speaks.
    const bool launched =
        f.words[0] == "launch" && std::find(f.words.begin(), f.words.end(), "train") != f.words.end();
    const bool launched_ls =
        f.words[0] == "launch" && std::find(f.words.begin(), f.words.end(), "ls") != f.words.end();
    EXPECT_EQ(json["weft"], (launched ? "train" : launched_ls ? "ls" : f.words[0]) + "/1") << shown;
    EXPECT_EQ(json["exit"], f.code) << shown;
    EXPECT_EQ(ran.code, f.code) << shown;
    const nlohmann::json& error = json["error"];
    for (const char* key : {"what", "where", "do", "rank", "step"})
      EXPECT_TRUE(error.contains(key)) << key << shown;
    EXPECT_FALSE(error["what"].get<std::string>().empty()) << shown;
    EXPECT_EQ(error["rank"], 0) << shown;
    EXPECT_TRUE(error["step"].is_null()) << shown;
    commands.insert(f.words[0]);
  }
  for (const char* name : {"ls", "cp", "help", "schema", "diff", "corpus", "tokenize", "launch"})
    EXPECT_EQ(commands.count(name), 1u) << name;
  expect_nothing_new();
}

TEST_F(Failures, KeepTheirCodeWhereNobodyReadsTheirJson) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const std::vector<Failing> failing{{{"ls", "word", "--json"}, 64},
                                     {{"diff", "good.yaml", "bad.yaml", "--json"}, 78},
                                     {{"train", "bad.yaml", "--json-summary"}, 78},
                                     {{"launch", "-n", "2", "trian", "--json"}, 64}};
  for (Failing f : failing) {
    f.options.folder = folder_.path();
    f.options.out = "/dev/full";
    const Ran ran = run_weft(f.words, f.options);
    EXPECT_EQ(ran.code, f.code) << f.words[0];
    EXPECT_EQ(ran.err.find("cannot write"), std::string::npos) << "the cause comes last: " << ran.err;
  }
}

// The printed commands are for a shell, a line each.
TEST_F(Failures, PrintedCommandsAreNoJson) {
  const Ran ran = run_weft({"sweep", "good.yaml", "--print", "--json"}, {.folder = folder_.path()});
  EXPECT_EQ(ran.code, 64);
  EXPECT_EQ(ran.json()["exit"], 64) << ran.out;
}

TEST_F(Failures, ALinkThatLeadsNowhereIsNoFreeName) {
  fs::create_symlink("nowhere", folder_ / "link.yaml");
  EXPECT_EQ(run_weft({"cp", "good.yaml", "link.yaml"}, {.folder = folder_.path()}).code, 73);
}

TEST_F(Failures, AFolderThatMayNotBeSearchedIsNotOurMistake) {
  if (geteuid() == 0) GTEST_SKIP() << "root may search any folder";
  fs::create_directory(folder_ / "locked");
  fs::permissions(folder_ / "locked", fs::perms::none);
  const Ran ran = run_weft({"generate", "locked/run"}, {.folder = folder_.path()});
  fs::permissions(folder_ / "locked", fs::perms::owner_all);
  EXPECT_EQ(ran.code, 74) << ran.err;
}

TEST_F(Failures, TheErrorsOfARecipeNameTheLine) {
  const Ran ran = run_weft({"diff", "good.yaml", "bad.yaml", "--json"}, {.folder = folder_.path()});
  EXPECT_EQ(ran.json()["error"]["where"], "bad.yaml:2:3");
  EXPECT_EQ(ran.json()["error"]["do"], "did you mean optim.lr?");
}

TEST(CommandLine, AResultThatCannotBeWrittenIsAFailure) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  for (const Words& words :
       {Words{"ls"}, {"ls", "--json"}, {"schema"}, {"help"}, {"--version"}, {"ls", "--help"}}) {
    const Ran ran = run_weft(words, {.out = "/dev/full"});
    EXPECT_EQ(ran.code, 74) << words[0];
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
  }
}

TEST(CommandLine, AFlagOverrulesTheDeviceOfTheEnvironment) {
  const auto code = [](const char* setting, const Words& more = {}) {
    Words words{"generate", "no_such_run"};
    words.insert(words.end(), more.begin(), more.end());
    return run_weft(words, {.environment = {setting}}).code;
  };
  EXPECT_EQ(code("WEFT_DEVICE=abacus"), 64);
  EXPECT_EQ(code("WEFT_DEVICE=abacus", {"--device", "cpu"}), 66);
  EXPECT_EQ(code("WEFT_DEVICE=", {"--device", "cpu"}), 66) << "empty is as if it were not there";
  EXPECT_EQ(code("WEFT_DEVICE=cpu"), 66);
}

TEST(CommandLine, UnderMpirunRankZeroAlonePrints) {
  const auto rank = [](const char* number) {
    return RunOptions{.environment = {"OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2",
                                      std::string("OMPI_COMM_WORLD_RANK=") + number,
                                      std::string("OMPI_COMM_WORLD_LOCAL_RANK=") + number}};
  };
  EXPECT_EQ(run_weft({"schema"}, rank("0")).out, run_weft({"schema"}).out);
  for (const Words& words : {Words{"schema"},
                             {"--help"},
                             {"corpus"},
                             {"schema", "--json"},
                             {"train", "--help"},
                             {"logits", "--help"}}) {
    const Ran ran = run_weft(words, rank("1"));
    EXPECT_EQ(ran.out + ran.err, "") << words[0];
    EXPECT_EQ(ran.code, 0) << words[0];
  }
  const auto start = std::chrono::steady_clock::now();
  const Ran wrong = run_weft({"no_such_command", "--json"}, rank("1"));
  EXPECT_EQ(wrong.out + wrong.err, "");
  EXPECT_EQ(wrong.code, 64);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(900))
      << "mpirun ends rank 0 when another one leaves with an error: it has to have spoken";
}

TEST(CommandLine, StrangeWordsArePrintable) {
  const Ran ran = run_weft({"l\ns\x1b[31m\xff", "--json"});
  EXPECT_EQ(ran.code, 64);
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1);
  EXPECT_EQ(ran.err.find('\x1b'), std::string::npos);
  EXPECT_TRUE(ran.json().is_object()) << ran.out;
}

}  // namespace
}  // namespace weft
