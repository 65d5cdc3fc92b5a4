#pragma once
// Shared by the checkpoint tests: a folder that vanishes, errors with their exit code, files by hand.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "autograd/check.h"

namespace weft {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "weft-test-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_bytes(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

// Runs f, which has to throw `code` with all of `words` in its text.
template <class F>
void expect_error(Exit code, const std::vector<std::string>& words, F f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.code), static_cast<int>(code)) << error.what();
    const std::string all = error.where + ": " + error.what() + "; " + error.advice;
    for (const std::string& word : words)
      EXPECT_NE(all.find(word), std::string::npos) << word << " is not in: " << all;
    return;
  }
  ADD_FAILURE() << "nothing was thrown";
}

// Runs f in a child process that then exits with 0 (or, if f throws, with the exit code of the error).
template <class F>
pid_t in_child(F f) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  int code = 0;
  try {
    f();
  } catch (const Error& error) {
    code = static_cast<int>(error.code);
  } catch (...) {
    code = 1;
  }
  ::_exit(code);
}

inline int wait_for(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

}  // namespace weft
