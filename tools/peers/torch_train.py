#!/usr/bin/env python3
"""Tokens a second of a language model's training step in PyTorch, compiled: the peer of recipes/124m.

The model is weft's softmax model at the same sizes: pre-norm RMSNorm, rotary attention, SwiGLU, tied output
projection; bf16 autocast over f32 weights, fused AdamW. Prints one JSON line.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
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


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--heads", type=int, default=12)
    p.add_argument("--ffn", type=int, default=2048)
    p.add_argument("--vocab", type=int, default=50304)
    p.add_argument("--context", type=int, default=1024)
    p.add_argument("--micro-tokens", type=int, default=32768)
    p.add_argument("--micro-batches", type=int, default=4)
    p.add_argument("--steps", type=int, default=8)
    a = p.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Model(a.layers, a.width, a.heads, a.ffn, a.vocab, a.context).cuda()
    step_model = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = a.micro_tokens // a.context

    def step():
        for _ in range(a.micro_batches):
            tokens = torch.randint(a.vocab, (batch, a.context + 1), device="cuda")
            with torch.autocast("cuda", torch.bfloat16):
                loss = step_model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            (loss / a.micro_batches).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    times = []
    for _ in range(a.steps):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    median = sorted(times)[len(times) // 2]
    tokens = a.micro_batches * a.micro_tokens
    print(json.dumps({"name": "torch", "context": a.context, "tokens_per_s": round(tokens / median),
                      "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                      "device": torch.cuda.get_device_name()}))


if __name__ == "__main__":
    main()
