#include "tools/flags.h"

#include <gtest/gtest.h>

#include "autograd/check.h"
#include "tools/run_command.h"

namespace weft {

// The commands of this test, in the place of those of main.cpp: each fails in its own way.
const std::vector<Command>& commands() {
  static const std::vector<Command> all{
      {"io", "", [](const Words&) -> int { throw Error(Exit::io, "disk full", "x.bin", "make room"); }},
      {"memory", "", [](const Words&) -> int { throw std::bad_alloc(); }},
      {"other", "", [](const Words&) -> int { throw std::out_of_range("vector"); }},
      {"number", "", [](const Words&) -> int { throw 3; }},
      {"stopped", "", [](const Words&) { return 75; }},
      {"late", "",
       [](const Words&) -> int {
         print("{\"result\":1}\n");
         throw Error(Exit::io, "too late");
       }},
  };
  return all;
}

namespace {

struct Values {
  bool json = false;
  int64_t bytes = 5;
  std::string out = "none", title = "none";
  Words arguments;
};

Values parse(const Words& words, const std::string& arguments = "[A] [B]", bool early = false) {
  Values v;
  Flags flags("test", arguments, "A test.");
  flags.add("--json", v.json, "");
  flags.add("--bytes", v.bytes, "N", "", {.min = 0, .max = 100});
  flags.add("--out", v.out, "FILE", "");
  flags.add("--title", v.title, "TEXT", "", {.may_be_empty = true});
  if (early) flags.end_at_first_argument();
  flags.parse(words);
  v.arguments = flags.arguments();
  return v;
}

std::string refusal(const Words& words, const std::string& arguments = "[A] [B]") {
  try {
    parse(words, arguments);
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Exit::usage);
    return std::string(error.what()) + " | " + error.where + " | " + error.advice;
  }
  return "accepted";
}

TEST(Flags, AreReadInBothSpellings) {
  const Values v = parse({"a", "--bytes", "7", "--out=x=y", "--json", "b"});
  EXPECT_EQ(v.bytes, 7);
  EXPECT_EQ(v.out, "x=y");
  EXPECT_TRUE(v.json);
  EXPECT_EQ(v.arguments, (Words{"a", "b"}));
  EXPECT_EQ(parse({}).bytes, 5);
  EXPECT_EQ(parse({"--out", "--json"}).out, "--json");
  EXPECT_EQ(parse({"--title="}).title, "") << "one that may be empty";
  EXPECT_EQ(parse({"-"}).arguments, Words{"-"});
  EXPECT_EQ(parse({"--", "--json"}).arguments, Words{"--json"});
}

TEST(Flags, MistakesNameTheFlag) {
  EXPECT_EQ(refusal({"--jsom"}), "unknown flag --jsom | weft test | did you mean --json?");
  EXPECT_EQ(refusal({"--out"}), "--out has no value | --out | write --out FILE");
  EXPECT_EQ(refusal({"--json=yes"}), "--json takes no value | --json | write --json alone");
  EXPECT_EQ(refusal({"--out="}), "--out is empty | --out | write --out FILE, or leave it out");
  EXPECT_EQ(refusal({"--out", ""}), "--out is empty | --out | write --out FILE, or leave it out");
  EXPECT_EQ(refusal({"--bytes", "x"}), "--bytes is x, not a whole number | --bytes | ");
  EXPECT_EQ(refusal({"--bytes", "3x"}), "--bytes is 3x, not a whole number | --bytes | ");
  EXPECT_EQ(refusal({"--bytes", "-1"}), "--bytes is -1, out of range | --bytes | 0 or more");
  EXPECT_EQ(refusal({"--bytes=101"}), "--bytes is 101, out of range | --bytes | 100 at most");
  EXPECT_EQ(refusal({"--bytes", "1", "--bytes=2"}), "--bytes is given twice | --bytes | keep one");
  EXPECT_EQ(refusal({"--json", "--json"}), "--json is given twice | --json | keep one");
  EXPECT_EQ(refusal({"a", "b", "c"}).substr(0, 21), "unexpected argument c");
  EXPECT_EQ(refusal({}, "A").substr(0, 22), "an argument is missing");
  EXPECT_EQ(refusal({"a", "b", "c", "d"}, "A..."), "accepted");
  EXPECT_EQ(refusal({}, "A...").substr(0, 22), "an argument is missing");
  EXPECT_EQ(refusal({"a", "b", "c"}, "A [B...]"), "accepted");
  EXPECT_EQ(refusal({"a"}, "").substr(0, 21), "unexpected argument a");
}

TEST(Flags, MayEndAtTheFirstArgument) {
  const Values v = parse({"--json", "train", "--bytes", "x", "--help"}, "COMMAND [ARGUMENT...]", true);
  EXPECT_TRUE(v.json);
  EXPECT_EQ(v.bytes, 5);
  EXPECT_EQ(v.arguments, (Words{"train", "--bytes", "x", "--help"}));
}

TEST(Flags, OverridesAreWordsOfTheirOwn) {
  Values v;
  Flags flags("test", "RECIPE", "A test.");
  flags.add("--json", v.json, "");
  flags.add("--bytes", v.bytes, "N", "");
  const auto apart = [&](Words words) {
    const Words overrides = flags.take_overrides(words);
    return std::pair{words, overrides};
  };
  using Both = std::pair<Words, Words>;
  EXPECT_EQ(apart({"a.yaml", "x=1", "--json"}), (Both{{"a.yaml", "--json"}, {"x=1"}}));
  EXPECT_EQ(apart({"--json", "--bytes", "7", "a.yaml", "--optim.lr", "3e-4"}),
            (Both{{"--json", "--bytes", "7", "a.yaml"}, {"--optim.lr", "3e-4"}}));
  EXPECT_EQ(apart({"--optim.lr", "3e-4", "--bytes=7", "a.yaml"}),
            (Both{{"--bytes=7", "a.yaml"}, {"--optim.lr", "3e-4"}}))
      << "the value of an override is no recipe";
  EXPECT_EQ(apart({"a.yaml", "b.yaml"}), (Both{{"a.yaml"}, {"b.yaml"}}));
  EXPECT_EQ(apart({"a.yaml", "--jsom", "--bytes"}), (Both{{"a.yaml", "--bytes"}, {"--jsom"}}));
  EXPECT_EQ(apart({"-h"}), (Both{{"-h"}, {}}));
  EXPECT_EQ(apart({"a.yaml", "--byte"}), (Both{{"a.yaml", "--byte"}, {}}))
      << "the flags then say it is unknown";
}

TEST(Flags, RequiredOnesStandFirstInTheUsage) {
  std::string out;
  int64_t n = 0;
  Flags flags("test", "IN...", "A test.");
  flags.add("-n", n, "N", "a number");
  flags.add("--out", out, "FILE", "where to", {.required = true});
  EXPECT_EQ(flags.usage(), "weft test --out FILE IN... [-n N]");
  EXPECT_EQ(flags.help(),
            "usage: weft test --out FILE IN... [-n N]\n\nA test.\n\n  -n N        a number\n  --out FILE  "
            "where to\n");
  std::string segments;
  flags.add("--segments", segments, "RANKS[:contiguous|zigzag]", "how to share");
  EXPECT_NE(flags.help().find(
                "  --out FILE  where to\n  --segments RANKS[:contiguous|zigzag]\n              how to"),
            std::string::npos)
      << "one long flag does not move the others' help: " << flags.help();
  EXPECT_THROW(flags.parse({"a"}), Error);
}

struct Caught {
  int code;
  std::string out, err;
};

Caught caught(const Words& words) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = run_command(words);
  return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
}

TEST(RunCommand, EveryFailureHasACodeAndALine) {
  const Caught io = caught({"io"});
  EXPECT_EQ(io.code, 74);
  EXPECT_EQ(io.out, "");
  EXPECT_EQ(io.err, "weft: disk full (x.bin); make room\n");
  EXPECT_EQ(caught({"io", "--json"}).out,
            "{\"weft\":\"io/1\",\"exit\":74,\"error\":{\"what\":\"disk "
            "full\",\"where\":\"x.bin\",\"do\":\"make room\","
            "\"rank\":0,\"step\":null}}\n");
  EXPECT_EQ(caught({"memory"}).code, 70);
  EXPECT_NE(caught({"memory"}).err.find("out of memory"), std::string::npos);
  EXPECT_EQ(caught({"other"}).code, 70);
  EXPECT_EQ(caught({"number"}).code, 70);
  EXPECT_EQ(caught({"stopped"}).code, 75);
  EXPECT_EQ(caught({"stopped"}).err, "");
  EXPECT_EQ(caught({"ohter"}).code, 64);
  EXPECT_EQ(caught({"ohter"}).err, "weft: unknown command ohter; did you mean other?\n");
  EXPECT_EQ(caught({"io", "--", "--json"}).out, "");
}

// Last: the process remembers that a result is out.
TEST(RunCommand, ZLateFailureAddsNoSecondResult) {
  const Caught late = caught({"late", "--json"});
  EXPECT_EQ(late.code, 74);
  EXPECT_EQ(late.out, "{\"result\":1}\n");
  EXPECT_EQ(late.err, "weft: too late\n");
}

}  // namespace
}  // namespace weft
