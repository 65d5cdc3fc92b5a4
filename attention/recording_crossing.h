#pragma once
// A crossing that records what a mechanism asks of it, while another crossing does the work. So a mechanism
// declares nowhere else what it crosses with.

#include <vector>

#include "attention/crossing.h"

namespace weft {

enum class PartKind : uint8_t { scan, merge, halo, carry };
const char* name_of(PartKind kind);

// One call of the crossing, in order.
struct PartCall {
  PartKind kind;
  // What passes a border between ranks: of a Scan or Carry the state, of a Halo its rows; of a Merge the key
  // and value of one token, or nothing where blocks keep to themselves.
  int64_t bytes;
  std::vector<Device> fused;  // where it is a kernel of its own; a Scan only on one rank
  int64_t free_heads = 0;  // of a Merge, key heads that ranks may share out: 0 if they differ by their bias
};

// "fused" where each of these calls is a kernel of its own on this device, in this build, else "derived".
const char* form_on(Device device, const std::vector<PartCall>& calls);

class RecordingCrossing : public Crossing {
 public:
  explicit RecordingCrossing(Crossing& inner) : Crossing(inner.layout()), inner_(inner) {}

  Variable operator()(const Scan& part, const Block& block) override;
  std::vector<Variable> operator()(const Merge& part, const Block& block) override;
  Variable operator()(const Halo& part, const Block& block) override;
  Variable operator()(const Carry& part, const Block& block) override;
  Variable total(const Variable& sums) override { return inner_.total(sums); }
  bool goes_on() const override { return inner_.goes_on(); }

  const std::vector<PartCall>& calls() const { return calls_; }

 private:
  Crossing& inner_;
  std::vector<PartCall> calls_;
};

}  // namespace weft
