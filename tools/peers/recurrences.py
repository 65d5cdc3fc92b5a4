#!/usr/bin/env python3
"""The rows of `weft bench gpu recurrence` by flash-linear-attention, and Mega's average by transforms in PyTorch.

    recurrences.py [lightning] [simple_gla] [gla] [gated_delta_rule] [ema]      --seconds 90 for each
    recurrences.py gla --shape "B2 T16384 H16 D128"                             this shape instead of the usual ones

A JSON line a row, each as soon as it is there. fla's first call tunes its kernels for minutes, most of it compiling: --jobs processes
fill Triton's cache side by side, then one tunes among what they came to and times. --few leaves 2 or 4 warps and 2 or 3 stages to kernels with more
than 12 configurations, and the rows say so. An op that is not through in --seconds is given up, those after it are
not. --small: a definition in PyTorch in fla's place, at the sizes of `weft bench gpu --ms 0`, to see that the script works.
"""

import argparse
import os
import re
import sys
import time

import torch
from limits import add_limits, within_limits
from peer import BF16, DEVICE, SMALL, VERSION, noise, median_ms, row, say, sized
from tuning import limit_tuning

D128 = [(8, 8192, 16, 128), (2, 16384, 16, 128)]
SHAPES = {"lightning": D128, "simple_gla": D128, "gla": D128, "gated_delta_rule": [(4, 4096, 64, 128), D128[1]],
          "ema": [(8, 8192, 2048, 16)]}


def inputs(op, b, t, h, d):
    """As weft's: gates in f32, memories of some twenty tokens, keys of the delta rule of length 1."""
    q, k, v, d_o = (noise(b, t, h, d) for _ in range(4))
    gates = {}
    if op == "lightning":
        gates["g_gamma"] = -(2.0 ** (-8.0 * torch.arange(1, h + 1, device=DEVICE) / h)).float()
    else:
        width = (d,) if op == "gla" else ()
        gates["g"] = torch.nn.functional.logsigmoid(noise(b, t, h, *width, dtype=torch.float32)) / 16
    if op == "gated_delta_rule":
        k = torch.nn.functional.normalize(k.float(), dim=-1).to(BF16)
        gates["beta"] = torch.rand(b, t, h, device=DEVICE).to(BF16)
    return q, k, v, gates, d_o


def fla(op):
    import fla.ops.common.chunk_o as chunk_o
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    chunk_o.TRITON_ABOVE_3_7_1 = True  # it refuses the gated backward with this Triton; only the time is wanted
    return {"gla": chunk_gla, "gated_delta_rule": chunk_gated_delta_rule}.get(op, chunk_simple_gla)


def definition(q, k, v, g=None, g_gamma=None, beta=None, scale=None):
    """Token by token, in f32 or f64, queries times fla's scale; in fla's place where Triton does not run, and what errors are measured by."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    keys, queries, values = k.to(wide)[..., None], scale * q.to(wide)[..., None], v.to(wide)
    decays = (g if g is not None else g_gamma.expand(q.shape[:3])).to(wide).exp()
    decays = decays[..., None] if decays.dim() == 4 else decays[..., None, None]
    strengths = [None] * q.shape[1] if beta is None else beta.to(wide)[..., None].unbind(1)
    state, out = 0, []
    for query, key, write, decay, strength in zip(*(x.unbind(1) for x in (queries, keys, values, decays)), strengths):
        state = decay * state
        if strength is not None:
            write = strength * (write - (key * state).sum(-2))
        state = state + key * write[..., None, :]
        out.append((query * state).sum(-2))
    return (torch.stack(out, 1).to(q.dtype),)


def recurrence(op, b, t, h, d):
    q, k, v, gates, d_o = inputs(op, b, t, h, d)
    learned = [x.requires_grad_() for x in (q, k, v, *(x for n, x in gates.items() if n != "g_gamma"))]
    function = definition if SMALL else fla(op)
    return (lambda: function(q, k, v, **gates)[0]), learned, d_o


def average(b, t, channels, states):
    """Mega's: the convolution by real transforms of 2 T in f32, with the kernel made of all powers, as its authors do."""
    x, d_o = noise(b, t, channels).requires_grad_(), noise(b, t, channels)
    i, o, q = (torch.rand(channels, states, device=DEVICE, requires_grad=True) for _ in range(3))

    def forward():
        powers = torch.exp(torch.arange(t, device=DEVICE) * torch.log(q.clamp_min(1e-30))[..., None])
        kernel = torch.einsum("cn,cnt->ct", i * o, powers)
        spectrum = torch.fft.rfft(x.float().transpose(1, 2), n=2 * t) * torch.fft.rfft(kernel, n=2 * t)
        return torch.fft.irfft(spectrum, n=2 * t)[..., :t].transpose(1, 2).to(BF16)

    return forward, [x, i, o, q], d_o


def rows(op, shape):
    start = time.perf_counter()
    if op == "ema":
        b, t, c, n = shape
        forward, learned, d_o = average(b, t, c, n)
        label, peer = f"B{b} T{t} C{c} N{n}", "transforms in " + VERSION
    else:
        b, t, h, d = shape
        forward, learned, d_o = recurrence(op, b, t, h, d)
        label, peer = f"B{b} T{t} H{h} D{d}", "a definition in " + VERSION
    note = None
    if op != "ema" and not SMALL:
        from fla import __version__

        peer = "flash-linear-attention " + __version__
        tried = limit_tuning()
        note = tried if os.environ.get("LAB_FEW") else None

    def once():
        with torch.no_grad():
            forward()

    def both():
        torch.autograd.grad(forward(), learned, d_o)

    for name, run in (("forward", once), ("forward+backward", both)):
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        say(f"  {op} {label} {name}: ready after {time.perf_counter() - start:.1f} s")
        if not os.environ.get("LAB_SHARE"):
            row(f"{op} {name}", label, median_ms(run), peer, note=note)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ops", nargs="*", help="of " + " ".join(SHAPES))
    p.add_argument("--shape", action="append", help="as rows write it")
    add_limits(p, 90, "op")
    p.add_argument("--small", action="store_true")
    a = p.parse_args()
    if DEVICE == "cpu" and not SMALL:
        raise SystemExit("torch sees no GPU; --small runs a definition at small sizes")
    if unknown := set(a.ops) - set(SHAPES):
        raise SystemExit(f"no such op: {' '.join(unknown)}; there are {' '.join(SHAPES)}")
    if a.here:
        for op in a.ops:
            chosen = [tuple(map(int, re.findall(r"\d+", s))) for s in a.shape or []] or SHAPES[op]
            failed = False
            for b, t, x, y in chosen:
                try:
                    rows(op, (b, sized(t), sized(x) if op == "ema" else sized(x, 1), y))
                except Exception as e:  # some of fla's backward passes refuse some versions of Triton
                    say(f"  {op} B{b} T{t}: {str(e).splitlines()[0][:120] if str(e) else type(e).__name__}")
                    failed = True
        raise SystemExit(failed)
    good = True
    for op in a.ops or SHAPES:
        command = [sys.executable, os.path.abspath(__file__), op, "--here"] + (["--small"] if a.small else [])
        for shape in a.shape or []:
            command += ["--shape", shape]
        good &= within_limits(a, op, command, None if op == "ema" or SMALL else [], 0.4)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
