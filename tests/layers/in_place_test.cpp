// Queries and keys that turn where the projection left them: the bits are those of tensors apart, and what
// somebody else reads is left alone.

#include "autograd/checkpoint.h"
#include "autograd/ops/arrange.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "layers/attention_layer.h"
#include "tests/autograd/test_tensors.h"

namespace weft {
namespace {

struct InPlaceCase {
  const char* name;
  const char* mechanism;
  std::vector<std::string> settings;
  int64_t heads, kv_heads, key, value;
  std::vector<int64_t> lengths;
};
const std::vector<InPlaceCase> in_place_cases{
    {"one document", "softmax", {"position=rope"}, 4, 4, 16, 16, {70}},
    {"packed", "softmax", {"position=rope"}, 4, 4, 16, 16, {40, 1, 29}},
    {"grouped", "softmax", {"position=rope"}, 16, 8, 8, 8, {33, 33}},
    {"wide", "softmax", {"position=rope"}, 2, 1, 64, 64, {75, 66}},
    {"wider than a tile", "softmax", {"position=rope"}, 2, 1, 136, 136, {75, 66}},
    {"values of another width", "softmax", {"position=rope"}, 3, 1, 6, 5, {9, 4}},
    {"normed", "softmax", {"position=rope", "qk_norm=true"}, 4, 2, 16, 16, {40, 7}},
    {"sink", "softmax", {"position=rope", "sink=true"}, 4, 2, 8, 16, {21}},
    {"window", "sliding_window", {"position=rope", "window=9"}, 4, 2, 16, 16, {40, 1, 29}},
    {"no positions", "softmax", {}, 4, 2, 16, 16, {40, 7}},
    {"one token", "softmax", {"position=rope"}, 4, 2, 16, 16, {1}},
};
constexpr int64_t kInPlaceWidth = 24;

// A layer, and how its output is made of tensors that nobody gives away.
struct InPlaceLayer {
  InPlaceLayer(const InPlaceCase& c, Dtype dtype, int64_t short_conv = 0)
      : of(c),
        store(dtype),
        layout(whole_documents(c.lengths)),
        layer({.mechanism = c.mechanism,
               .attributes = parse_attributes(c.settings),
               .dims = {.heads = c.heads,
                        .kv_heads = c.kv_heads,
                        .key = c.key,
                        .value = c.value,
                        .width = kInPlaceWidth},
               .short_conv = short_conv},
              {store, ""}) {
    store.commit();
    store.begin_step();
  }
  std::vector<Shape> shapes() const {
    const int64_t n = layout.tokens();
    return {{n, of.heads, of.key}, {n, of.kv_heads, of.key}, {n, of.kv_heads, of.value}};
  }
  Variable whole(const Variable& x) {
    LocalCrossing cross(layout);
    return layer(x, cross);
  }
  Variable apart(const Variable& x) {
    const Variable packed = linear(x, store.find("in.weight"));
    Block block{split_columns(packed, shapes()), layout.position, layout.document};
    for (Variable& v : block.x) v = scale(v, 1);  // dense
    const Tensor before = packed.value().contiguous(), copy = empty_like(before);
    copy.copy_from(before);
    LocalCrossing cross(layout);
    const Variable y = layer.mechanism().forward(block, cross);
    EXPECT_TRUE(x.device() == Device::meta || same_bits(packed, copy)) << "written over";
    return linear(reshape(y, {x.dim(0), of.heads * of.value}), store.find("out.weight"));
  }
  const InPlaceCase& of;
  ParameterStore store;
  Layout layout;
  AttentionLayer layer;
};

struct InPlaceRun {
  std::vector<Tensor> results;  // y, dx, and the gradients of the weights
  int64_t saved = 0;
};
enum class How { whole, apart, checkpointed };

InPlaceRun run_in_place(const InPlaceCase& c, Dtype dtype, How how, int64_t short_conv = 0) {
  InPlaceLayer layer(c, dtype, short_conv);
  Tape tape;
  const Variable x = tape.input(random_tensor({layer.layout.tokens(), kInPlaceWidth}, 1, dtype));
  Variable y;
  if (how == How::whole) y = layer.whole(x);
  if (how == How::apart) y = layer.apart(x);
  if (how == How::checkpointed)
    y = checkpoint({x}, [&](const std::vector<Variable>& v) { return std::vector{layer.whole(v[0])}; })[0];
  InPlaceRun run;
  run.saved = tape.saved_bytes();
  tape.backward(y, random_tensor(y.shape(), 2, dtype));
  layer.store.finish_step();
  run.results = {y.value(), tape.gradient(x)};
  for (const ParameterGroup& group : layer.store.groups())
    if (group.trainable) run.results.push_back(group.gradient);
  return run;
}

TEST(InPlace, TheBitsAreThoseOfTensorsApart) {
  for (const InPlaceCase& c : in_place_cases)
    for (const Dtype dtype : {Dtype::f64, Dtype::f32, Dtype::bf16}) {
      const auto whole = run_in_place(c, dtype, How::whole), apart = run_in_place(c, dtype, How::apart),
                 again = run_in_place(c, dtype, How::checkpointed);
      for (size_t i = 0; i < whole.results.size(); ++i) {
        EXPECT_TRUE(same_bits(whole.results[i], apart.results[i])) << c.name << " " << name_of(dtype) << i;
        EXPECT_TRUE(same_bits(whole.results[i], again.results[i])) << c.name << " " << name_of(dtype) << i;
      }
    }
}

TEST(InPlace, KeepsNoMoreThanTensorsApart) {
  for (const InPlaceCase& c : in_place_cases)
    EXPECT_LE(run_in_place(c, Dtype::bf16, How::whole).saved, run_in_place(c, Dtype::bf16, How::apart).saved)
        << c.name;
}

// With a convolution the projection is the output of a function that keeps it, and must not change.
TEST(InPlace, Gradients) {
  for (const int64_t short_conv : {0, 3})
    for (InPlaceCase c : in_place_cases) {
      SCOPED_TRACE(c.name);
      c.lengths = {9, 4};
      InPlaceLayer layer(c, Dtype::f64, short_conv);
      const GradcheckResult r =
          gradcheck([&](const std::vector<Variable>& x) { return std::vector{layer.whole(x[0])}; },
                    {random_tensor({layer.layout.tokens(), kInPlaceWidth}, 1)}, &layer.store, differences(6));
      EXPECT_LE(r.error, tolerance::kGradcheck) << r.worst;
    }
}

}  // namespace
}  // namespace weft
