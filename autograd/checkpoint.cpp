#include "autograd/checkpoint.h"

namespace weft {
namespace {

// One run of a checkpointed function, perhaps inside a run of another.
class Run {
 public:
  // `again`: kept[next], kept[next + 1], ... are what the first run kept.
  Run(std::vector<Tensor>& kept, size_t next, bool again)
      : kept_(kept), next_(next), again_(again), outer_(current_) {
    current_ = this;
  }
  ~Run() { current_ = outer_; }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  static Run* current() { return current_; }
  bool recomputes() const { return again_ || (outer_ != nullptr && outer_->recomputes()); }
  bool used_up() const { return next_ == kept_.size(); }
  Tensor keep(const std::function<Tensor()>& f) {
    if (again_) {
      CHECK(!used_up(), "checkpoint: the recompute keeps more than the first run");
      return kept_[next_++];
    }
    kept_.push_back(outer_ != nullptr ? outer_->keep(f) : f());
    return kept_.back();
  }

 private:
  static thread_local Run* current_;
  std::vector<Tensor>& kept_;
  size_t next_;
  bool again_;
  Run* outer_;
};
thread_local Run* Run::current_ = nullptr;

}  // namespace

Tensor keep(const std::function<Tensor()>& f) {
  return Run::current() != nullptr ? Run::current()->keep(f) : f();
}

bool recomputing() { return Run::current() != nullptr && Run::current()->recomputes(); }

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
    const Run first(saved.tensors, saved.tensors.size(), false);
    for (const Variable& y : f(plain)) outputs.push_back(y.value());
  }
  // Parameters inside f want gradients even if no input does, so this entry always runs: `collective` says
  // so.
  return record_many(
      "checkpoint", inputs, outputs, std::move(saved), NoAttributes{},
      [](Backward& b, const NoAttributes&) {
        Tape inner;
        std::vector<Variable> leaves;
        for (int i = 0; i < b.inputs(); ++i)
          leaves.push_back(b.wants(i) ? inner.input(b.saved(i)) : Variable(b.saved(i)));
        std::vector<Variable> again;
        {
          std::vector<Tensor> saved = b.all_saved();
          const Run second(saved, leaves.size(), true);
          again = b.replay(leaves);
          CHECK(second.used_up(), "checkpoint: the recompute keeps less than the first run");
        }
        std::vector<Tensor> seeds;
        for (size_t i = 0; i < again.size(); ++i) seeds.push_back(b.grad(static_cast<int>(i)));
        inner.backward(again, seeds);
        for (size_t i = 0; i < leaves.size(); ++i)
          if (b.wants(static_cast<int>(i))) b.add(static_cast<int>(i), inner.gradient(leaves[i]));
      },
      true);
}

}  // namespace weft
