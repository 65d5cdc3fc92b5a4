"""The rows of `weft bench cpu` in PyTorch eager, f32: one JSON line each. python3 torch_cpu.py [SECONDS]

The number of threads is OMP_NUM_THREADS, or one for each core this process may run on.
"""
import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
VOCABULARY, WIDTH, HEADS, CONTEXT, TOKENS, FFN = 2048, 128, 4, 512, 4096, 384
HEAD_SIZE, BATCH, CHUNK, EPS = WIDTH // HEADS, TOKENS // CONTEXT, 64, 1e-6


def measure(name, shape, once):
    for _ in range(2):
        once()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < SECONDS:
        begin = time.perf_counter()
        once()
        times.append(1e3 * (time.perf_counter() - begin))
    times.sort()
    at = lambda share: times[int(share * (len(times) - 1) + 0.5)]
    row = {"peer": "torch " + torch.__version__, "name": name, "shape": shape}
    print(json.dumps(row | {"ms": at(0.5), "ms_p10": at(0.1), "ms_p90": at(0.9)}), flush=True)


def gemm(m, n, k):
    a, b, c = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)
    with torch.no_grad():
        measure("gemm", f"{m}x{n}x{k}", lambda: torch.mm(a, b.t(), out=c))


def attention(batch, length, heads, size):
    q, k, v = (torch.randn(batch, heads, length, size, requires_grad=True) for _ in range(3))
    shape, d_o = f"B{batch} T{length} H{heads} D{size}", torch.randn(batch, heads, length, size)

    def forward():
        with torch.no_grad():
            F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def both():
        q.grad = k.grad = v.grad = None
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(d_o)

    measure("attention forward", shape, forward)
    measure("attention forward+backward", shape, both)


class Softmax(nn.Module):
    """Causal softmax attention with rotary positions. q, k, v (B, H, T, D)."""

    def __init__(self):
        super().__init__()
        frequency = 10000.0 ** (-torch.arange(HEAD_SIZE // 2) / (HEAD_SIZE // 2))
        angle = torch.arange(CONTEXT)[:, None] * frequency
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def rotate(self, x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)


class Lightning(nn.Module):
    """Linear attention with a fixed decay per head, in chunks; its output is normalised per head."""

    def __init__(self):
        super().__init__()
        decay = 2.0 ** (-8.0 * torch.arange(1, HEADS + 1) / HEADS)  # of the logarithm, a token
        place = torch.arange(CHUNK)
        apart = place[:, None] - place[None, :]
        within = torch.exp(-decay[:, None, None] * apart).masked_fill(apart < 0, 0)
        self.register_buffer("within", within[:, None])  # (H, 1, C, C)
        self.register_buffer("to_end", torch.exp(-decay[:, None] * (CHUNK - 1 - place))[:, None, :, None])
        self.register_buffer("from_start", torch.exp(-decay[:, None] * (place + 1))[:, None, :, None])
        chunk = torch.arange(CONTEXT // CHUNK)
        between = chunk[:, None] - chunk[None, :] - 1
        self.register_buffer("between", torch.exp(-decay[:, None, None] * CHUNK * between).masked_fill(between < 0, 0))
        self.gain = nn.Parameter(torch.ones(HEAD_SIZE))

    def forward(self, q, k, v):
        cut = lambda x: x.reshape(BATCH, HEADS, -1, CHUNK, HEAD_SIZE)
        q, k, v = cut(q * HEAD_SIZE**-0.5), cut(k), cut(v)
        states = ((k * self.to_end).mT @ v).flatten(3)  # (B, H, chunks, D D)
        before = (self.between @ states).unflatten(3, (HEAD_SIZE, HEAD_SIZE))
        o = ((q @ k.mT) * self.within) @ v + (q * self.from_start) @ before
        return F.rms_norm(o.flatten(2, 3), (HEAD_SIZE,), self.gain, EPS)


class Block(nn.Module):
    def __init__(self, mechanism):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH, EPS), nn.RMSNorm(WIDTH, EPS)
        self.mechanism = {"softmax": Softmax, "lightning": Lightning}[mechanism]()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, False), nn.Linear(WIDTH, WIDTH, False)
        self.gate_up, self.down = nn.Linear(WIDTH, 2 * FFN, False), nn.Linear(FFN, WIDTH, False)

    def forward(self, x):
        q, k, v = self.qkv(self.attention_norm(x)).view(BATCH, CONTEXT, 3, HEADS, HEAD_SIZE).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.mechanism(q, k, v).transpose(1, 2).reshape(BATCH, CONTEXT, WIDTH))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        self.blocks = nn.ModuleList(Block(layer) for layer in layers)
        self.norm = nn.RMSNorm(WIDTH, EPS)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(F.linear(self.norm(x), self.embedding.weight).flatten(0, 1), targets.flatten())


class Muon:
    """Momentum made nearly orthogonal, of each part of each matrix."""

    def __init__(self, matrices, rate=0.02, momentum=0.95, weight_decay=0.1):
        self.matrices, self.rate, self.momentum, self.weight_decay = matrices, rate, momentum, weight_decay
        self.state = [torch.zeros_like(weight) for weight, _ in matrices]

    @torch.no_grad()
    def step(self):
        for (weight, parts), mean in zip(self.matrices, self.state):
            mean.lerp_(weight.grad, 1 - self.momentum)
            update = weight.grad.lerp(mean, self.momentum)
            weight.mul_(1 - self.rate * self.weight_decay)
            for w, u in zip(weight.chunk(parts), update.chunk(parts)):
                w.add_(self.orthogonal(u), alpha=-self.rate * max(1, u.shape[0] / u.shape[1]) ** 0.5)

    @staticmethod
    def orthogonal(x):
        tall = x.shape[0] > x.shape[1]
        y = (x.t() if tall else x) / x.norm().clamp_min(1e-30)
        for _ in range(5):
            gram = y @ y.t()
            y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), y, beta=3.4445)
        return y.t() if tall else y


def step(name, layers):
    torch.manual_seed(0)
    model = Model(layers)
    parts = {"qkv": 3, "gate_up": 2}
    matrices = [(m.weight, parts.get(name.rsplit(".", 1)[-1], 1))
                for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    chosen = {id(weight) for weight, _ in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices)
    adamw = torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=True)
    ids = torch.randint(VOCABULARY, (TOKENS + 1,))
    tokens, targets = ids[:-1].view(BATCH, CONTEXT), ids[1:].view(BATCH, CONTEXT)

    def once():
        model.zero_grad(set_to_none=True)
        loss = model(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        muon.step()
        adamw.step()
        assert math.isfinite(loss.item())

    measure(name, f"{len(layers)} layers, width {WIDTH}, vocab {VOCABULARY}, T{CONTEXT}", once)


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    for shape in [(512, 512, 512), (1024, 1024, 1024), (4096, 512, 512), (2048, 128, 384)]:
        gemm(*shape)
    attention(8, 512, 4, 32)
    attention(1, 2048, 8, 64)
    step("step hybrid", ["lightning", "softmax", "lightning", "softmax"])
    step("step softmax", ["softmax"] * 4)


if __name__ == "__main__":
    main()
