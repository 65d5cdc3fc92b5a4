#include "tools/apply_task.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <sstream>

#include "autograd/nearest_name.h"
#include "training/checkpoint/safetensors.h"

namespace weft {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out;
  for (const int64_t extent : shape) out += (out.empty() ? "" : ", ") + std::to_string(extent);
  return "(" + out + ")";
}

std::vector<int64_t> extents_of(const Shape& shape, std::vector<int64_t> before = {}) {
  before.insert(before.end(), shape.begin(), shape.end());
  return before;
}

// Where e^g becomes 0. By chunks g are summed and the sums subtracted: -infinity would leave no number, and
// what is far below this no digit of the small ones.
double least_log_decay(Dtype wide) { return wide == Dtype::f64 ? -746 : -104; }

class Reader {
 public:
  Reader(const ApplyOptions& options, ApplyTask& task) : path_(options.in), file_(options.in), task_(task) {}

  void read() {
    bind_sizes();
    task_.signature = signature_of(*task_.mechanism, task_.attributes, task_.dims, task_.dtype);
    read_inputs();
    read_documents();
    read_parameters();
    read_states();
    refuse_unknown();
  }

 private:
  using Entry = SafetensorsEntry;

  [[noreturn]] void refuse(const std::string& name, const std::string& what,
                           const std::string& advice) const {
    throw Error(Exit::data, name + " " + what, path_ + ": " + name, advice);
  }

  const Entry* find(const std::string& name) {
    known_.insert(name);
    return file_.find(name);
  }

  void expect_shape(const Entry& e, const std::vector<int64_t>& expected) const {
    if (e.shape != expected)
      refuse(e.name, "has the shape " + shape_text(e.shape) + ", expected " + shape_text(expected),
             "the sizes come from the inputs");
  }

  Tensor floats(const Entry& e, const Shape& shape, Dtype dtype, double least = -INFINITY) const {
    if (e.dtype != "F64" && e.dtype != "F32" && e.dtype != "F16" && e.dtype != "BF16")
      refuse(e.name, "holds " + e.dtype, "store it as F64, F32, F16 or BF16");
    const OwnedArray array = file_.read(e.name, dtype);
    const Tensor out = empty(shape, dtype, Device::cpu);
    if (array.bytes() > 0) std::memcpy(out.raw(), array.data.get(), static_cast<size_t>(array.bytes()));
    if (least > -INFINITY)
      with_float(dtype, [&]<class T>() {
        T* x = out.data<T>();
        std::replace_if(
            x, x + out.numel(), [least](T value) { return value < T(least); }, T(least));
      });
    return out.to(default_device());
  }

  // A tensor of which the file may have none.
  Tensor optional_floats(const std::string& name, const std::vector<int64_t>& expected, Dtype dtype) {
    const Entry* e = find(name);
    if (e == nullptr) return {};
    expect_shape(*e, expected);
    return floats(*e, Shape(expected.begin(), expected.end()), dtype);
  }

  static std::string letters_of(const Input& input) {
    std::string letters = "BT";
    for (const char* p = input.dims; *p; ++p)
      if (*p != ' ') letters += *p;
    return letters;
  }

  // One decay a head, for all tokens.
  static bool is_per_head(const Input& input, const Entry& e) {
    return input.domain == Domain::log_decay && std::string_view(input.dims) == "h" && e.shape.size() == 1;
  }

  // Its shape, as far as the sizes are known: "(2, 9, H)".
  std::string expected_text(const Input& input) const {
    std::istringstream names(dims_text(input));
    std::string out, name;
    for (const char letter : letters_of(input)) {
      names >> name;
      const auto known = sizes_.find(letter);
      out += (out.empty() ? "" : ", ") + (known == sizes_.end() ? name : std::to_string(known->second));
    }
    return "(" + out + ")";
  }

  // Sizes from the shapes, each input held against those before it.
  void bind_sizes() {
    const std::vector<InputInfo> inputs = inputs_of(*task_.mechanism, task_.attributes);
    for (const InputInfo& info : inputs)
      if (const Entry* e = find(info.input.name)) bind(info.input, *e);
    for (const InputInfo& info : inputs)
      if (!info.optional && find(info.input.name) == nullptr)
        refuse(info.input.name, "is missing", "expected " + expected_text(info.input));
    const auto size = [&](char letter, int64_t otherwise) {
      const auto found = sizes_.find(letter);
      return found == sizes_.end() ? otherwise : found->second;
    };
    Dimensions& d = task_.dims;
    d.heads = size('h', 1);
    d.kv_heads = size('g', d.heads);
    d.width = size('c', 1);
    // A layer that takes x alone: one head of its width, unless its attributes say otherwise.
    d.key = size('k', d.width);
    d.value = size('v', d.width);
    task_.rows = size('B', 0);
    task_.tokens = size('T', 0);
    if (d.heads % d.kv_heads != 0)
      throw Error(Exit::data,
                  text("k has ", d.kv_heads, " heads, which do not divide the ", d.heads, " of q: shapes ",
                       shape_text(file_.at("k").shape), " and ", shape_text(file_.at("q").shape)),
                  path_ + ": k", "give q a multiple of the heads of k");
  }

  void bind(const Input& input, const Entry& e) {
    const std::string letters = is_per_head(input, e) ? "h" : letters_of(input);
    if (e.shape.size() != letters.size())
      refuse(e.name, "has the shape " + shape_text(e.shape) + ", expected (" + dims_text(input) + ")",
             "time comes before heads");
    std::vector<int64_t> expected = e.shape;
    for (size_t i = 0; i < letters.size(); ++i) {
      const auto bound = sizes_.try_emplace(letters[i], e.shape[i]).first;
      expected[i] = bound->second;
      if (e.shape[i] == 0)
        refuse(e.name, "has the shape " + shape_text(e.shape) + ", expected no size of 0", "give it tokens");
    }
    expect_shape(e, expected);
  }

  void read_inputs() {
    for (const auto& [input, optional] : task_.signature.inputs) {
      const Entry* e = find(input.name);
      if (e == nullptr) {
        task_.inputs.emplace_back();
        continue;
      }
      const bool per_head = is_per_head(input, *e);
      const Shape line = input_shape(input, task_.dims, task_.rows * task_.tokens);
      const double least = input.domain == Domain::log_decay ? least_log_decay(task_.wide) : -INFINITY;
      task_.inputs.push_back(
          {floats(*e, per_head ? Shape{task_.dims.heads} : line, task_.dtype, least), per_head});
    }
  }

  void read_documents() {
    const Entry* e = find("doc");
    if (e == nullptr) {
      for (int64_t row = 0; row < task_.rows; ++row) task_.documents.push_back({row, 0, task_.tokens});
      return;
    }
    expect_shape(*e, {task_.rows, task_.tokens});
    const std::vector<int64_t> docs = file_.integers(*e);
    for (int64_t row = 0; row < task_.rows; ++row) {
      const int64_t* doc = docs.data() + row * task_.tokens;
      int64_t begin = 0;
      for (int64_t t = 1; t <= task_.tokens; ++t) {
        if (t < task_.tokens && doc[t] < doc[t - 1])
          refuse("doc", text("falls from ", doc[t - 1], " to ", doc[t], " at row ", row, ", token ", t),
                 "document indices do not decrease along a row");
        if (t < task_.tokens && doc[t] == doc[t - 1]) continue;
        task_.documents.push_back({row, begin, t});
        begin = t;
      }
    }
  }

  void read_parameters() {
    for (const auto& [name, shape] : task_.signature.parameters) {
      const Tensor value = optional_floats("p." + name, extents_of(shape), task_.wide);
      if (value.defined())
        task_.parameters[name] = value;
      else if (!task_.init)
        refuse("p." + name, "is missing",
               "expected " + shape_text(extents_of(shape)) + "; or let --init SEED draw it");
    }
  }

  void read_states() {
    for (const StateInfo& state : task_.signature.states) {
      const std::vector<int64_t> shape = extents_of(state.shape, {task_.rows});
      task_.given.push_back(optional_floats("state0." + state.name, shape, task_.wide));
      task_.d_state.push_back(optional_floats("dstate." + state.name, shape, task_.wide));
    }
    const std::vector<int64_t> y = extents_of(task_.signature.output, {task_.rows, task_.tokens});
    task_.d_y = optional_floats("dy", y, task_.dtype);
    if (task_.d_y.defined()) {
      Shape line{task_.rows * task_.tokens};
      for (const int64_t extent : task_.signature.output) line.push_back(extent);
      task_.d_y = task_.d_y.reshape(line);
    }
  }

  void refuse_unknown() const {
    const std::vector<std::string> names(known_.begin(), known_.end());
    for (const Entry& e : file_.entries())
      if (known_.count(e.name) == 0)
        refuse(
            e.name,
            "of the shape " + shape_text(e.shape) + " is not a tensor that " + task_.mechanism->id + " takes",
            suggest_name(e.name, names, "tensors"));
  }

  const std::string& path_;
  SafetensorsFile file_;
  ApplyTask& task_;
  std::set<std::string> known_;
  std::map<char, int64_t> sizes_;  // by letter of Input::dims, and B, T
};

}  // namespace

bool ApplyTask::has_given() const {
  return std::any_of(given.begin(), given.end(), [](const Tensor& t) { return t.defined(); });
}

bool ApplyTask::has_d_state() const {
  return std::any_of(d_state.begin(), d_state.end(), [](const Tensor& t) { return t.defined(); });
}

std::vector<StateDocument> ApplyTask::state_documents() const {
  std::vector<StateDocument> out;
  for (const RowDocument& d : documents) out.push_back({d.size(), d.begin == 0 ? d.row : -1});
  return out;
}

ApplyTask read_task(const ApplyOptions& options) {
  ApplyTask task;
  task.mechanism = &find_mechanism(options.id);
  task.attributes = parse_attributes(options.attributes);
  task.dtype = options.dtype;
  task.wide = wide_of(options.dtype);
  task.init = options.init;
  Reader(options, task).read();
  return task;
}

}  // namespace weft
