#include "autograd/gradcheck.h"

#include <cmath>

namespace weft {
namespace {

double dot(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = to_values(a), y = to_values(b);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

}  // namespace

double largest_difference(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape())) return INFINITY;
  const std::vector<double> x = to_values(a), y = to_values(b);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = x[i] == y[i] ? 0 : std::abs(x[i] - y[i]);
    if (!(d <= worst)) worst = std::isnan(d) ? INFINITY : d;
  }
  return worst;
}

Tensor random_tensor(const Shape& shape, uint32_t seed, Dtype dtype, double deviation) {
  const RandomKey key{seed, stream_of("random_tensor"), 0};
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = deviation * key.normal(i);
  return from_values(shape, dtype, values);
}

GradcheckResult gradcheck(const Function& f, const std::vector<Tensor>& inputs, ParameterStore* store,
                          int samples, uint32_t seed) {
  std::vector<Tensor> adjoints, analytic, places;
  std::vector<std::string> names;
  {
    Tape tape;
    std::vector<Variable> leaves;
    for (const Tensor& x : inputs) leaves.push_back(is_float(x.dtype()) ? tape.input(x) : Variable(x));
    if (store != nullptr) store->begin_step();
    const std::vector<Variable> outputs = f(leaves);
    for (size_t i = 0; i < outputs.size(); ++i)
      adjoints.push_back(random_tensor(outputs[i].shape(), seed + 101 * (i + 1)));
    tape.backward(outputs, adjoints);
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!is_float(inputs[i].dtype())) continue;
      places.push_back(inputs[i]);
      analytic.push_back(tape.gradient(leaves[i]).contiguous());
      names.push_back(text("input ", i));
    }
  }
  if (store != nullptr) {
    store->finish_step();
    for (const auto& entry : store->entries()) {
      if (!entry->info.trainable) continue;
      places.push_back(entry->master);
      const Tensor copy = empty_like(entry->gradient);
      copy.copy_from(entry->gradient);
      analytic.push_back(copy);
      names.push_back(entry->info.name);
    }
  }
  const auto loss = [&] {
    const NoTape pause;
    std::vector<Variable> plain(inputs.begin(), inputs.end());
    const std::vector<Variable> outputs = f(plain);
    double sum = 0;
    for (size_t i = 0; i < outputs.size(); ++i) sum += dot(outputs[i], adjoints[i]);
    return sum;
  };
  GradcheckResult result;
  const RandomKey key{seed, stream_of("gradcheck"), 0};
  for (size_t p = 0; p < places.size(); ++p) {
    CHECK(places[p].dtype() == Dtype::f64 && places[p].dense(), "gradcheck: ", names[p],
          " must be dense f64");
    const Tensor host = places[p].to(Device::cpu);  // itself, or a copy to write through
    double* x = host.data<double>();
    const Tensor gradient = analytic[p].to(Device::cpu);
    const double* g = gradient.data<double>();
    const int64_t n = places[p].numel();
    double norm = 0;
    for (int64_t i = 0; i < n; ++i) norm += g[i] * g[i];
    const int64_t checks = std::min<int64_t>(n, samples);
    for (int64_t c = 0; c < checks; ++c) {
      const int64_t i =
          n <= samples
              ? c
              : static_cast<int64_t>(key.draw(static_cast<uint64_t>(c), static_cast<uint32_t>(p))[0] % n);
      const double old = x[i], eps = 1e-4;
      const auto put = [&](double value) {
        x[i] = value;
        if (places[p].device() != Device::cpu) places[p].copy_from(host);
      };
      const auto at = [&](double shift) {
        put(old + shift * eps);
        return loss();
      };
      const double numeric = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * eps);
      put(old);
      const double error = std::abs(numeric - g[i]) / (1 + std::sqrt(norm));
      if (!(error <= result.error)) result = {std::isnan(error) ? INFINITY : error, names[p]};
    }
  }
  return result;
}

}  // namespace weft
