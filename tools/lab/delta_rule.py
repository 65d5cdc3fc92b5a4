"""Checks and times attention/kernels/delta_rule.h against a float64 definition; times fla beside it.

    tools/lab/build.sh && python3 tools/lab/delta_rule.py stages check lengths time peer

Needs torch and a GPU; `peer` also flash-linear-attention on PYTHONPATH.
"""

import ctypes
import math
import sys

import torch
from lab import BF16, PATHS, Rows, beside_fla, error, library, median_ms, pointer, poison, print_copy_rate
from lab import rows, show
from lab_rows import keep

F64 = torch.float64
CHUNK = 64
GATES = {
    "none": None,
    "days": lambda x: -0.01 * x.abs(),  # memories of hundreds of tokens
    "hours": lambda x: torch.nn.functional.logsigmoid(x + 2),  # of a few
    "resets": lambda x: torch.where(x > 1.5, -1000.0, -0.05),
}
GRADIENTS = "dq dk dv dbeta dg ds0".split()


class Arguments(ctypes.Structure):
    _fields_ = (
        [
            (n, ctypes.c_int64)
            for n in "tokens documents heads d_k d_v is_f32 path backward_follows".split()
        ]
        + [("scale", ctypes.c_double)]
        + [(n, ctypes.c_void_p) for n in "offsets beta log_decay".split()]
        + [(n, Rows) for n in "q k v d_o o d_q d_k_rows d_v_rows".split()]
        + [
            (n, ctypes.c_void_p)
            for n in "initial_state d_final_state final_state d_initial_state d_beta d_log_decay kept workspace".split()
        ]
    )


library.delta_kept.restype = library.delta_workspace.restype = ctypes.c_int64


class Problem:
    """Inputs (tokens, heads, d) of one call, and its outputs."""

    def __init__(self, lengths, heads, d_k, d_v, gate, dtype=BF16, states=True, equal=False, alike=0.0, seed=0):
        torch.manual_seed(seed)
        self.lengths, self.heads, self.d_k, self.d_v = lengths, heads, d_k, d_v
        n = self.tokens = sum(lengths)
        self.scale = d_k**-0.5
        width = heads * (d_k + d_v)  # q and v are column ranges of one projection
        both = torch.randn(n, width, device="cuda").to(dtype)
        self.q = both[:, : heads * d_k].unflatten(1, (heads, d_k))
        self.v = both[:, heads * d_k :].unflatten(1, (heads, d_v))
        # Keys of a cone, the narrower the larger `alike`.
        k = torch.randn(n, heads, d_k, device="cuda") + alike
        self.k = torch.nn.functional.normalize(k, dim=-1).to(dtype)
        self.d_o = torch.randn(n, heads, d_v, device="cuda").to(dtype)
        self.beta = torch.randn(n, heads, device="cuda").sigmoid()
        self.g = GATES[gate](torch.randn(n, heads, device="cuda")).contiguous() if GATES[gate] else None
        starts = [0]
        for x in lengths:
            starts.append(starts[-1] + x)
        self.starts = starts
        self.offsets = None if equal else torch.tensor(starts, dtype=torch.int32, device="cuda")
        shape = (len(lengths), heads, d_k, d_v)
        self.s0 = torch.randn(shape, device="cuda") if states else None
        self.d_s1 = torch.randn(shape, device="cuda") if states else None

    def call(self, path, backward=True):
        dtype, shape = self.q.dtype, (len(self.lengths), self.heads, self.d_k, self.d_v)
        a = Arguments(
            self.tokens,
            len(self.lengths),
            self.heads,
            self.d_k,
            self.d_v,
            dtype == torch.float32,
            PATHS[path],
            backward,
            self.scale,
        )
        a.offsets, a.beta, a.log_decay = pointer(self.offsets), pointer(self.beta), pointer(self.g)
        a.q, a.k, a.v, a.d_o = rows(self.q), rows(self.k), rows(self.v), rows(self.d_o)
        a.initial_state, a.d_final_state = pointer(self.s0), pointer(self.d_s1)
        n, h = self.tokens, self.heads
        out = {
            "o": poison(n, h, self.d_v, dtype=dtype),
            "s1": poison(*shape),
            "dq": poison(n, h, self.d_k, dtype=dtype),
            "dk": poison(n, h, self.d_k, dtype=dtype),
            "dv": poison(n, h, self.d_v, dtype=dtype),
            "ds0": poison(*shape),
            "dbeta": poison(n, h),
            "dg": poison(n, h) if self.g is not None else None,
            "kept": poison(library.delta_kept(ctypes.byref(a)) // 4),
            "workspace": poison(library.delta_workspace(ctypes.byref(a)) // 4),
        }
        a.o, a.d_q, a.d_k_rows, a.d_v_rows = (rows(out[x]) for x in ("o", "dq", "dk", "dv"))
        a.final_state, a.d_initial_state = pointer(out["s1"]), pointer(out["ds0"])
        a.d_beta, a.d_log_decay = pointer(out["dbeta"]), pointer(out["dg"])
        a.kept, a.workspace = pointer(out["kept"]), pointer(out["workspace"])
        self.outputs, self.prepared = out, a
        self.again(backward)
        return out

    def again(self, backward=True, forward=True):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if forward and library.delta_forward_pass(ctypes.byref(self.prepared), stream):
            raise SystemExit("forward refused")
        if backward and library.delta_backward_pass(ctypes.byref(self.prepared), stream):
            raise SystemExit("backward refused")

    def padded(self, x, length):
        """(tokens, ...) -> (documents, length, ...) in float64, zeros after a document's end."""
        out = torch.zeros(len(self.lengths), length, *x.shape[1:], dtype=F64, device=x.device)
        for i, n in enumerate(self.lengths):
            out[i, :n] = x[self.starts[i] : self.starts[i + 1]].double()
        return out

    def tokens_of(self, x):
        return torch.cat([x[i, :n] for i, n in enumerate(self.lengths)])

    def definition(self):
        """In float64, token by token for all documents at once, gradients by autograd."""
        longest = max(self.lengths)
        leaves = [self.padded(x, longest).requires_grad_() for x in (self.q, self.k, self.v, self.beta)]
        g = torch.zeros_like(self.beta) if self.g is None else self.g
        leaves.append(self.padded(g, longest).requires_grad_())
        zero = torch.zeros(len(self.lengths), self.heads, self.d_k, self.d_v, dtype=F64, device="cuda")
        s0 = (zero if self.s0 is None else self.s0.double()).clone().requires_grad_()
        q, k, v, beta, g = leaves
        s, outs = s0, []
        for t in range(longest):
            s = s * g[:, t, :, None, None].exp()
            wrong = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], s)
            s = s + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * wrong)
            outs.append(self.scale * torch.einsum("bhk,bhkv->bhv", q[:, t], s))
        o = torch.stack(outs, 1)
        loss = (o * self.padded(self.d_o, longest)).sum()
        if self.d_s1 is not None:
            loss = loss + (s * self.d_s1.double()).sum()
        grads = torch.autograd.grad(loss, leaves + [s0])
        ref = {"o": self.tokens_of(o.detach()), "s1": s.detach(), "ds0": grads[5]}
        for name, x in zip(("dq", "dk", "dv", "dbeta", "dg"), grads):
            ref[name] = self.tokens_of(x)
        return ref


def errors(out, ref):
    return {n: error(out[n], ref[n]) for n in ("o", "s1", *GRADIENTS) if out.get(n) is not None}


def untiled(image, count, r, c):
    """(count, r * c) as it lies in shared memory -> (count, r, c)"""
    row, column = torch.meshgrid(torch.arange(r), torch.arange(c), indexing="ij")
    at = (column // 64) * (r * 64) + row * 64 + (((column // 8) % 8) ^ (row % 8)) * 8 + column % 8
    return image.view(count, r * c)[:, at.flatten().to(image.device)].view(count, r, c).double()


def stages():
    """What the stages hand on, one document at a time, beside the chunked form in float64."""
    good = True
    for path in ("mma", "wgmma"):
        # Many heads, then few: blocks of the sweeps are wide, then narrow.
        for d_k, d_v, h in ((64, 64, 2), (128, 64, 2), (64, 128, 110), (128, 128, 110), (128, 128, 2)):
            p = Problem([200], h, d_k, d_v, "days")
            out = p.call(path)
            torch.cuda.synchronize()
            slots, t = 200 // CHUNK + 1, 4 * CHUNK
            units = slots * h
            write, state = 128 * d_v, 2 * d_k * d_v
            bytes_of = {"gates": 512, "T": 8192, "P": 8192, "U": write, "S": state, "R": write, "dS": state}
            parts = {}
            for source, kinds in (("kept", ("gates", "T", "P", "U", "S")), ("workspace", ("R", "dS"))):
                at = 0
                raw = out[source].view(torch.uint8)
                for name in kinds:
                    size = bytes_of[name] * units
                    parts[name] = raw[at : at + size]
                    at += -(-size // 256) * 256
            shape = lambda x: x.view(1, t // CHUNK, CHUNK, h, -1)[0].transpose(1, 2)  # (chunk, h, 64, d)
            q, k, v, do = (shape(p.padded(x, t)) for x in (p.q, p.k, p.v, p.d_o))
            beta, g = (shape(p.padded(x, t))[..., 0] for x in (p.beta, p.g))
            c = g.cumsum(-1)
            low = torch.ones(CHUNK, CHUNK, device="cuda", dtype=torch.bool).tril()
            decay = (c[..., :, None] - c[..., None, :]).masked_fill(~low, -math.inf).exp()
            a = (beta[..., None] * decay * (k @ k.mT)).tril(-1)
            inverse = torch.linalg.inv(torch.eye(CHUNK, device="cuda", dtype=F64) + a)
            to_end = (c[..., -1:] - c).exp()[..., None]
            scores = p.scale * (q @ k.mT) * decay
            s, u, before = p.s0[0].double(), [], []
            for n in range(slots):
                before.append(s)
                rhs = beta[n][..., None] * (v[n] - c[n].exp()[..., None] * (k[n] @ s))
                u.append(inverse[n] @ rhs)
                s = c[n, :, -1].exp()[:, None, None] * s + (to_end[n] * k[n]).mT @ u[n]
            ds, r, behind = p.d_s1[0].double() / p.scale, [None] * slots, [None] * slots
            for n in reversed(range(slots)):
                behind[n] = ds
                r[n] = inverse[n].mT @ (scores[n].mT @ do[n] + p.scale * to_end[n] * (k[n] @ ds))
                into = c[n].exp()[..., None]
                ds = (
                    c[n, :, -1].exp()[:, None, None] * ds
                    + (into * q[n]).mT @ do[n]
                    - (into * beta[n][..., None] * k[n]).mT @ r[n] / p.scale
                )
            gates = parts["gates"].view(torch.float32).view(slots, h, 2, CHUNK)
            tile = lambda name, x, y, per: untiled(parts[name].view(BF16), units * per, x, y).view(
                slots, h, per, x, y
            )
            split = d_v // 64
            join = lambda x: x.transpose(2, 3).flatten(3)  # (slots, h, split, 64, 64) -> (slots, h, 64, d_v)
            e = {
                "level": error(gates[:, :, 0], c / math.log(2)),
                "beta": error(gates[:, :, 1], beta),
                "T": error(tile("T", 64, 64, 1)[:, :, 0], inverse),
                "P": error(tile("P", 64, 64, 1)[:, :, 0], scores),
                "U": error(join(tile("U", 64, 64, split)), torch.stack(u)),
                "S": error(tile("S", 64, d_k, split).flatten(2, 3).mT, torch.stack(before)),
                "R": error(join(tile("R", 64, 64, split)), torch.stack(r)),
                "dS": error(tile("dS", 64, d_k, split).flatten(2, 3).mT, torch.stack(behind)),
            }
            good &= show(f"stages {path} {d_k}x{d_v} {h} heads", e, 8e-3)
    print("stages:", "PASS" if good else "FAIL")


def check():
    good, f32 = True, torch.float32
    tiled = ((64, 64), (128, 64), (64, 128), (128, 128))
    for path, dtype, limit, widths in (
        ("plain", f32, 2e-5, ((64, 64), (48, 80), (3, 130))),
        ("plain", BF16, 4e-3, ((48, 80),)),
        ("mma", BF16, 1e-2, tiled),
        ("wgmma", BF16, 1e-2, tiled),
    ):
        for d_k, d_v in widths:
            for gate in GATES if path != "mma" else ("days",):
                p = Problem([200, 0, 1, 129, 64, 77], 2, d_k, d_v, gate, dtype, alike=0.3)
                label = f"{path} {str(dtype)[6:]} {d_k}x{d_v} {gate}"
                good &= show(label, errors(p.call(path), p.definition()), limit)
    p = Problem([257] * 3, 3, 128, 128, "days", states=False, equal=True)
    first = {n: x.clone() for n, x in p.call("automatic").items() if x is not None}
    good &= show("equal documents, no states", errors(first, p.definition()), 1e-2)
    same = all(
        torch.equal(first[n], x)
        for n, x in p.call("automatic").items()
        if x is not None and n not in ("kept", "workspace")
    )
    print("same bits twice:", same)
    print("check:", "PASS" if good and same else "FAIL")


def lengths():
    """Every length from 1 to 130 in one packed batch."""
    good = True
    for path in ("wgmma", "mma"):
        for d_k, d_v in ((64, 64), (128, 128)):
            p = Problem(list(range(1, 131)), 1, d_k, d_v, "days")
            good &= show(f"{path} T 1..130 {d_k}x{d_v}", errors(p.call(path), p.definition()), 1e-2)
    print("lengths:", "PASS" if good else "FAIL")


def long():
    """One long document: do errors grow?"""
    for gate in ("none", "days", "hours"):
        p = Problem([4096], 2, 128, 128, gate)
        show(f"T 4096 128x128 {gate}", errors(p.call("automatic"), p.definition()), 1e-2)


SHAPES = [(4, 4096, 64, 128, 128), (2, 16384, 16, 128, 128), (8, 8192, 16, 64, 64)]


def timings(paths=("wgmma", "mma"), repeat=50):
    print_copy_rate()
    for b, t, h, d_k, d_v in SHAPES:
        for path in paths:
            sets = [Problem([t] * b, h, d_k, d_v, "days", states=False, equal=True, seed=i) for i in range(2)]
            for p in sets:
                p.call(path)
            turn = [0]

            def run(**what):
                turn[0] += 1
                sets[turn[0] % 2].again(**what)

            f = median_ms(lambda: run(backward=False), repeat)
            back = median_ms(lambda: run(forward=False), repeat)
            both = median_ms(run, repeat)
            for p in sets:
                p.prepared.backward_follows = 0
            alone = median_ms(lambda: run(backward=False), repeat)
            print(
                f"{path} B{b} T{t} H{h} D{d_k}x{d_v}: fwd alone {alone:.3f}  fwd {f:.3f}  bwd {back:.3f}  f+b {both:.3f} ms",
                flush=True,
            )
            name, shape = "gated_delta_rule" + (" by mma.sync" if path == "mma" else ""), f"B{b} T{t} H{h} D{d_k}"
            for what, ms in (("forward", alone), ("backward", back), ("forward+backward", both)):
                keep(f"{name} {what}, kernel alone", shape, ms)
            for p in sets:
                p.prepared.backward_follows = 1
            profile(run)


def profile(run):
    """Milliseconds of each kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    try:
        with record(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(6):
                run()
            torch.cuda.synchronize()
        for e in seen.key_averages():
            name = e.key.split("::")[-1].split("(")[0]
            if "delta" in e.key:
                print(f"    {name} {e.device_time_total / 1e3 / 6:.3f} ms", flush=True)
    except Exception as e:  # a profiler that does not work here is no failure of the kernels
        print("    no profile:", e)


def peer():
    import fla.ops.common.chunk_o as chunk_o
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    chunk_o.TRITON_ABOVE_3_7_1 = True  # it refuses this Triton
    for b, t, h, d, _ in SHAPES[:2]:
        p = Problem([t] * b, h, d, d, "days", states=False, equal=True)
        q, k, v, beta, g, d_o = (
            x.reshape(b, t, h, *x.shape[2:]).clone().requires_grad_(i < 5)
            for i, x in enumerate((p.q, p.k, p.v, p.beta, p.g, p.d_o))
        )

        def forward():
            return chunk_gated_delta_rule(q, k, v, g, beta.to(BF16), scale=p.scale)[0]

        def both():
            return torch.autograd.grad(forward(), [q, k, v, beta, g], d_o)

        beside_fla("gated_delta_rule", f"B{b} T{t} H{h} D{d}", p, forward, both)


if __name__ == "__main__":
    for what in sys.argv[1:]:
        {
            "stages": stages,
            "check": check,
            "lengths": lengths,
            "long": long,
            "time": timings,
            "quick": lambda: timings(repeat=15),
            "peer": peer,
        }[what]()
