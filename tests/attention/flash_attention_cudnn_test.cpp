// What cuDNN serves, against f64 of the same numbers by our own kernels, and when it has to stand back.

#include "attention/flash_attention_cudnn.h"

#include "attention/crossing.h"
#include "attention/flash_attention.h"
#include "autograd/determinism.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

class CudnnAttention : public testing::Test {
 protected:
  void SetUp() override {
    if (default_device() != Device::cuda || cuda::cudnn_version().empty()) GTEST_SKIP() << "no cuDNN here";
  }
  void TearDown() override { set_deterministic(true); }
};

struct CudnnCase {
  const char* name;
  std::vector<int64_t> lengths;
  int64_t heads, kv_heads, key, value;
  bool causal = true;
};
const std::vector<CudnnCase> cudnn_cases{
    {"one", {301}, 4, 4, 64, 64},
    {"equal", {128, 128, 128}, 2, 2, 64, 64},
    {"equal, grouped", {77, 77}, 6, 2, 64, 64},
    {"equal, wide", {200, 200}, 4, 1, 128, 128},
    {"equal, full", {190, 190}, 4, 2, 128, 128, false},
    {"short", {3, 3, 3}, 2, 2, 64, 64},
    {"packed", {200, 1, 130, 67}, 4, 2, 64, 64},
    {"packed, wide", {65, 300, 7}, 2, 2, 128, 128},
    {"packed, full", {33, 129}, 2, 1, 64, 64, false},
};

struct Inputs {
  explicit Inputs(const CudnnCase& c) : layout(whole_documents(c.lengths)) {
    const int64_t n = layout.tokens();
    q = random_tensor({n, c.heads, c.key}, 1, Dtype::bf16);
    k = random_tensor({n, c.kv_heads, c.key}, 2, Dtype::bf16);
    v = random_tensor({n, c.kv_heads, c.value}, 3, Dtype::bf16);
    d_o = random_tensor({n, c.heads, c.value}, 4, Dtype::bf16);
    d_lse = random_tensor({n, c.heads}, 5, Dtype::f32);
    options.scale = 1 / std::sqrt(static_cast<double>(c.key));
    options.causal = c.causal;
  }
  AttentionOptions with_documents() const {
    AttentionOptions o = options;
    o.documents = static_cast<int32_t>(layout.segments.size());
    for (const Segment& s : layout.segments) o.longest = std::max(o.longest, static_cast<int32_t>(s.size()));
    return o;
  }
  Layout layout;
  AttentionOptions options;
  Tensor q, k, v, d_o, d_lse;
};

TEST_F(CudnnAttention, ServesAndAgreesWithF64) {
  const char* names[] = {"o", "lse", "dq", "dk", "dv"};
  for (const CudnnCase& c : cudnn_cases) {
    SCOPED_TRACE(c.name);
    const Inputs in(c);
    const auto unwritten = [](const Tensor& like, Dtype dtype) { return full(like.shape(), NAN, dtype); };
    const std::vector<Tensor> got{unwritten(in.d_o, Dtype::bf16), unwritten(in.d_lse, Dtype::f32),
                                  unwritten(in.q, Dtype::bf16), unwritten(in.k, Dtype::bf16),
                                  unwritten(in.v, Dtype::bf16)};
    const Layout& at = in.layout;
    const AttentionOptions options = in.with_documents();
    ASSERT_TRUE(cuda::cudnn_attention_forward(got[0], got[1], in.q, in.k, in.v, at.position, options));
    ASSERT_TRUE(cuda::cudnn_attention_backward(got[2], got[3], got[4], in.q, in.k, in.v, at.position, got[0],
                                               got[1], in.d_o, options));
    const Tensor q = in.q.to(Dtype::f64), k = in.k.to(Dtype::f64), v = in.v.to(Dtype::f64);
    std::vector<Tensor> want =
        flash_attention_forward(in.options, q, k, v, at.position, at.document, at.position, at.document);
    for (const Tensor& d :
         flash_attention_backward(in.options, q, k, v, at.position, at.document, at.position, at.document, {},
                                  {}, want[0], want[1], in.d_o.to(Dtype::f64), {}))
      want.push_back(d);
    // lse is in f32; the way back of cuDNN rounds weights and their gradients to bf16, as ours does.
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_LE(norm_difference(got[i], want[i]), i == 1 ? 1e-5 : 8e-3) << names[i];
  }
}

TEST_F(CudnnAttention, LeavesTheRestToOurKernels) {
  const Inputs in({"", {64, 64}, 2, 2, 64, 64});
  const Tensor o = empty_like(in.d_o), lse = empty_like(in.d_lse);
  const auto serves = [&](const AttentionOptions& options) {
    return cuda::cudnn_attention_forward(o, lse, in.q, in.k, in.v, in.layout.position, options);
  };
  AttentionOptions options = in.with_documents();
  EXPECT_TRUE(serves(options));
  EXPECT_FALSE(serves(in.options));  // documents not told
  options.window = 3;
  EXPECT_FALSE(serves(options));
}

// {o, lse, dq, dk, dv} as a mechanism gets them.
std::vector<Tensor> through_tape(const Inputs& in, bool with_lse) {
  Tape tape;
  const Block block{
      {tape.input(in.q), tape.input(in.k), tape.input(in.v)}, in.layout.position, in.layout.document};
  LocalCrossing cross(in.layout);
  const auto y = cross(Merge{in.options, flash_attention_forward, flash_attention_backward}, block);
  if (with_lse)
    tape.backward({y[0], y[1]}, {in.d_o, in.d_lse});
  else
    tape.backward(y[0], in.d_o);
  return {y[0].value(), y[1].value(), tape.gradient(block.x[0]), tape.gradient(block.x[1]),
          tape.gradient(block.x[2])};
}

TEST_F(CudnnAttention, GradientsOfLseAndEqualRunsAreOurKernels) {
  const Inputs in({"", {200, 1, 130, 67}, 4, 2, 64, 64});
  for (const bool with_lse : {false, true}) {
    set_deterministic(true);
    const std::vector<Tensor> own = through_tape(in, with_lse), again = through_tape(in, with_lse);
    set_deterministic(false);
    const std::vector<Tensor> fast = through_tape(in, with_lse);
    const Tensor o = empty_like(in.d_o), lse = empty_like(in.d_lse);
    ASSERT_TRUE(
        cuda::cudnn_attention_forward(o, lse, in.q, in.k, in.v, in.layout.position, in.with_documents()));
    EXPECT_TRUE(same_bits(own[0], o)) << "the forward is cuDNN's always";
    EXPECT_TRUE(with_lse || !same_bits(fast[3], own[3])) << "off: dk is cuDNN's";
    for (size_t i = 0; i < own.size(); ++i) {
      EXPECT_TRUE(same_bits(own[i], again[i])) << i;
      EXPECT_LE(norm_difference(fast[i], own[i]), 1e-2) << i;
      EXPECT_TRUE(!with_lse || same_bits(fast[i], own[i])) << i;
    }
  }
}

}  // namespace
}  // namespace weft
