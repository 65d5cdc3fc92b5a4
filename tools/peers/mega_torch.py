#!/usr/bin/env python3
"""Tokens a second of a training step of Mega in PyTorch, its average by Fourier transforms: the peer of recipes/124m/mega.yaml.

The same functions as attention/mega.cpp and attention/ema.h, by the same names, as the authors compute them: the average is a
convolution by real transforms of twice the length in f32, with a kernel made of all powers; attention within chunks with a
matrix of biases. A layer is compiled, what can be of it; bf16 autocast over f32 weights, fused AdamW. Prints rows of JSON.
--check: the average against its recurrence. --cpu-size: a tiny model, on a CPU too.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from peer import DEVICE, VERSION, say
from torch import nn
from torch_train import backend_of, small_embedding, start_over, train_steps


class Average(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.alpha, self.delta = (nn.Parameter(0.2 * torch.randn(channels, size)) for _ in range(2))
        self.beta = nn.Parameter(torch.ones(channels, size) * torch.tensor([1.0, -1.0]).repeat((size + 1) // 2)[:size])
        self.gamma = nn.Parameter(torch.randn(channels, size))

    def coefficients(self):
        p = torch.sigmoid(self.alpha)
        return p * self.beta, self.gamma / math.sqrt(self.gamma.shape[1]), 1 - p * torch.sigmoid(self.delta)

    def forward(self, x):
        """x (B, T, C) -> f32"""
        b, t, c = x.shape
        into, out, q = self.coefficients()
        # one pointwise pass and a sum once compiled: the table of all powers is never in memory
        exponent = torch.arange(t, device=x.device, dtype=torch.float32)
        kernel = ((into * out)[..., None] * torch.exp(exponent * torch.log(q.clamp_min(1e-30))[..., None])).sum(1)
        spectrum = torch.fft.rfft(x.float().transpose(1, 2), n=2 * t) * torch.fft.rfft(kernel, n=2 * t)
        return torch.fft.irfft(spectrum, n=2 * t)[..., :t].transpose(1, 2)

    def recurrence(self, x):
        into, out, q = self.coefficients()
        h, y = torch.zeros(x.shape[0], *into.shape), []
        for t in range(x.shape[1]):
            h = into * x[:, t, :, None] + q * h
            y.append((out * h).sum(-1))
        return torch.stack(y, 1)


class Layer(nn.Module):
    """Mega and the feed-forward after it."""

    def __init__(self, width, ffn, chunk, size):
        super().__init__()
        self.z, self.hidden, self.chunk = width // 4, 2 * width, min(chunk, 1 << 30)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.average, self.omega = Average(width, size), nn.Parameter(torch.randn(width))
        self.value = nn.Linear(width, self.hidden)
        self.mix = nn.Linear(width, 2 * width + self.z + self.hidden)
        self.out = nn.Linear(self.hidden, width)
        self.gamma, self.beta = nn.Parameter(0.02 * torch.randn(2, self.z)), nn.Parameter(torch.zeros(2, self.z))
        self.bias_q, self.bias_k = (nn.Parameter(0.02 * torch.randn(self.z)) for _ in range(2))
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 2 * ffn, bias=False), nn.Linear(ffn, width, bias=False)

    def bias(self, n, device):
        """Rotary: (n, n), depends on distances alone."""
        half = self.z // 2
        angle = torch.outer(torch.arange(n, device=device), 10000.0 ** (-torch.arange(half, device=device) / half))
        cos, sin = angle.cos(), angle.sin()

        def turned(u):
            a, d = u.chunk(2)
            return torch.cat([a * cos - d * sin, d * cos + a * sin], -1)

        return turned(self.bias_q) @ turned(self.bias_k).T

    def forward(self, x):
        b, t, width = x.shape
        normed = self.norm(x)
        v = F.silu(self.value(normed))
        mixed = F.silu(self.average(normed) + normed.float() * self.omega)
        update, shared, gate, plain = self.mix(mixed).split([width, self.z, self.hidden, width], -1)
        shared, gate = F.silu(shared), F.silu(gate)
        n = min(self.chunk, t)
        q, k = ((shared * self.gamma[i] + self.beta[i]).view(b * (t // n), n, self.z) for i in range(2))
        scores = q @ k.transpose(1, 2) / math.sqrt(self.z) + self.bias(n, x.device)
        seen = torch.ones(n, n, device=x.device, dtype=torch.bool).tril()
        weights = scores.float().masked_fill(~seen, -math.inf).softmax(-1)
        o = (weights.to(v.dtype) @ v.view(b * (t // n), n, self.hidden)).view(b, t, self.hidden)
        h = F.silu(plain + self.out(o * gate))
        x = x + torch.sigmoid(update) * (h - x)
        gate, up = self.up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.embedding = small_embedding(a.vocab, a.width)
        self.layers = nn.ModuleList(Layer(a.width, a.ffn, a.chunk, a.size) for _ in range(a.layers))
        self.norm = nn.RMSNorm(a.width, eps=1e-6)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.loss(x, targets)

    def loss(self, x, targets):
        return F.cross_entropy(F.linear(self.norm(x), self.embedding.weight).flatten(0, 1).float(), targets.flatten())


def check():
    torch.manual_seed(0)
    average, x = Average(6, 4), torch.randn(2, 37, 6)
    worst = float((average(x) - average.recurrence(x)).detach().abs().max())
    say(f"average by transforms and by recurrence: {worst:.1e} apart")
    raise SystemExit(not worst < 1e-5)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = dict(layers=12, width=768, ffn=2048, vocab=50304, context=8192, chunk=1024, size=16, steps=5, warm=2)
    for name, value in defaults.items():
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--micro-tokens", type=int, default=16384)
    p.add_argument("--micro-batches", type=int, default=2)
    p.add_argument("--seconds", type=float, default=20, help="of timed steps, at most; two are always made")
    p.add_argument("--eager", action="store_true")
    p.add_argument("--check", action="store_true")
    p.add_argument("--cpu-size", action="store_true")
    a = p.parse_args()
    if a.check:
        check()
    if a.cpu_size:
        a.layers, a.width, a.ffn, a.vocab, a.context, a.chunk, a.micro_tokens = 2, 96, 256, 768, 256, 64, 512
    elif DEVICE == "cpu":
        raise SystemExit("torch sees no GPU; --cpu-size runs a tiny model")
    start_over()
    model = Model(a).to(DEVICE)
    if not a.eager:
        for layer in model.layers:
            layer.compile(dynamic=False, backend=backend_of(a))
        model.loss = torch.compile(model.loss, dynamic=False, backend=backend_of(a))
    say(f"{sum(p.numel() for p in model.parameters()):,} weights")
    train_steps("124m/mega", a.context, model, model, max(1, a.micro_tokens // a.context), a.micro_batches, a, a.vocab,
                ", eager" if a.eager else ", compiled by layer", "Mega by transforms in " + VERSION)


if __name__ == "__main__":
    main()
