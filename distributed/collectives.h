#pragma once
// Collectives as ops of the tape. Each computes at once and records its adjoint, marked collective: on the
// way back it runs on every rank, whether a gradient arrived there or not, so nobody waits for ever. All
// ranks call the same ones in the same order, with no rows where they have nothing, and every argument but x
// is the same everywhere or follows from what is.
//
// Gradients travel in the dtype of x; where several meet they are summed in f32 (f64) and rounded once. The
// communicator has to outlive the tape. On the meta device nothing is sent.

#include <vector>

#include "autograd/tape.h"
#include "distributed/communicator.h"

namespace weft {

// What a checkpointed function does with a collective when it runs again: small results are kept from its
// first run, large ones are fetched again.
enum class Recompute : uint8_t { kept, repeated };

// x (counts[rank], ...) -> the rows of all ranks in their order. Adjoint: reduce_scatter.
Variable all_gather_rows(Communicator& ranks, const Variable& x, const std::vector<int64_t>& counts,
                         Recompute rule);

// x holds sent[0] rows for rank 0, sent[1] for rank 1, ... -> received[0] rows of rank 0, ... Adjoint: the
// same the other way.
Variable exchange_rows(Communicator& ranks, const Variable& x, const std::vector<int64_t>& sent,
                       const std::vector<int64_t>& received, Recompute rule);

// x, which rank `from` holds, comes out on rank `to`; all others pass anything and get (0). `like` has the
// shape and dtype of x everywhere. Sends never wait for the receiver, so calls in one order cannot deadlock;
// the adjoint sends back. Kept in a recompute.
Variable hand_on(Communicator& ranks, const Variable& x, int from, int to, const Tensor& like);

// Records an op that talks to other ranks. On its way back `adjoint` is called with the saved tensors and
// then the gradient of each output, zeros where none arrived, and returns the gradient of each input.
std::vector<Variable> record_collective(const char* name, std::vector<Variable> inputs,
                                        const std::vector<Tensor>& outputs, std::vector<Tensor> saved,
                                        Function adjoint);

// What a communicator can move: x, or of a GPU's tensor a copy in host memory.
Tensor on_host(const Tensor& x);
// Whether an exchange of tensors like x is to happen: not on meta, and not where a test breaks it.
bool exchanges(const Tensor& x);

}  // namespace weft
