// The four uses of a sweep that make linear attention and its gradients (README, "One sweep, four uses").

#include "attention/kernels/linear_attention.h"

#include <cmath>

#include "attention/kernels/channel_sweep.h"
#include "attention/kernels/check.h"

namespace weft::cuda {

namespace {

constexpr const char* name = "linear attention";

void require(bool condition, const std::string& what, const std::string& advice) {
  cuda::require(name, condition, what, advice);
}

bool has_tiles(const LinearAttention& p, int width) {
  return width == 64 || width == 128 || (width == 256 && p.gate != Gate::channel);
}

bool hopper() { return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9; }

void check(const LinearAttention& p) {
  check_sizes(name, p);
  require(p.gate == Gate::fixed || p.log_decay, "gated without log_decay", "give log decays");
}

void check(const char* of, const Rows& r, int heads, int width) { check_rows(name, of, r, heads, width); }

Path choose(const LinearAttention& p, std::initializer_list<Rows> all) {
  const bool channels = p.gate == Gate::channel;
  bool tiles = p.dtype == Dtype::bf16 && has_tiles(p, p.d_k) && has_tiles(p, p.d_v);
  for (const Rows& r : all) tiles = tiles && aligned(r);
  if (channels)
    tiles = tiles && aligned({p.log_decay, 0}) &&
            channel_sweep_bytes(p.d_k, p.d_v) <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  require(p.path == Path::automatic || p.path == Path::plain || tiles,
          "this path needs bf16, widths of 64, 128 or 256, and 16-byte alignment", "use Path::automatic");
  require(p.path != Path::wgmma || !channels, "a gate of channels has no wgmma", "use Path::automatic");
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

}  // namespace

void linear_attention_forward(const LinearAttention& p, Rows q, Rows k, Rows v, const float* initial_state,
                              MutableRows o, float* final_state, cudaStream_t stream) {
  check(p);
  check("q", q, p.heads, p.d_k), check("k", k, p.heads, p.d_k);
  check("v", v, p.heads, p.d_v), check("o", read_only(o), p.heads, p.d_v);
  if (p.tokens == 0 && !final_state) return;

  Sweeps s = sweeps_of(p, p.d_k, p.d_v);
  s.count = 1;
  Sweep& o_sweep = s.sweep[0];
  o_sweep.a = q, o_sweep.b = k, o_sweep.c = v, o_sweep.out = o;
  o_sweep.state_in = initial_state, o_sweep.state_out = final_state;
  const Path path = choose(p, {q, k, v, read_only(o)});
  if (p.gate == Gate::channel)
    run(s, GateOf::a, path, p.dtype, stream);
  else
    run(s, path, p.dtype, stream);
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
  require(!d.log_decay || p.gate != Gate::fixed, "a gradient of log_decay without a gate", "set gate");
  require(!d.log_decay || d.workspace, "the gradient of a gate needs workspace",
          "give linear_attention_workspace() bytes");
  const Path path = choose(p, {q, k, v, d_o, dq_rows, dk_rows, dv_rows});

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
      if (d_final_state) dq.end_sums = dk.end_sums = d.workspace;
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
    dq.dot = q, dq.dot_sums = d.workspace;
    dk.dot = k, dk.dot_sums = d.workspace + gate.splits * p.tokens * p.heads;
    gate.q_sums = dq.dot_sums, gate.k_sums = dk.dot_sums, gate.d_log_decay = d.log_decay;
    if (d_final_state) {
      dq.end_dot = d_final_state, dq.end_sums = d.workspace + 2 * gate.splits * p.tokens * p.heads;
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

int64_t linear_attention_workspace(const LinearAttention& p) {
  if (p.gate == Gate::channel) return int64_t(p.documents) * p.heads * p.d_k * int64_t(sizeof(float));
  const int64_t splits = (p.d_k + plain_columns - 1) / plain_columns;  // as many as the plain path needs
  return (2 * splits * p.tokens + most_end_parts * p.documents) * p.heads * int64_t(sizeof(float));
}

}  // namespace weft::cuda
