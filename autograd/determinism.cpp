#include "autograd/determinism.h"

#include <atomic>

namespace weft {
namespace {

std::atomic<bool> wanted = true;

}  // namespace

bool deterministic() { return wanted; }

void set_deterministic(bool value) { wanted = value; }

}  // namespace weft
