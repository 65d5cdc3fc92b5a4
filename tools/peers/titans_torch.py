#!/usr/bin/env python3
"""Tokens a second of a training step of titans-pytorch, memory as context: the peer of recipes/124m/titans_mac.yaml.

titans-pytorch is the public PyTorch port of Titans; its version is pinned in requirements.txt. At weft's width, depth,
heads and segment length; one matrix a head as memory, with momentum, moved once a segment; no residual streams; bf16 autocast
over f32 weights, fused AdamW. Its memory reads a layer's input and not what attention gave, so its segments need not wait for
each other: it does less than the paper's recurrence. Prints a row of JSON.
"""

import argparse
import importlib.metadata
import os
import time

os.environ["PYTORCH_JIT"] = "0"  # the fuser of TorchScript does not compile its scan in bf16

import torch  # noqa: E402
from peer import row, say  # noqa: E402
from titans_pytorch import MemoryAsContextTransformer, MemoryMLP  # noqa: E402

PINNED = "0.5.5"


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--layers", type=int, default=12)
    p.add_argument("--width", type=int, default=768)
    p.add_argument("--heads", type=int, default=12)
    p.add_argument("--vocab", type=int, default=50304)
    p.add_argument("--context", type=int, default=8192)
    p.add_argument("--segment", type=int, default=128)
    p.add_argument("--batch", type=int, default=2, help="texts in a micro-batch")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--moves", choices=["segment", "never"], default="segment",
                   help="when gradients are taken at new weights: as in weft, or, all at the first ones, not at all")
    p.add_argument("--scan", choices=["plain", "accelerated"], default="plain", help="its associative scan")
    a = p.parse_args()
    version = importlib.metadata.version("titans-pytorch")
    if version != PINNED:
        raise SystemExit(f"titans-pytorch {version} is here, {PINNED} is what is compared with")

    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    size = a.width // a.heads
    memory = dict(dim_head=size, heads=a.heads, momentum=True, qk_rmsnorm=True, use_accelerated_scan=a.scan == "accelerated")
    model = MemoryAsContextTransformer(
        num_tokens=a.vocab, dim=a.width, depth=a.layers, segment_len=a.segment, heads=a.heads, dim_head=size,
        num_persist_mem_tokens=4, num_longterm_mem_tokens=0, num_residual_streams=1, neural_memory_segment_len=a.segment,
        neural_memory_batch_size=a.segment if a.moves == "segment" else None, neural_memory_model=MemoryMLP(dim=size, depth=1), neural_memory_kwargs=memory,
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, a.vocab, (a.batch, a.context + 1), device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(tokens, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    begin = time.perf_counter()
    step()
    torch.cuda.synchronize()
    say(f"first step {time.perf_counter() - begin:.1f} s")
    times = []
    for _ in range(a.steps):
        begin = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        say(f"  {a.batch * a.context / times[-1]:,.0f} tokens/s")
    seconds = sorted(times)[len(times) // 2]
    say(f"loss {float(loss)}, {sum(x.numel() for x in model.parameters())} parameters, gradients moved {a.moves}, {a.scan} scan")
    name = "train 124m/titans_mac" if a.layers == 12 else f"train titans_mac, {a.layers} layers"
    row(name, f"T{a.context}", 1e3 * seconds, f"titans-pytorch {version}", tokens_per_s=a.batch * a.context / seconds,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30, note=f"{a.batch * a.context} tokens a step, segments of {a.segment}")


if __name__ == "__main__":
    main()
