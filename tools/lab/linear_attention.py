"""Checks and times attention/kernels/linear_attention.h against a float64 definition; times fla beside it.

    tools/lab/build.sh && python3 tools/lab/linear_attention.py check lengths time peer [--json]

Needs torch and a GPU; `peer` also flash-linear-attention on PYTHONPATH.
"""

import ctypes
import math
import os
import re
import statistics
import sys

import torch
from lab import BF16, PATHS, Rows, beside_fla, error, library, median_ms, pointer, poison, print_copy_rate
from lab import rows, show
from lab_rows import keep


# Gates whose memory is a few, tens and hundreds of tokens, from standard normal noise.
GATES = {
    "gated": lambda x: torch.nn.functional.logsigmoid(x + 2),
    "gated tens": lambda x: torch.nn.functional.logsigmoid(x) / 16,
    "gated hundreds": lambda x: torch.nn.functional.logsigmoid(x + 6),
}
# As rows are called, after the mechanisms that want them.
NAMES = {"none": "linear", "fixed": "lightning", "gated": "simple_gla", "channels": "gla"}
# The same for each channel of the keys; the last forgets some channels at once and the rest hardly.
CHANNEL_GATES = {
    "channels": GATES["gated"],
    "channels tens": GATES["gated tens"],
    "channels hundreds": GATES["gated hundreds"],
    "channels reset": lambda x: torch.where(x > 1.5, -1000.0, torch.where(x < -2, -torch.inf, -0.01)),
}


class Arguments(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_int64) for n in "tokens documents heads d_k d_v is_f32 gate path longest segment wide".split()]
        + [("scale", ctypes.c_double), ("offsets", ctypes.c_void_p), ("log_decay", ctypes.c_void_p)]
        + [(n, Rows) for n in "q k v d_o o d_q d_k_rows d_v_rows".split()]
        + [
            (n, ctypes.c_void_p)
            for n in "initial_state d_final_state final_state d_initial_state d_log_decay kept workspace".split()
        ]
    )


library.kept.restype = library.workspace.restype = ctypes.c_int64


class Problem:
    """Inputs (tokens, heads, d) of one call, and its outputs."""

    def __init__(
        self,
        lengths,
        heads,
        d_k,
        d_v,
        decay,
        dtype=BF16,
        states=True,
        packed=False,
        equal=False,
        scale=None,
        seed=0,
        segment=-1,
        wide=False,
    ):
        torch.manual_seed(seed)
        self.segment, self.wide = segment, wide
        self.gate = 1 if decay in GATES else 2 if decay in CHANNEL_GATES else 0
        self.lengths, self.heads, self.d_k, self.d_v, self.decay = lengths, heads, d_k, d_v, decay
        n, self.tokens = sum(lengths), sum(lengths)
        self.scale = d_k**-0.5 if scale is None else scale

        def make(d):
            return torch.randn(n, heads, d, device="cuda").to(dtype)

        if packed:  # three column ranges of one projection
            w = heads * (2 * d_k + d_v)
            both = torch.randn(n, w, device="cuda").to(dtype)
            self.q = both[:, : heads * d_k].unflatten(1, (heads, d_k))
            self.k = both[:, heads * d_k : 2 * heads * d_k].unflatten(1, (heads, d_k))
            self.v = both[:, 2 * heads * d_k :].unflatten(1, (heads, d_v))
        else:
            self.q, self.k, self.v = make(d_k), make(d_k), make(d_v)
        self.d_o = make(d_v)
        self.offsets = None
        if not equal:
            starts = [0]
            for x in lengths:
                starts.append(starts[-1] + x)
            self.offsets = torch.tensor(starts, dtype=torch.int32, device="cuda")
        self.g = None
        if decay == "fixed":
            self.g = -torch.exp2(-8.0 * torch.arange(1, heads + 1, device="cuda") / heads).float()
        elif self.gate == 1:
            self.g = GATES[decay](torch.randn(n, heads, device="cuda")).contiguous()
        elif self.gate == 2:
            self.g = CHANNEL_GATES[decay](torch.randn(n, heads, d_k, device="cuda")).contiguous()
        shape = (len(lengths), heads, d_k, d_v)
        self.s0 = torch.randn(shape, device="cuda") if states else None
        self.d_s1 = torch.randn(shape, device="cuda") if states else None
        self.outputs = {}

    def f32(self):
        other = Problem.__new__(Problem)
        other.__dict__ = dict(self.__dict__, outputs={}, wide=False)
        for n in "q k v d_o".split():
            setattr(other, n, getattr(self, n).float())
        return other

    def call(self, path, backward=True):
        a, dtype, shape = (
            self.arguments(path),
            self.q.dtype,
            (len(self.lengths), self.heads, self.d_k, self.d_v),
        )
        out = {
            "o": poison(self.tokens, self.heads, self.d_v, dtype=dtype),
            "s1": poison(*shape, dtype=torch.float32),
        }
        of_keys = torch.float32 if self.wide else dtype
        out["dq"], out["dk"] = (poison(self.tokens, self.heads, self.d_k, dtype=of_keys) for _ in range(2))
        out["dv"], out["ds0"] = poison(self.tokens, self.heads, self.d_v, dtype=dtype), poison(
            *shape, dtype=torch.float32
        )
        if self.gate:
            out["dg"] = poison(*self.g.shape, dtype=torch.float32)
        for n in ("kept", "workspace"):
            out[n] = poison(getattr(library, n)(ctypes.byref(a)) // 4)
        a.o, a.d_q, a.d_k_rows, a.d_v_rows = (rows(out[n]) for n in ("o", "dq", "dk", "dv"))
        a.final_state, a.d_initial_state = pointer(out["s1"]), pointer(out["ds0"])
        a.d_log_decay, a.kept, a.workspace = pointer(out.get("dg")), pointer(out["kept"]), pointer(out["workspace"])
        self.outputs, self.prepared = out, a
        self.again(backward)
        return out

    def arguments(self, path):
        a = Arguments(
            self.tokens,
            len(self.lengths),
            self.heads,
            self.d_k,
            self.d_v,
            self.q.dtype == torch.float32,
            self.gate,
            PATHS[path],
            max(self.lengths),
            self.segment,
            self.wide,
            self.scale,
        )
        a.offsets, a.log_decay = pointer(self.offsets), pointer(self.g)
        a.q, a.k, a.v, a.d_o = rows(self.q), rows(self.k), rows(self.v), rows(self.d_o)
        a.initial_state, a.d_final_state = pointer(self.s0), pointer(self.d_s1)
        return a

    def again(self, backward=True, forward=True):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if forward and library.forward(ctypes.byref(self.prepared), stream):
            raise SystemExit("forward refused")
        if backward and library.backward(ctypes.byref(self.prepared), stream):
            raise SystemExit("backward refused")

    def definition(self):
        """In float64, from the quadratic form, gradients by autograd."""
        leaves = {n: getattr(self, n).double().requires_grad_() for n in ("q", "k", "v")}
        zero = torch.zeros(
            len(self.lengths), self.heads, self.d_k, self.d_v, device="cuda", dtype=torch.float64
        )
        s0 = (zero if self.s0 is None else self.s0.double()).clone().requires_grad_()
        g = torch.zeros(self.tokens, self.heads, device="cuda", dtype=torch.float64)
        if self.g is not None:
            g = (self.g.double() if self.gate else self.g.double().expand(self.tokens, -1)).clone()
        g = g.clamp_min(-1e4).requires_grad_()  # finite, so that differences are
        at, outs, ends = 0, [], []
        for doc, t in enumerate(self.lengths):
            q, k, v = (leaves[n][at : at + t].transpose(0, 1) for n in ("q", "k", "v"))
            own = g[at : at + t] if self.gate == 2 else g[at : at + t, :, None]
            c = own.cumsum(0).transpose(0, 1)  # (heads, t, d_k or 1)
            mask = torch.ones(t, t, device="cuda", dtype=torch.bool).tril()[:, :, None]
            decay = (c[:, :, None] - c[:, None]).masked_fill(~mask, -math.inf).exp()
            scores = torch.einsum("hid,hjd,hijd->hij", q, k, decay) if self.gate == 2 else (q @ k.mT) * decay[..., 0]
            outs.append((scores @ v + (c.exp() * q) @ s0[doc]).transpose(0, 1) * self.scale)
            last = c[:, -1:] if t else torch.zeros_like(s0[doc, :, :1, :1])
            ends.append(last.exp().mT * s0[doc] + ((last - c).exp() * k).mT @ v)
            at += t
        o, s1 = torch.cat(outs), torch.stack(ends)
        loss = (o * self.d_o.double()).sum()
        if self.d_s1 is not None:
            loss = loss + (s1 * self.d_s1.double()).sum()
        grads = torch.autograd.grad(loss, [leaves["q"], leaves["k"], leaves["v"], s0, g], allow_unused=True)
        return dict(zip(("o", "s1", "dq", "dk", "dv", "ds0", "dg"), (o, s1, *grads)))


def errors(out, ref):
    return {n: error(out[n], ref[n]) for n in ("o", "s1", "dq", "dk", "dv", "ds0", "dg") if n in out}


def check():
    good = True
    for dtype, path, limit in (
        (torch.float32, "plain", 2e-5),
        (BF16, "plain", 4e-3),
        (BF16, "mma", 8e-3),
        (BF16, "wgmma", 8e-3),
    ):
        widths = [(64, 64), (128, 128), (64, 128), (128, 64), (256, 128), (128, 256), (256, 256)]
        if path == "plain":
            widths = [(64, 64), (48, 80)]
        for d_k, d_v in widths:
            for decay in ("none", "fixed", "gated"):
                p = Problem([300, 0, 1, 129, 64, 77], 2, d_k, d_v, decay, dtype, packed=decay != "none")
                out = p.call(path)
                torch.cuda.synchronize()
                label = f"{path} {str(dtype)[6:]} {d_k}x{d_v} {decay}"
                good &= show(label, errors(out, p.definition()), limit)
    p = Problem([257] * 3, 3, 128, 128, "fixed", states=False, equal=True)
    good &= show("wgmma equal documents, no states", errors(p.call("wgmma"), p.definition()), 8e-3)
    first = {n: x.clone() for n, x in p.call("wgmma").items()}
    same = all(torch.equal(first[n].nan_to_num(7), x.nan_to_num(7)) for n, x in p.call("wgmma").items())
    print("same bits twice:", same)
    print("check:", "PASS" if good and same else "FAIL")
    if not (good and same):
        raise SystemExit(1)


def lengths():
    """Every length from 1 to 513 in one packed batch, against the plain f32 kernel."""
    good = True
    for path in ("wgmma", "mma"):
        for d_k, d_v in ((64, 64), (128, 128), (256, 128)):
            for decay in ("fixed", "gated"):
                p = Problem(list(range(1, 514)), 1, d_k, d_v, decay)
                good &= show(
                    f"{path} T 1..513 {d_k}x{d_v} {decay}", errors(p.call(path), p.f32().call("plain")), 8e-3
                )
    print("lengths:", "PASS" if good else "FAIL")


def channels():
    """A gate for each channel: the definition, every length, a long text, equal bits."""
    good = True
    plain, tiles = [(64, 64), (48, 80)], [(64, 64), (128, 128), (64, 128), (128, 64)]
    for dtype, path, limit, widths in (
        (torch.float32, "plain", 2e-5, plain),
        (BF16, "plain", 4e-3, plain),
        (BF16, "mma", 8e-3, tiles),
        (BF16, "wgmma", 8e-3, tiles),
    ):
        for d_k, d_v in widths:
            for decay in CHANNEL_GATES:
                p = Problem([300, 0, 1, 129, 64, 77], 2, d_k, d_v, decay, dtype, packed=True)
                out = p.call(path)
                torch.cuda.synchronize()
                label = f"{path} {str(dtype)[6:]} {d_k}x{d_v} {decay}"
                good &= show(label, errors(out, p.definition()), limit)
    for d in (64, 128):
        p = Problem(list(range(1, 257)), 1, d, d, "channels")
        good &= show(f"T 1..256 {d}x{d}", errors(p.call("automatic"), p.f32().call("plain")), 8e-3)
        p = Problem([8193, 63, 65, 127, 4000], 16, d, d, "channels tens", packed=True)
        ref = p.f32().call("plain")
        for p.segment in (0, 1024):
            good &= show(f"odd lengths {d}x{d}, {p.segment}", errors(p.call("automatic"), ref), 8e-3)
    for decay in CHANNEL_GATES:
        p = Problem([8192], 4, 128, 128, decay, states=False, equal=True)
        good &= show(f"T 8192 {decay}", errors(p.call("automatic"), p.f32().call("plain")), 8e-3)
    first = {n: x.clone() for n, x in p.call("automatic").items()}
    same = all(torch.equal(first[n].nan_to_num(7), x.nan_to_num(7)) for n, x in p.call("automatic").items())
    print("same bits twice:", same)
    print("channels:", "PASS" if good and same else "FAIL")


def segments():
    """Documents cut into segments: the definition, every length, one long document, equal bits."""
    good = True
    for path, widths in (
        ("wgmma", [(64, 64), (128, 128), (64, 128), (256, 64), (128, 256)]),
        ("mma", [(64, 64), (128, 128)]),
    ):
        for d_k, d_v in widths:
            for decay in ("none", "fixed", "gated"):
                p = Problem([300, 0, 1, 129, 64, 577], 2, d_k, d_v, decay, packed=True, segment=128)
                good &= show(f"{path} segments {d_k}x{d_v} {decay}", errors(p.call(path), p.definition()), 8e-3)
    for d_k, d_v in [(64, 64), (128, 128), (64, 128), (128, 64)]:
        for decay in CHANNEL_GATES:
            p = Problem([300, 0, 1, 129, 64, 77], 2, d_k, d_v, decay, packed=True, segment=64)
            good &= show(f"segments {d_k}x{d_v} {decay}", errors(p.call("automatic"), p.definition()), 8e-3)
    for decay in ("gated", "channels"):
        p = Problem(list(range(1, 257)), 1, 128, 128, decay, segment=64)
        good &= show(f"T 1..256 in segments, {decay}", errors(p.call("automatic"), p.f32().call("plain")), 8e-3)
    for decay in ("fixed", *GATES, *CHANNEL_GATES):
        p = Problem([16384], 2, 128, 128, decay)
        ref = p.f32().call("plain")
        for p.segment in (0, -1):
            label = f"T 16384 {decay}, {'cut' if p.segment else 'whole'}"
            good &= show(label, errors(p.call("automatic"), ref), 8e-3)
    first = {n: x.clone() for n, x in p.call("automatic").items()}
    same = all(torch.equal(first[n].nan_to_num(7), x.nan_to_num(7)) for n, x in p.call("automatic").items())
    print("same bits twice:", same)
    print("segments:", "PASS" if good and same else "FAIL")


def position_sums(p, out):
    """Of each head and channel, the sum over tokens of t (q dq - k dk)."""
    t = torch.arange(p.tokens, device="cuda", dtype=torch.float64)[:, None, None]
    return (t * (p.q.double() * out["dq"].double() - p.k.double() * out["dk"].double())).sum(0)


def wide():
    """Gradients of q and k in f32: the definition, in segments too, every length, sums over positions."""
    good = True
    for path, widths in (
        ("plain", [(64, 64), (48, 80)]),
        ("mma", [(64, 64), (128, 128), (256, 128)]),
        ("wgmma", [(64, 64), (128, 128), (64, 128), (128, 64), (256, 128), (128, 256), (256, 256)]),
    ):
        for d_k, d_v in widths:
            for decay in ("none", "fixed", "gated"):
                for segment in (-1,) if path == "plain" else (-1, 128):
                    lengths = [300, 0, 1, 129, 64, 577]
                    p = Problem(lengths, 2, d_k, d_v, decay, packed=True, segment=segment, wide=True)
                    label = f"{path} {d_k}x{d_v} {decay}" + (" in segments" if segment > 0 else "")
                    good &= show(label, errors(p.call(path), p.definition()), 8e-3)
    for d in (64, 128):
        p = Problem(list(range(1, 257)), 1, d, d, "fixed", wide=True)
        good &= show(f"T 1..256 {d}x{d}", errors(p.call("automatic"), p.f32().call("plain")), 8e-3)
    for t, decay, limit in ((1500, "fixed", 3e-3), (6000, "fixed", 3e-3), (6000, "gated", 3e-2)):
        p = Problem([t], 2, 128, 128, decay, states=False)
        ref = position_sums(p, p.f32().call("plain"))
        for p.wide in (False, True):
            for p.segment in (0, 512):
                label = f"sums over positions, T {t} {decay}, {'in segments' if p.segment else 'whole'}"
                sums = error(position_sums(p, p.call("automatic")), ref)
                label += ", f32" if p.wide else ", bf16"
                good &= show(label, {"t": sums}, limit if p.wide else 100)
    first = {n: x.clone() for n, x in p.call("automatic").items()}
    same = all(torch.equal(first[n].nan_to_num(7), x.nan_to_num(7)) for n, x in p.call("automatic").items())
    print("same bits twice:", same)
    print("wide:", "PASS" if good and same else "FAIL")


def stages():
    """What each kernel of a call takes, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    for b, t, h, d in STAGES:
        for decay in ("none", "fixed", "gated"):
            p = Problem([t] * b, h, d, d, decay, states=False)
            p.call("automatic")
            with profile(activities=[ProfilerActivity.CUDA]) as trace:
                for _ in range(5):
                    p.again()
                torch.cuda.synchronize()
            events = sorted((e for e in trace.events() if "_kernel" in e.name), key=lambda e: e.time_range.start)
            each = len(events) // 5
            times = [statistics.median(e.device_time for e in events[i::each]) for i in range(each)]
            names = [re.search(r"(\w+)_kernel", e.name)[1] for e in events[:each]]
            print(f"B{b} T{t} H{h} D{d} {decay}: " + ", ".join(f"{n} {x:.0f}" for n, x in zip(names, times)), "us")


STAGES = [(1, 131072, 8, 128), (1, 131072, 6, 128), (2, 16384, 16, 128)]
SHAPES = [(8, 8192, 16, 128, 128), (2, 16384, 16, 128, 128)]
FEW = [(1, 131072, 8, 128, 128), (2, 16384, 16, 128, 128), (1, 32768, 12, 64, 64), (1, 16384, 16, 256, 256)]
WIDE = [(8, 8192, 16, 128, 128), (8, 8192, 16, 128, 64), (8, 8192, 8, 256, 128), (1, 131072, 8, 128, 128)]
MORE = [(4, 4096, 64, 128, 128), (8, 8192, 16, 64, 64), (8, 2048, 32, 256, 256), (1, 256, 16, 64, 64)]


def timings(
    shapes=SHAPES, paths=("wgmma",), decays=("none", "fixed", "gated"), segments=(-1,), repeat=50, wide=False
):
    print_copy_rate()
    for b, t, h, d_k, d_v in shapes:
        for decay in decays:
            for path, segment in [(path, segment) for path in paths for segment in segments]:
                sets = [
                    Problem(
                        [t] * b, h, d_k, d_v, decay, states=False, equal=True, seed=i, segment=segment, wide=wide
                    )
                    for i in range(2)
                ]
                for p in sets:
                    p.call(path)
                    if wide:  # without a final state, as in training: with one the forward keeps pairs, too
                        p.prepared.final_state = None
                turn = [0]

                def run(**what):
                    turn[0] += 1
                    sets[turn[0] % 2].again(**what)

                f = median_ms(lambda: run(backward=False), repeat)
                back = median_ms(lambda: run(forward=False), repeat)
                both = median_ms(run, repeat)
                cut = "" if segment < 0 else f" in {segment}" if segment else " whole"
                cut += ", dq and dk in f32" if wide else ""
                unit = 2e-9 * b * t * h
                name = NAMES[decay] + (" by mma.sync" if path == "mma" else "") + ("" if segment < 0 else ", whole")
                name += ", dq and dk in f32" if wide else ""
                shape = f"B{b} T{t} H{h} D{d_k}" + ("" if d_k == d_v else f"x{d_v}")
                for what, ms in (("forward", f), ("backward", back), ("forward+backward", both)):
                    keep(f"{name} {what}, kernel alone", shape, ms)
                print(
                    f"{path} B{b} T{t} H{h} D{d_k}x{d_v} {decay:6s}{cut} fwd {f:.3f} ms ({unit * (2 * d_k + 2 * d_v) / f:.2f} TB/s)"
                    f"  bwd {back:.3f}  f+b {both:.3f} ms",
                    flush=True,
                )


def fla_of(p):
    """fla on the problem's inputs: what computes o, and what computes o and the gradients."""
    import fla.ops.common.chunk_o as chunk_o
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla

    chunk_o.TRITON_ABOVE_3_7_1 = True  # it refuses this Triton; accuracy.py compares the gradients
    b, t = len(p.lengths), p.lengths[0]
    q, k, v, g_o = (
        x.view(b, t, p.heads, -1).clone().requires_grad_(i < 3) for i, x in enumerate((p.q, p.k, p.v, p.d_o))
    )
    gate = p.g.view(b, t, p.heads, *p.g.shape[2:]).clone().requires_grad_() if p.gate else None
    how = dict(g=gate) if p.gate else dict(g_gamma=p.g)
    inputs = [q, k, v] + ([gate] if p.gate else [])

    def forward():
        f = chunk_gla if p.gate == 2 else chunk_simple_gla
        return f(q, k, v, scale=p.scale, **how)[0]

    return forward, lambda: torch.autograd.grad(forward(), inputs, g_o)


def peer(decays=("fixed",), shapes=SHAPES):
    for b, t, h, d, _ in shapes[-1:] if os.environ.get("LAB_SHARE") else shapes:
        for decay in decays:
            p = Problem([t] * b, h, d, d, decay, states=False, equal=True)
            forward, both = fla_of(p)
            beside_fla(NAMES[decay], f"B{b} T{t} H{h} D{d}", p, forward, both)


def small():
    """For compute-sanitizer."""
    for path in ("wgmma", "mma"):
        p = Problem([130, 70], 2, 128, 128, "gated", packed=True)
        show(path, errors(p.call(path), p.definition()), 8e-3)


if __name__ == "__main__":
    for what in sys.argv[1:]:
        {
            "check": check,
            "lengths": lengths,
            "channels": channels,
            "time_channels": lambda: timings(
                [*SHAPES, (8, 8192, 16, 64, 64), (4, 4096, 32, 64, 128)], ("automatic",), ("channels",)
            ),
            "time": timings,
            "peer": peer,
            "peer_gated": lambda: peer(("gated",)),
            "peer_channels": lambda: peer(("channels",)),
            "segments": segments,
            "stages": stages,
            "few": lambda: timings(FEW, decays=("fixed", "gated"), segments=(0, -1), repeat=20),
            "few_channels": lambda: timings(FEW[:3], ("automatic",), ("channels",), (0, -1), 20),
            "small": small,
            "wide": wide,
            "time_wide": lambda: [timings(WIDE, decays=("fixed",), wide=w) for w in (False, True)],
            "more": lambda: timings(MORE),
            "mma": lambda: timings(SHAPES[:1], ("mma",)),
        }[what]()
