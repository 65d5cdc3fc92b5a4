#include "training/model_size.h"

namespace weft {

int64_t count_parameters(const Recipe& recipe, int64_t vocab) {
  ParameterStore store(precision_of(recipe), Device::meta);
  const Model model(model_config(recipe, vocab), store);
  return store.numel();
}

int64_t count_state_bytes(const Recipe& recipe, int64_t vocab) {
  const NoTape pause;
  ParameterStore store(precision_of(recipe), Device::meta);
  const Model model(model_config(recipe, vocab), store);
  store.commit();
  StreamCrossings streams(static_cast<int>(model.blocks().size()));
  const Layout layout = whole_documents({recipe.context}, Device::meta);
  model.hidden(Tensor({recipe.context}, Dtype::i32, Device::meta), layout, streams);
  return streams.bytes();
}

}  // namespace weft
