#include <thread>

#include "autograd/device_times.h"
#include "autograd/start_span.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

TEST(DeviceTimes, OfWhatTheDeviceDoes) {
  const Tensor from = zeros({int64_t{1} << 23}, Dtype::f32), to = empty_like(from);
  std::vector<int64_t> calls;
  const std::vector<double> ms = device_times(default_device(), 6, [&](int64_t i) {
    calls.push_back(i);
    const int64_t n = i % 2 == 0 ? 1 : from.dim(0);
    to.rows(0, n).copy_from(from.rows(0, n));
  });
  EXPECT_EQ(calls, (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
  ASSERT_EQ(ms.size(), 6u);
  for (size_t i = 0; i < 6; i += 2)
    EXPECT_LT(ms[i], ms[i + 1]) << "eight million elements take longer than one";
}

TEST(StartSpan, AddsUpByName) {
  const auto seconds_of = [](const std::string& name) {
    for (const auto& [n, s] : start_spans())
      if (n == name) return s;
    return 0.0;
  };
  constexpr std::chrono::milliseconds kNap{3};
  for (int i = 0; i < 2; ++i) {
    const StartSpan outer("outer of this test");
    const StartSpan inner("inner of this test");
    std::this_thread::sleep_for(kNap);
  }
  EXPECT_GE(seconds_of("inner of this test"), 0.006);
  EXPECT_GE(seconds_of("outer of this test"), seconds_of("inner of this test"));
  const double age = process_age();
  std::this_thread::sleep_for(10 * kNap);
  EXPECT_GE(process_age() - age, 0.02) << "in ticks of ten milliseconds";
  EXPECT_LT(process_age(), 3600) << "the machine's own age";
}

}  // namespace
}  // namespace weft
