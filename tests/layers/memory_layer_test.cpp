// Where the steps of a learning memory begin.

#include <cmath>

#include "attention/registry.h"
#include "autograd/ops/elementwise.h"
#include "layers/attention_layer.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

// The size of a new layer's gradient on a text of 64 chunks, its steps e^shift as large.
double gradient_size(const std::string& mechanism, const std::vector<std::string>& settings, double shift) {
  const int64_t n = 1024;
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 32, .value = 32, .width = 64};
  ParameterStore store;
  const AttentionLayer layer({.mechanism = mechanism, .attributes = parse_attributes(settings), .dims = dims},
                             {store, ""});
  store.commit();
  const Parameter bias = store.find("gate.bias");  // those of the step come first
  std::vector<double> starts = to_values(bias->master);
  for (int64_t head = 0; head < dims.heads; ++head) starts[static_cast<size_t>(head)] += shift;
  bias->master.copy_from(from_values(bias->master.shape(), Dtype::f32, starts));
  store.refresh_working();
  const Layout layout = whole_documents({n});
  LocalCrossing cross(layout);
  store.begin_step();
  Tape tape;
  const Variable y = layer(tape.input(random_tensor({n, dims.width}, 5, Dtype::f32)), cross);
  tape.backward(y, random_tensor(y.shape(), 6, Dtype::f32));
  store.finish_step();
  double squares = 0;
  for (const double g : to_values(store.find("in.weight")->gradient)) squares += g * g;
  return std::sqrt(squares / static_cast<double>(n));
}

// Sensitivities to steps that are too large multiply from chunk to chunk. Where steps begin they are few: a
// twentieth of the step gives a gradient of about the same size.
TEST(MemoryLayer, StepsBeginWhereGradientsDoNotGrow) {
  const std::vector<std::string> mlp{"memory=mlp"};
  for (const char* id : {"titans", "moneta", "yaad", "memora"})
    EXPECT_LT(gradient_size(id, mlp, 0), 3 * gradient_size(id, mlp, -3)) << id;
  EXPECT_GT(gradient_size("yaad", mlp, 3), 5 * gradient_size("yaad", mlp, 0));  // from e^-5
}

}  // namespace
}  // namespace weft
