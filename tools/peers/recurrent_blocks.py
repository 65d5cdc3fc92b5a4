"""Layers of torch_train.Model with weft's gated linear attention or gated delta rule, computed by flash-linear-attention."""

import functools

import torch
import torch.nn.functional as F
from recurrences import definition
from torch import nn
from torch_train import Block

DECAY_TEMPERATURE = 16  # of log decays, as in GLA


class GlaBlock(Block):
    """A log decay for each channel of the keys, projected as they are."""

    def __init__(self, width, heads, ffn, op=definition):
        super().__init__(width, heads, ffn)
        self.op = op
        self.qkv = nn.Linear(width, 4 * width, bias=False)
        self.out_norm = nn.RMSNorm(width // heads, eps=1e-6)

    def project(self, y):
        q, k, v, g = self.qkv(y).unflatten(-1, (4, self.heads, -1)).unbind(-3)
        return q, k, v, {"g": F.logsigmoid(g.float()) / DECAY_TEMPERATURE}

    def attend(self, y, cos, sin):
        q, k, v, gates = self.project(y)
        o = self.out_norm(self.op(q, k, v, **gates)[0])
        return self.out(o.flatten(-2))


class GatedDeltaBlock(GlaBlock):
    """A strength of writing and a log decay for each head, keys of length 1."""

    def __init__(self, width, heads, ffn, op=definition):
        super().__init__(width, heads, ffn, op)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gates = nn.Linear(width, 2 * heads)

    def project(self, y):
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        long = k.float()
        k = (long * torch.rsqrt(long.square().sum(-1, keepdim=True) + 1e-6)).to(k.dtype)
        beta, g = self.gates(y).float().chunk(2, -1)
        return q, k, v, {"beta": beta.sigmoid(), "g": F.logsigmoid(g) / DECAY_TEMPERATURE}


def fla_op(mechanism):
    """fla's chunked kernels, with one configuration each in place of minutes of tuning, which changes no result but rounding."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gla import chunk_gla
    from fla_dqkwg import install
    from tuning import untuned

    install()  # fla refuses that kernel on Hopper with this Triton, and GLA does not use it
    untuned()
    return {"gla": chunk_gla, "gated_delta_rule": chunk_gated_delta_rule}[mechanism]


def block_of(mechanism, fla):
    """What makes a layer of torch_train.Model of this mechanism."""
    if mechanism == "softmax":
        return Block
    kind = {"gla": GlaBlock, "gated_delta_rule": GatedDeltaBlock}[mechanism]
    return functools.partial(kind, op=fla_op(mechanism) if fla else definition)
