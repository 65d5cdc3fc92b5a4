#pragma once
// A trained model from its run folder, for generation and scoring.

#include "training/setup.h"

namespace weft {

struct OpenModel {
  Recipe recipe;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<ParameterStore> store;
  std::unique_ptr<Model> model;
  int64_t step = 0;
  std::string weights_hash;           // of the checkpoint
  std::vector<int32_t> starts;        // first tokens of training documents; empty where it kept none
  std::vector<std::string> warnings;  // print them: which checkpoint was passed over, and why
};

// path: a run folder, or one of its checkpoints (ckpt::named). dtype: the type to compute in; by default the
// recipe's. Errors: Exit::no_checkpoint where there is none.
OpenModel open_model(const std::string& path, std::optional<Dtype> dtype = {});

}  // namespace weft
