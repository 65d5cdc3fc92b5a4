// The four uses of a sweep that make linear attention and its gradients (README, "One sweep, four uses").

#include "attention/kernels/linear_attention.h"

#include <cmath>

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

bool hopper() { return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9; }

void check(const LinearAttention& p) {
  check_sizes(name, p);
  require(p.gate == Gate::fixed || p.log_decay, "give log decays", "gated without log_decay");
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
  require(p.path != Path::wgmma || !channels, "use Path::automatic", "a gate of channels has no wgmma");
  if (p.tokens == 0) return Path::plain;  // states only
  if (p.path != Path::automatic) return p.path;
  return !tiles ? Path::plain : hopper() && !channels ? Path::wgmma : Path::mma;
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
    channel_sweep_mma(s, gate, stream);
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

  if (p.gate == Gate::channel) {  // one after another: dk sums up what dq left of the gate's gradient
    if (d.log_decay) {
      dq.dot = q, dk.dot = k;
      dq.gate_gradient = dk.gate_gradient = d.log_decay;
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
      gate.end_sums = dq.end_sums, gate.end_parts = end_parts(path, p.d_v, p.d_k);
    }
  }

  Sweeps s = sweeps_of(p, p.d_v, p.d_k);
  s.sweep[0] = dq, s.sweep[1] = dk, s.sweep[2] = dv;
  s.count = p.d_k == p.d_v ? 3 : 2;
  run(s, path, p.dtype, stream);
  if (p.d_k != p.d_v) {
    Sweeps t = sweeps_of(p, p.d_k, p.d_v);
    t.sweep[0] = dv, t.count = 1;
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

Cut cut_of(const LinearAttention& p, bool backward) {
  if (p.dtype != Dtype::bf16 || !has_tiles(p, p.d_k) || !has_tiles(p, p.d_v)) return {};
  static const CutDevice device = [] {  // asking for a clock takes long
    CutDevice d;
    d.multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
    int id = 0, kilohertz = 0, bits = 0;
    const bool known = cudaGetDevice(&id) == cudaSuccess &&
                       cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, id) == cudaSuccess &&
                       cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, id) == cudaSuccess;
    // Of two transfers a cycle 0.88 are reached.
    if (known && kilohertz > 0 && bits > 0) d.bytes_us = 0.88 * 2 * (kilohertz / 1000.0) * (bits / 8.0);
    cudaGetLastError();  // without a GPU plans are made all the same
    return d;
  }();
  return choose_cut(p, backward ? 3 : 1, device);
}

// The workspace of a call, in floats from its start.
struct Room {
  int64_t offsets = 0, first, decay, state, d_state, gate, end;
  Room(const LinearAttention& p, const Cut& cut, bool backward) {
    auto after = [](int64_t place, int64_t floats) { return place + (floats + 3) / 4 * 4; };
    const int64_t states = int64_t(cut.most) * p.heads * p.d_k * p.d_v;
    first = after(offsets, cut.length ? cut.most + 1 : 0);
    decay = after(first, cut.length ? p.documents + 1 : 0);
    state = after(decay, int64_t(cut.most) * p.heads * (p.gate == Gate::channel ? p.d_k : 1));
    d_state = after(state, states);
    gate = after(d_state, backward ? states : 0);
    LinearAttention of_gate = p;
    if (cut.length) of_gate.documents = cut.most;
    end = after(gate, backward ? gate_floats(of_gate) : 0);
  }
};

LinearAttention segments_of(const LinearAttention& p, const Cut& cut, float* workspace, const Room& room,
                            cudaStream_t stream) {
  require(workspace != nullptr, "give linear_attention_workspace() bytes",
          "cutting documents needs workspace");
  LinearAttention segments = p;
  segments.documents = cut.most, segments.offsets = reinterpret_cast<int*>(workspace + room.offsets);
  cut_documents(p, cut, reinterpret_cast<int*>(workspace + room.offsets),
                reinterpret_cast<int*>(workspace + room.first), stream);
  return segments;
}

void run_states(const Sweeps& s, Gate gate, float* decay, Path path, cudaStream_t stream) {
  if (gate == Gate::channel)
    channel_segment_states(s, decay, hopper(), stream);
  else
    segment_states(s, decay, path == Path::wgmma, stream);
}

Fold fold_of(const LinearAttention& p, float* workspace, const Room& room) {
  Fold f;
  f.documents = p.documents, f.heads = p.heads, f.d_k = p.d_k, f.d_v = p.d_v;
  f.first = reinterpret_cast<int*>(workspace + room.first), f.decay = workspace + room.decay;
  f.channels = p.gate == Gate::channel;
  return f;
}

}  // namespace

void linear_attention_forward(const LinearAttention& p, Rows q, Rows k, Rows v, const float* initial_state,
                              MutableRows o, float* final_state, void* workspace, cudaStream_t stream) {
  check(p);
  check("q", q, p.heads, p.d_k), check("k", k, p.heads, p.d_k);
  check("v", v, p.heads, p.d_v), check("o", read_only(o), p.heads, p.d_v);
  if (p.tokens == 0 && !final_state) return;
  const Path path = choose(p, {q, k, v, read_only(o)});
  const Cut cut = path == Path::plain ? Cut{} : cut_of(p, false);
  if (cut.length == 0) return forward_whole(p, path, q, k, v, initial_state, o, final_state, stream);

  auto* const floats = static_cast<float*>(workspace);
  const Room room(p, cut, false);
  const LinearAttention segments = segments_of(p, cut, floats, room, stream);
  Sweeps s = sweeps_of(segments, p.d_k, p.d_v);
  s.count = 1;
  s.sweep[0].b = k, s.sweep[0].c = v, s.sweep[0].state_out = floats + room.state;
  run_states(s, p.gate, floats + room.decay, path, stream);
  Fold fold = fold_of(p, floats, room);
  fold.states = floats + room.state, fold.from = initial_state, fold.to = final_state;
  fold_segments(fold, stream);
  forward_whole(segments, path, q, k, v, floats + room.state, o, nullptr, stream);
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
  const Path path = choose(p, {q, k, v, d_o, dq_rows, dk_rows, dv_rows});
  const Cut cut = path == Path::plain ? Cut{} : cut_of(p, true);
  const Room room(p, cut, true);
  auto* const floats = static_cast<float*>(d.workspace);
  float* const of_gate = floats ? floats + room.gate : nullptr;
  if (cut.length == 0)
    return backward_whole(p, path, q, k, v, initial_state, d_o, d_final_state, d, of_gate, stream);

  const LinearAttention segments = segments_of(p, cut, floats, room, stream);
  Sweeps s = sweeps_of(segments, p.d_k, p.d_v);
  s.count = 2;
  s.sweep[0].b = k, s.sweep[0].c = v, s.sweep[0].state_out = floats + room.state;
  s.sweep[1].b = q, s.sweep[1].c = d_o, s.sweep[1].state_out = floats + room.d_state;
  s.sweep[1].reverse = true;
  run_states(s, p.gate, floats + room.decay, path, stream);
  Fold fold = fold_of(p, floats, room);
  fold.states = floats + room.state, fold.from = initial_state;
  fold_segments(fold, stream);
  fold.states = floats + room.d_state, fold.from = d_final_state, fold.to = d.initial_state;
  fold.scale = p.scale, fold.reverse = true;
  fold_segments(fold, stream);
  LinearAttentionGradients of_segments = d;
  of_segments.initial_state = nullptr;
  backward_whole(segments, path, q, k, v, floats + room.state, d_o, floats + room.d_state, of_segments,
                 of_gate, stream);
}

int64_t linear_attention_workspace(const LinearAttention& p, bool backward) {
  return Room(p, cut_of(p, backward), backward).end * int64_t(sizeof(float));
}

}  // namespace weft::cuda
