#pragma once
// What one rank of a context group has to know to cross the borders between ranks: where every token lies,
// and which rows go where. All of it follows from the segments of all ranks; nothing is asked of anybody.
// Made once a batch and shared by all layers.
//
// A document that lies on one rank in one piece needs nobody: most crossings concern the cut ones alone.

#include <map>
#include <vector>

#include "attention/chunks.h"
#include "autograd/layout.h"
#include "distributed/communicator.h"

namespace weft {

// A segment, and where it is.
struct Piece {
  Segment segment;
  int rank = 0;
  int index = 0;    // among the segments of its rank
  int64_t row = 0;  // of its first token on its rank
  bool cut = false;
};

// Rows that ranks put together: counts[r] of rank r, in rank order.
struct GatheredRows {
  std::vector<int64_t> counts;
  int64_t total = 0;
  Tensor position, document;  // (total) i32
};

class RankPlan {
 public:
  // Together the segments hold every document from its start, without gap or overlap.
  RankPlan(std::vector<Segments> segments, int rank, Device device = default_device());

  int rank() const { return rank_; }
  int ranks() const { return static_cast<int>(segments_.size()); }
  const Segments& segments() const { return segments_[static_cast<size_t>(rank_)]; }
  const std::vector<Piece>& pieces() const { return pieces_; }  // by document, in order

  // Everything, for computing the whole on each rank.
  struct Whole {
    GatheredRows rows;
    Layout layout;  // whole documents
    Tensor line;    // (tokens) gathered row of each token of `layout`
    Tensor own;     // (own tokens) row of `layout` of each token here
  };
  const Whole& whole();

  // Tokens of cut documents.
  struct Cut {
    GatheredRows rows;
    Tensor own;     // of this rank's tokens, those of cut documents
    Layout layout;  // of these
    Tensor rest;    // and the others
    Tensor back;    // (own tokens) row among rest and then own
  };
  const Cut& cut() const { return cut_; }

  // A state a piece of the cut documents.
  struct States {
    std::vector<int64_t> counts;  // of rank r
    int64_t total = 0;
    Tensor own;                      // segments here that are such pieces
    Tensor order;                    // gathered rows of the cut documents that have a piece here, in order
    Chunks documents;                // these documents, as segments of which each piece is a chunk
    Tensor before;                   // of each segment here, 1 + its row in `order`; 0 where it is not cut
    Tensor order_back, before_back;  // the same with the pieces of each document from its end
    Tensor document;  // of each segment here, (segments here) + its document; itself where it is not cut
  };
  const States& states() const { return states_; }

  // Of each token here, its segment.
  const Tensor& segment_of_token() const { return segment_of_token_; }

  // The `width` tokens before each segment.
  struct Halos {
    std::vector<int64_t> sent, received;
    Tensor send;               // own rows, by receiving rank
    Tensor place;              // (segments x width) row of what is received, or -1
    Tensor line;               // (segments x width) row of the whole documents, or -1
    Tensor position, segment;  // (segments x width), -1 where there is no such token
  };
  const Halos& halos(int64_t width);

 private:
  void find_pieces();
  void plan_cut();
  void plan_states();

  std::vector<Segments> segments_;
  int rank_;
  Device device_;
  std::vector<Piece> pieces_;
  Whole whole_;
  Cut cut_;
  States states_;
  Tensor segment_of_token_;
  std::map<int64_t, Halos> halos_;
};

// Bytes that this rank sends for one part, forward and on the way back; the communicator counts the same.
struct PartBytes {
  WireBytes forward, backward;
};
// state: bytes of one state. They do not depend on the length of the text.
PartBytes scan_bytes(const RankPlan& plan, int64_t state);
// row: bytes of the sums of one rank.
PartBytes total_bytes(const RankPlan& plan, int64_t row);
PartBytes carry_bytes(const RankPlan& plan, int64_t state);
// row: bytes of all inputs of a token.
PartBytes halo_bytes(RankPlan& plan, int64_t width, int64_t row);
PartBytes gather_bytes(RankPlan& plan, int64_t row);
// Merge parts. keys: bytes of k and v of a token; wide_keys: the same in f32 (f64).
PartBytes merge_bytes(const RankPlan& plan, int64_t keys);
PartBytes ring_bytes(const RankPlan& plan, int64_t keys, int64_t wide_keys);
// inputs: bytes of q, k and v of a token; outputs: of o and lse. Heads divide evenly.
PartBytes heads_bytes(const RankPlan& plan, int64_t inputs, int64_t outputs);

}  // namespace weft
