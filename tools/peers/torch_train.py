#!/usr/bin/env python3
"""Tokens a second of a language model's training step in PyTorch, compiled: the peer of recipes/124m/softmax.yaml and 1b/softmax.yaml.

The model is weft's softmax model at the same sizes: pre-norm RMSNorm, rotary attention, SwiGLU, tied output
projection; bf16 autocast over f32 weights, fused AdamW; attention by cuDNN where it can, else by flash. For each context a row
of JSON on stdout as soon as one step is timed and again with the median of all; what happens meanwhile on stderr.
--by-layer compiles one layer for all, in seconds instead of a minute: a layer begins with the sum that the one before left
undone, so no fusion is lost at the borders. --cpu-size: a tiny model, on a CPU too.
"""

import argparse
import gc
import statistics
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from peer import BF16, DEVICE, row, say, wait
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# layers, width, heads, ffn, tokens of a micro-batch, micro-batches of a step
SIZES = {"124M": ("124m/softmax", 12, 768, 12, 2048, 32768, 4), "1.3B": ("1b/softmax", 24, 2048, 16, 5632, 16384, 4)}


def small_embedding(vocab, width):
    """For a first loss near that of guessing: what a card draws depends on the numbers."""
    e = nn.Embedding(vocab, width)
    nn.init.normal_(e.weight, std=0.02)
    return e


class Block(nn.Module):
    def __init__(self, width, heads, ffn):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def attend(self, y, cos, sin):
        b, t, c = y.shape
        q, k, v = self.qkv(y).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)

        def rotate(u):
            a, d = u.chunk(2, -1)
            return torch.cat([a * cos - d * sin, d * cos + a * sin], -1).to(u.dtype)

        o = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.out(o.transpose(1, 2).reshape(b, t, c))

    def forward(self, x, branch, cos, sin):
        """(x, branch) -> (x, branch), to be summed by what comes next."""
        x = x if branch is None else x + branch
        x = x + self.attend(self.norm1(x), cos, sin)
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x, self.down(F.silu(gate) * up)


class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, x, branch, weight, targets):
        logits = F.linear(self.norm(x + branch), weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Model(nn.Module):
    def __init__(self, layers, width, heads, ffn, vocab, context, block=Block):
        super().__init__()
        self.embedding = small_embedding(vocab, width)
        self.blocks = nn.ModuleList(block(width, heads, ffn) for _ in range(layers))
        self.head = Head(width)
        half = width // heads // 2
        angle = torch.outer(torch.arange(context), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, tokens, targets):
        x, branch = self.embedding(tokens), None
        for block in self.blocks:
            x, branch = block(x, branch, self.cos, self.sin)
        return self.head(x, branch, self.embedding.weight, targets)

    def compile_by_layer(self, backend):
        for part in [*self.blocks, self.head]:
            part.compile(dynamic=False, backend=backend)
        return self


def train_steps(name, context, model, fast, batch, micro_batches, a, vocab, note="", peer=None):
    """Rows of a model (tokens, targets) -> loss; fast is the same one as it is called. Other peers' scripts call it too."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = micro_batches * batch * context

    def step():
        for _ in range(micro_batches):
            ids = torch.randint(vocab, (batch, context + 1), device=DEVICE)
            with torch.autocast(DEVICE, BF16):
                loss = fast(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            (loss / micro_batches).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    def report(times):
        ms = 1e3 * statistics.median(times)
        peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
        row(f"train {name}", f"T{context}", ms, *([peer] if peer else []), tokens_per_s=1e3 * tokens / ms, peak_gib=peak,
            note=f"{tokens} tokens a step, {len(times)} steps" + note)

    for i in range(a.warm):
        begin = time.perf_counter()
        loss = step()
        wait()
        say(f"  warm-up step {i + 1}: {time.perf_counter() - begin:.1f} s, loss {float(loss.detach()):.3f}")
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


def backend_of(a):
    """Of small sizes only what Dynamo does: generating code for a CPU takes minutes and says nothing."""
    return "eager" if a.cpu_size else "inductor"


def start_over():
    """Nothing of the model before is left: neither its memory nor its peak, nor what was compiled for it."""
    torch.compiler.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")


def train(a, context, cudnn):
    start_over()
    start = time.perf_counter()
    with torch.device(DEVICE):
        model = Model(a.layers, a.width, a.heads, a.ffn, a.vocab, context)
    backend = backend_of(a)
    fast = model if a.eager else model.compile_by_layer(backend) if a.by_layer else torch.compile(model, backend=backend)
    batch = max(1, a.micro_tokens // context)
    say(f"context {context}: model made in {time.perf_counter() - start:.1f} s; the first step compiles")
    note = ", eager" if a.eager else ", compiled by layer" if a.by_layer else ""
    note += "" if cudnn else ", torch's choice of attention"
    attention = sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True)
    if DEVICE != "cuda" or not cudnn:
        attention = nullcontext()
    with attention:
        train_steps(a.name, context, model, fast, batch, a.micro_batches, a, a.vocab, note)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", choices=SIZES, default="124M", help="what the seven below are by default")
    p.add_argument("--name", help="the recipe whose peer this is")
    for size in ("layers", "width", "heads", "ffn", "micro-tokens", "micro-batches"):
        p.add_argument("--" + size, type=int)
    p.add_argument("--vocab", type=int, default=50304)
    p.add_argument("--context", type=int, nargs="+", default=[1024])
    p.add_argument("--steps", type=int, default=8, help="timed, after --warm that are not")
    p.add_argument("--warm", type=int, default=3)
    p.add_argument("--seconds", type=float, default=60, help="of timed steps, at most; two are always made")
    p.add_argument("--eager", action="store_true", help="do not compile")
    p.add_argument("--by-layer", action="store_true", help="compile one layer for all")
    p.add_argument("--cpu-size", action="store_true", help="two layers of width 96, vocabulary 768, 512 tokens a micro-batch")
    a = p.parse_args()
    for key, value in zip(("name", "layers", "width", "heads", "ffn", "micro_tokens", "micro_batches"), SIZES[a.size]):
        setattr(a, key, getattr(a, key) or value)
    if a.cpu_size:
        a.layers, a.width, a.heads, a.ffn, a.vocab, a.micro_tokens = 2, 96, 2, 256, 768, 512
    elif DEVICE == "cpu":
        raise SystemExit("torch sees no GPU; --cpu-size runs a tiny model")
    say(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {DEVICE}")
    for context in a.context:
        for cudnn in (True, False):
            try:
                train(a, context, cudnn)
                break
            except RuntimeError as e:  # out of memory too
                say(f"  {context}: {str(e).splitlines()[0][:200]}" + ("; again with torch's choice of attention" if cudnn else ""))


if __name__ == "__main__":
    main()
