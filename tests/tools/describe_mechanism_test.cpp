// What `weft ls` learns of mechanisms, against what is known of some and must hold for all.

#include "tools/describe_mechanism.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "attention/linear_attention.h"
#include "tools/command.h"

namespace weft {

const std::vector<Command>& commands() {
  static const std::vector<Command> none;
  return none;
}

namespace {

constexpr Dimensions kDims{.heads = 4, .kv_heads = 4, .key = 6, .value = 10, .width = 24};

MechanismFacts facts_of(const std::string& id, int64_t tokens = 100, const Words& settings = {}) {
  return learn(
      find_mechanism(id),
      {.attributes = parse_attributes(settings), .dims = kDims, .dtype = Dtype::bf16, .tokens = tokens});
}

bool has(const std::vector<std::string>& list, const char* word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

TEST(DescribeMechanism, Softmax) {
  const MechanismFacts f = facts_of("softmax");
  EXPECT_EQ(f.kinds(), Words{"merge"});
  EXPECT_STREQ(form_on(Device::cpu, f.calls), "fused");
  EXPECT_STREQ(form_on(Device::cuda, f.calls), "fused");
  EXPECT_TRUE(f.causal && f.bidirectional && f.streaming);
  EXPECT_EQ(f.calls[0].bytes, 4 * (6 + 10) * 2) << "key and value of a token, in bf16";
  EXPECT_EQ(f.state_bytes, 100 * (4 * (6 + 10) * 2 + 4 + 4)) << "and its position and document";
  EXPECT_EQ(f.contiguous, (Words{"native", "gather", "ring", "heads"}));
  EXPECT_EQ(f.zigzag, f.contiguous);
  EXPECT_FALSE(has(facts_of("softmax", 100, {"position=alibi"}).contiguous, "heads"))
      << "slopes differ from head to head";
}

TEST(DescribeMechanism, HeadsOfAnyNumberAreSharedOut) {
  for (const auto& [heads, shared] : {std::pair{3, true}, {6, true}, {1, false}}) {
    const Dimensions dims{.heads = heads, .kv_heads = heads, .key = 4, .value = 4, .width = 8};
    EXPECT_EQ(has(learn(find_mechanism("softmax"), {.dims = dims}).contiguous, "heads"), shared) << heads;
  }
}

TEST(DescribeMechanism, TheOtherForm) {
  const MechanismFacts f = facts_of("softmax", 100, {"causal=false"});
  EXPECT_TRUE(f.causal && f.bidirectional);
  EXPECT_FALSE(f.streaming) << "with these attributes there is nothing to stream";
}

TEST(DescribeMechanism, Linear) {
  const MechanismFacts f = facts_of("linear");
  EXPECT_EQ(f.kinds(), Words{"scan"});
  EXPECT_STREQ(form_on(Device::cpu, f.calls), "fused");
  EXPECT_EQ(f.state_bytes, 4 * 6 * 10 * 4 + 4 * 4) << "S and the decay of each head, in f32";
  EXPECT_EQ(f.calls[0].bytes, f.state_bytes);
  EXPECT_FALSE(f.bidirectional);
}

TEST(DescribeMechanism, SlidingWindow) {
  const MechanismFacts f = facts_of("sliding_window", 100, {"window=5"});
  EXPECT_EQ(f.kinds(), Words{"halo"});
  EXPECT_EQ(f.calls[0].bytes % 4, 0);
  EXPECT_GT(f.calls[0].bytes, 0);
  EXPECT_LT(f.state_bytes, facts_of("sliding_window", 100, {"window=50"}).state_bytes);
  EXPECT_EQ(f.state_bytes, facts_of("sliding_window", 200, {"window=5"}).state_bytes);
}

// Nothing is run there to learn it: this passes on a machine without a GPU.
TEST(DescribeMechanism, WhatIsAKernelOnAGpu) {
#ifdef WEFT_CUDA
  const char* linear = "fused";
#else
  const char* linear = "derived";
#endif
  for (const char* id : {"linear", "lightning", "simple_gla"}) {
    EXPECT_STREQ(form_on(Device::cuda, facts_of(id).calls), linear) << id;
    EXPECT_STREQ(form_on(Device::cuda, learn(find_mechanism(id), {.dims = kDims, .dtype = Dtype::f64}).calls),
                 "derived")
        << id << ": there is no kernel for f64";
  }
  EXPECT_STREQ(form_on(Device::cuda, facts_of("sliding_window").calls), "fused");
  for (const Device device : {Device::cpu, Device::cuda})
    EXPECT_STREQ(form_on(device, facts_of("titans").calls), "derived");
}

TEST(DescribeMechanism, AKernelOfOneDevice) {
  const Layout layout = whole_documents({3});
  LocalCrossing local(layout);
  RecordingCrossing recording(local);
  Scan scan = linear_scan(1, 4, false, 1, 2, 2, Dtype::f32, Device::cpu);
  scan.kernel = {[](Device device) { return device == Device::cuda; },
                 [](const Block&, const Layout&, const State&, bool) -> Scan::Ran {
                   throw Error(Exit::internal, "the kernel of another device was called");
                 }};
  const Variable x = full({3, 1, 2}, 1, Dtype::f32);
  recording(scan, {{x, x, x}, layout.position, layout.document});
  EXPECT_STREQ(form_on(Device::cpu, recording.calls()), "derived");
  EXPECT_STREQ(form_on(Device::cuda, recording.calls()), "fused");
}

TEST(DescribeMechanism, Based) {
  EXPECT_EQ(facts_of("based", 100, {"window=6"}).kinds(), (Words{"scan", "halo"}));
  EXPECT_EQ(facts_of("based", 100, {"window=6"}).calls.size(), 2u);
}

// Heads that are set for the model's number of them are more than two have.
TEST(DescribeMechanism, DtypesAreThoseOfTheRecipesSizes) {
  EXPECT_EQ(facts_of("moh", 100, {"shared=2", "top_k=2"}).dtypes, (Words{"f64", "f32", "bf16"}));
}

TEST(DescribeMechanism, HoldsForAll) {
  for (const MechanismEntry& entry : mechanisms()) {
    const MechanismFacts f = facts_of(entry.id), longer = facts_of(entry.id, 200);
    EXPECT_FALSE(f.calls.empty()) << entry.id;
    EXPECT_TRUE(f.causal || f.bidirectional) << entry.id;
    EXPECT_TRUE(has(f.dtypes, "f32")) << entry.id;
    for (const auto* ways : {&f.contiguous, &f.zigzag})
      EXPECT_TRUE(has(*ways, "native") && has(*ways, "gather")) << entry.id;
    if (!f.streaming) continue;
    EXPECT_GT(f.state_bytes, 0) << entry.id;
    if (has(f.kinds(), "merge")) continue;
    EXPECT_EQ(longer.state_bytes, f.state_bytes) << entry.id << " decodes in constant memory";
  }
}

}  // namespace
}  // namespace weft
