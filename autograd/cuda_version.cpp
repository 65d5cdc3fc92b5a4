#include "autograd/cuda_version.h"

#ifdef WEFT_CUDA
#include "autograd/cuda/runtime.h"
#endif

namespace weft {

std::string cuda_version() {
#ifdef WEFT_CUDA
  int runtime = 0, driver = 0;
  CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  CUDA_CHECK(cudaDriverGetVersion(&driver));
  const auto shown = [](int version) { return text(version / 1000, ".", version % 1000 / 10); };
  return text(shown(runtime), ", driver ", shown(driver));
#else
  return {};
#endif
}

}  // namespace weft
