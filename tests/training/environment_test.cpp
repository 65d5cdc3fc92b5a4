// What environment.json says of the device that a run computes on.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>

#include "autograd/cuda_version.h"
#include "tests/training/checkpoint/support.h"
#include "training/recipe/load.h"
#include "training/train.h"

namespace weft {
namespace {

TEST(Environment, NamesTheDeviceAndItsVersions) {
  const TemporaryFolder folder;
  std::string words;
  for (int i = 0; i < 400; ++i) words += text("word ", i * i, i % 20 == 19 ? "\n\n" : " ");
  write_bytes(folder / "text.txt", words);
  const Recipe recipe = parse_recipe(
      "{steps: 1, batch_tokens: 256, context: 128, model: {layers: [lightning], width: 32, "
      "heads: 2}, data: {val: 0}, eval: {every: 0}, optim: {warmup: 0}}",
      "test", {"run=" + folder / "run", "data.train=" + folder / "text.txt"});
  EXPECT_EQ(train(recipe, {.quiet = true}, nullptr).step, 1);
  const auto environment = nlohmann::json::parse(read_bytes(folder / "run/environment.json"));
  EXPECT_EQ(environment["device"], describe_device(default_device()));
  const auto& versions = environment["versions"];
  if (default_device() != Device::cuda) {
    EXPECT_FALSE(versions.contains("cuda")) << versions;
    return;
  }
  const std::string cuda = versions["cuda"];
  EXPECT_EQ(cuda, cuda_version());
  std::smatch found;
  ASSERT_TRUE(std::regex_match(cuda, found, std::regex(R"((\d\d)\.(\d), driver (\d\d)\.(\d))"))) << cuda;
  EXPECT_GE(std::stoi(found[3]), std::stoi(found[1])) << "a driver serves no newer generation of runtimes";
}

}  // namespace
}  // namespace weft
