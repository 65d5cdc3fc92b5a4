#pragma once
// What a mechanism can do, learned by running it: on the meta device for its parts and its state, on a few
// tokens for element types, on two ranks for context parallelism. Nothing of it is declared anywhere.

#include <string>
#include <vector>

#include "attention/recording_crossing.h"
#include "attention/registry.h"

namespace weft {

struct MechanismFacts {
  std::vector<PartCall> calls;                  // of one forward, in order
  bool causal = false;                          // has a causal form
  bool bidirectional = false;                   // has one that sees the whole document
  bool streaming = false;                       // decodes token by token
  int64_t state_bytes = 0;                      // that one layer keeps after `tokens` tokens of one document
  std::vector<std::string> dtypes;              // that forward accepts: f64, f32, bf16
  std::vector<std::string> contiguous, zigzag;  // ways over ranks, by placing

  // scan, merge, halo, carry: each once, in order of the first call.
  std::vector<std::string> kinds() const;
};

struct MechanismSize {
  FieldValue attributes = {};
  Dimensions dims = {};
  Dtype dtype = Dtype::f32;
  int64_t tokens = 512;
};

// What one layer keeps after `tokens` tokens of one document; -1 where it does not decode.
int64_t state_bytes(const MechanismEntry& entry, const MechanismSize& size);

MechanismFacts learn(const MechanismEntry& entry, const MechanismSize& size);

}  // namespace weft
