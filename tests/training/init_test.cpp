// A run that starts from the weights of another: the heads of a dense model, routed.

#include <gtest/gtest.h>

#include "tests/training/tiny_run.h"

namespace weft {
namespace {

const Words kDense{"model.layers=[softmax*2]", "model.heads=4", "run=runs/dense"};

Words routed(Words more) {
  more.insert(more.end(), {"model.layers=[moh*2]", "model.heads=4", "init=runs/dense",
                           "model.mechanisms.moh.router=norm", "model.mechanisms.moh.shared=2"});
  return more;
}

TEST(Init, AllHeadsOnIsTheDenseModel) {
  const TinyRun tiny;
  const Ran dense = tiny.train(kDense);
  ASSERT_EQ(dense.code, 0) << dense.err;
  // A rate of next to nothing: what is measured is where it starts.
  const Ran same = tiny.train(routed({"run=runs/same", "steps=1", "optim.lr=0", "optim.weight_decay=0",
                                      "eval.every=1", "model.mechanisms.moh.top_k=2"}));
  ASSERT_EQ(same.code, 0) << same.err;
  EXPECT_NEAR(same.json()["val_loss"].get<double>(), dense.json()["val_loss"].get<double>(), 1e-6);
}

// Three heads of four, tuned for as long as the dense model had trained: as good as that, to 1 %.
TEST(Init, ThreeQuartersOfTheHeadsLearnToDo) {
  const TinyRun tiny;
  const Ran dense = tiny.train(kDense);
  ASSERT_EQ(dense.code, 0) << dense.err;
  const Ran tuned = tiny.train(routed({"run=runs/tuned", "model.mechanisms.moh.top_k=1"}));
  ASSERT_EQ(tuned.code, 0) << tuned.err;
  EXPECT_LE(tuned.json()["val_loss"].get<double>(), 1.01 * dense.json()["val_loss"].get<double>());
}

// Before the first update the mean of the weights is the weights that it starts from, in the checkpoint too.
TEST(Init, TheMeanStartsThereToo) {
  const TinyRun tiny;
  const Ran dense = tiny.train({"run=runs/dense"});
  ASSERT_EQ(dense.code, 0) << dense.err;
  const Ran same = tiny.train({"run=runs/same", "steps=0", "optim.ema=0.9", "init=runs/dense"});
  ASSERT_EQ(same.code, 0) << same.err;
  EXPECT_EQ(same.json()["weights_hash"], dense.json()["weights_hash"]);
  EXPECT_EQ(same.json()["val_loss"], dense.json()["val_loss"]);
  const auto text = [&](const char* run) {
    return tiny.weft({"generate", run, "--prompt", "Once", "--tokens", "12", "--temperature", "0"}).out;
  };
  EXPECT_EQ(text("runs/same"), text("runs/dense"));
}

// To branch off where a schedule began to fall, say.
TEST(Init, ACheckpointOfARunMayBeNamed) {
  const TinyRun tiny;
  const Ran whole = tiny.train({"run=runs/long", "steps=4", "checkpoint.every=2"});
  ASSERT_EQ(whole.code, 0) << whole.err;
  ASSERT_NE(tiny.weights_hash_at(2, "long"), whole.json()["weights_hash"].get<std::string>());
  const Ran branch = tiny.train({"run=runs/branch", "steps=0", "init=runs/long/checkpoints/step-2/"});
  ASSERT_EQ(branch.code, 0) << branch.err;
  EXPECT_EQ(branch.json()["weights_hash"], tiny.weights_hash_at(2, "long"));
  const auto text = [&](const char* model) {
    return tiny.weft({"generate", model, "--prompt", "Once", "--tokens", "12", "--temperature", "0"}).out;
  };
  EXPECT_EQ(text("runs/long/checkpoints/step-2"), text("runs/branch"));
  const Ran missing = tiny.train({"run=runs/lost", "init=runs/long/checkpoints/step-3"});
  EXPECT_EQ(missing.code, 66) << missing.err;
}

TEST(Init, SaysWhatIsMissingAndRefusesWhatDoesNotFit) {
  const TinyRun tiny;
  ASSERT_EQ(tiny.train(kDense).code, 0);
  Words learned = routed({"run=runs/learned", "steps=1"});
  learned.push_back("model.mechanisms.moh.router=learned");
  const Ran ran = tiny.train(learned);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("runs/dense lacks 6 parameters"), std::string::npos) << ran.err;
  const Ran wide = tiny.train(routed({"run=runs/wide", "model.width=64"}));
  EXPECT_EQ(wide.code, 78) << wide.err;
  const Ran nowhere = tiny.train({"run=runs/lost", "init=runs/nowhere"});
  EXPECT_EQ(nowhere.code, 66) << nowhere.err;
}

}  // namespace
}  // namespace weft
