// Every mechanism of the registry, every property. A new mechanism is tested by existing.

#include "tests/attention/conformance.h"

#include <chrono>

#include "attention/chunks.h"
#include "autograd/checkpoint.h"
#include "autograd/ops/arrange.h"

namespace weft {
namespace {

class Conformance : public testing::TestWithParam<ConformanceCase> {};
INSTANTIATE_TEST_SUITE_P(Registry, Conformance, testing::ValuesIn(conformance_cases()), case_name);

std::vector<Variable> variables(const std::vector<Tensor>& tensors) {
  return {tensors.begin(), tensors.end()};
}

TEST_P(Conformance, ForwardEqualsReference) {
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    Subject s(GetParam(), Dtype::f64), t(GetParam(), dtype);
    s.take_parameters(t);  // rounded, as the inputs are
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1}, {63}, {17, 1, 0, 40, 5}}) {
      const Layout layout = whole_documents(lengths);
      const std::vector<Tensor> inputs = random_inputs(*s.mechanism, layout.tokens(), dtype);
      std::vector<Variable> exact;
      for (const Tensor& x : inputs) exact.push_back(x.to(Dtype::f64));
      const Variable expected = reference_by_document(*s.mechanism, block_of(exact, layout));
      const Variable y = run_whole(*t.mechanism, layout, variables(inputs));
      EXPECT_EQ(y.dtype(), dtype);
      EXPECT_LE(difference(y, expected), tolerance::of(dtype))
          << name_of(dtype) << " " << layout.tokens() << " tokens";
    }
  }
}

TEST_P(Conformance, LongTextEqualsReference) {
  Subject s(GetParam(), Dtype::f64);
  const Layout layout = whole_documents({500});
  const auto inputs = variables(random_inputs(*s.mechanism, 500, Dtype::f64));
  EXPECT_LE(difference(run_whole(*s.mechanism, layout, inputs),
                       reference_by_document(*s.mechanism, block_of(inputs, layout))),
            tolerance::of(Dtype::f64));
}

TEST_P(Conformance, Identities) {
  Subject s(GetParam(), Dtype::f64);
  for (const Identity& identity : s.mechanism->identities())
    EXPECT_LE(identity.deviation(), identity.tolerance) << identity.says;
}

TEST_P(Conformance, GradientsOfForwardAndReference) {
  Subject s(GetParam(), Dtype::f64);
  const Layout layout = whole_documents({9, 4});
  const std::vector<Tensor> inputs = random_inputs(*s.mechanism, 13, Dtype::f64);
  expect_gradients([&](const std::vector<Variable>& v) { return run_with_losses(*s.mechanism, layout, v); },
                   inputs, &s.store);
  const Outcome fast = run_with_gradients(s, layout, inputs);
  const Outcome naive = run_with_gradients(s, layout, inputs, [&](const std::vector<Variable>& v) {
    return std::vector{reference_by_document(*s.mechanism, block_of(v, layout))};
  });
  for (size_t i = 0; i < fast.gradients.size(); ++i)
    EXPECT_LE(difference(fast.gradients[i], naive.gradients[i]), tolerance::of(Dtype::f64))
        << "gradient " << i;
}

// Outputs before a changed token keep every bit; so do other documents. Each input alone, at chunk borders
// and ends.
TEST_P(Conformance, CausalAndPacked) {
  Subject s(GetParam(), Dtype::f32);
  const Layout layout = whole_documents({130, 70});
  const std::vector<Tensor> inputs = random_inputs(*s.mechanism, 200, Dtype::f32);
  const Tensor before = run_whole(*s.mechanism, layout, variables(inputs));
  int effects = 0;
  for (const int64_t changed : {0, 1, 63, 64, 65, 129, 130, 199})
    for (size_t which = 0; which < inputs.size(); ++which) {
      std::vector<Tensor> other = inputs;
      other[which] = empty_like(inputs[which]);
      other[which].copy_from(inputs[which]);
      other[which]
          .rows(changed, changed + 1)
          .copy_from(random_inputs(*s.mechanism, 1, Dtype::f32, 1234)[which]);
      const Tensor after = run_whole(*s.mechanism, layout, variables(other));
      const int64_t first = changed < 130 ? 0 : 130, last = changed < 130 ? 130 : 200;
      const int64_t untouched = s.mechanism->causal() ? changed : first;
      EXPECT_TRUE(same_bits(after.rows(0, untouched), before.rows(0, untouched)))
          << "token " << changed << ", input " << which;
      EXPECT_TRUE(same_bits(after.rows(last, 200), before.rows(last, 200)))
          << "token " << changed << ", input " << which;
      effects += !same_bits(after.rows(first, last), before.rows(first, last));
    }
  EXPECT_GE(effects, 8);  // the changes do reach the outputs
}

TEST_P(Conformance, PackedEqualsSeparate) {
  Subject s(GetParam(), Dtype::f32);
  const std::vector<int64_t> lengths{33, 1, 64, 65};
  const Layout packed = whole_documents(lengths);
  const std::vector<Tensor> inputs = random_inputs(*s.mechanism, packed.tokens(), Dtype::f32);
  const Tensor together = run_whole(*s.mechanism, packed, variables(inputs));
  int64_t at = 0;
  for (const int64_t n : lengths) {
    std::vector<Variable> one;
    for (const Tensor& x : inputs) one.push_back(x.rows(at, at + n));
    EXPECT_LE(difference(run_whole(*s.mechanism, whole_documents({n}), one), together.rows(at, at + n)),
              tolerance::of(Dtype::f32));
    at += n;
  }
}

// A chunk that does not say so is part of the function: ForwardEqualsReference holds it.
TEST_P(Conformance, WhatChangesSpeedChangesNothingElse) {
  const Layout layout = whole_documents({50, 23});
  Subject first(GetParam(), Dtype::f64);
  const std::vector<Tensor> inputs = random_inputs(*first.mechanism, 73, Dtype::f64);
  const Outcome expected = run_with_gradients(first, layout, inputs);
  for (const FieldDescription& f : find_mechanism(GetParam().id).describe({})) {
    if (!f.traits.speed_only) {
      if (f.name == "chunk") {
        const Subject aligned(GetParam(), Dtype::f64, {"chunk=64"});
        EXPECT_EQ(aligned.mechanism->align(), 64);
      }
      continue;
    }
    const std::vector<std::string> lengths{"1", "7", "16", "50", "64"};
    for (const std::string& value : f.traits.choices.empty() ? lengths : f.traits.choices) {
      const std::string setting = f.name + "=" + value;
      Subject other(GetParam(), Dtype::f64, {setting});
      const Outcome outcome = run_with_gradients(other, layout, inputs);
      EXPECT_LE(difference(outcome.output, expected.output), tolerance::of(Dtype::f64)) << setting;
      for (size_t i = 0; i < expected.gradients.size(); ++i)
        EXPECT_LE(difference(outcome.gradients[i], expected.gradients[i]), tolerance::of(Dtype::f64))
            << setting << " gradient " << i;
    }
  }
}

// The state after any prefix carries everything: prefill, then pieces, then token by token.
TEST_P(Conformance, PrefillAndDecodeEqualFull) {
  Subject s(GetParam(), Dtype::f64);
  if (!s.mechanism->causal()) return;
  const int64_t n = 71;
  const Layout whole = whole_documents({n, n});
  const std::vector<Tensor> inputs = random_inputs(*s.mechanism, 2 * n, Dtype::f64);
  const Tensor full = run_whole(*s.mechanism, whole, variables(inputs));
  for (const std::vector<int64_t>& pieces : {std::vector<int64_t>{40}, {1, 30, 33}, {64}}) {
    Stream stream;
    int64_t at = 0;
    const auto advance = [&](int64_t count) {
      const Layout layout = make_layout({{0, at, at + count}, {1, at, at + count}});
      std::vector<Variable> part;
      for (const Tensor& x : inputs)
        part.push_back(concatenate({x.rows(at, at + count), x.rows(n + at, n + at + count)}, 0));
      LocalCrossing cross(layout, &stream);
      const Tensor y = s.mechanism->forward(block_of(part, layout), cross);
      EXPECT_LE(difference(y.rows(0, count), full.rows(at, at + count)), tolerance::of(Dtype::f64))
          << "at " << at;
      EXPECT_LE(difference(y.rows(count, 2 * count), full.rows(n + at, n + at + count)),
                tolerance::of(Dtype::f64))
          << "at " << at;
      at += count;
    };
    for (const int64_t piece : pieces) advance(piece);
    while (at < n) advance(1);
  }
}

// A state adds up over the whole text: tolerances of bf16 would hide for long that it is one itself.
TEST_P(Conformance, StatesAreWide) {
  Subject s(GetParam(), Dtype::bf16);
  if (!s.mechanism->causal()) return;
  const Layout layout = whole_documents({40});
  Stream stream;
  LocalCrossing cross(layout, &stream);
  s.mechanism->forward(block_of(variables(random_inputs(*s.mechanism, 40, Dtype::bf16)), layout), cross);
  for (const Stream::Slot& slot : stream.slots)
    for (const auto& [document, state] : slot.states)
      for (size_t i = 0; i < state.size(); ++i) EXPECT_EQ(state[i].dtype(), Dtype::f32) << slot.names[i];
}

TEST_P(Conformance, CheckpointedEqualsPlainBitForBit) {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    Subject s(GetParam(), dtype);
    const Layout layout = whole_documents({70, 20});
    const std::vector<Tensor> inputs = random_inputs(*s.mechanism, 90, dtype);
    const Outcome plain = run_with_gradients(s, layout, inputs);
    const Outcome again = run_with_gradients(s, layout, inputs, [&](const std::vector<Variable>& v) {
      return checkpoint(
          v, [&](const std::vector<Variable>& u) { return std::vector{run_whole(*s.mechanism, layout, u)}; });
    });
    EXPECT_TRUE(same_bits(again.output, plain.output));
    for (size_t i = 0; i < plain.gradients.size(); ++i)
      EXPECT_TRUE(same_bits(again.gradients[i], plain.gradients[i])) << i;
  }
}

TEST_P(Conformance, SameBitsTwice) {
  Subject s(GetParam(), Dtype::f32);
  const Layout layout = whole_documents({100});
  const std::vector<Tensor> inputs = random_inputs(*s.mechanism, 100, Dtype::f32);
  const Outcome first = run_with_gradients(s, layout, inputs), second = run_with_gradients(s, layout, inputs);
  EXPECT_TRUE(same_bits(first.output, second.output));
  for (size_t i = 0; i < first.gradients.size(); ++i)
    EXPECT_TRUE(same_bits(first.gradients[i], second.gradients[i])) << i;
}

// Shapes on the meta device, and what training keeps: no term with the square of the length.
TEST_P(Conformance, MemoryIsLinearInLength) {
  const MechanismEntry& entry = find_mechanism(GetParam().id);
  std::vector<double> peaks;
  for (const int64_t n : {256, 512, 1024}) {
    ParameterStore store(Dtype::f32, Device::meta);
    const auto m = entry.make(parse_attributes(split_settings(GetParam().settings)), small_dimensions(entry),
                              {store, ""});
    store.commit();
    const Layout layout = whole_documents({n}, Device::meta);
    reset_peak(Device::meta);
    const int64_t before = memory_report(Device::meta).bytes;
    Tape tape;
    std::vector<Variable> inputs;
    for (const Input& input : m->inputs())
      inputs.push_back(tape.input(empty(input_shape(input, m->dims(), n), Dtype::f32, Device::meta)));
    const Variable y = run_whole(*m, layout, inputs);
    EXPECT_EQ(y.device(), Device::meta);
    EXPECT_EQ(y.dim(0), n);
    tape.backward(y, empty_like(y));
    peaks.push_back(static_cast<double>(memory_report(Device::meta).peak_bytes - before));
  }
  EXPECT_LE(peaks[1], 2.2 * peaks[0]);
  EXPECT_LE(peaks[2], 2.2 * peaks[1]);
}

// A plan takes the same ops as the run that it is for, on the device where that computes, and so keeps as
// much.
TEST_P(Conformance, APlanKeepsWhatARunKeeps) {
  const MechanismEntry& entry = find_mechanism(GetParam().id);
  for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
    const auto kept = [&](Device device) {
      ParameterStore store(dtype, device, 3);
      const auto m = entry.make(parse_attributes(split_settings(GetParam().settings)),
                                small_dimensions(entry), {store, ""});
      store.commit();
      const Layout layout = whole_documents({70, 1, 130}, device);
      Tape tape;
      std::vector<Variable> inputs;
      for (const Tensor& x : random_inputs(*m, layout.tokens(), dtype))
        inputs.push_back(tape.input(device == Device::meta ? empty(x.shape(), dtype, device) : x));
      run_whole(*m, layout, inputs);
      return std::pair(tape.size(), tape.saved_bytes());
    };
    const auto run = kept(default_device()), plan = kept(Device::meta);
    EXPECT_EQ(plan.first, run.first) << name_of(dtype);
    EXPECT_EQ(plan.second, run.second) << name_of(dtype);
  }
}

TEST_P(Conformance, RefusesUnknownAttributes) {
  ParameterStore store;
  const MechanismEntry& entry = find_mechanism(GetParam().id);
  try {
    entry.make(parse_attributes({"no_such_thing=1"}), small_dimensions(entry), {store, ""});
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, Exit::recipe);
  }
}

}  // namespace
}  // namespace weft
