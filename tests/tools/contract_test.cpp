// docs/contract.md, and contract_tests.md beside it, against the code that they speak of.

#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>

#include "autograd/check.h"
#include "tests/tools/program.h"

namespace weft {
namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string contract() { return content_of("docs/contract.md"); }

// The text between a word and the next blank line.
std::string paragraph(const std::string& text, const std::string& start) {
  const size_t begin = text.find(start);
  return begin == text.npos ? "" : text.substr(begin, text.find("\n\n", begin) - begin);
}

std::set<std::string> found(const std::string& text, const std::string& pattern) {
  std::set<std::string> all;
  const std::regex regex(pattern);
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it) all.insert((*it)[1]);
  return all;
}

TEST(Contract, ExitCodes) {
  std::set<std::string> known;
  for (const Exit code :
       {Exit::ok, Exit::usage, Exit::data, Exit::no_checkpoint, Exit::peer_lost, Exit::internal,
        Exit::cannot_create, Exit::io, Exit::stopped, Exit::recipe, Exit::numerics, Exit::hang})
    known.insert(std::to_string(static_cast<int>(code)));
  EXPECT_EQ(found(contract(), "\n\\| (\\d+) \\|"), known);
}

TEST(Contract, RecipeKeys) {
  const auto keys = found(paragraph(contract(), "**Recipe keys"), "`([a-z_.]+)`");
  EXPECT_EQ(keys.size(), 20u);
  for (const std::string& key : keys) EXPECT_EQ(run_weft({"help", key}).code, 0) << key;
  for (const char* choice : {"auto", "contiguous", "zigzag", "balanced"})
    EXPECT_NE(run_weft({"help", "mesh.layout"}).out.find(choice), std::string::npos) << choice;
  for (const char* choice : {"native", "gather", "ring", "heads"})
    EXPECT_NE(run_weft({"help", "mesh.strategy"}).out.find(choice), std::string::npos) << choice;
}

// - `FILE`: Suite.Name, Suite.Name
TEST(Contract, TheTestsItNamesExist) {
  const std::string text = content_of("docs/contract_tests.md");
  for (const std::string& heading : found(text, "\n(## [^\n]+)"))
    EXPECT_NE(contract().find("\n" + heading + "\n"), std::string::npos) << heading;
  const std::regex word("`(tests/[a-z_/]+\\.cpp)`|\\b([A-Z][A-Za-z0-9]+)\\.([A-Z][A-Za-z0-9]+)\\b");
  std::string file, code;
  int tests = 0;
  for (std::sregex_iterator it(text.begin(), text.end(), word), end; it != end; ++it) {
    if ((*it)[1].matched) {
      file = (*it)[1];
      code = content_of(file);
      EXPECT_FALSE(code.empty()) << file;
      continue;
    }
    ++tests;
    EXPECT_NE(code.find("(" + (*it)[2].str() + ", " + (*it)[3].str() + ")"), std::string::npos)
        << file << " has no " << it->str();
  }
  EXPECT_GT(tests, 50);
}

}  // namespace
}  // namespace weft
