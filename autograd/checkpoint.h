#pragma once
// Activation checkpointing (Chen et al., "Training deep nets with sublinear memory cost", 2016) as an op: the
// forward runs without a tape and keeps only its inputs; the backward runs it again under a tape of its own.

#include <functional>
#include <vector>

#include "autograd/tape.h"

namespace weft {

// f(inputs), with everything inside recomputed in backward. f may use parameters freely, but every variable
// it reads has to be among the inputs: another one belongs to another tape and is refused in backward. f must
// give the same bits when it runs again: random draws by key do.
std::vector<Variable> checkpoint(const std::vector<Variable>& inputs, const Function& f);

// A value that a recompute takes from the first run instead of making it again, such as what another rank
// sent: f() in the first run of a checkpointed function, which saves it beside its inputs, and that value in
// the recompute. Anywhere else just f(). Calls come in the same order in both runs.
Tensor keep(const std::function<Tensor()>& f);
// Whether keep() would not call f.
bool recomputing();

}  // namespace weft
