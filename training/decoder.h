#pragma once
// Texts that a model continues side by side, one token for each in a step, drawn where the model computes. On
// a GPU a step that turns out to be the same work each time becomes one CUDA graph.

#include "autograd/ops/sample.h"
#include "layers/model.h"
#ifdef WEFT_CUDA
#include "autograd/cuda/replay.h"
#endif

namespace weft {

class Decoder {
 public:
  // Reads the prompts, at least one token each, and draws the first token after each; there will be at most
  // `steps` calls of step(). vocab: only ids below it are drawn; 0: all. at_once: texts that one step of the
  // model takes; 0: all on a GPU, and one on the CPU, where the bits of a row depend on how many there are.
  Decoder(const Model& model, const std::vector<std::vector<int32_t>>& prompts, int64_t steps,
          const DrawOptions& draws, int64_t vocab = 0, int64_t at_once = 0);

  // The tokens drawn last, one for each text.
  std::vector<int32_t> tokens() const;
  // One token more for each text. Tokens of texts that are `finished` have no meaning.
  void step(const std::vector<bool>& finished);
  // What the texts keep, in bytes; replayed steps are not counted.
  int64_t state_bytes() const { return crossings_.bytes(); }
  bool replays() const;

 private:
  struct Group {
    int64_t begin, end;  // of the texts
  };
  void prefill(const std::vector<int32_t>& prompt, int64_t text);
  void advance(const Group& group);
  void draw(const Tensor& logits, const Group& group);
  void step_by_replay();

  const Model& model_;
  DrawOptions draws_;
  int64_t vocab_;
  StreamCrossings crossings_;
  std::vector<Group> groups_;
  std::vector<int64_t> lengths_;  // tokens the model has seen
  Tensor tokens_, document_;      // (texts) i32
  Tensor position_, drawn_;       // (texts) i32: of the token drawn last; how many were drawn
  int64_t left_;                  // steps that there is room for
  bool same_work_ = false;        // the next step is the same work as the last, without the host
#ifdef WEFT_CUDA
  cuda::Replay replay_;
#endif
};

}  // namespace weft
