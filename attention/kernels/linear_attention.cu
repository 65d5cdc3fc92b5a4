// The four uses of a sweep that make linear attention and its gradients (README, "One sweep, four uses").

#include "attention/kernels/linear_attention.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "attention/kernels/channel_sweep.h"
#include "attention/kernels/check.h"
#include "attention/kernels/segments.h"

namespace weft::cuda {

namespace {

constexpr const char* name = "linear attention";

template <class... What>
void require(bool condition, const char* advice, const What&... what) {
  cuda::require(name, condition, advice, what...);
}

bool has_tiles(const LinearAttention& p, int width) {
  return width == 64 || width == 128 || (width == 256 && p.gate != Gate::channel);
}

void check(const LinearAttention& p) {
  check_sizes(name, p);
  require(p.gate == Gate::fixed || p.log_decay, "give log decays", "gated without log_decay");
  require(!p.wide_gradients || (p.dtype == Dtype::bf16 && p.gate != Gate::channel), "leave them as they are",
          "gradients in f32 of f32 or with a gate of channels");
}

void check(const char* of, const Rows& r, int heads, int width) { check_rows(name, of, r, heads, width); }

Path choose(const LinearAttention& p, std::initializer_list<Rows> all) {
  const bool channels = p.gate == Gate::channel;
  bool tiles = p.dtype == Dtype::bf16 && has_tiles(p, p.d_k) && has_tiles(p, p.d_v);
  for (const Rows& r : all) tiles = tiles && aligned(r);
  if (channels)
    tiles = tiles && aligned({p.log_decay, 0}) &&
            channel_sweep_bytes(p.d_k, p.d_v) <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  require(p.path == Path::automatic || p.path == Path::plain || tiles, "use Path::automatic",
          "this path needs bf16, widths of 64, 128 or 256, and 16-byte alignment");
  if (p.tokens == 0) return Path::plain;  // states only
  if (p.path != Path::automatic) return p.path;
  return !tiles ? Path::plain : hopper() ? Path::wgmma : Path::mma;
}

Sweeps sweeps_of(const LinearAttention& p, int d_a, int d_c) {
  Sweeps s;
  s.d_a = d_a, s.d_c = d_c;
  s.tokens = p.tokens, s.documents = p.documents, s.offsets = p.offsets;
  s.heads = p.heads, s.scale = p.scale, s.log2_scale = std::log2(p.scale), s.log_decay = p.log_decay,
  s.gated = p.gate == Gate::head;
  return s;
}

void run(const Sweeps& s, Path path, Dtype dtype, cudaStream_t stream) {
  if (path == Path::plain)
    sweep_plain(s, dtype, stream);
  else if (path == Path::mma)
    sweep_mma(s, stream);
  else
    sweep_wgmma(s, stream);
}

void run(const Sweeps& s, GateOf gate, Path path, Dtype dtype, cudaStream_t stream) {
  if (path == Path::plain)
    channel_sweep_plain(s, gate, dtype, stream);
  else
    channel_sweep_tiles(s, gate, path == Path::wgmma, stream);
}

int end_parts(Path path, int d_a, int d_c) {
  return path == Path::plain ? plain_end_parts(d_c)
         : path == Path::mma ? mma_end_parts(d_c)
                             : wgmma_end_parts(d_a, d_c);
}

// Of documents as they are

void forward_whole(const LinearAttention& p, Path path, Rows q, Rows k, Rows v, const float* initial_state,
                   MutableRows o, float* final_state, cudaStream_t stream) {
  Sweeps s = sweeps_of(p, p.d_k, p.d_v);
  s.count = 1;
  Sweep& o_sweep = s.sweep[0];
  o_sweep.a = q, o_sweep.b = k, o_sweep.c = v, o_sweep.out = o;
  o_sweep.state_in = initial_state, o_sweep.state_out = final_state;
  s.pairs = p.wide_gradients && final_state;  // what is kept of it are states that other tokens start from
  if (p.gate == Gate::channel)
    run(s, GateOf::a, path, p.dtype, stream);
  else
    run(s, path, p.dtype, stream);
}

void backward_whole(const LinearAttention& p, Path path, Rows q, Rows k, Rows v, const float* initial_state,
                    Rows d_o, const float* d_final_state, const LinearAttentionGradients& d, float* workspace,
                    cudaStream_t stream) {
  Sweep dq, dk, dv;
  dq.a = d_o, dq.b = v, dq.c = k, dq.out = d.q;
  dk.a = v, dk.b = d_o, dk.c = q, dk.out = d.k;
  dv.a = k, dv.b = q, dv.c = d_o, dv.out = d.v;
  dk.reverse = dv.reverse = true;
  dq.transposed = dk.transposed = true;
  dq.state_in = initial_state, dk.state_in = dv.state_in = d_final_state;
  dv.state_out = d.initial_state;
  // The reverse sweeps carry dS / scale, so that `scale` applies to every output alike.
  dk.state_in_scale = dv.state_in_scale = 1 / p.scale;
  dv.state_out_scale = p.scale;
  dq.wide = dk.wide = p.wide_gradients;
  // In f32 they are mma's, and launched apart.
  const Path of_keys = p.wide_gradients && path == Path::wgmma ? Path::mma : path;
  const bool together = p.d_k == p.d_v && !p.wide_gradients;

  if (p.gate == Gate::channel) {  // one after another: dk sums up what dq left of the gate's gradient
    if (d.log_decay) {
      dq.dot = q, dk.dot = k;
      dq.gate_gradient = dk.gate_gradient = d.log_decay;
      dk.forward_out = read_only(d.q);
      dq.end_dot = d_final_state;
      if (d_final_state) dq.end_sums = dk.end_sums = workspace;
    }
    auto run_one = [&](const Sweep& sweep, GateOf gate, int d_a, int d_c) {
      Sweeps one = sweeps_of(p, d_a, d_c);
      one.sweep[0] = sweep, one.count = 1;
      run(one, gate, path, p.dtype, stream);
    };
    run_one(dq, GateOf::c, p.d_v, p.d_k);
    run_one(dk, GateOf::c, p.d_v, p.d_k);
    run_one(dv, GateOf::a, p.d_k, p.d_v);
    return;
  }

  GateGradient gate;
  gate.tokens = p.tokens, gate.documents = p.documents, gate.offsets = p.offsets, gate.heads = p.heads;
  if (d.log_decay) {
    const int columns = path == Path::plain ? plain_columns : tile_columns;
    gate.splits = (p.d_k + columns - 1) / columns;
    dq.dot = q, dq.dot_sums = workspace;
    dk.dot = k, dk.dot_sums = workspace + gate.splits * p.tokens * p.heads;
    gate.q_sums = dq.dot_sums, gate.k_sums = dk.dot_sums, gate.d_log_decay = d.log_decay;
    if (d_final_state) {
      dq.end_dot = d_final_state, dq.end_sums = workspace + 2 * gate.splits * p.tokens * p.heads;
      gate.end_sums = dq.end_sums, gate.end_parts = end_parts(of_keys, p.d_v, p.d_k);
    }
  }

  Sweeps s = sweeps_of(p, p.d_v, p.d_k);
  s.sweep[0] = dq, s.sweep[1] = dk, s.sweep[2] = dv;
  s.count = together ? 3 : 2, s.pairs = p.wide_gradients;
  run(s, of_keys, p.dtype, stream);
  if (!together) {
    Sweeps t = sweeps_of(p, p.d_k, p.d_v);
    t.sweep[0] = dv, t.count = 1, t.pairs = p.wide_gradients && d.initial_state;
    run(t, path, p.dtype, stream);
  }
  if (d.log_decay) gate_gradient(gate, stream);
}

int64_t gate_floats(const LinearAttention& p) {
  if (p.gate == Gate::channel) return int64_t(p.documents) * p.heads * p.d_k;
  if (p.gate == Gate::fixed) return 0;
  const int64_t splits = (p.d_k + plain_columns - 1) / plain_columns;  // as many as the plain path needs
  return (2 * splits * p.tokens + most_end_parts * p.documents) * p.heads;
}

// Of documents in segments

// A decay for each segment and head, or channel.
int64_t decay_floats(const LinearAttention& p, const Cut& cut) {
  return int64_t(cut.most) * p.heads * (p.gate == Gate::channel ? p.d_k : 1);
}

int64_t state_floats(const LinearAttention& p, const Cut& cut) {
  return int64_t(cut.most) * p.heads * p.d_k * p.d_v;
}

// What forward keeps, in floats from its start: where segments begin, and the states that they start from.
struct Kept {
  int64_t offsets = 0, first = 0, decay = 0, state = 0, end = 0;
  Kept(const LinearAttention& p, const Cut& cut) {
    if (cut.length == 0) return;
    first = after(offsets, cut.most + 1);
    decay = after(first, p.documents + 1);
    state = after(decay, decay_floats(p, cut));
    end = after(state, state_floats(p, cut));
  }
  static int64_t after(int64_t place, int64_t floats) { return place + (floats + 3) / 4 * 4; }
};

// The workspace of backward.
struct Room {
  int64_t decay = 0, state, gate, end;
  Room(const LinearAttention& p, const Cut& cut) {
    state = Kept::after(decay, decay_floats(p, cut));
    gate = Kept::after(state, state_floats(p, cut));
    LinearAttention of_gate = p;
    if (cut.length) of_gate.documents = cut.most;
    end = Kept::after(gate, gate_floats(of_gate));
  }
};

LinearAttention segments_of(const LinearAttention& p, const Cut& cut, const int* offsets) {
  LinearAttention segments = p;
  segments.documents = cut.most, segments.offsets = offsets;
  return segments;
}

// Each segment's own state from rows b and c, then along the documents the states that segments start from.
void make_states(const LinearAttention& p, const LinearAttention& segments, Sweep own, Fold fold, Path path,
                 cudaStream_t stream) {
  SegmentStates states{sweeps_of(segments, p.d_k, p.d_v)};
  own.state_out = fold.states, own.reverse = fold.reverse;
  states.sweeps.sweep[0] = own, states.sweeps.count = 1, states.sweeps.pairs = p.wide_gradients;
  states.decay = fold.decay, states.first = fold.first, states.documents = p.documents;
  states.end_wanted = fold.to != nullptr;
  if (p.gate == Gate::channel)
    channel_segment_states(states, hopper(), stream);
  else if (path == Path::wgmma)
    segment_states_wgmma(states, stream);
  else
    segment_states(states, stream);
  fold.documents = p.documents, fold.heads = p.heads, fold.d_k = p.d_k, fold.d_v = p.d_v;
  fold.channels = p.gate == Gate::channel;
  fold_segments(fold, stream);
}

}  // namespace

Cut cut_of(const LinearAttention& p) {
  if (p.dtype != Dtype::bf16 || !has_tiles(p, p.d_k) || !has_tiles(p, p.d_v)) return {};
  static const CutDevice device = [] {  // asking for a clock takes long
    CutDevice d;
    d.multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
    int id = 0, kilohertz = 0, bits = 0;
    const bool known = cudaGetDevice(&id) == cudaSuccess &&
                       cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, id) == cudaSuccess &&
                       cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, id) == cudaSuccess;
    // Of two transfers a cycle 0.85 are reached.
    if (known && kilohertz > 0 && bits > 0) d.bytes_us = 0.85 * 2 * (kilohertz / 1000.0) * (bits / 8.0);
    cudaGetLastError();  // without a GPU plans are made all the same
    return d;
  }();
  // Each pass asks twice, layer after layer for the same sizes, and for a long text it takes as long as some
  // launches.
  const std::tuple sizes(p.tokens, p.documents, p.offsets != nullptr, p.longest, p.heads, p.d_k, p.d_v,
                         p.gate, p.segment);
  thread_local std::optional<decltype(sizes)> known;
  thread_local Cut cut;
  if (known != sizes) {
    cut = choose_cut(p, device);
    known.emplace(sizes);
  }
  return cut;
}

void linear_attention_forward(const LinearAttention& p, Rows q, Rows k, Rows v, const float* initial_state,
                              MutableRows o, float* final_state, void* kept, cudaStream_t stream) {
  check(p);
  check("q", q, p.heads, p.d_k), check("k", k, p.heads, p.d_k);
  check("v", v, p.heads, p.d_v), check("o", read_only(o), p.heads, p.d_v);
  if (p.tokens == 0 && !final_state) return;
  const Path path = choose(p, {q, k, v, read_only(o)});
  const Cut cut = choose(p, {q, k, v}) == Path::plain ? Cut{} : cut_of(p);
  if (cut.length == 0) return forward_whole(p, path, q, k, v, initial_state, o, final_state, stream);

  require(path != Path::plain, "align it", "o is not aligned to 16 bytes, as q, k and v are");
  require(kept, "give linear_attention_kept() bytes", "nowhere to keep states");
  const Kept at(p, cut);
  auto* const floats = static_cast<float*>(kept);
  auto* const offsets = reinterpret_cast<int*>(floats + at.offsets);
  auto* const first = reinterpret_cast<int*>(floats + at.first);
  cut_documents(p, cut, offsets, first, stream);
  const LinearAttention segments = segments_of(p, cut, offsets);
  Sweep own;
  own.b = k, own.c = v;
  Fold fold;
  fold.first = first, fold.decay = floats + at.decay, fold.states = floats + at.state;
  fold.from = initial_state, fold.to = final_state;
  make_states(p, segments, own, fold, path, stream);
  forward_whole(segments, path, q, k, v, fold.states, o, nullptr, stream);
}

void linear_attention_backward(const LinearAttention& p, Rows q, Rows k, Rows v, const float* initial_state,
                               Rows d_o, const float* d_final_state, const LinearAttentionGradients& d,
                               cudaStream_t stream) {
  check(p);
  check("q", q, p.heads, p.d_k), check("k", k, p.heads, p.d_k), check("v", v, p.heads, p.d_v),
      check("d_o", d_o, p.heads, p.d_v);
  const Rows dq_rows = read_only(d.q), dk_rows = read_only(d.k), dv_rows = read_only(d.v);
  check("dq", dq_rows, p.heads, p.d_k), check("dk", dk_rows, p.heads, p.d_k),
      check("dv", dv_rows, p.heads, p.d_v);
  require(!d.log_decay || p.gate != Gate::fixed, "set gate", "a gradient of log_decay without a gate");
  require(!d.log_decay || d.workspace, "give linear_attention_workspace() bytes",
          "the gradient of a gate needs workspace");
  const Rows of_channels{p.gate == Gate::channel ? d.log_decay : nullptr, 0};
  const Path path = choose(p, {q, k, v, d_o, dq_rows, dk_rows, dv_rows, of_channels});
  const Cut cut = path == Path::plain ? Cut{} : cut_of(p);
  const Room room(p, cut);
  auto* const floats = static_cast<float*>(d.workspace);
  float* const of_gate = floats ? floats + room.gate : nullptr;
  if (cut.length == 0)
    return backward_whole(p, path, q, k, v, initial_state, d_o, d_final_state, d, of_gate, stream);

  require(d.kept && floats, "give linear_attention_kept() and linear_attention_workspace() bytes",
          "neither what forward kept nor workspace");
  const Kept at(p, cut);
  const auto* const kept = static_cast<const float*>(d.kept);
  const LinearAttention segments = segments_of(p, cut, reinterpret_cast<const int*>(kept + at.offsets));
  Sweep own;
  own.b = q, own.c = d_o;
  Fold fold;
  fold.first = reinterpret_cast<const int*>(kept + at.first);
  fold.decay = floats + room.decay, fold.states = floats + room.state;
  fold.from = d_final_state, fold.to = d.initial_state;
  fold.scale = p.scale, fold.reverse = true;
  make_states(p, segments, own, fold, path, stream);
  LinearAttentionGradients of_segments = d;
  of_segments.initial_state = nullptr;
  backward_whole(segments, path, q, k, v, kept + at.state, d_o, fold.states, of_segments, of_gate, stream);
}

int64_t linear_attention_kept(const LinearAttention& p) {
  return Kept(p, cut_of(p)).end * int64_t(sizeof(float));
}

int64_t linear_attention_workspace(const LinearAttention& p) {
  return Room(p, cut_of(p)).end * int64_t(sizeof(float));
}

}  // namespace weft::cuda
