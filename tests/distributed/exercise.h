#pragma once
// Every collective on odd sizes and all types: what one rank saw, as bytes, to be compared between
// transports.

#include <cstddef>
#include <vector>

#include "distributed/communicator.h"

namespace weft {

std::vector<std::byte> exercise(Communicator& comm);

}  // namespace weft
