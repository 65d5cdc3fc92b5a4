#pragma once
// Where a mechanism's parts meet the rest of the sequence. The same code of a mechanism serves training,
// prefill, decoding and context parallelism: they differ only in the Crossing.

#include <map>
#include <string>
#include <vector>

#include "attention/part.h"
#include "attention/steps.h"

namespace weft {

struct AuxiliaryLoss {
  std::string name;
  Variable value;
  double weight;
};

class Crossing {
 public:
  explicit Crossing(const Layout& layout) : layout_(layout) {}
  virtual ~Crossing() = default;
  Crossing(const Crossing&) = delete;
  Crossing& operator=(const Crossing&) = delete;

  const Layout& layout() const { return layout_; }

  // Tokens (N, ...) of this rank in, outputs (N, ...) back. Called in the same order on every rank and every
  // step.
  virtual Variable operator()(const Scan& part, const Block& block) = 0;
  // block.x = {q, k, v}, or {q, k, v, active}; returns {o (N, H, Dv), lse (N, H)}.
  virtual std::vector<Variable> operator()(const Merge& part, const Block& block) = 0;
  virtual Variable operator()(const Halo& part, const Block& block) = 0;
  virtual Variable operator()(const Carry& part, const Block& block) = 0;

  // Sums over the tokens here -> sums over all tokens that are computed together, on whichever rank.
  virtual Variable total(const Variable& sums) { return sums; }

  // Whether later tokens may look at these, as in decoding; for parts that leave out what no token will look
  // at.
  virtual bool goes_on() const { return true; }

  // Whether a kernel serves this call: one token more of each document. Then `step` may be called, with
  // queries and keys that do not have their rotary positions yet; `turn` is the base of these.
  virtual bool steps(const Merge&, const Block&) const { return false; }
  virtual std::vector<Variable> step(const Merge& part, const Block& block, double turn);

  // An auxiliary loss, a scalar, a mean over all tokens (see `total`), so that it is the same on every rank;
  // added to the objective with this weight.
  void loss(const std::string& name, const Variable& value, double weight = 1) {
    losses_.push_back({name, value, weight});
  }
  const std::vector<AuxiliaryLoss>& losses() const { return losses_; }

 private:
  const Layout& layout_;
  std::vector<AuxiliaryLoss> losses_;
};

// Rows of one document that later tokens will look at. It grows without copying the old rows each time.
class RowCache {
 public:
  void append(const std::vector<Tensor>& rows);
  // Adds `count` rows of the shapes of `like`, which the caller will write.
  void extend(const std::vector<Tensor>& like, int64_t count);
  // From the next growth on there is room for this many rows.
  void expect(int64_t rows) { expected_ = rows; }
  // Keeps the last `count` rows.
  void keep_last(int64_t count);
  int64_t size() const { return size_; }
  Tensor rows(int i) const { return buffers_[i].rows(begin_, begin_ + size_); }
  bool empty() const { return buffers_.empty(); }
  int64_t capacity() const { return buffers_.empty() ? 0 : buffers_[0].dim(0); }
  int64_t bytes() const;

 private:
  std::vector<Tensor> buffers_;
  int64_t begin_ = 0, size_ = 0, expected_ = 0;
};

// What decoding keeps between calls: one slot for each call of a crossing, in the order of the calls. A slot
// holds, by document, the state of a Scan or Carry, or the rows of a Merge or Halo.
struct Stream {
  struct Slot {
    std::vector<std::string> names;  // of the state's tensors
    std::map<int, State> states;
    std::map<int, RowCache> rows;
    AddressTable addresses;  // of the documents that stepped last
    // While documents step, the rows of their Halo: `width` each, one document after another.
    struct Window {
      std::vector<int> documents;
      std::vector<int64_t> seen;  // tokens of each
      Block before;
    };
    Window window;
    bool steady = false;  // its last call did the same work as the next one will
  };
  std::vector<Slot> slots;
  int64_t expected = 0;  // tokens that a document will have, if known: then caches never grow

  int64_t bytes() const;
  // Whether the last call was a step of one token for each document, made only of kernels that find their
  // place on the device: then the same launches again are the next step.
  bool steady() const;
};

// One rank holding whole documents; or, with a stream, the next tokens of documents whose past the stream
// keeps.
class LocalCrossing : public Crossing {
 public:
  explicit LocalCrossing(const Layout& layout, Stream* stream = nullptr)
      : Crossing(layout), stream_(stream) {}

  Variable operator()(const Scan& part, const Block& block) override;
  std::vector<Variable> operator()(const Merge& part, const Block& block) override;
  Variable operator()(const Halo& part, const Block& block) override;
  Variable operator()(const Carry& part, const Block& block) override;
  bool steps(const Merge& part, const Block& block) const override;
  std::vector<Variable> step(const Merge& part, const Block& block, double turn) override;
  // With a stream, over all tokens that it has seen.
  Variable total(const Variable& sums) override;
  bool goes_on() const override { return stream_ != nullptr; }

 private:
  Stream::Slot* next_slot();
  Block rows_before(const Halo& part, const Block& block, const Stream::Slot* slot) const;

  Stream* stream_;
  size_t calls_ = 0;
};

}  // namespace weft
