#pragma once
// The tensors of the input file, checked against what the mechanism takes, on one token line: row after row.

#include <map>
#include <string>
#include <vector>

#include "tools/apply_options.h"
#include "tools/apply_signature.h"
#include "tools/apply_states.h"

namespace weft {

struct ApplyInput {
  Tensor value;           // (N, ...); undefined where the mechanism's own is taken
  bool per_head = false;  // (H): one value a head, at all tokens
};

// Tokens [begin, end) of a row.
struct RowDocument {
  int64_t row, begin, end;
  int64_t size() const { return end - begin; }
};

struct ApplyTask {
  const MechanismEntry* mechanism;
  FieldValue attributes;
  Dimensions dims;
  Signature signature;
  Dtype dtype, wide;                   // of the computation; of states and parameters
  int64_t rows = 0, tokens = 0;        // B, T
  std::vector<RowDocument> documents;  // by row, in order
  std::vector<ApplyInput> inputs;      // as signature.inputs
  std::vector<Tensor> given, d_state;  // (B, ...), as signature.states; undefined where the file has none
  std::map<std::string, Tensor> parameters;  // those of the file
  std::optional<uint32_t> init;              // seed of the others
  Tensor d_y;                                // (N, ...); undefined: no gradients are wanted

  bool has_given() const;
  bool has_d_state() const;
  // The documents' states for StatesCrossing.
  std::vector<StateDocument> state_documents() const;
};

// Errors: Exit::data, naming tensor and shapes; Exit::recipe for the attributes.
ApplyTask read_task(const ApplyOptions& options);

}  // namespace weft
