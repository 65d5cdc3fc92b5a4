#pragma once
// Files in and out of `weft apply`, for its tests.

#include <map>
#include <string>
#include <vector>

#include "autograd/tensor.h"
#include "tools/apply_signature.h"
#include "training/checkpoint/safetensors.h"

namespace weft {

using Tensors = std::map<std::string, Tensor>;

// A folder that goes when the test ends.
class ApplyFolder {
 public:
  ApplyFolder();
  ~ApplyFolder();
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::vector<std::string> names() const { return list_folder(folder_); }

 private:
  std::string folder_;
};

void write_tensors(const std::string& path, const Tensors& tensors);
// In the dtypes of the file.
Tensors read_tensors(const std::string& path);

// Runs `weft apply WORDS --in ... --out ...` on these tensors.
Tensors apply_to(const std::vector<std::string>& words, const Tensors& in);
// The error that it ends with; Exit::ok: it did not.
Error apply_error(const std::vector<std::string>& words, const Tensors& in);

// Everything that a mechanism takes, at random, f64: inputs, documents, parameters, given states, adjoints.
struct ApplyCase {
  ApplyCase(const std::string& id, const std::string& settings, int64_t rows, int64_t tokens);
  std::vector<std::string> words(const std::vector<std::string>& more) const;
  // `in` without some of its tensors: names or beginnings of names.
  Tensors without(const std::vector<std::string>& beginnings) const;

  std::string id;
  std::vector<std::string> settings;
  Signature signature;
  bool causal;
  bool only_states;  // what it keeps of the past is its states alone
  Tensors in;
};

// The same names, shapes and values.
void expect_same(const Tensors& got, const Tensors& expected, double tolerance, const std::string& what);

}  // namespace weft
