#include "attention/feature_map.h"

#include <cmath>

#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/softmax.h"

namespace weft {
namespace {

constexpr uint32_t kFavorSeed = 1;
// Of hedgehog, as in its authors' code: a sum of weights is then never 0.
constexpr double kLeastFeature = 1e-12;

// x (N, H, D) with a matrix a head, W (H, F, D): W x, (N, H, F)
Variable mapped_by_head(const Variable& x, const Variable& w) {
  return permute(matmul(permute(x, {1, 0, 2}), w, {false, true}), {1, 0, 2});
}

Variable less_its_largest(const Variable& x) { return subtract(x, max(x, -1, true)); }

}  // namespace

std::vector<std::string> FeatureMap::names() {
  return {"identity", "elu", "relu", "taylor", "hedgehog", "favor", "lln"};
}

FeatureMap::FeatureMap(std::string name, const Dimensions& dims, const ParameterScope& scope)
    : name_(std::move(name)), dims_(dims) {
  const int64_t h = dims.heads, d = dims.key;
  if (name_ == "hedgehog") {
    std::vector<double> unit(static_cast<size_t>(h * d * d));
    for (int64_t i = 0; i < h * d; ++i) unit[i * d + i % d] = 1;
    const auto declare = [&](const char* of) {
      return scope.declare({of, {h, d, d}, ParameterKind::vector, Initializer::from(unit)});
    };
    of_queries_ = declare("hedgehog.q");
    of_keys_ = declare("hedgehog.k");
  }
  if (name_ == "favor")
    of_queries_ = of_keys_ = scope.declare({.name = "favor",
                                            .shape = {d, d},
                                            .kind = ParameterKind::vector,
                                            .init = Initializer::from(orthogonal_rows(d, d, kFavorSeed)),
                                            .trainable = false});
  if (name_ == "lln") {
    const auto declare = [&](const char* of) {
      return scope.declare({.name = of,
                            .shape = {h, 1},
                            .kind = ParameterKind::vector,
                            .init = Initializer::constant(lln_exponent(d)),
                            .trainable = false});
    };
    of_queries_ = declare("lln.q");
    of_keys_ = declare("lln.k");
  }
}

int64_t FeatureMap::size() const {
  const int64_t d = dims_.key;
  if (name_ == "taylor") return 1 + d + d * (d + 1) / 2;
  return name_ == "hedgehog" ? 2 * d : d;
}

Variable FeatureMap::queries(const Variable& x) const {
  return needs_normaliser() ? exp(less_its_largest(exponents(x, of_queries_))) : map(x, of_queries_);
}

Variable FeatureMap::keys(const Variable& x) const {
  return needs_normaliser() ? exp(key_exponents(x)) : map(x, of_keys_);
}

Variable FeatureMap::key_exponents(const Variable& x) const { return exponents(x, of_keys_); }

Variable FeatureMap::exponents(const Variable& x, const Parameter& own) const {
  const Variable wide = cast(x, wide_of(x.dtype()));
  if (name_ == "lln") return multiply(wide, own);
  const double d = static_cast<double>(dims_.key);
  const Variable scaled = scale(wide, 1 / std::sqrt(std::sqrt(d)));
  const Variable half_square = scale(sum(square(scaled), -1, true), 0.5, 0.5 * std::log(d));
  return subtract(linear(scaled, own), half_square);
}

Variable FeatureMap::map(const Variable& x, const Parameter& own) const {
  if (name_ == "elu") return elu_plus_one(x);
  if (name_ == "relu") return relu(x);
  if (name_ == "identity") return x;
  const Variable wide = cast(x, wide_of(x.dtype()));
  if (name_ == "taylor") return taylor_features(wide);
  const Variable y = mapped_by_head(wide, own);
  const Variable both = concatenate({softmax(y), softmax(negate(y))}, 2);
  return maximum(both, full({1}, kLeastFeature, both.dtype(), both.device()));
}

// Gram and Schmidt on normal vectors.
std::vector<double> orthogonal_rows(int64_t rows, int64_t size, uint32_t seed) {
  std::vector<double> w = to_values(random_tensor({rows, size}, seed));
  const auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += a[i] * b[i];
    return sum;
  };
  for (int64_t r = 0; r < rows; ++r) {
    double* row = w.data() + r * size;
    const double length = std::sqrt(dot(row, row));
    for (int64_t other = r / size * size; other < r; ++other) {
      const double* before = w.data() + other * size;
      const double share = dot(row, before) / dot(before, before);
      for (int64_t i = 0; i < size; ++i) row[i] -= share * before[i];
    }
    const double left = std::sqrt(dot(row, row));
    for (int64_t i = 0; i < size; ++i) row[i] *= length / left;
  }
  return w;
}

double lln_exponent(int64_t size) { return 0.8 + 0.2165 * std::log2(static_cast<double>(size)); }

}  // namespace weft
