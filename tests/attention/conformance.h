#pragma once
// What the conformance suite asks of a mechanism, whichever it is. A case is a registry entry with one
// setting of its attributes; nothing here knows a mechanism by name.

#include <gtest/gtest.h>

#include "attention/registry.h"
#include "autograd/ops/elementwise.h"
#include "tests/autograd/test_tensors.h"

namespace weft {

struct ConformanceCase {
  std::string id, settings;
};
std::vector<ConformanceCase> conformance_cases();
void PrintTo(const ConformanceCase& c, std::ostream* out);
std::string case_name(const testing::TestParamInfo<ConformanceCase>& info);

// A mechanism with random parameters in a store of its own.
struct Subject {
  using Make = std::function<std::unique_ptr<Mechanism>(const Dimensions&, const ParameterScope&)>;
  Subject(const Dimensions& dims, Dtype dtype, const Make& make);
  Subject(const ConformanceCase& c, Dtype dtype, const std::vector<std::string>& more = {});
  // The values that the other computes with.
  void take_parameters(const Subject& other);

  Dimensions dims;
  ParameterStore store;
  std::unique_ptr<Mechanism> mechanism;
};

Dimensions small_dimensions(const MechanismEntry& entry);

Block block_of(const std::vector<Variable>& inputs, const Layout& layout);

// Outputs of a whole forward over a layout on one rank.
Variable run_whole(const Mechanism& mechanism, const Layout& layout, const std::vector<Variable>& inputs);

// The same, and the auxiliary losses behind it.
std::vector<Variable> run_with_losses(const Mechanism& mechanism, const Layout& layout,
                                      const std::vector<Variable>& inputs);
std::vector<Variable> with_losses(const Variable& y, const Crossing& cross);

// Output, and the gradients of all inputs and parameters for an adjoint, by default a random one. If `wrap`
// gives auxiliary losses, `share` of each is added.
struct Outcome {
  Tensor output;
  std::vector<double> losses;
  std::vector<Tensor> gradients;
};
Tensor random_adjoint(const Shape& output, Dtype dtype);
Outcome run_with_gradients(Subject& subject, const Layout& layout, const std::vector<Tensor>& inputs,
                           const Function& wrap = nullptr, const Tensor& adjoint = {}, double share = 1);

}  // namespace weft
