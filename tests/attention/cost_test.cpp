// What attention and the products of decoding cost in processor time, with bounds that a busy machine keeps.

#include <ctime>

#include "attention/flash_attention.h"
#include "attention/sparsek.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/top_k.h"
#include "tests/attention/conformance.h"

namespace weft {
namespace {

// Of processor time, so that neighbours do not count; the best of a few.
double seconds_of(const std::function<void()>& once) {
  double best = INFINITY;
  for (int i = 0; i < 5; ++i) {
    const std::clock_t start = std::clock();
    once();
    best = std::min(best, static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return best;
}

// A quarter of the heads is to take well under half of the time of all.
TEST(Cost, FallsWithTheHeadsThatAreOn) {
  const int64_t n = 1024, heads = 8;
  const Layout layout = whole_documents({n});
  std::vector<Tensor> x;
  for (uint32_t i = 0; i < 4; ++i) x.push_back(random_tensor({n, heads, 32}, i, Dtype::f32));
  const auto seconds = [&](int64_t on) {
    const Tensor active =
        marks(top_k(random_tensor({n, heads}, 9, Dtype::f32), on).indices, heads, Dtype::f32);
    const Tensor &at = layout.position, &of = layout.document;
    return seconds_of([&] {
      const auto y = flash_attention_forward({}, x[0], x[1], x[2], at, of, at, of, {}, active);
      flash_attention_backward({}, x[0], x[1], x[2], at, of, at, of, {}, active, y[0], y[1], x[3], y[1]);
    });
  };
  const double quarter = seconds(2), whole = seconds(8);
  EXPECT_LT(quarter, 0.5 * whole) << 1e3 * quarter << " ms of " << 1e3 * whole;
}

// Decoding multiplies one row by a weight: by vectors that takes a third of what four rows take, number by
// number it took three times as long.
TEST(Cost, OfOneRowIsLessThanOfFour) {
  const int64_t n = 2304, k = 768;
  const Tensor weight = random_tensor({n, k}, 1, Dtype::f32);
  const auto seconds = [&](int64_t rows) {
    const Tensor x = random_tensor({rows, k}, 2, Dtype::f32), y = empty({rows, n}, Dtype::f32);
    return seconds_of([&] {
      for (int i = 0; i < 10; ++i) gemm(y, x, weight, {false, true}, 1, 0);
    });
  };
  const double one = seconds(1), four = seconds(4);
  EXPECT_LT(one, four) << 1e3 * one << " ms beside " << 1e3 * four;
}

double sparsek_seconds_a_token(int64_t n) {
  const Dimensions dims{.heads = 2, .kv_heads = 2, .key = 16, .value = 16, .width = 32};
  ParameterStore store;
  const SparseK layer({.k = 16, .window = 32}, dims, {store, ""});
  const Layout layout = whole_documents({n});
  const std::vector<Tensor> inputs = random_inputs(layer, n, Dtype::f32);
  const Tensor adjoint = random_adjoint({n, dims.heads, dims.value}, Dtype::f32);
  return seconds_of([&] {
           Tape tape;
           std::vector<Variable> leaves;
           for (const Tensor& x : inputs) leaves.push_back(tape.input(x));
           const Variable y = run_whole(layer, layout, leaves);
           tape.backward(y, adjoint);
         }) /
         static_cast<double>(n);
}

// Quadratic attention would cost 16 times as much a token.
TEST(Cost, OfATokenOfSparseKIsTheSameInALongText) {
  const double brief = sparsek_seconds_a_token(1024), lengthy = sparsek_seconds_a_token(16384);
  EXPECT_LT(lengthy, 3 * brief) << 1e6 * brief << " and " << 1e6 * lengthy << " us";
  std::printf("SPARSEK, forward and backward: %.2f us a token of 1024, %.2f of 16384\n", 1e6 * brief,
              1e6 * lengthy);
}

}  // namespace
}  // namespace weft
