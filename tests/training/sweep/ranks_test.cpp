// `weft sweep -n`: each run on several ranks.

#include <gtest/gtest.h>

#include "tests/training/tiny_run.h"

namespace weft {
namespace {

TEST(Sweep, OnRanks) {
  const TinyRun tiny;
  const Ran ran = tiny.weft({"sweep", "tiny.yaml", "seed=1,2", "steps=2", "-n", "2", "--json"},
                            {.environment = {"OMP_NUM_THREADS=1"}});
  EXPECT_EQ(ran.code, 0) << ran.err;
  const nlohmann::json result = ran.json();
  for (const auto& run : result["runs"]) EXPECT_EQ(run["status"], "done") << run;
  EXPECT_EQ(result["runs"].size(), 2u);
  EXPECT_NE(tiny.folder().read("runs/tiny-sweep/seed-2/environment.json").find("\"world\": 2"),
            std::string::npos);
}

}  // namespace
}  // namespace weft
