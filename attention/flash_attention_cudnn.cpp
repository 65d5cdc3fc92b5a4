// A plan of cuDNN is a graph compiled for one shape. It is made at the first call with that shape and kept,
// so a later call looks it up and hands over addresses. Tensors stay as they are, (N, H, D), those of a
// packed projection with its pitch: to cuDNN they are (document, head, token, feature) with strides.
// Documents of unequal length are what it calls ragged: each starts at an offset, and padding up to the
// longest is never touched.

#include "attention/flash_attention_cudnn.h"

#include <cudnn_frontend.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>

#include "attention/document_offsets.h"
#include "autograd/cuda/runtime.h"
#include "autograd/cuda/step_run.h"
#include "autograd/notes.h"
#include "autograd/ops/arrange.h"

namespace weft::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using Node = std::shared_ptr<fe::graph::Tensor_attributes>;

// Names of tensors in a graph. Addresses are handed over in this order.
enum Uid : int64_t {
  uid_q = 1,
  uid_k,
  uid_v,
  uid_o,
  uid_lse,
  uid_d_o,
  uid_dq,
  uid_dk,
  uid_dv,
  uid_q_length,
  uid_k_length,
  uid_q_offset,
  uid_k_offset,
  uid_v_offset,
  uid_o_offset,
  uid_lse_offset
};

// Elements from one token to the next of three tensors.
struct Pitches {
  int64_t q, k, v;
  Pitches(const Tensor& of_q, const Tensor& of_k, const Tensor& of_v)
      : q(of_q.pitch()), k(of_k.pitch()), v(of_v.pitch()) {}
  bool operator==(const Pitches&) const = default;
  int64_t largest() const { return std::max({q, k, v}); }
};

bool of_one_length(const Tensor& q, const AttentionOptions& options) {
  return int64_t{options.documents} * options.longest == q.dim(0);
}

// All that a plan depends on.
struct Problem {
  bool backward, causal, ragged;
  int64_t documents, longest, tokens, heads, kv_heads, d, e;  // tokens: of the way back alone
  float scale;
  Pitches read, written;  // of q, k, v; of their gradients

  Problem(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options)
      : Problem(false, q, k, v, {q, k, v}, options) {}
  Problem(bool way_back, const Tensor& q, const Tensor& k, const Tensor& v, const Pitches& gradients,
          const AttentionOptions& options)
      : backward(way_back),
        causal(options.causal),
        ragged(!of_one_length(q, options)),
        documents(options.documents),
        longest(options.longest),
        tokens(way_back ? q.dim(0) : 0),
        heads(q.dim(1)),
        kv_heads(k.dim(1)),
        d(q.dim(2)),
        e(v.dim(2)),
        scale(static_cast<float>(options.scale)),
        read(q, k, v),
        written(gradients) {
    if (!ragged) return;
    // Few plans for the many ways to pack: documents of no token fill up.
    documents = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(documents)));
    longest = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(longest, 128))));
  }
  // The way back reads lse in another order than ours, (document, head, token), unless it is ragged.
  bool lse_by_head() const { return backward && !ragged; }
  using Numbers = std::array<int64_t, 17>;
  Numbers numbers() const {
    return {backward,
            causal,
            ragged,
            documents,
            longest,
            tokens,
            heads,
            kv_heads,
            d,
            e,
            std::bit_cast<int32_t>(scale),
            read.q,
            read.k,
            read.v,
            written.q,
            written.k,
            written.v};
  }
  std::string name() const {
    return text(backward ? "backward" : "forward", ", ", documents,
                ragged ? " documents of up to " : " documents of ", longest, ", ", heads, " heads of ", d,
                kv_heads != heads ? text(" for ", kv_heads, " of keys") : "", causal ? ", causal" : "");
  }
};

class Library {
 public:
  Library() {
    cudnnStatus_t status = cudnnCreate(&handle_);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnnSetStream(handle_, stream());
    if (status != CUDNN_STATUS_SUCCESS) {
      handle_ = nullptr;
      note_once(
          text("cuDNN does not start here (", cudnnGetErrorString(status), "): our own kernels are used"));
      return;
    }
    const size_t v = cudnnGetVersion();
    version_ = text(v / 10000, ".", v / 100 % 100, ".", v % 100);
  }
  cudnnHandle_t handle() const { return handle_; }
  const std::string& version() const { return version_; }

 private:
  cudnnHandle_t handle_ = nullptr;
  std::string version_;
};
const Library& library() {
  static const auto* const one = new Library;  // never destroyed, like the arena
  return *one;
}

struct Plan {
  std::unique_ptr<Graph> graph;  // null: refused
  int64_t workspace = 0;
};

// Puts the tensors of one problem into a graph.
class Builder {
 public:
  explicit Builder(const Problem& problem) : p_(problem), graph_(std::make_unique<Graph>()) {
    graph_->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    if (!p_.ragged) return;
    q_length_ = list("q_length", uid_q_length, p_.documents);
    k_length_ = list("k_length", uid_k_length, p_.documents);
    for (size_t i = 0; i < offset_.size(); ++i)
      offset_[i] = list("offset", uid_q_offset + static_cast<int64_t>(i), p_.documents + 1);
  }

  std::unique_ptr<Graph> forward() {
    auto options = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
    set(options);
    const auto [o, lse] = graph_->sdpa(input("q", uid_q), input("k", uid_k), input("v", uid_v), options);
    output(o, uid_o);
    output(lse, uid_lse);
    return std::move(graph_);
  }
  std::unique_ptr<Graph> backward() {
    auto options = fe::graph::SDPA_backward_attributes().set_name("attention backward");
    set(options);
    if (p_.ragged) options.set_max_total_seq_len_q(p_.tokens).set_max_total_seq_len_kv(p_.tokens);
    const auto [dq, dk, dv] =
        graph_->sdpa_backward(input("q", uid_q), input("k", uid_k), input("v", uid_v), input("o", uid_o),
                              input("d_o", uid_d_o), input("lse", uid_lse), options);
    output(dq, uid_dq);
    output(dk, uid_dk);
    output(dv, uid_dv);
    return std::move(graph_);
  }

 private:
  template <class Options>
  void set(Options& options) {
    options.set_attn_scale(p_.scale);
    if (p_.causal) options.set_causal_mask(true);
    if (p_.ragged) options.set_padding_mask(true).set_seq_len_q(q_length_).set_seq_len_kv(k_length_);
  }
  Node list(const char* name, int64_t uid, int64_t count) {
    return graph_->tensor(fe::graph::Tensor_attributes()
                              .set_name(name)
                              .set_uid(uid)
                              .set_dim({count, 1, 1, 1})
                              .set_stride({1, 1, 1, 1})
                              .set_data_type(fe::DataType_t::INT32));
  }
  // The shape of a tensor of ours.
  void describe(fe::graph::Tensor_attributes& x, int64_t uid) const {
    const bool of_keys = uid == uid_k || uid == uid_v || uid == uid_dk || uid == uid_dv;
    const bool as_d = uid == uid_q || uid == uid_k || uid == uid_dq || uid == uid_dk;
    const int64_t heads = of_keys ? p_.kv_heads : p_.heads;
    const int64_t size = uid == uid_lse ? 1 : as_d ? p_.d : p_.e, row = pitch_of(uid, heads * size);
    x.set_uid(uid)
        .set_dim({p_.documents, heads, p_.longest, size})
        .set_stride({p_.longest * row, size, row, 1});
    if (uid == uid_lse) x.set_data_type(fe::DataType_t::FLOAT);
    if (uid == uid_lse && p_.lse_by_head()) x.set_stride({p_.longest * row, p_.longest, 1, 1});
    if (p_.ragged) x.set_ragged_offset(offset_[offset_of(uid)]);
  }
  int64_t pitch_of(int64_t uid, int64_t dense) const {
    switch (uid) {
      case uid_q: return p_.read.q;
      case uid_k: return p_.read.k;
      case uid_v: return p_.read.v;
      case uid_dq: return p_.written.q;
      case uid_dk: return p_.written.k;
      case uid_dv: return p_.written.v;
      default: return dense;
    }
  }
  // One list for a tensor and its gradient, whose pitches are the same then.
  static size_t offset_of(int64_t uid) {
    switch (uid) {
      case uid_q:
      case uid_dq: return 0;
      case uid_k:
      case uid_dk: return 1;
      case uid_v:
      case uid_dv: return 2;
      case uid_lse: return 4;
      default: return 3;  // o, d_o
    }
  }
  Node input(const char* name, int64_t uid) {
    fe::graph::Tensor_attributes x;
    describe(x.set_name(name), uid);
    return graph_->tensor(x);
  }
  void output(const Node& x, int64_t uid) const {
    x->set_output(true);
    describe(*x, uid);
  }

  const Problem& p_;
  std::unique_ptr<Graph> graph_;
  Node q_length_, k_length_;
  std::array<Node, 5> offset_;
};

// At the diagonal half a tile of keys is masked for nothing. For narrow heads cuDNN 9.14 prefers tiles of 256
// keys to those of 128 whatever the length; later versions have none. A rule and no measurement: bits must
// not differ from run to run.
void avoid_wide_tiles(const Problem& p, Graph& graph) {
  constexpr int64_t kWorthwhileFrom = 2048;
  if (p.backward || !p.causal || p.longest >= kWorthwhileFrom) return;
  std::string first, next;  // as in eng2_k24=32, engine and configuration
  if (graph.get_plan_name_at_index(0, first).is_bad() || graph.get_plan_name_at_index(1, next).is_bad())
    return;
  const std::string engine = first.substr(0, first.find('_') + 1);
  if (first == engine + "k24=32" && next.starts_with(engine)) graph.deselect_engines({first});
}

fe::error_t build(const Problem& p, Graph& graph) {
  const cudnnHandle_t handle = library().handle();
  fe::error_t failed = graph.validate();
  if (failed.is_good()) failed = graph.build_operation_graph(handle);
  if (failed.is_good()) failed = graph.create_execution_plans({fe::HeurMode_t::A});
  if (failed.is_good()) avoid_wide_tiles(p, graph);
  if (failed.is_good()) failed = graph.check_support();
  if (failed.is_good()) failed = graph.build_plans();
  return failed;
}

Plan make_plan(const Problem& p) {
  const auto start = std::chrono::steady_clock::now();
  Builder builder(p);
  std::unique_ptr<Graph> graph = p.backward ? builder.backward() : builder.forward();
  fe::error_t failed = build(p, *graph);
  int64_t bytes = 0;
  if (failed.is_good()) failed = graph->get_workspace_size(bytes);
  if (failed.is_bad()) {
    std::string why = failed.get_message();
    std::replace(why.begin(), why.end(), '\n', ' ');
    note_once(text("cuDNN ", library().version(), " refuses attention (", p.name(), "): ", why,
                   "; our own kernels serve"));
    return {};
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::array<char, 32> time;
  std::snprintf(time.data(), time.size(), "%.2f s", seconds.count());
  note_once(
      text("cuDNN ", library().version(), " runs attention (", p.name(), "), plan made in ", time.data()));
  return {std::move(graph), bytes};
}

// What cuDNN reads and writes: rows at multiples of 16 bytes.
bool fits(const Tensor& x) {
  return x.numel() > 0 && x.dim(2) % 8 == 0 && x.pitch() % 8 == 0 && x.pitch() >= x.row_size() &&
         reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0;
}

// Only documents of unequal length have offsets, and these are 32 bits wide. That the passes of the way back
// over o and dq count further than that has not been seen either.
bool offsets_fit(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                 const AttentionOptions& options) {
  return q.dim(0) * o.row_size() <= INT32_MAX &&
         (of_one_length(q, options) || q.dim(0) * Pitches(q, k, v).largest() <= INT32_MAX);
}

bool serves(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
            const AttentionOptions& options) {
  return options.documents > 0 && q.dtype() == Dtype::bf16 && q.dim(0) == k.dim(0) &&
         options.weighting == Weighting::softmax && options.window == 0 && options.block == 0 &&
         !options.alibi && fits(q) && fits(k) && fits(v) && fits(o) && offsets_fit(q, k, v, o, options) &&
         library().handle() != nullptr;
}

// tensors: in the order of their uids.
bool run(const Problem& p, std::initializer_list<const Tensor*> tensors, const Tensor& position) {
  static std::mutex mutex;
  static auto* const plans = new std::map<Problem::Numbers, Plan>;
  const std::lock_guard lock(mutex);
  const Problem::Numbers key = p.numbers();
  auto it = plans->find(key);
  if (it == plans->end()) it = plans->emplace(key, make_plan(p)).first;
  const Plan& plan = it->second;
  if (plan.graph == nullptr) return false;
  const MemoryScope scope("cuDNN workspace");
  const Tensor workspace = empty({(plan.workspace + 3) / 4}, Dtype::i32, Device::cuda);
  std::array<void*, 16> address{};
  int count = 0;
  for (const Tensor* x : tensors) address[count++] = x->raw();
  Tensor lengths, offsets;
  if (p.ragged) {
    const DocumentOffsets at =
        document_offsets(position, p.documents, {p.read.q, p.read.k, p.read.v, p.heads * p.e, p.heads});
    lengths = at.lengths;
    offsets = at.offsets;
    address[count++] = lengths.raw();
    address[count++] = lengths.raw();
    for (int64_t i = 0; i < offsets.dim(0); ++i) address[count++] = offsets.rows(i, i + 1).raw();
  }
  launch_run();  // the library has the stream since long ago
  fe::error_t failed = plan.graph->execute(library().handle(), address.data(), count, workspace.raw());
  if (failed.is_bad())
    throw Error(Exit::internal, text("cuDNN: ", failed.get_message(), " (", p.name(), ")"));
  return true;
}

}  // namespace

std::string cudnn_version() { return library().version(); }

bool cudnn_attention_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k,
                             const Tensor& v, const Tensor& position, const AttentionOptions& options) {
  if (!serves(q, k, v, o, options)) return false;
  return run(Problem(q, k, v, options), {&q, &k, &v, &o, &lse}, position);
}

bool cudnn_attention_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& q,
                              const Tensor& k, const Tensor& v, const Tensor& position, const Tensor& o,
                              const Tensor& lse, const Tensor& d_o, const AttentionOptions& options) {
  if (!serves(q, k, v, o, options) || !fits(d_o) || !fits(dq) || !fits(dk) || !fits(dv)) return false;
  const Problem p(true, q, k, v, {dq, dk, dv}, options);
  if (p.ragged && p.read != p.written) return false;
  if (!p.lse_by_head()) return run(p, {&q, &k, &v, &o, &lse, &d_o, &dq, &dk, &dv}, position);
  const Tensor by_head = empty({p.documents, p.heads, p.longest}, Dtype::f32, Device::cuda);
  permute(by_head, lse.reshape({p.documents, p.longest, p.heads}), {0, 2, 1});
  return run(p, {&q, &k, &v, &o, &by_head, &d_o, &dq, &dk, &dv}, position);
}

}  // namespace weft::cuda
