#!/usr/bin/env python3
"""The rows of `weft bench gpu` in PyTorch on a GPU, a JSON line each: {"peer", "name", "shape", "ms"}.

What torch fuses only when compiled is compiled; attention is cuDNN's through torch. Arguments: the rows wanted, of
memory products loss attention step; by default all.
"""

import json
import sys
import time

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

torch._functorch.config.donated_buffer = False  # backward runs more than once
DEVICE, BF16 = "cuda", torch.bfloat16
EPS, REPEATS, FEWEST, PATIENCE = 1e-6, 50, 10, 2.0


def measure(name, shape, once, note=None):
    """The median of repetitions on the GPU's own clock, the host some calls ahead."""
    for _ in range(3):
        once()
    torch.cuda.synchronize()
    start = time.perf_counter()
    once()
    torch.cuda.synchronize()
    repeats = max(FEWEST, min(REPEATS, int(PATIENCE / (time.perf_counter() - start))))
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(repeats)]
    torch.cuda._sleep(8_000_000)
    for begin, end in events:
        begin.record()
        once()
        end.record()
    torch.cuda.synchronize()
    ms = sorted(begin.elapsed_time(end) for begin, end in events)[repeats // 2]
    row = {"peer": "torch " + torch.__version__, "name": name, "shape": shape, "ms": ms}
    print(json.dumps(row | ({"note": note} if note else {})), flush=True)


def noise(*shape, dtype=BF16):
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def both_ways(name, shape, function, inputs, gradients):
    """Rows of a compiled function: forward, and backward by itself."""
    compiled = torch.compile(function)
    inputs = [x.requires_grad_() for x in inputs]

    def forward():
        with torch.no_grad():
            compiled(*inputs)

    measure(name + " forward", shape, forward)
    outputs = compiled(*inputs)
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
    for n, width in [(32768, 2048), (65536, 768)]:
        x, branch, dy, dsum = (noise(n, width) for _ in range(4))
        gain = noise(width).requires_grad_()
        both_ways("rms_norm", f"{n}x{width}", lambda x, g: F.rms_norm(x, (x.shape[-1],), g, EPS), [x, gain], [dy])
        both_ways("add_rms_norm", f"{n}x{width}", add_rms_norm, [x.detach(), branch, gain], [dsum, dy])
    n, heads, size = 32768, 16, 128
    angle = torch.outer(torch.arange(n, device=DEVICE) % 512, 10000.0 ** (-torch.arange(64, device=DEVICE) / 64))
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    q, k, turn = noise(n, heads, size), noise(n, heads, size), torch.compile(rotary)
    measure("rotary", f"2 x {n}x{heads}x{size}", lambda: turn(q, k, cos, sin))
    n, f = 16384, 5632
    both_ways("swiglu", f"{n}x{f}", swiglu, [noise(n, 2 * f)], [noise(n, f)])
    rows = 124_000_000 // 2048
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
        x, w, dy, shape = noise(tokens, n), noise(out, n), noise(tokens, out), f"{tokens}x{out}x{n}"
        measure(name + " forward", shape, lambda: F.linear(x, w))
        measure(name + " dx", shape, lambda: dy @ w)
        measure(name + " dw", shape, lambda: dy.t() @ x)


def loss():
    tokens, width, vocabulary = 8192, 2048, 50304
    h, w = noise(tokens, width).requires_grad_(), noise(vocabulary, width).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), device=DEVICE)
    compiled = torch.compile(lambda h, w, t: F.cross_entropy(F.linear(h, w).float(), t))

    def once():
        return torch.autograd.grad(compiled(h, w, targets), [h, w])

    once()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = sum(g.numel() * g.element_size() for g in once())
    extra = torch.cuda.max_memory_allocated() - before - gradients
    measure("projection + cross-entropy", f"{tokens}x{width}x{vocabulary}", once,
            f"extra memory {extra // 1_000_000} MB beside both gradients")


def attention():
    for size in (64, 128):
        length = 1024
        while length <= 131072:
            batch, heads = max(1, 16384 // length), 2048 // size
            q, k, v = (noise(batch, length, heads, size).transpose(1, 2).requires_grad_() for _ in range(3))
            d_o = noise(batch, length, heads, size).transpose(1, 2)
            shape = f"B{batch} T{length} H{heads} D{size}"
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                def forward():
                    with torch.no_grad():
                        F.scaled_dot_product_attention(q, k, v, is_causal=True)

                def both():
                    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    torch.autograd.grad(o, [q, k, v], d_o)

                measure("attention forward", shape, forward)
                measure("attention forward+backward", shape, both)
            length *= 2


def step():
    from torch_train import Model  # beside this file

    tokens, context = 32768, 1024
    torch.set_float32_matmul_precision("high")
    model = Model(12, 768, 12, 2048, 50304, context).to(DEVICE)
    compiled = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(50304, (tokens // context, context + 1), device=DEVICE)

    def once():
        with torch.autocast(DEVICE, BF16):
            value = compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    measure("step softmax", f"{tokens} tokens, T{context}", once)


def main():
    rows = {"memory": memory, "products": products, "loss": loss, "attention": attention, "step": step}
    n = 1 << 28
    source, target = noise(n), torch.empty(n, device=DEVICE, dtype=BF16)
    measure("copy", f"{n >> 19} MiB", lambda: target.copy_(source))
    a, b = noise(8192, 8192), noise(8192, 8192)
    measure("product", "8192x8192x8192", lambda: F.linear(a, b))
    for name in sys.argv[1:] or rows:
        if name in rows:
            rows[name]()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
