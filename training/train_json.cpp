#include <cmath>
#include <nlohmann/json.hpp>

#include "training/train.h"

namespace weft {

std::string to_json(const TrainSummary& s) {
  using nlohmann::ordered_json;
  const auto number = [](double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json(nullptr); };
  const ordered_json j{{"weft", "train/1"},
                       {"exit", static_cast<int>(s.exit)},
                       {"run", s.run},
                       {"status", s.status},
                       {"step", s.step},
                       {"steps", s.steps},
                       {"tokens", s.tokens},
                       {"loss", number(s.loss)},
                       {"val_loss", number(s.val_loss)},
                       {"val_bpb", number(s.val_bpb)},
                       {"val_accuracy", number(s.val_accuracy)},
                       {"val_exact", number(s.val_exact)},
                       {"baseline_bpb", number(s.baseline_bpb)},
                       {"grad_norm", number(s.grad_norm)},
                       {"tokens_per_s", number(s.tokens_per_s)},
                       {"mfu", number(s.mfu)},
                       {"seconds", number(s.seconds)},
                       {"first_step_s", number(s.first_step_s)},
                       {"peak_bytes", s.peak_bytes},
                       {"world", s.world},
                       {"mesh", {{"dp", s.mesh.dp}, {"cp", s.mesh.cp}}},
                       {"weights_hash", s.weights_hash},
                       {"order_hash", s.order_hash},
                       {"wire",
                        {{"all_gather", s.wire.all_gather},
                         {"reduce_scatter", s.wire.reduce_scatter},
                         {"send_recv", s.wire.send_recv},
                         {"all_to_all", s.wire.all_to_all}}},
                       {"sample", s.sample}};
  return j.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace weft
