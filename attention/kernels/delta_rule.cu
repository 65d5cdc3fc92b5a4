// Which stages make the delta rule and its gradients (delta_rule.md).

#include "attention/kernels/delta_rule.h"

#include <utility>

#include "attention/kernels/check.h"
#include "attention/kernels/delta_stages.h"

namespace weft::cuda {

namespace {

constexpr const char* name = "delta rule";

template <class... What>
void require(bool condition, const char* advice, const What&... what) {
  cuda::require(name, condition, advice, what...);
}

bool has_tiles(int width) { return width == 64 || width == 128; }

void check(const DeltaRule& p) {
  check_sizes(name, p);
  // Chunks of heads are numbered in 32 bits, with room to count past the last.
  require(delta_slots(p.tokens, p.documents) * p.heads <= INT32_MAX / 2, "compute some documents at a time",
          p.tokens, " tokens in ", p.documents, " documents of ", p.heads, " heads");
  require(p.beta || p.tokens == 0, "give (tokens, heads) f32", "beta is null");
}

// Tiles wherever they can be: what is kept depends on it, so alignment has no say.
Path choose(const DeltaRule& p) {
  const bool tiles = p.dtype == Dtype::bf16 && has_tiles(p.d_k) && has_tiles(p.d_v);
  require(p.path == Path::automatic || p.path == Path::plain || tiles, "use Path::automatic",
          "this path needs bf16 and widths of 64 or 128");
  if (p.path != Path::automatic) return p.path;
  if (!tiles || device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) < 227 * 1024) return Path::plain;
  return hopper() ? Path::wgmma : Path::mma;
}

void check(const char* of, const Rows& r, int heads, int width, Path path) {
  check_rows(name, of, r, heads, width);
  require(path == Path::plain || aligned(r), "make it contiguous", of, " is not aligned to 16 bytes");
}

// Parts of an area of memory, each aligned to 256 bytes.
struct Area {
  char* base = nullptr;
  int64_t used = 0;
  static int64_t rounded(int64_t bytes) { return (bytes + 255) / 256 * 256; }
  char* take(int64_t bytes) {
    const int64_t at = std::exchange(used, used + rounded(bytes));
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
  s.scores = area.take(units * 64 * 64 * 2);
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

DeltaPlain plain_of(const DeltaRule& p) {
  DeltaPlain s;
  s.tokens = p.tokens, s.documents = p.documents, s.offsets = p.offsets, s.heads = p.heads;
  s.d_k = p.d_k, s.d_v = p.d_v, s.scale = p.scale, s.beta = p.beta, s.log_decay = p.log_decay;
  return s;
}

int64_t add_workspace(DeltaPlain& s, char* base) {
  const int64_t units = s.tokens * s.heads, splits = (s.d_k + plain_columns - 1) / plain_columns;
  Area area{base};
  auto floats = [&](int64_t n) { return reinterpret_cast<float*>(area.take(n * 4)); };
  s.d_write = floats(units * s.d_v), s.d_k_write = floats(units * s.d_k);
  s.gate_q = floats(units * splits), s.gate_k = floats(units * splits);
  s.gate_end = floats(int64_t(plain_end_parts(s.d_k)) * s.documents * s.heads);
  return area.used;
}

}  // namespace

int64_t delta_rule_kept(const DeltaRule& p, bool backward_follows) {
  if (choose(p) != Path::plain) return kept_by(p, nullptr, backward_follows).bytes;
  return backward_follows ? Area::rounded(p.tokens * p.heads * p.d_v * 4) : 0;
}

int64_t delta_rule_workspace(const DeltaRule& p) {
  if (choose(p) == Path::plain) {
    DeltaPlain s = plain_of(p);
    return add_workspace(s, nullptr);
  }
  DeltaStages s = kept_by(p, nullptr, true).stages;
  return add_workspace(s, nullptr);
}

void delta_rule_forward(const DeltaRule& p, Rows q, Rows k, Rows v, const float* initial_state, MutableRows o,
                        float* final_state, void* kept, bool backward_follows, cudaStream_t stream) {
  check(p);
  const Path path = choose(p);
  check("q", q, p.heads, p.d_k, path), check("k", k, p.heads, p.d_k, path);
  check("v", v, p.heads, p.d_v, path), check("o", read_only(o), p.heads, p.d_v, path);
  if (path == Path::plain) {
    DeltaPlain s = plain_of(p);
    s.q = q, s.k = k, s.v = v, s.o = o, s.state = initial_state, s.end_state = final_state;
    s.error = backward_follows ? static_cast<float*>(kept) : nullptr;
    return delta_plain_forward(s, p.dtype, stream);
  }
  const DeltaStages s = kept_by(p, static_cast<char*>(kept), backward_follows).stages;
  const bool wgmma = path == Path::wgmma;
  const MappedRows of_q = mapped(s, wgmma, q, s.d_k), of_k = mapped(s, wgmma, k, s.d_k);
  if (p.tokens > 0) delta_inverse(s, wgmma, of_q, of_k, stream);
  delta_forward(s, wgmma, of_q, of_k, mapped(s, wgmma, v, s.d_v), initial_state, o, final_state, stream);
}

void delta_rule_backward(const DeltaRule& p, Rows q, Rows k, Rows v, const float* initial_state, Rows d_o,
                         const float* d_final_state, const void* kept, const DeltaRuleGradients& d,
                         void* workspace, cudaStream_t stream) {
  check(p);
  const Path path = choose(p);
  check("q", q, p.heads, p.d_k, path), check("k", k, p.heads, p.d_k, path);
  check("v", v, p.heads, p.d_v, path), check("d_o", d_o, p.heads, p.d_v, path);
  check("dq", read_only(d.q), p.heads, p.d_k, path), check("dk", read_only(d.k), p.heads, p.d_k, path);
  check("dv", read_only(d.v), p.heads, p.d_v, path);
  require(d.beta || p.tokens == 0, "give (tokens, heads) f32", "d_beta is null");
  require(p.log_decay || !d.log_decay, "give log_decay", "a gradient of log_decay without one");
  char* before = static_cast<char*>(const_cast<void*>(kept));  // read only
  if (path == Path::plain) {
    DeltaPlain s = plain_of(p);
    add_workspace(s, static_cast<char*>(workspace));
    s.q = q, s.k = k, s.v = v, s.d_o = d_o, s.state = initial_state, s.d_end_state = d_final_state;
    s.error = reinterpret_cast<float*>(before), s.d = d;
    return delta_plain_backward(s, p.dtype, stream);
  }
  DeltaStages s = kept_by(p, before, true).stages;
  add_workspace(s, static_cast<char*>(workspace));
  const bool wgmma = path == Path::wgmma;
  const MappedRows of_q = mapped(s, wgmma, q, s.d_k), of_k = mapped(s, wgmma, k, s.d_k),
                   of_d_o = mapped(s, wgmma, d_o, s.d_v);
  delta_reverse(s, wgmma, of_q, of_k, of_d_o, d_final_state, d.initial_state, stream);
  if (p.tokens > 0) delta_gradient(s, wgmma, of_q, of_k, mapped(s, wgmma, v, s.d_v), of_d_o, d, stream);
}

}  // namespace weft::cuda
