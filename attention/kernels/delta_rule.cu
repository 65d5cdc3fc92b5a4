// Which stages make the delta rule and its gradients (README, "The delta rule").

#include "attention/kernels/delta_rule.h"

#include <utility>

#include "attention/kernels/delta_stages.h"

namespace weft::cuda {

namespace {

void require(bool condition, const std::string& what, const std::string& advice) {
  if (!condition) throw Error(Exit::internal, "delta rule: " + what, {}, advice);
}

bool has_tiles(int width) { return width == 64 || width == 128; }

bool aligned(const Rows& r) { return reinterpret_cast<uintptr_t>(r.data) % 16 == 0 && r.pitch % 8 == 0; }

bool hopper() {
  int device = 0, major = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
             "cudaDeviceGetAttribute");
  return major == 9;
}

void check(const DeltaRule& p) {
  require(p.dtype == Dtype::bf16, text("dtype ", int(p.dtype), " is not bf16"), "convert first");
  require(has_tiles(p.d_k) && has_tiles(p.d_v), text("widths ", p.d_k, " and ", p.d_v), "use 64 or 128");
  require(p.heads > 0 && p.documents > 0 && p.tokens >= 0 && p.tokens < (int64_t(1) << 31),
          text(p.tokens, " tokens, ", p.documents, " documents, ", p.heads, " heads"),
          "use fewer than 2^31 tokens");
  require(p.offsets || p.tokens % p.documents == 0,
          text(p.tokens, " tokens in ", p.documents, " documents without offsets"),
          "give offsets, or equal documents");
  require(p.scale > 0, text("scale ", p.scale), "it has to be positive");
  require(p.beta, "beta is null", "give (tokens, heads) f32");
}

void check(const char* name, const Rows& r, int heads, int width) {
  require(r.data, text(name, " is null"), "give a device pointer");
  require(r.pitch >= int64_t(heads) * width,
          text(name, " has pitch ", r.pitch, " for ", heads, " heads of ", width), "pitch counts elements");
  require(aligned(r), text(name, " is not aligned to 16 bytes"), "make it contiguous");
}

Rows read_only(const MutableRows& r) { return {r.data, r.pitch}; }

bool by_wgmma(const DeltaRule& p) { return p.path == Path::wgmma || (p.path == Path::automatic && hopper()); }

// Parts of an area of memory, each aligned to 256 bytes.
struct Area {
  char* base;
  int64_t used = 0;
  char* take(int64_t bytes) {
    const int64_t at = std::exchange(used, used + (bytes + 255) / 256 * 256);
    return base ? base + at : nullptr;
  }
};

struct Kept {
  DeltaStages stages;
  int64_t bytes;
};
Kept kept_by(const DeltaRule& p, char* base, bool backward_follows) {
  DeltaStages s;
  s.tokens = p.tokens, s.documents = p.documents, s.offsets = p.offsets, s.heads = p.heads;
  s.d_k = p.d_k, s.d_v = p.d_v, s.scale = p.scale, s.beta = p.beta, s.log_decay = p.log_decay;
  const int64_t units = delta_slots(p.tokens, p.documents) * p.heads;
  Area area{base};
  s.gates = reinterpret_cast<float*>(area.take(units * 2 * 64 * 4));
  s.inverse = area.take(units * 64 * 64 * 2);
  if (backward_follows) {
    s.writes = area.take(units * 64 * p.d_v * 2);
    s.states = area.take(units * p.d_k * p.d_v * 2);
  }
  return {s, area.used};
}

int64_t add_workspace(DeltaStages& s, char* base) {
  const int64_t units = delta_slots(s.tokens, s.documents) * s.heads;
  Area area{base};
  s.d_rhs = area.take(units * 64 * s.d_v * 2);
  s.d_states = area.take(units * s.d_k * s.d_v * 2);
  return area.used;
}

}  // namespace

int64_t delta_rule_kept(const DeltaRule& p, bool backward_follows) {
  return kept_by(p, nullptr, backward_follows).bytes;
}

int64_t delta_rule_workspace(const DeltaRule& p) {
  DeltaStages s = kept_by(p, nullptr, true).stages;
  return add_workspace(s, nullptr);
}

void delta_rule_forward(const DeltaRule& p, Rows q, Rows k, Rows v, const float* initial_state, MutableRows o,
                        float* final_state, void* kept, bool backward_follows, cudaStream_t stream) {
  check(p);
  check("q", q, p.heads, p.d_k), check("k", k, p.heads, p.d_k);
  check("v", v, p.heads, p.d_v), check("o", read_only(o), p.heads, p.d_v);
  const DeltaStages s = kept_by(p, static_cast<char*>(kept), backward_follows).stages;
  if (p.tokens > 0) delta_inverse(s, k, stream);
  delta_forward(s, by_wgmma(p), q, k, v, initial_state, o, final_state, stream);
}

void delta_rule_backward(const DeltaRule& p, Rows q, Rows k, Rows v, Rows d_o, const float* d_final_state,
                         const void* kept, const DeltaRuleGradients& d, void* workspace,
                         cudaStream_t stream) {
  check(p);
  check("q", q, p.heads, p.d_k), check("k", k, p.heads, p.d_k), check("v", v, p.heads, p.d_v);
  check("d_o", d_o, p.heads, p.d_v);
  check("dq", read_only(d.q), p.heads, p.d_k), check("dk", read_only(d.k), p.heads, p.d_k);
  check("dv", read_only(d.v), p.heads, p.d_v);
  require(d.beta, "d_beta is null", "give (tokens, heads) f32");
  require(p.log_decay || !d.log_decay, "a gradient of log_decay without one", "give log_decay");
  DeltaStages s = kept_by(p, static_cast<char*>(const_cast<void*>(kept)), true).stages;
  add_workspace(s, static_cast<char*>(workspace));
  const bool wgmma = by_wgmma(p);
  delta_reverse(s, wgmma, q, k, d_o, d_final_state, d.initial_state, stream);
  if (p.tokens > 0) delta_gradient(s, wgmma, q, k, v, d_o, d, stream);
}

}  // namespace weft::cuda
