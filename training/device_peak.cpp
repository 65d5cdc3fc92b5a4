#include "training/device_peak.h"

namespace weft {
namespace {

// From NVIDIA's data sheets. The first name that a GPU's own name contains counts.
struct Peak {
  const char* name;
  double bf16, f32;
};
constexpr Peak kPeaks[] = {
    {"H100 PCIe", 756e12, 51e12}, {"H100 NVL", 835e12, 60e12}, {"H100", 989e12, 67e12},
    {"H200", 989e12, 67e12},      {"GH200", 989e12, 67e12},    {"A100", 312e12, 19.5e12},
};

}  // namespace

std::optional<double> peak_flops(const std::string& gpu, Dtype dtype) {
  for (const Peak& peak : kPeaks) {
    if (gpu.find(peak.name) == std::string::npos) continue;
    if (dtype == Dtype::bf16) return peak.bf16;
    if (dtype == Dtype::f32) return peak.f32;
  }
  return {};
}

std::optional<double> share_of_peak(double operations, double seconds, double peak) {
  const double share = operations / seconds / peak;
  return share <= 1 ? std::optional(share) : std::nullopt;
}

}  // namespace weft
