#pragma once
// States from outside and to outside, over any crossing. A scan or carry starts its documents from given
// states instead of its own start, and the states after the last tokens are kept; both are on the tape. It
// also cuts scans and carries into chunks of a chosen length, which changes no result.

#include <map>

#include "attention/crossing.h"

namespace weft {

// A document of known length; `given` is the row of the given states that it starts from, or -1.
struct StateDocument {
  int64_t length;
  int64_t given;
};

// The states of one part.
struct PartStates {
  std::vector<std::string> names;  // "" for one that nobody sees from outside
  std::vector<Shape> shapes;       // of one document
  State given;                     // each (rows, ...); undefined, or none at all: the part's own start
  std::map<int, State> last;       // by document, each (1, ...)
};

class StatesCrossing : public Crossing {
 public:
  // parts: one a Scan or Carry in the order of the calls; missing ones are appended. Documents are those of
  // the layout's segments; the last state of one is kept by the crossing whose layout holds its last token.
  StatesCrossing(Crossing& inner, std::vector<StateDocument> documents, std::vector<PartStates>& parts,
                 int64_t chunk = 0);

  Variable operator()(const Scan& part, const Block& block) override;
  std::vector<Variable> operator()(const Merge& part, const Block& block) override {
    return inner_(part, block);
  }
  Variable operator()(const Halo& part, const Block& block) override { return inner_(part, block); }
  Variable operator()(const Carry& part, const Block& block) override;
  Variable total(const Variable& sums) override { return inner_.total(sums); }
  bool goes_on() const override { return inner_.goes_on(); }

 private:
  PartStates& next_part(const std::vector<std::string>& names, const State& start, int leading_axes);

  Crossing& inner_;
  std::vector<StateDocument> documents_;
  std::vector<bool> ends_here_;  // by document
  std::vector<PartStates>& parts_;
  size_t calls_ = 0;
  int64_t chunk_;
};

}  // namespace weft
