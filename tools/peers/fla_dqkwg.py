"""The one kernel of flash-linear-attention that it refuses on Hopper with Triton 3.4 to 3.7.0, written in PyTorch.

gradients(q=, k=, v=, do=, h=, dh=, w=, g=, dv=, scale=, ...) takes what fla's chunk_bwd_dqkwg takes and returns dq, dk, dw, dg:
q, k (B, T, H, K), v, do, dv (B, T, H, V), states before each chunk and their gradients h, dh (B, T / 64, H, K, V), and g (B, T, H) the
running sum of log2 decays within a chunk, whose gradient comes back before the sum over later tokens of the chunk. T is a multiple of 64.
"""

import torch


def gradients(q, k, v, do, h, dh, w=None, g=None, g_gamma=None, dv=None, scale=None, chunk_size=64, **ignored):
    kind, weight_kind, shape = q.dtype, None if w is None else w.dtype, q.shape
    b, t, heads = shape[:3]

    def chunks(x):  # (B, T, H, D) -> (B, T / 64, H, 64, D) in f32
        return x.float().unflatten(1, (t // chunk_size, chunk_size)).transpose(2, 3)

    def tokens(x, dtype):
        return x.transpose(2, 3).flatten(1, 2).to(dtype)

    assert g is not None and t % chunk_size == 0
    q, k, v, do = map(chunks, (q, k, v, do))
    h, dh = h.float().view(b, -1, heads, *h.shape[-2:]), dh.float().view(b, -1, heads, *dh.shape[-2:])
    g = chunks(g[..., None])  # (B, N, H, 64, 1)
    last = g[..., -1:, :]
    between = (g - g.mT).tril().exp2().tril()
    ds = (do @ v.mT) * between * scale
    dq = scale * g.exp2() * (do @ h.mT) + ds @ k
    carried = (last - g).exp2() * (v @ dh.mT)
    dk = carried + ds.mT @ q
    dg = (dq * q).sum(-1, keepdim=True) - (dk * k).sum(-1, keepdim=True)
    dg[..., -1:, :] += last.exp2() * (h * dh).sum((-1, -2))[..., None, None] + (carried * k).sum((-1, -2))[..., None, None]
    dw = None if dv is None or w is None else tokens(-(chunks(dv) @ h.mT), weight_kind)
    return tokens(dq, kind), tokens(dk, kind), dw, tokens(dg, torch.float32)[..., 0]


def install(wanted=True):
    """In place of fla's own, for simple_gla and the gated delta rule; or its own again."""
    import fla.ops.gated_delta_rule.chunk as delta
    import fla.ops.simple_gla.chunk as simple
    from fla.ops.common.chunk_o import chunk_bwd_dqkwg

    for module in (delta, simple):
        module.chunk_bwd_dqkwg = gated_by_torch if wanted else chunk_bwd_dqkwg


def gated_by_torch(**how):
    from fla.ops.common.chunk_o import chunk_bwd_dqkwg

    return chunk_bwd_dqkwg(**how) if how.get("g") is None else gradients(**how)
