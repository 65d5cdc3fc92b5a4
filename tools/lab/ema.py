"""Checks and times attention/kernels/ema.h against a float64 definition; times a Fourier transform beside it.

    tools/lab/build.sh && python3 tools/lab/ema.py check time peer

Needs torch and a GPU.
"""

import ctypes
import sys

import torch
from lab import BF16, Rows, error, library, median_ms, pointer, poison, print_copy_rate
from lab_rows import keep

F32 = torch.float32
NAMES = "y end dx d_in d_out d_decay d_start".split()


class Arguments(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_int64) for n in "channels size is_f32 documents spans cut matrices".split()]
        + [(n, ctypes.c_void_p) for n in "plan in_ out decay start d_end".split()]
        + [("x", Rows), ("dy", Rows)]
        + [(n, ctypes.c_void_p) for n in "y dx end d_in d_out d_decay d_start workspace".split()]
    )


library.ema_workspace.restype = library.ema_plan.restype = ctypes.c_int64


class Problem:
    """Documents one after the other, and what comes out. Coefficients are as Mega starts them, slow ones added."""

    def __init__(self, lengths, channels, size, dtype=BF16, states=False, most=0, pitch=0, seed=0, matrices=1):
        torch.manual_seed(seed)
        self.lengths, self.channels, self.size, self.dtype, self.most = lengths, channels, size, dtype, most
        self.matrices = matrices if dtype == BF16 and size <= 16 and channels % 8 == 0 and not states else 0
        tokens = sum(lengths)

        def coefficients(spread=1.0):
            return torch.randn(channels, size, device="cuda") * spread

        p = torch.sigmoid(coefficients(0.2) - torch.rand(channels, size, device="cuda") * 5)
        self.decay = 1 - p * torch.sigmoid(coefficients(0.2))
        self.in_, self.out = p * coefficients(), coefficients() / size**0.5
        self.in_[0, 0] = 0
        self.out[-1, -1] = 0
        self.decay[-1, 0] = 0
        wide = torch.randn(tokens, channels + pitch, device="cuda").to(dtype)
        self.x = wide[:, pitch:]
        self.dy = torch.randn(tokens, channels + pitch, device="cuda").to(dtype)[:, pitch:]
        shape = (len(lengths), channels, size)
        self.start = torch.randn(shape, device="cuda") if states else None
        self.d_end = torch.randn(shape, device="cuda") if states else None
        self.prepare()

    def prepare(self):
        tokens, c, n = sum(self.lengths), self.channels, self.size
        lengths = (ctypes.c_int64 * len(self.lengths))(*self.lengths)
        how = (lengths, *(ctypes.c_int64(v) for v in (len(self.lengths), c, n, self.most, self.matrices)))
        values = (ctypes.c_int * (4 + library.ema_plan(*how, None)))()
        library.ema_plan(*how, values)
        self.plan = torch.tensor(values[4:], dtype=torch.int32, device="cuda")
        a = Arguments(c, n, self.dtype == F32, *values[:4])
        self.spans, self.cut = values[1], bool(values[2])
        out = {
            "y": poison(tokens, c, dtype=self.dtype),
            "dx": poison(tokens, c, dtype=self.dtype),
            "end": poison(len(self.lengths), c, n),
            "d_start": poison(len(self.lengths), c, n),
            **{name: poison(c, n) for name in ("d_in", "d_out", "d_decay")},
        }
        if self.start is None:
            del out["d_start"], out["end"]
        else:  # the kernels leave rows of documents without tokens alone
            nothing = [i for i, length in enumerate(self.lengths) if length == 0]
            out["end"][nothing], out["d_start"][nothing] = self.start[nothing], self.d_end[nothing]
        a.plan, a.in_, a.out, a.decay = (pointer(x) for x in (self.plan, self.in_, self.out, self.decay))
        a.start, a.d_end = pointer(self.start), pointer(self.d_end)
        a.x, a.dy = (Rows(x.data_ptr(), x.stride(0)) for x in (self.x, self.dy))
        for name, x in out.items():
            setattr(a, name, pointer(x))
        self.workspace = poison(max(1, library.ema_workspace(ctypes.byref(a))))
        a.workspace = pointer(self.workspace)
        self.outputs, self.arguments = out, a

    def call(self, forward=True, backward=True):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if forward and library.ema_run_forward(ctypes.byref(self.arguments), stream):
            raise SystemExit("forward refused")
        if backward and library.ema_run_backward(ctypes.byref(self.arguments), stream):
            raise SystemExit("backward refused")
        return self.outputs

    def definition(self):
        """In float64, token by token over all documents abreast, gradients by autograd."""
        i, o, q = (x.double().requires_grad_() for x in (self.in_, self.out, self.decay))
        x = self.x.double().requires_grad_()
        count, longest = len(self.lengths), max(self.lengths)
        start = torch.zeros(count, self.channels, self.size, device="cuda", dtype=torch.float64)
        if self.start is not None:
            start = self.start.double()
        start.requires_grad_()
        at, first = [], 0
        for length in self.lengths:
            at.append(first + torch.arange(longest, device="cuda").clamp(max=max(length - 1, 0)))
            first += length
        at = torch.stack(at).clamp(max=max(sum(self.lengths) - 1, 0))
        alive = torch.arange(longest, device="cuda") < torch.tensor(self.lengths, device="cuda")[:, None]
        h, ys = start, []
        for t in range(longest):
            h = torch.where(alive[:, t, None, None], q * h + i * x[at[:, t]][..., None], h)
            ys.append((o * h).sum(-1))
        y = torch.stack(ys, 1)[alive]
        loss = (y * self.dy.double()).sum()
        if self.d_end is not None:
            loss = loss + (h * self.d_end.double()).sum()
        grads = torch.autograd.grad(loss, [x, i, o, q, start])
        return dict(zip(NAMES, (y.detach(), h.detach(), *grads)))


def show(label, out, ref, limits):
    """limits: of y and dx, and of all others, which are f32."""
    e = {n: error(out[n], ref[n]) for n in NAMES if n in out}
    good = all(x <= limits[n not in ("y", "dx")] for n, x in e.items())  # not NaN either
    print(f"{label:44s}", " ".join(f"{n} {x:.0e}" for n, x in e.items()), "" if good else " <-- BAD", flush=True)
    return good


def check():
    good, mixed = True, [300, 0, 1, 129, 64, 77, 0]
    cases = [([40], 0), (mixed, 0), (mixed, 1000), (mixed, 32), (mixed, 70), ([1], 0)]
    for lengths, most in [*cases, ([700, 1536, 2], 5000), ([700, 1536, 2], 600), ([3000], 192)]:
        for dtype, matrices, limits in ((F32, 0, (2e-5, 2e-5)), (BF16, 0, (3e-3, 2e-5)), (BF16, 2, (3e-3, 2e-5))):
            if matrices == 0 and max(lengths) > 512:
                continue  # scalars know no tiles of documents
            worst, bad = {}, False
            for channels, size, pitch in ((64, 16, 0), (32, 1, 8), (40, 2, 0), (135, 16, 1), (33, 32, 3), (256, 5, 64)):
                for states in (False, True):
                    p = Problem(lengths, channels, size, dtype, states, most, pitch, matrices=matrices)
                    if matrices and not p.arguments.matrices:
                        continue
                    out, ref = p.call(), p.definition()
                    e = {n: error(out[n], ref[n]) for n in NAMES if n in out}
                    if not all(x <= limits[n not in ("y", "dx")] for n, x in e.items()):
                        label = f"C{channels} N{size} pitch+{pitch} states {states} spans {p.spans} of {len(lengths)}"
                        show(label, out, ref, limits)
                        bad = True
                    worst.update({n: max(x, worst.get(n, 0)) for n, x in e.items()})
            good &= not bad
            worst = " ".join(f"{n} {x:.0e}" for n, x in worst.items())
            how = "matrices" if matrices else "scalars"
            print(f"{str(dtype)[6:]:9s}{how:9s}{len(lengths)} documents, most {most}: {worst}", flush=True)
    first = {n: x.clone() for n, x in p.call().items()}
    p.prepare()
    same = all(torch.equal(first[n], x) for n, x in p.call().items())
    print("same bits twice:", same)
    print("check:", "PASS" if good and same else "FAIL", flush=True)
    if not (good and same):
        raise SystemExit(1)


def stages():
    """What a span hands on, forward: the states after spans against the definition's."""
    p = Problem([200], 32, 16, F32, most=64)
    p.call(backward=False)
    torch.cuda.synchronize()
    got = p.workspace[: p.spans * 16 * 32].view(p.spans, 16, 32)
    h, spans = torch.zeros(32, 16, device="cuda", dtype=torch.float64), p.plan[3 : 3 + p.spans + 1].tolist()
    for t in range(200):
        h = p.decay.double() * h + p.x[t].double()[:, None]
        if t + 1 in spans[1:-1]:
            print(f"state after token {t}: error {error(got[spans.index(t + 1) - 1], h.T):.0e}")


def times(problems):
    """Two sets of tensors take turns, so that none is found in L2."""
    turn = [0]

    def run(**what):
        turn[0] += 1
        problems[turn[0] % 2].call(**what)

    return (median_ms(lambda: run(backward=False)), median_ms(lambda: run(forward=False)), median_ms(run))


def timings():
    print_copy_rate()
    for b, t, c, n, dtype, most in (
        (8, 8192, 2048, 16, BF16, 0),
        (8, 8192, 2048, 16, BF16, 4096),
        (8, 8192, 2048, 16, BF16, 2048),
        (8, 8192, 2048, 16, F32, 0),
        (8, 8192, 2048, 32, BF16, 0),
        (1, 65536, 2048, 16, BF16, 0),
        (1, 8192, 2048, 16, BF16, 0),
        (512, 128, 2048, 16, BF16, 0),
        (16, 512, 256, 16, BF16, 0),
    ):
        problems = [Problem([t] * b, c, n, dtype, most=most, seed=i) for i in range(2)]
        f, back, both = times(problems)
        size = b * t * c * problems[0].x.element_size()
        if not most:
            for what, ms in (("forward", f), ("backward", back), ("forward+backward", both)):
                keep(f"ema {what}, kernel alone", f"B{b} T{t} C{c} N{n}", ms, dtype="bf16" if dtype == BF16 else "f32")
        print(
            f"B{b} T{t} C{c} N{n} {str(dtype)[6:]} {problems[0].spans} spans{' cut' if problems[0].cut else ''}: "
            f"forward {f:.3f} ms ({2e-9 * size / f:.2f} TB/s)  backward {back:.3f} ({3e-9 * size / back:.2f})  both {both:.3f}",
            flush=True,
        )
        del problems


def peer(b=8, t=8192, c=2048, n=16):
    """The convolution by real transforms of 2 T in f32, with the kernel made of all powers, as Mega's authors do."""
    ours = times([Problem([t] * b, c, n, seed=i) for i in range(2)])
    p = Problem([t] * b, c, n)
    x = p.x.view(b, t, c).clone().requires_grad_()
    dy, leaves = p.dy.view(b, t, c), [v.clone().requires_grad_() for v in (p.in_, p.out, p.decay.clamp_min(1e-30))]

    def forward():
        i, o, q = leaves
        powers = torch.exp(torch.arange(t, device="cuda") * torch.log(q)[..., None])  # (C, N, T)
        kernel = torch.einsum("cn,cnt->ct", i * o, powers)
        spectrum = torch.fft.rfft(x.float().transpose(1, 2), n=2 * t) * torch.fft.rfft(kernel, n=2 * t)
        return torch.fft.irfft(spectrum, n=2 * t)[..., :t].transpose(1, 2).to(BF16)

    def both():
        return torch.autograd.grad(forward(), [x, *leaves], dy)

    print(f"y of the transform against ours: {error(forward().detach().reshape(-1, c), p.call()['y'].double()):.0e}")
    with torch.no_grad():
        f = median_ms(forward, 10)
    fb = median_ms(both, 10)
    for what, weft, theirs in (("forward", ours[0], f), ("forward+backward", ours[2], fb)):
        keep(f"ema {what}, kernel alone", f"B{b} T{t} C{c} N{n}", weft)
        keep(f"ema {what}, kernel alone", f"B{b} T{t} C{c} N{n}", theirs, "transforms in torch " + torch.__version__)
    print(
        f"B{b} T{t} C{c} N{n}: transform {f:.2f} / {fb:.2f} ms  weft {ours[0]:.3f} / {ours[2]:.3f}"
        f"  ratio {f / ours[0]:.1f} / {fb / ours[2]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    for what in sys.argv[1:]:
        {"check": check, "stages": stages, "time": timings, "peer": peer}[what]()
