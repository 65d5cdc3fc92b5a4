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

// Three tensors of these rows: by themselves, or columns of one that begin behind, and end before, others.
// NaN all.
struct Three {
  Three(const Tensor& q, const Tensor& k, const Tensor& v, bool packed) {
    const int64_t n = q.dim(0), apart = packed ? kApart : 0;
    for (const Tensor* like : {&q, &k, &v}) {
      if (!packed) part.push_back(full(like->shape(), NAN, Dtype::bf16));
      width += apart + like->row_size();
    }
    if (!packed) return;
    whole = full({n, width + apart}, NAN, Dtype::bf16);
    int64_t at = 0;
    for (const Tensor* like : {&q, &k, &v}) {
      at += apart;
      part.push_back(whole.columns(at, at + like->row_size()).reshape(like->shape()));
      at += like->row_size();
    }
  }
  // Whether the parts are numbers, and all that lies between them NaN still.
  bool only_parts_written() const {
    int64_t numbers = 0, own = 0;
    for (const double x : to_values(whole)) numbers += std::isnan(x) ? 0 : 1;
    for (const Tensor& x : part) own += x.numel();
    return numbers == own;
  }
  static constexpr int64_t kApart = 8;
  std::vector<Tensor> part;
  Tensor whole;
  int64_t width = 0;
};

// {o, lse, dq, dk, dv} by cuDNN, written over NaN.
std::vector<Tensor> by_cudnn(const Inputs& in, bool packed) {
  const Three read(in.q, in.k, in.v, packed), written(in.q, in.k, in.v, packed);
  const Tensor &q = read.part[0], &k = read.part[1], &v = read.part[2];
  q.copy_from(in.q);
  k.copy_from(in.k);
  v.copy_from(in.v);
  const Tensor o = full(in.d_o.shape(), NAN, Dtype::bf16), lse = full(in.d_lse.shape(), NAN, Dtype::f32);
  const AttentionOptions options = in.with_documents();
  EXPECT_TRUE(cuda::cudnn_attention_forward(o, lse, q, k, v, in.layout.position, options));
  EXPECT_TRUE(cuda::cudnn_attention_backward(written.part[0], written.part[1], written.part[2], q, k, v,
                                             in.layout.position, o, lse, in.d_o, options));
  EXPECT_TRUE(!packed || written.only_parts_written());
  return {o, lse, written.part[0].contiguous(), written.part[1].contiguous(), written.part[2].contiguous()};
}

TEST_F(CudnnAttention, ServesAndAgreesWithF64) {
  const char* names[] = {"o", "lse", "dq", "dk", "dv"};
  for (const CudnnCase& c : cudnn_cases) {
    const Inputs in(c);
    const Layout& at = in.layout;
    const Tensor q = in.q.to(Dtype::f64), k = in.k.to(Dtype::f64), v = in.v.to(Dtype::f64);
    std::vector<Tensor> want =
        flash_attention_forward(in.options, q, k, v, at.position, at.document, at.position, at.document);
    for (const Tensor& d :
         flash_attention_backward(in.options, q, k, v, at.position, at.document, at.position, at.document, {},
                                  {}, want[0], want[1], in.d_o.to(Dtype::f64), {}))
      want.push_back(d);
    for (const bool packed : {false, true}) {
      SCOPED_TRACE(text(c.name, packed ? ", columns" : ""));
      const std::vector<Tensor> got = by_cudnn(in, packed);
      for (size_t i = 0; i < got.size(); ++i)
        EXPECT_LE(norm_difference(got[i], want[i]),
                  i == 1 ? tolerance::kCudnnLogSum : tolerance::kCudnnAttention)
            << names[i];
    }
  }
}

// Offsets of documents of unequal length are 32 bits wide; where all are equally long there are none, and
// rows may lie further apart than that.
TEST_F(CudnnAttention, RowsBeyond32BitsOnlyWhereThereAreNoOffsets) {
  constexpr int64_t kTokens = 4096, kPitch = 540'000;
  static_assert(kTokens * kPitch > INT32_MAX);
  const Tensor far = zeros({kTokens, kPitch}, Dtype::bf16);
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{2048, 2048}, {2048, 2047, 1}}) {
    const Inputs in({"", lengths, 2, 2, 64, 64});
    const auto place = [&](const Tensor& x, int64_t i) {
      const Tensor view = far.columns(128 * i, 128 * (i + 1)).reshape(x.shape());
      view.copy_from(x);
      return view;
    };
    const Tensor q = place(in.q, 0), k = place(in.k, 1), v = place(in.v, 2);
    const Tensor dq = place(in.q, 3), dk = place(in.k, 4), dv = place(in.v, 5);
    const Tensor o = empty_like(in.d_o), lse = empty_like(in.d_lse), &at = in.layout.position;
    const AttentionOptions options = in.with_documents();
    const bool equal = lengths.size() == 2;
    EXPECT_EQ(cuda::cudnn_attention_forward(o, lse, q, k, v, at, options), equal);
    EXPECT_EQ(cuda::cudnn_attention_backward(dq, dk, dv, q, k, v, at, o, lse, in.d_o, options), equal);
    if (!equal) continue;
    const std::vector<Tensor> near = by_cudnn(in, false);
    const std::vector<Tensor> got{o, lse, dq.contiguous(), dk.contiguous(), dv.contiguous()};
    for (size_t i = 0; i < near.size(); ++i)
      EXPECT_LE(norm_difference(got[i], near[i]), tolerance::kRoundedOnce) << i;
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
