#include "attention/mechanism.h"

#include <algorithm>

#include "autograd/gradcheck.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"

namespace weft {

int64_t Dimensions::of(char letter) const {
  switch (letter) {
    case 'h': return heads;
    case 'g': return kv_heads;
    case 'k': return key;
    case 'v': return value;
    case 'c': return width;
  }
  throw Error(Exit::internal, text("no dimension is called ", letter));
}

void require_equal_heads(const Dimensions& dims, const char* mechanism) {
  if (dims.heads != dims.kv_heads)
    throw Error(
        Exit::recipe,
        text(mechanism, " needs one key head for each query head, got ", dims.heads, " and ", dims.kv_heads),
        "kv_heads", "set kv_heads = heads");
}

Shape input_shape(const Input& input, const Dimensions& dims, int64_t n) {
  Shape shape{n};
  for (const char* p = input.dims; *p; ++p)
    if (*p != ' ') shape.push_back(dims.of(*p));
  return shape;
}

namespace {

Tensor repeated_row(const std::vector<double>& values, int64_t n, Dtype dtype, Device device) {
  const Shape one{1, static_cast<int64_t>(values.size())};
  const Tensor row =
      device == Device::meta ? empty(one, dtype, device) : from_values(one, dtype, values, device);
  return row.repeated(n);
}

}  // namespace

Tensor fixed_rows(const Mechanism& mechanism, const Input& input, int64_t n, Dtype dtype, Device device) {
  return repeated_row(mechanism.fixed_input(input.name), n, dtype, device);
}

Tensor RepeatedRows::operator()(const std::string& name, const std::vector<double>& values, int64_t n,
                                Dtype dtype, Device device) const {
  const std::lock_guard lock(known_->asking);
  std::vector<Tensor>& known = known_->rows[name];
  auto row = std::find_if(known.begin(), known.end(),
                          [&](const Tensor& r) { return r.dtype() == dtype && r.device() == device; });
  if (row == known.end()) row = known.insert(row, repeated_row(values, 1, dtype, device));
  return row->repeated(n);
}

std::vector<Tensor> random_inputs(const Mechanism& mechanism, int64_t tokens, Dtype dtype, uint32_t seed) {
  std::vector<Tensor> inputs;
  for (const Input& input : mechanism.inputs()) {
    Variable x = random_tensor(input_shape(input, mechanism.dims(), tokens), seed++);
    // Decays of 0.8 or so: stronger ones would hide what a chunk leaves to the next.
    if (input.domain == Domain::log_decay) x = negate(square(scale(x, 0.5)));
    if (input.domain == Domain::unit) x = sigmoid(scale(x, 1, input.start));
    if (input.domain == Domain::positive) x = softplus(scale(x, 1, input.start));
    if (input.domain == Domain::direction) x = divide(x, sqrt(sum(square(x), -1, true)));
    inputs.push_back(x.value().to(dtype));
  }
  return inputs;
}

Block random_block(const Mechanism& mechanism, const Layout& layout) {
  const std::vector<Tensor> inputs = random_inputs(mechanism, layout.tokens());
  return {{inputs.begin(), inputs.end()}, layout.position, layout.document};
}

Variable reference_by_document(const Mechanism& mechanism, const Block& block) {
  const std::vector<double> document = to_values(block.document);
  std::vector<Variable> outputs;
  for (size_t begin = 0, end = 0; begin < document.size(); begin = end) {
    while (end < document.size() && document[end] == document[begin]) ++end;
    const auto b = static_cast<int64_t>(begin), e = static_cast<int64_t>(end);
    Block one{{}, block.position.rows(b, e), block.document.rows(b, e)};
    for (const Variable& x : block.x) one.x.push_back(slice(x, 0, b, e));
    outputs.push_back(mechanism.reference(one));
  }
  return concatenate(outputs, 0);
}

}  // namespace weft
