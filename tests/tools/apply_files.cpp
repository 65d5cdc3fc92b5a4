#include "tests/tools/apply_files.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "attention/recording_crossing.h"
#include "tests/attention/conformance.h"
#include "tools/apply.h"
#include "tools/command.h"

namespace weft {

// Of this program.
const std::vector<Command>& commands() {
  static const std::vector<Command> all{{"apply", "one mechanism on tensors of a file", run_apply}};
  return all;
}

ApplyFolder::ApplyFolder() {
  // Thousands of small files, each synced: in memory where that is possible.
  std::string pattern =
      (exists("/dev/shm") ? "/dev/shm" : testing::TempDir()) + std::string("/weft_apply_XXXXXX");
  folder_ = mkdtemp(pattern.data());
}

ApplyFolder::~ApplyFolder() { remove_tree(folder_); }

void write_tensors(const std::string& path, const Tensors& tensors) {
  std::vector<NamedArray> arrays;
  std::vector<Tensor> kept;
  for (const auto& [name, t] : tensors) {
    kept.push_back(t.to(Device::cpu));
    arrays.push_back({name, t.dtype(), {t.shape().begin(), t.shape().end()}, kept.back().raw()});
  }
  write_safetensors(path, arrays, {});
}

Tensors read_tensors(const std::string& path) {
  const SafetensorsFile file(path);
  Tensors out;
  for (const SafetensorsEntry& e : file.entries()) {
    const Dtype dtype = e.dtype == "F64" ? Dtype::f64 : e.dtype == "BF16" ? Dtype::bf16 : Dtype::f32;
    EXPECT_EQ(e.dtype, dtype == Dtype::f64 ? "F64" : dtype == Dtype::bf16 ? "BF16" : "F32") << e.name;
    const Tensor t = empty(Shape(e.shape.begin(), e.shape.end()), dtype, Device::cpu);
    std::memcpy(t.raw(), file.bytes(e).data(), file.bytes(e).size());
    out[e.name] = t.to(default_device());
  }
  return out;
}

Tensors apply_to(const std::vector<std::string>& words, const Tensors& in) {
  const ApplyFolder folder;
  write_tensors(folder.path("a"), in);
  std::vector<std::string> all = words;
  all.insert(all.end(), {"--in", folder.path("a"), "--out", folder.path("b")});
  EXPECT_EQ(run_apply(all), 0);
  return read_tensors(folder.path("b"));
}

Error apply_error(const std::vector<std::string>& words, const Tensors& in) {
  const ApplyFolder folder;
  write_tensors(folder.path("a"), in);
  std::vector<std::string> all = words;
  all.insert(all.end(), {"--in", folder.path("a"), "--out", folder.path("b")});
  try {
    run_apply(all);
  } catch (const Error& e) {
    EXPECT_EQ(folder.names(), std::vector<std::string>{"a"}) << "something was left behind";
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e;
  }
  return {Exit::ok, "no error"};
}

namespace {

Shape with_leading(std::initializer_list<int64_t> leading, const Shape& tail, int from) {
  Shape out(leading);
  for (const int64_t* p = tail.begin() + from; p != tail.end(); ++p) out.push_back(*p);
  return out;
}

}  // namespace

ApplyCase::ApplyCase(const std::string& id, const std::string& text, int64_t rows, int64_t tokens)
    : id(id), settings(split_settings(text)) {
  Dimensions dims = small_dimensions(find_mechanism(id));
  const auto make = [&](const Dimensions& sizes, const ParameterScope& scope) {
    return find_mechanism(id).make(parse_attributes(settings), sizes, scope);
  };
  {
    ParameterStore store;
    bool shows_heads = false;
    for (const Input& input : make(dims, {store, ""})->inputs())
      shows_heads |= std::string_view(input.dims).find('h') != std::string_view::npos;
    // Heads that no input shows are one, as wide as x.
    if (!shows_heads)
      dims = {.heads = 1, .kv_heads = 1, .key = dims.width, .value = dims.width, .width = dims.width};
  }
  Subject subject(dims, Dtype::f64, make);
  const Mechanism& m = *subject.mechanism;
  signature = signature_of(find_mechanism(id), parse_attributes(settings), subject.dims);
  causal = m.causal();
  uint32_t seed = 500;
  const std::vector<Tensor> inputs = random_inputs(m, rows * tokens, Dtype::f64);
  for (size_t i = 0; i < inputs.size(); ++i)
    in[signature.inputs[i].input.name] =
        inputs[i].reshape(with_leading({rows, tokens}, inputs[i].shape(), 1));
  for (const auto& p : subject.store.entries()) in["p." + p->info.name] = p->master;
  for (const StateInfo& state : signature.states) {
    in["state0." + state.name] = random_tensor(with_leading({rows}, state.shape, 0), seed++, Dtype::f64, 0.5);
    in["dstate." + state.name] = random_tensor(with_leading({rows}, state.shape, 0), seed++);
  }
  in["dy"] = random_tensor(with_leading({rows, tokens}, signature.output, 0), seed++);
  std::vector<int32_t> doc;  // a cut at another place in each row
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t t = 0; t < tokens; ++t) doc.push_back(static_cast<int32_t>(10 * b + (t >= tokens / 3 + b)));
  in["doc"] = from_ints(doc).reshape({rows, tokens});
  const Layout layout = whole_documents({3});
  std::vector<Variable> few;
  for (const Tensor& x : inputs) few.push_back(x.rows(0, 3));
  LocalCrossing local(layout);
  RecordingCrossing recording(local);
  m.forward(block_of(few, layout), recording);
  const bool sees_rows = std::any_of(
      recording.calls().begin(), recording.calls().end(),
      [](const PartCall& call) { return call.kind == PartKind::merge || call.kind == PartKind::halo; });
  only_states = !sees_rows && !signature.states.empty();
}

std::vector<std::string> ApplyCase::words(const std::vector<std::string>& more) const {
  std::vector<std::string> out{id};
  out.insert(out.end(), settings.begin(), settings.end());
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

Tensors ApplyCase::without(const std::vector<std::string>& beginnings) const {
  Tensors out = in;
  std::erase_if(out, [&](const auto& item) {
    return std::any_of(beginnings.begin(), beginnings.end(),
                       [&](const std::string& b) { return item.first.starts_with(b); });
  });
  return out;
}

void expect_same(const Tensors& got, const Tensors& expected, double tolerance, const std::string& what) {
  for (const auto& [name, value] : expected) {
    const auto found = got.find(name);
    if (found == got.end()) {
      ADD_FAILURE() << what << ": " << name << " is missing";
      continue;
    }
    EXPECT_LE(difference(found->second, value), tolerance) << what << ": " << name;
    EXPECT_EQ(found->second.dtype(), value.dtype()) << what << ": " << name;
  }
  for (const auto& [name, value] : got)
    EXPECT_TRUE(expected.count(name)) << what << ": " << name << " is new";
}

}  // namespace weft
