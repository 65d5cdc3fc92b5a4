#!/usr/bin/env python3
"""The rows of `weft bench gpu` in PyTorch on a GPU, a JSON line each: {"peer", "name", "shape", "ms"}.

What torch fuses only when compiled is compiled; attention is cuDNN's through torch. Arguments: the rows wanted, of
memory products loss attention step; by default all. --small: once, at the sizes of `weft bench gpu --ms 0`, on a CPU too.
"""

import time
from contextlib import nullcontext

import torch
import torch._functorch.config
import torch.nn.functional as F
from peer import BF16, DEVICE, SMALL, VERSION, compiled, measure, noise, say, sized, words
from torch.nn.attention import SDPBackend, sdpa_kernel

torch._functorch.config.donated_buffer = False  # backward runs more than once
EPS = 1e-6


def both_ways(name, shape, function, inputs, gradients):
    """Rows of a compiled function: forward, and backward by itself."""
    fast = compiled(function)
    inputs = [x.requires_grad_() for x in inputs]

    def forward():
        with torch.no_grad():
            fast(*inputs)

    measure(name + " forward", shape, forward)
    outputs = fast(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    measure(name + " backward", shape,
            lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True))


def add_rms_norm(x, branch, gain):
    total = x + branch
    return total, F.rms_norm(total, (x.shape[-1],), gain, EPS)


def rotary(q, k, cos, sin):
    def turn(x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    return turn(q), turn(k)


def swiglu(packed):
    gate, up = packed.chunk(2, -1)
    return F.silu(gate) * up


def memory():
    for n, width in [(sized(32768, 512), 2048), (sized(65536, 512), 768)]:
        x, branch, dy, dsum = (noise(n, width) for _ in range(4))
        gain = noise(width).requires_grad_()
        both_ways("rms_norm", f"{n}x{width}", lambda x, g: F.rms_norm(x, (x.shape[-1],), g, EPS), [x, gain], [dy])
        both_ways("add_rms_norm", f"{n}x{width}", add_rms_norm, [x.detach(), branch, gain], [dsum, dy])
    n, heads, size = sized(32768, 512), 16, 128
    angle = torch.outer(torch.arange(n, device=DEVICE) % 512, 10000.0 ** (-torch.arange(64, device=DEVICE) / 64))
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    q, k, turn = noise(n, heads, size), noise(n, heads, size), compiled(rotary)
    measure("rotary", f"2 x {n}x{heads}x{size}", lambda: turn(q, k, cos, sin))
    n, f = sized(16384, 512), 5632
    both_ways("swiglu", f"{n}x{f}", swiglu, [noise(n, 2 * f)], [noise(n, f)])
    rows = sized(124_000_000 // 2048)
    weights = [noise(*s, dtype=torch.float32).requires_grad_()
               for s in [(rows // 2, 2048), (rows - rows // 2, 2048), (2048,)]]
    for w in weights:
        w.grad = noise(*w.shape, dtype=torch.float32)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    shape = f"{sum(w.numel() for w in weights)} weights"
    measure("gradient norm", shape, lambda: torch.nn.utils.get_total_norm([w.grad for w in weights]))
    measure("adamw", shape, optimizer.step)


def products():
    for name, tokens, out, n in [("124M qkv", 32768, 2304, 768), ("124M out", 32768, 768, 768),
                                 ("124M gate_up", 32768, 4096, 768), ("124M down", 32768, 768, 2048),
                                 ("1.3B qkv", 16384, 6144, 2048), ("1.3B out", 16384, 2048, 2048),
                                 ("1.3B gate_up", 16384, 11264, 2048), ("1.3B down", 16384, 2048, 5632)]:
        tokens, out, n = sized(tokens, 64), sized(out, 64), sized(n, 64)
        x, w, dy, shape = noise(tokens, n), noise(out, n), noise(tokens, out), f"{tokens}x{out}x{n}"
        measure(name + " forward", shape, lambda: F.linear(x, w))
        measure(name + " dx", shape, lambda: dy @ w)
        measure(name + " dw", shape, lambda: dy.t() @ x)


def loss():
    tokens, width, vocabulary = sized(8192, 64), sized(2048, 64), sized(50304, 64)
    h, w = noise(tokens, width).requires_grad_(), noise(vocabulary, width).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=DEVICE)
    fast = compiled(lambda h, w, t: F.cross_entropy(F.linear(h, w).float(), t))

    def once():
        return torch.autograd.grad(fast(h, w, targets), [h, w])

    note = None
    once()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = sum(g.numel() * g.element_size() for g in once())
        extra = torch.cuda.max_memory_allocated() - before - gradients
        note = f"extra memory {extra // 1_000_000} MB beside both gradients"
    measure("projection + cross-entropy", f"{tokens}x{width}x{vocabulary}", once, note)


def attention():
    n = torch.backends.cudnn.version() or 0
    peer = f"cuDNN {n // 10000}.{n // 100 % 100}.{n % 100} through {VERSION}" if DEVICE == "cuda" else VERSION
    tokens, shapes = sized(16384), []
    for size in (64, 128):
        for length in [tokens] if SMALL else [1024 << i for i in range(8)]:
            shapes.append((max(1, tokens // length), length, sized(2048 // size, 1), size))
    if not SMALL:
        shapes += [(16, 1024, 32, 128), (2, 8192, 32, 128)]
    for batch, length, heads, size in shapes:
        q, k, v = (noise(batch, length, heads, size).transpose(1, 2).requires_grad_() for _ in range(3))
        d_o = noise(batch, length, heads, size).transpose(1, 2)
        shape = f"B{batch} T{length} H{heads} D{size}"
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if DEVICE == "cuda" else nullcontext():
            def forward():
                with torch.no_grad():
                    F.scaled_dot_product_attention(q, k, v, is_causal=True)

            def both():
                o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                torch.autograd.grad(o, [q, k, v], d_o)

            measure("attention forward", shape, forward, peer=peer)
            measure("attention forward+backward", shape, both, peer=peer)


def step():
    from torch_train import Model  # beside this file

    tokens, context, vocabulary = sized(32768, 512), min(1024, sized(32768, 512)), sized(50304, 64)
    torch.set_float32_matmul_precision("high")
    size = (2, 96, 2, 256) if SMALL else (12, 768, 12, 2048)
    model = Model(*size, vocabulary, context).to(DEVICE)
    fast = compiled(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(vocabulary, (tokens // context, context + 1), device=DEVICE)

    def once():
        with torch.autocast(DEVICE, BF16):
            value = fast(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    measure("step softmax", f"{tokens} tokens, T{context}", once)


def main():
    rows = {"memory": memory, "products": products, "loss": loss, "attention": attention, "step": step}
    wanted = words()
    n = sized(1 << 28)
    source, target = noise(n), torch.empty(n, device=DEVICE, dtype=BF16)
    measure("copy", f"{n >> 19} MiB", lambda: target.copy_(source))
    side = sized(8192)
    a, b = noise(side, side), noise(side, side)
    measure("product", f"{side}x{side}x{side}", lambda: F.linear(a, b))
    if not SMALL:
        time.sleep(0.3)  # as weft bench gpu: the product leaves lower clocks behind
    for name in wanted or rows:
        if name in rows:
            say(name)
            rows[name]()
            if DEVICE == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
