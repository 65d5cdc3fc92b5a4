#include "autograd/checkpoint.h"

namespace weft {

std::vector<Variable> checkpoint(const std::vector<Variable>& inputs, const Function& f) {
  Tape* const tape = Tape::current();
  if (tape == nullptr) return f(inputs);
  std::vector<Tensor> outputs;
  Saved saved{{}, f};
  {
    const NoTape pause;
    std::vector<Variable> plain;
    for (const Variable& v : inputs) {
      plain.emplace_back(v.value());
      saved.tensors.push_back(v.value());
    }
    for (const Variable& y : f(plain)) outputs.push_back(y.value());
  }
  // Parameters inside f want gradients even if no input does, so this entry always runs: `collective` says
  // so.
  return record_many(
      "checkpoint", inputs, outputs, std::move(saved), NoAttributes{},
      [](Backward& b, const NoAttributes&) {
        Tape inner;
        std::vector<Variable> leaves;
        for (size_t i = 0; i < b.inputs().size(); ++i) {
          const Tensor& x = b.saved(static_cast<int>(i));
          leaves.push_back(b.wants(static_cast<int>(i)) ? inner.input(x) : Variable(x));
        }
        const std::vector<Variable> again = b.saved().replay(leaves);
        std::vector<Tensor> seeds;
        for (size_t i = 0; i < again.size(); ++i) seeds.push_back(b.grad(static_cast<int>(i)));
        inner.backward(again, seeds);
        for (size_t i = 0; i < leaves.size(); ++i)
          if (b.wants(static_cast<int>(i))) b.add(static_cast<int>(i), inner.gradient(leaves[i]));
      },
      true);
}

}  // namespace weft
