#pragma once
// What a mechanism takes and leaves, learned by building it and running it once on shapes alone.

#include <string>
#include <vector>

#include "attention/recording_crossing.h"
#include "attention/registry.h"

namespace weft {

struct InputInfo {
  Input input;
  bool optional;  // the mechanism has its own
};

// One tensor of a state. Names are unique: where two parts use the same one, the part's number comes before
// it
// ("1.S").
struct StateInfo {
  std::string name;
  size_t part, index;  // where StatesCrossing keeps it
  Shape shape;         // of one document
};

struct Signature {
  std::vector<InputInfo> inputs;
  Shape output;  // of one token
  std::vector<StateInfo> states;
  std::vector<std::pair<std::string, Shape>> parameters;
  bool losses = false;          // it gives auxiliary ones
  std::vector<PartCall> calls;  // of one forward, in order
};

// Sizes with which any mechanism can be built, with these attributes: a number of heads divides them.
Dimensions placeholder_dimensions(const FieldValue& attributes, bool grouped);
// The inputs alone, which depend on the attributes but on no size.
std::vector<InputInfo> inputs_of(const MechanismEntry& entry, const FieldValue& attributes);
Signature signature_of(const MechanismEntry& entry, const FieldValue& attributes, const Dimensions& dims,
                       Dtype dtype = Dtype::f32);

// "h k" after batch and time: "B T H Dk".
std::string dims_text(const Input& input);

// One line of JSON, describe/1 of docs/contract.md.
std::string describe_json(const MechanismEntry& entry, const FieldValue& attributes);
// The same for people.
std::string describe_text(const MechanismEntry& entry, const FieldValue& attributes);
// All attributes with their values, as a JSON object.
std::string attributes_json(const MechanismEntry& entry, const FieldValue& attributes);

}  // namespace weft
