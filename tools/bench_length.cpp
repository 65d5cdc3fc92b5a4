#include "tools/bench_length.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "attention/registry.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"

namespace weft {
namespace {

constexpr int64_t kTokens = 32768, kShortest = 1024;

Tensor random_input(const Input& input, const Dimensions& dims, uint32_t stream) {
  Tensor x = empty(input_shape(input, dims, kTokens), Dtype::f32);
  const RandomKey random{42, stream};
  for (int64_t i = 0; i < x.numel(); ++i)
    x.data<float>()[i] = static_cast<float>(random.normal(static_cast<uint64_t>(i)));
  switch (input.domain) {
    case Domain::real: return x;
    case Domain::log_decay: return scale(square(x), -0.05).value();
    case Domain::unit: return sigmoid(scale(x, 1, input.start)).value();
    case Domain::positive: return softplus(scale(x, 1, input.start)).value();
    case Domain::direction: return divide(x, sqrt(sum(square(x), -1, true))).value();
  }
  return x;
}

class Subject {
 public:
  explicit Subject(const std::string& id) {
    const Dimensions dims{.heads = 4, .kv_heads = 4, .key = 32, .value = 32, .width = 128};
    mechanism_ = find_mechanism(id).make({}, dims, {store_, ""});
    store_.commit();
    uint32_t stream = 1;
    for (const Input& input : mechanism_->inputs()) inputs_.push_back(random_input(input, dims, stream++));
  }

  // Milliseconds of one forward and backward over documents of this length.
  double time(int64_t length) {
    const Layout layout =
        whole_documents(std::vector<int64_t>(static_cast<size_t>(kTokens / length), length));
    const auto start = std::chrono::steady_clock::now();
    store_.begin_step();
    Tape tape;
    Block block{{}, layout.position, layout.document};
    for (const Tensor& x : inputs_) block.x.push_back(tape.input(x));
    LocalCrossing cross(layout);
    const Variable y = mechanism_->forward(block, cross);
    tape.backward(y, y.value());
    store_.finish_step();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  ParameterStore store_;
  std::unique_ptr<Mechanism> mechanism_;
  std::vector<Tensor> inputs_;
};

}  // namespace

double rise_of(const std::vector<BenchRow>& rows) {
  const auto n = static_cast<double>(rows.size());
  double x = 0, y = 0, xx = 0, xy = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto at = static_cast<double>(i);
    x += at, y += rows[i].ms, xx += at * at, xy += at * rows[i].ms;
  }
  const double slope = (n * xy - x * y) / (n * xx - x * x), first = (y - slope * x) / n;
  return slope * (n - 1) / first;
}

std::vector<BenchRow> bench_length(const std::string& mechanism, int64_t rounds) {
  Subject subject(mechanism);
  std::vector<BenchRow> rows;
  for (int64_t length = kShortest; length <= kTokens; length *= 2) {
    rows.push_back({.name = mechanism, .shape = text(kTokens / length, " x ", length, ", H4 D32")});
    rows.back().tokens = kTokens;
  }
  std::vector<std::vector<double>> times(rows.size());
  subject.time(kShortest);  // warms up
  for (int64_t round = 0; round < rounds; ++round)
    for (size_t i = 0; i < times.size(); ++i) times[i].push_back(subject.time(kShortest << i));
  for (size_t i = 0; i < times.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    const auto at = [&](double share) {
      return times[i][static_cast<size_t>(share * static_cast<double>(rounds - 1) + 0.5)];
    };
    rows[i].ms = at(0.5);
    rows[i].ms_p10 = at(0.1);
    rows[i].ms_p90 = at(0.9);
  }
  return rows;
}

}  // namespace weft
