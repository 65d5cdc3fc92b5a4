#include "tools/bench_length.h"

#include <omp.h>

#include "attention/registry.h"

namespace weft {
namespace {

constexpr int64_t kTokens = 32768, kShortest = 1024;

class Subject {
 public:
  explicit Subject(const std::string& mechanism) {
    const Dimensions dims{.heads = 4, .kv_heads = 4, .key = 32, .value = 32, .width = 128};
    std::vector<std::string> words = split_settings(mechanism);
    const MechanismEntry& entry = find_mechanism(words[0]);
    words.erase(words.begin());
    mechanism_ = entry.make(parse_attributes(words), dims, {store_, ""});
    store_.commit();
    for (const Variable& x : random_block(*mechanism_, whole_documents({kTokens})).x)
      inputs_.push_back(x.value().to(Dtype::f32));
  }

  // Milliseconds of one forward and backward over documents of this length.
  double time(int64_t length) {
    const Layout layout =
        whole_documents(std::vector<int64_t>(static_cast<size_t>(kTokens / length), length));
    const auto start = BenchClock::now();
    store_.begin_step();
    Tape tape;
    Block block{{}, layout.position, layout.document};
    for (const Tensor& x : inputs_) block.x.push_back(tape.input(x));
    LocalCrossing cross(layout);
    const Variable y = mechanism_->forward(block, cross);
    tape.backward(y, y.value());
    store_.finish_step();
    return ms_since(start);
  }

 private:
  ParameterStore store_;
  std::unique_ptr<Mechanism> mechanism_;
  std::vector<Tensor> inputs_;
};

// On one core the time is the work. On several, many short texts have more for them to share than one long.
class OneCore {
 public:
  OneCore() : cores_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneCore() { omp_set_num_threads(cores_); }
  OneCore(const OneCore&) = delete;
  OneCore& operator=(const OneCore&) = delete;

 private:
  int cores_;
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
  const OneCore alone;
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
  for (size_t i = 0; i < times.size(); ++i) rows[i].take(times[i]);
  return rows;
}

}  // namespace weft
