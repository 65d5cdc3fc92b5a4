#!/usr/bin/env python3
"""Tokens a second of a language model's training step in PyTorch, compiled: the peer of recipes/124m/softmax.yaml.

The model is weft's softmax model at the same sizes: pre-norm RMSNorm, rotary attention, SwiGLU, tied output
projection; bf16 autocast over f32 weights, fused AdamW. For each context a row of JSON on stdout as soon as one step is timed and
again with the median of all; what happens meanwhile on stderr. --cpu-size: a tiny model, on a CPU too.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from peer import BF16, DEVICE, row, say, wait
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)

        def rotate(u):
            a, d = u.chunk(2, -1)
            return torch.cat([a * cos - d * sin, d * cos + a * sin], -1).to(u.dtype)

        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, layers, width, heads, ffn, vocab, context):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        half = width // heads // 2
        angle = torch.outer(torch.arange(context), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def train(a, context):
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    start = time.perf_counter()
    model = Model(a.layers, a.width, a.heads, a.ffn, a.vocab, context).to(DEVICE)
    fast = model if a.eager else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = max(1, a.micro_tokens // context)
    tokens = a.micro_batches * batch * context

    def step():
        for _ in range(a.micro_batches):
            ids = torch.randint(a.vocab, (batch, context + 1), device=DEVICE)
            with torch.autocast(DEVICE, BF16):
                loss = fast(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            (loss / a.micro_batches).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def report(times):
        ms = 1e3 * statistics.median(times)
        peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
        row(f"train {a.name}", f"T{context}", ms, tokens_per_s=1e3 * tokens / ms, peak_gib=peak,
            note=f"{tokens} tokens a step, {len(times)} steps" + (", eager" if a.eager else ""))

    say(f"context {context}: model made in {time.perf_counter() - start:.1f} s, {tokens} tokens a step; the first step compiles")
    for i in range(3):
        begin = time.perf_counter()
        step()
        wait()
        say(f"  warm-up step {i + 1}: {time.perf_counter() - begin:.1f} s")
    times, begin = [], time.perf_counter()
    while len(times) < a.steps and (len(times) < 2 or time.perf_counter() - begin < a.seconds):
        start = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - start)
        say(f"  step {len(times)}: {tokens / times[-1]:,.0f} tokens/s")
        if len(times) == 1:
            report(times)
    report(times)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--name", default="124m/softmax", help="the recipe whose peer this is")
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--heads", type=int, default=12)
    p.add_argument("--ffn", type=int, default=2048)
    p.add_argument("--vocab", type=int, default=50304)
    p.add_argument("--context", type=int, nargs="+", default=[1024])
    p.add_argument("--micro-tokens", type=int, default=32768)
    p.add_argument("--micro-batches", type=int, default=4)
    p.add_argument("--steps", type=int, default=8, help="timed, behind three that are not")
    p.add_argument("--seconds", type=float, default=60, help="of timed steps, at most; two are always made")
    p.add_argument("--eager", action="store_true", help="do not compile")
    p.add_argument("--cpu-size", action="store_true", help="two layers of width 96, vocabulary 768, 512 tokens a micro-batch")
    a = p.parse_args()
    if a.cpu_size:
        a.layers, a.width, a.heads, a.ffn, a.vocab, a.micro_tokens = 2, 96, 2, 256, 768, 512
    elif DEVICE == "cpu":
        raise SystemExit("torch sees no GPU; --cpu-size runs a tiny model")
    say(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {DEVICE}")
    for context in a.context:
        train(a, context)
        torch.compiler.reset()


if __name__ == "__main__":
    main()
