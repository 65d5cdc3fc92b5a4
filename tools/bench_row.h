#pragma once
// One line of `weft bench`.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace weft {

struct BenchRow {
  std::string name;   // "gemm", "attention forward", "attention decode, 2 of 8 heads", "step hybrid", ...
  std::string shape;  // "512x512x512" (M, N, K); "B8 T512 H4 D32"; "4 layers, width 128, vocab 2048, T512"
  double ms = 0, ms_p10 = 0, ms_p90 = 0;  // median and percentiles over repetitions
  double flops = 0;                       // multiplications and additions of one repetition; 0: not counted
  int64_t tokens = 0;                     // of one repetition; 0: not a matter of tokens
  std::string dtype = "f32";
  double bytes = 0;     // read and written once each; 0: not a matter of bytes
  double floor_ms = 0;  // what the machine needs at least, at rates measured in the same run; 0: not known
  std::string note = {};

  double tflops() const { return flops / ms * 1e-9; }
  double tbs() const { return bytes / ms * 1e-9; }
  double tokens_per_s() const { return static_cast<double>(tokens) / ms * 1e3; }

  // Milliseconds of the repetitions, in any order.
  void take(std::vector<double> times) {
    std::sort(times.begin(), times.end());
    ms = percentile(times, 0.5);
    ms_p10 = percentile(times, 0.1);
    ms_p90 = percentile(times, 0.9);
  }
  static double percentile(const std::vector<double>& sorted, double share) {
    return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1) + 0.5)];
  }
};

using BenchClock = std::chrono::steady_clock;
inline double ms_since(BenchClock::time_point start) {
  return std::chrono::duration<double, std::milli>(BenchClock::now() - start).count();
}

using BenchDone = std::function<void(const BenchRow&)>;

}  // namespace weft
