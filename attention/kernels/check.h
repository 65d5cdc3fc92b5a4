#pragma once
// What launchers ask of their arguments. `kernel` names them in the error (internal).

#include <string>

#include "attention/kernels/linear_attention.h"
#include "autograd/check.h"

namespace weft::cuda {

inline void require(const char* kernel, bool condition, const std::string& what, const std::string& advice) {
  if (!condition) throw Error(Exit::internal, text(kernel, ": ", what), {}, advice);
}

// The sizes that a LinearAttention and a DeltaRule have in common.
template <class Problem>
void check_sizes(const char* kernel, const Problem& p) {
  require(kernel, p.dtype == Dtype::bf16 || p.dtype == Dtype::f32,
          text("dtype ", int(p.dtype), " is neither bf16 nor f32"), "convert first");
  require(kernel, p.d_k > 0 && p.d_k <= 256 && p.d_v > 0 && p.d_v <= 256,
          text("widths ", p.d_k, " and ", p.d_v), "use 1 to 256");
  require(kernel, p.heads > 0 && p.documents > 0 && p.tokens >= 0 && p.tokens < (int64_t(1) << 31),
          text(p.tokens, " tokens, ", p.documents, " documents, ", p.heads, " heads"),
          "use fewer than 2^31 tokens");
  require(kernel, p.offsets || p.tokens % p.documents == 0,
          text(p.tokens, " tokens in ", p.documents, " documents without offsets"),
          "give offsets, or equal documents");
  require(kernel, p.scale > 0, text("scale ", p.scale), "it has to be positive");
}

inline void check_rows(const char* kernel, const char* name, const Rows& r, int heads, int width) {
  require(kernel, r.data, text(name, " is null"), "give a device pointer");
  require(kernel, r.pitch >= int64_t(heads) * width,
          text(name, " has pitch ", r.pitch, " for ", heads, " heads of ", width), "pitch counts elements");
}

inline bool aligned(const Rows& r) {
  return reinterpret_cast<uintptr_t>(r.data) % 16 == 0 && r.pitch % 8 == 0;
}

inline Rows read_only(const MutableRows& r) { return {r.data, r.pitch}; }

}  // namespace weft::cuda
