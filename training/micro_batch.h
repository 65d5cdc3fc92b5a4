#pragma once
// What one forward of one rank works on: its part of a few samples.

#include <span>

#include "autograd/layout_bounds.h"
#include "distributed/rank_crossing.h"
#include "distributed/segments.h"
#include "layers/block.h"
#include "training/data/dataset.h"

namespace weft {

struct MicroBatch {
  Tensor tokens, targets;     // (N) i32
  Layout layout;              // of this rank
  std::vector<Segments> all;  // of every rank of the context group
  int64_t labels = 0;         // targets that are not -1, of all ranks of the group together
  // Rounded, where one rank has whole documents: for a BoundsScope.
  DocumentBounds bounds;
  Tensor offsets;  // (bounds.documents + 1) i32
  // All tensors above are parts of this one, i32, so that one copy brings them to a device. Another
  // micro-batch with as many tokens and the same bounds has its parts at the same places.
  Tensor lists;
};

// The same, its tensors parts of a copy of `lists`.
MicroBatch at(MicroBatch micro, const Tensor& lists);

// The batch's documents cut over `ranks` ranks of a context group; rank's part of it. align: of the model.
MicroBatch cut_micro_batch(const Batch& batch, SegmentPlan plan, int ranks, int rank, int64_t align,
                           Device device);

// The crossings of a micro-batch: its own, or over the ranks of its context group where there are several.
// They live as long as the tape. expected: grows by the bytes to send.
std::unique_ptr<CrossingFactory> crossings_of(const MicroBatch& micro, Communicator* ranks,
                                              CrossingStrategy strategy, WireBytes* expected = nullptr);

// A batch of one rank as consecutive batches of at most `samples` samples.
std::vector<Batch> split_batch(const Batch& batch, int64_t context, int64_t samples);

}  // namespace weft
