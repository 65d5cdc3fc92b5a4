// `weft launch` around the launcher: a script in the place of mpirun plays the ranks.

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/tools/program.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

class Launch : public testing::Test {
 protected:
  // What the script does when it is asked to start ranks.
  Ran launch(const Words& launched, const std::string& script, const Words& flags = {},
             Words environment = {}) {
    folder_.write(
        "bin/mpirun",
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'mpirun (Open MPI) 4.1.4'; exit 0; fi\n" + script);
    fs::permissions(folder_ / "bin/mpirun", fs::perms::owner_all);
    Words words{"launch", "-n", "3", "--with", "mpirun"};
    words.insert(words.end(), flags.begin(), flags.end());
    words.insert(words.end(), launched.begin(), launched.end());
    const char* path = std::getenv("PATH");
    environment.push_back("PATH=" + (folder_ / "bin") + ":" + (path ? path : "/bin:/usr/bin"));
    return run_weft(words, {.folder = folder_.path(), .environment = environment});
  }

  // A rank of another machine left its code in the run folder only.
  static std::string leave(int code, const std::string& run) {
    return "mkdir -p " + run + "/log\nprintf 'weft-exit 1\\nrank 2\\ncode " + std::to_string(code) +
           "\\ntime 1.5\\nlaunch %s\\nwhat it broke\\n' \"$WEFT_LAUNCH\" >" + run +
           "/log/exit-0002\nexit 1\n";
  }

  TestFolder folder_;
};

TEST_F(Launch, PassesWordsOn) {
  const Ran ran = launch({"train", "r.yaml", "--resume", "auto", "run=a b"},
                         "for w in \"$@\"; do printf '%s\\n' \"$w\"; done\n", {"--pass", "--hostfile hosts"});
  EXPECT_EQ(ran.code, 0);
  Words words = ran.out_lines();
  ASSERT_GE(words.size(), 7u);
  EXPECT_EQ(Words(words.begin(), words.begin() + 2), (Words{"-n", "3"}));
  EXPECT_EQ(Words(words.end() - 8, words.end() - 6), (Words{"--hostfile", "hosts"}));
  EXPECT_EQ(Words(words.end() - 5, words.end()), (Words{"train", "r.yaml", "--resume", "auto", "run=a b"}));
  EXPECT_EQ(ran.err.find("mpirun -n 3") != std::string::npos, true) << ran.err;
}

TEST_F(Launch, FindsTheRunFolder) {
  folder_.write("mine.yaml", "# mine\nsteps: 3\n");
  folder_.write("named.yaml", "run: some/where\n");
  EXPECT_EQ(launch({"train", "mine.yaml"}, leave(80, "runs/mine")).code, 80);
  EXPECT_EQ(launch({"train", "named.yaml"}, leave(74, "some/where")).code, 74);
  EXPECT_EQ(launch({"train", "named.yaml", "run=x/y"}, leave(81, "x/y")).code, 81);
  EXPECT_EQ(launch({"train", "named.yaml", "--run", "x/z"}, leave(66, "x/z")).code, 66);
  EXPECT_EQ(launch({"train", "--resume", "old"}, leave(66, "old")).code, 66);
  EXPECT_EQ(launch({"train", "named.yaml", "--resume=auto"}, leave(65, "some/where")).code, 65);
  EXPECT_EQ(
      launch({"train", "--json-summary", "--device", "cpu", "steps=2", "--optim.lr", "1e-3", "named.yaml"},
             leave(65, "some/where"))
          .code,
      65)
      << "wherever the recipe stands";
  EXPECT_EQ(launch({"train", "mine.yaml"}, leave(80, "elsewhere")).code, 70) << "nobody looks there";
  EXPECT_EQ(launch({"train", "missing.yaml"}, "exit 64\n").code, 64) << "the ranks say what is wrong with it";
}

TEST_F(Launch, NeedsAFolderForExitCodes) {
  folder_.write("file", "");
  for (const char* folder : {"/no/such/folder", "file"}) {
    const Ran ran = launch({"train", "r.yaml"}, "exit 0\n", {}, {std::string("TMPDIR=") + folder});
    EXPECT_EQ(ran.code, 73) << ran.err;
    EXPECT_NE(ran.err.find("set TMPDIR"), std::string::npos) << ran.err;
  }
}

TEST_F(Launch, OneLineOfJsonWhateverHappens) {
  const Words words{"train", "r.yaml", "--json-summary"};
  const Ran good = launch(words, "echo '{\"weft\":\"train/1\",\"exit\":0}'\n");
  EXPECT_EQ(good.json()["exit"], 0);
  const Ran failed = launch(words, "echo '{\"weft\":\"train/1\",\"exit\":78}'; exit 78\n");
  EXPECT_EQ(failed.code, 78);
  EXPECT_EQ(failed.json()["exit"], 78);
  const Ran killed = launch(words, "exit 137\n");
  EXPECT_EQ(killed.code, 69);
  EXPECT_EQ(killed.json()["weft"], "train/1") << killed.out;
  EXPECT_EQ(killed.json()["exit"], 69);
  EXPECT_EQ(killed.json()["error"]["rank"], 0);
  const Ran spoken = launch(words, "echo 'weft: it broke' >&2\n" + leave(80, "runs/r"));
  EXPECT_EQ(spoken.code, 70) << "r.yaml is not there, so no run folder";
  EXPECT_EQ(spoken.json()["exit"], 70);
  folder_.write("r.yaml", "steps: 3\n");
  const Ran known = launch(words, "echo 'weft: it broke' >&2\n" + leave(80, "runs/r"));
  EXPECT_EQ(known.code, 80);
  EXPECT_EQ(known.json()["error"]["what"], "it broke");
  EXPECT_EQ(known.json()["error"]["rank"], 2) << "the rank at fault";
}

TEST_F(Launch, SaysOnceWhyItFailed) {
  const Ran killed = launch({"train", "r.yaml"}, "exit 137\n");
  EXPECT_EQ(killed.code, 69);
  EXPECT_NE(killed.err.find("weft: a rank was ended by signal 9"), std::string::npos) << killed.err;
  EXPECT_EQ(killed.out, "");
}

}  // namespace
}  // namespace weft
