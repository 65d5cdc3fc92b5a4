#!/usr/bin/env python3
"""Tokens a second of a training step of flash-linear-attention: the peer of recipes/124m/lightning.yaml and gla.yaml.

    fla_train.py [lightning] [gla] [gla-own]        --context 8192 --seconds 60 for each

The model is weft's, put together from fla's own modules: its norms with their sums, gated unit, cross-entropy and the chunked
kernels of its attention. gla-own is fla's GLAForCausalLM as it stands, at this
width and with keys as wide as values; its gate is of rank 16 and takes less work than weft's. bf16 autocast over f32 weights, fused
AdamW. --jobs processes compile fla's kernels side by side first, as in recurrences.py, whose --few this has too. A model that
is not through in --seconds is given up. --cpu-size: tiny, with PyTorch in place of all that is fla's, to see that the script works.
"""

import argparse
import os
import sys
import time

import torch
import torch.nn.functional as F
from limits import add_limits, within_limits
from peer import DEVICE, VERSION, say, wait
from recurrences import definition
from torch import nn
from torch_train import small_embedding, start_over, train_steps
from tuning import limit_tuning

MODELS = ("lightning", "gla", "gla-own")


class PlainNorm(nn.RMSNorm):
    """fla's RMSNorm in PyTorch: of the sum with a residual, which comes back too."""

    def forward(self, x, residual=None, prenorm=False):
        total = x if residual is None else x + residual
        y = super().forward(total)
        return (y, total) if prenorm else y


class PlainUnit(nn.Module):
    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.gate, self.up = (nn.Linear(hidden_size, intermediate_size, bias=False) for _ in range(2))
        self.down = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Plain:
    """What is fla's, in PyTorch."""

    norm, unit, loss = PlainNorm, PlainUnit, nn.CrossEntropyLoss
    gla = lightning = staticmethod(definition)


def fla_kit():
    from fla.modules import FusedCrossEntropyLoss, GatedMLP, RMSNorm
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    class Kit:
        norm, unit = RMSNorm, GatedMLP
        gla, lightning = staticmethod(chunk_gla), staticmethod(chunk_simple_gla)

        @staticmethod
        def loss():
            return FusedCrossEntropyLoss(inplace_backward=True)

    return Kit


class Layer(nn.Module):
    def __init__(self, kit, op, a):
        super().__init__()
        self.op, self.heads, self.gated = getattr(kit, op), a.heads, op == "gla"
        self.norm1, self.norm2 = kit.norm(a.width, eps=1e-6), kit.norm(a.width, eps=1e-6)
        self.out_norm = kit.norm(a.width // a.heads, eps=1e-6)
        # one by one, as fla has them: its kernels copy what is a view
        self.into = nn.ModuleList(nn.Linear(a.width, a.width, bias=False) for _ in range(4 if self.gated else 3))
        self.out = nn.Linear(a.width, a.width, bias=False)
        self.unit = kit.unit(hidden_size=a.width, intermediate_size=a.ffn)
        self.register_buffer("g_gamma", -(2.0 ** (-8.0 * torch.arange(1, a.heads + 1) / a.heads)))

    def forward(self, branch, x):
        y, x = self.norm1(branch, x, True)
        b, t, c = y.shape
        q, k, v, *gate = (project(y).view(b, t, self.heads, -1) for project in self.into)
        decay = {"g": F.logsigmoid(gate[0]) / 16} if self.gated else {"g_gamma": self.g_gamma}
        o = self.out_norm(self.op(q, k, v, **decay)[0])
        y, x = self.norm2(self.out(o.reshape(b, t, c)), x, True)
        return self.unit(y), x


class Model(nn.Module):
    def __init__(self, kit, op, a):
        super().__init__()
        self.embedding = small_embedding(a.vocab, a.width)
        self.layers = nn.ModuleList(Layer(kit, op, a) for _ in range(a.layers))
        self.norm = kit.norm(a.width, eps=1e-6)
        self.loss = kit.loss()

    def forward(self, tokens, targets):
        branch, x = self.embedding(tokens), None
        for layer in self.layers:
            branch, x = layer(branch, x)
        logits = F.linear(self.norm(branch, x), self.embedding.weight)
        return self.loss(logits.flatten(0, 1), targets.flatten())


class Own(nn.Module):
    def __init__(self, a):
        super().__init__()
        from fla.models import GLAConfig, GLAForCausalLM

        self.model = GLAForCausalLM(GLAConfig(
            hidden_size=a.width, num_hidden_layers=a.layers, num_heads=a.heads, expand_k=1, expand_v=1, use_output_gate=False,
            intermediate_size=a.ffn, vocab_size=a.vocab, tie_word_embeddings=True, use_cache=False, max_position_embeddings=a.context))

    def forward(self, tokens, targets):
        # it shifts by itself, so the last target is not in the loss
        return self.model(input_ids=tokens, labels=tokens).loss


def run(which, a):
    start_over()
    begin = time.perf_counter()
    name, peer, note = which.removesuffix("-own"), VERSION, ""
    if a.cpu_size:
        model = Model(Plain, name, a).to(DEVICE)
    else:
        import fla
        import fla.ops.common.chunk_o as chunk_o

        chunk_o.TRITON_ABOVE_3_7_1 = True  # it refuses the gated backward with this Triton; only the time is wanted
        model = (Own(a) if which == "gla-own" else Model(fla_kit(), name, a)).to(DEVICE)
        peer = "flash-linear-attention " + fla.__version__ + (", its GLAForCausalLM" if which == "gla-own" else "")
        note = ", " + limit_tuning()
    say(f"{which}: {sum(p.numel() for p in model.parameters()):,} weights, made in {time.perf_counter() - begin:.1f} s")
    batch = max(1, a.micro_tokens // a.context)
    if os.environ.get("LAB_SHARE"):  # compiles only; norms are compiled for the number of tokens
        ids = torch.randint(a.vocab, (batch, a.context), device=DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            model(ids, ids).backward()
        wait()
        return
    train_steps("124m/" + name, a.context, model, model, batch, a.micro_batches, a, a.vocab, note, peer)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", help="of " + " ".join(MODELS))
    for name, value in dict(layers=12, width=768, heads=6, ffn=2048, vocab=50304, context=8192, steps=5, warm=2).items():
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--micro-tokens", type=int, default=32768)
    p.add_argument("--micro-batches", type=int, default=4)
    add_limits(p, 60, "model")
    p.add_argument("--cpu-size", action="store_true")
    a = p.parse_args()
    if unknown := set(a.models) - set(MODELS):
        raise SystemExit(f"no such model: {' '.join(unknown)}; there are {' '.join(MODELS)}")
    if a.cpu_size:
        a.layers, a.width, a.heads, a.ffn, a.vocab, a.micro_tokens, a.context = 2, 96, 2, 256, 768, 256, 128
    elif DEVICE == "cpu":
        raise SystemExit("torch sees no GPU; --cpu-size runs a tiny model")
    models = a.models or [m for m in MODELS if not (a.cpu_size and m == "gla-own")]
    if a.here:
        for which in models:
            run(which, a)
        return
    good = True
    for which in models:
        others = [w for w in sys.argv[1:] if w not in MODELS]
        command = [sys.executable, os.path.abspath(__file__), which, "--here", *others]
        good &= within_limits(a, which, command, None if a.cpu_size else ["--layers=2"], 0.45)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
