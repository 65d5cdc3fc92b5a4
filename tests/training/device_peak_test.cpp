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

}  // namespace
}  // namespace weft
