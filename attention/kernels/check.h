#pragma once
// What launchers ask of their arguments. `kernel` names them in the error (internal).

#include <string>

#include "attention/kernels/linear_attention.h"
#include "autograd/check.h"

namespace weft::cuda {

// Words are put together where they are needed only: a launch asks a dozen such questions.
template <class... What>
void require(const char* kernel, bool condition, const char* advice, const What&... what) {
  if (!condition) throw Error(Exit::internal, text(kernel, ": ", what...), {}, advice);
}

// The sizes that a LinearAttention and a DeltaRule have in common.
template <class Problem>
void check_sizes(const char* kernel, const Problem& p) {
  require(kernel, p.dtype == Dtype::bf16 || p.dtype == Dtype::f32, "convert first", "dtype ", int(p.dtype),
          " is neither bf16 nor f32");
  require(kernel, p.d_k > 0 && p.d_k <= 256 && p.d_v > 0 && p.d_v <= 256, "use 1 to 256", "widths ", p.d_k,
          " and ", p.d_v);
  require(kernel, p.heads > 0 && p.documents > 0 && p.tokens >= 0 && p.tokens < (int64_t(1) << 31),
          "use fewer than 2^31 tokens", p.tokens, " tokens, ", p.documents, " documents, ", p.heads,
          " heads");
  // A launch has up to three blocks for each document, head and 32 columns of 256.
  require(kernel, int64_t(p.documents) * p.heads <= INT32_MAX / 24, "compute some documents at a time",
          p.documents, " documents of ", p.heads, " heads; together at most ", INT32_MAX / 24);
  require(kernel, p.offsets || p.tokens % p.documents == 0, "give offsets, or equal documents", p.tokens,
          " tokens in ", p.documents, " documents without offsets");
  require(kernel, p.scale > 0, "it has to be positive", "scale ", p.scale);
}

inline void check_rows(const char* kernel, const char* name, const Rows& r, int heads, int width) {
  require(kernel, r.data != nullptr, "give a device pointer", name, " is null");
  require(kernel, r.pitch >= int64_t(heads) * width, "pitch counts elements", name, " has pitch ", r.pitch,
          " for ", heads, " heads of ", width);
}

inline bool aligned(const Rows& r) {
  return reinterpret_cast<uintptr_t>(r.data) % 16 == 0 && r.pitch % 8 == 0;
}

inline Rows read_only(const MutableRows& r) { return {r.data, r.pitch}; }

}  // namespace weft::cuda
