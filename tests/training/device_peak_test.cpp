#include "training/device_peak.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(DevicePeak, IsThatOfTheNameAndType) {
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", Dtype::bf16), 989e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe", Dtype::bf16), 756e12) << "the longer name first";
  EXPECT_EQ(peak_flops("NVIDIA A100-SXM4-80GB", Dtype::f32), 19.5e12);
  EXPECT_FALSE(peak_flops("NVIDIA H200", Dtype::f64));
  EXPECT_FALSE(peak_flops("cpu", Dtype::bf16));
}

TEST(DevicePeak, NoShareAboveAll) {
  EXPECT_EQ(share_of_peak(400e12, 0.5, 1000e12), 0.8);
  EXPECT_EQ(share_of_peak(500e12, 0.5, 1000e12), 1.0);
  EXPECT_FALSE(share_of_peak(501e12, 0.5, 1000e12)) << "no device does that: the count is wrong";
}

}  // namespace
}  // namespace weft
