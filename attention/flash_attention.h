#pragma once
// Attention in tiles, with a running maximum and sum for softmax (Milakov & Gimelshein 2018; Dao et al. 2022)
// and a running count for the other weights: no buffer grows with the square of the length. Queries and keys
// may be any tokens in any order; their documents and positions decide which key a query sees. Tiles in which
// no query sees a key are skipped, so a window or blocks of w cost O(n w).

#include "attention/part.h"

namespace weft {

// The functions that a Merge needs, with its shapes: q (N, H, Dk), k (M, Hkv, Dk), v (M, Hkv, Dv), H a
// multiple of Hkv. q, k, v and places may have a pitch, with rows at multiples of 16 bytes then; all others
// are dense. d_lse undefined: none.
std::vector<Tensor> flash_attention_forward(const AttentionOptions&, const Tensor& q, const Tensor& k,
                                            const Tensor& v, const Tensor& q_position,
                                            const Tensor& q_document, const Tensor& k_position,
                                            const Tensor& k_document, const Tensor& bias = {},
                                            const Tensor& active = {});
std::vector<Tensor> flash_attention_backward(const AttentionOptions&, const Tensor& q, const Tensor& k,
                                             const Tensor& v, const Tensor& q_position,
                                             const Tensor& q_document, const Tensor& k_position,
                                             const Tensor& k_document, const Tensor& bias,
                                             const Tensor& active, const Tensor& o, const Tensor& lse,
                                             const Tensor& d_o, const Tensor& d_lse);
// The same with dq, dk and dv written where places says. Returns what the function above does.
std::vector<Tensor> flash_attention_backward_to(const std::vector<Tensor>& places, const AttentionOptions&,
                                                const Tensor& q, const Tensor& k, const Tensor& v,
                                                const Tensor& q_position, const Tensor& q_document,
                                                const Tensor& k_position, const Tensor& k_document,
                                                const Tensor& bias, const Tensor& active, const Tensor& o,
                                                const Tensor& lse, const Tensor& d_o, const Tensor& d_lse);

// Slopes of ALiBi (Press et al. 2022) for h heads: 2^(-8 i / h) for a power of two; otherwise those of the
// next lower power of two, then every second one of twice as many.
std::vector<double> alibi_slopes(int64_t heads);

namespace cpu {
struct AttentionTokens {
  Tensor q_position, q_document, k_position, k_document;
  Tensor active;  // as in Merge
};
void flash_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                   const AttentionTokens& tokens, const Tensor& bias, const AttentionOptions& options);
void flash_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                    const Tensor& q, const Tensor& k, const Tensor& v, const AttentionTokens& tokens,
                    const Tensor& bias, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                    const Tensor& d_lse, const AttentionOptions& options);
}  // namespace cpu
namespace cuda {
using cpu::AttentionTokens;
void flash_forward(const Tensor& o, const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v,
                   const AttentionTokens& tokens, const Tensor& bias, const AttentionOptions& options);
void flash_backward(const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dbias,
                    const Tensor& q, const Tensor& k, const Tensor& v, const AttentionTokens& tokens,
                    const Tensor& bias, const Tensor& o, const Tensor& lse, const Tensor& d_o,
                    const Tensor& d_lse, const AttentionOptions& options);
}  // namespace cuda

}  // namespace weft
