#include "autograd/determinism.h"

#include <atomic>

namespace weft {
namespace {

std::atomic<bool> equal_bits = true;

}  // namespace

bool deterministic() { return equal_bits; }

void set_deterministic(bool value) { equal_bits = value; }

}  // namespace weft
