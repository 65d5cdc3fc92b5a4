"""Checks and times attention on the GPU against float64 and against torch's scaled_dot_product_attention.

    cmake -S . -B build/cuda -G Ninja -DWEFT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a-real
    ninja -C build/cuda weft_lab_attention && python3 tools/lab/flash_attention.py check time

Needs torch and a GPU. LAB_LIBRARY names another library. Relative errors are norms of differences over norms.
"""

import ctypes
import os
import statistics
import sys

import torch
from lab_rows import keep
from torch.nn.attention import SDPBackend, sdpa_kernel

LIBRARY = os.environ.get(
    "LAB_LIBRARY",
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../build/cuda/tools/lab/libweft_lab_attention.so"),
)
BF16 = torch.bfloat16
OUTPUTS = ("o", "lse", "d_q", "d_k", "d_v")


class Arguments(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_int64) for n in "queries keys heads kv_heads d e is_f32 causal window plain".split()]
        + [("scale", ctypes.c_double)]
        + [
            (n, ctypes.c_void_p)
            for n in "q k v d_o d_lse q_position q_document k_position k_document o lse d_q d_k d_v".split()
        ]
    )


library = ctypes.CDLL(LIBRARY, mode=os.RTLD_LAZY | os.RTLD_GLOBAL)


class Problem:
    """Inputs of one call on packed documents of these lengths, rows (tokens, heads, d)."""

    def __init__(self, lengths, heads, kv_heads, d, e=None, causal=True, window=0, dtype=BF16, d_lse=True, seed=0):
        torch.manual_seed(seed)
        e = e or d
        n = sum(lengths)
        self.lengths, self.heads, self.kv_heads, self.d, self.e = lengths, heads, kv_heads, d, e
        self.causal, self.window, self.dtype, self.scale = causal, window, dtype, d**-0.5

        def make(*shape):
            return torch.randn(*shape, device="cuda").to(dtype)

        self.q, self.k, self.v = make(n, heads, d), make(n, kv_heads, d), make(n, kv_heads, e)
        self.d_o = make(n, heads, e)
        self.d_lse = torch.randn(n, heads, device="cuda") * (1 if d_lse else 0)
        position = [torch.arange(t, dtype=torch.int32) for t in lengths]
        document = [torch.full((t,), i, dtype=torch.int32) for i, t in enumerate(lengths)]
        self.position, self.document = torch.cat(position).cuda(), torch.cat(document).cuda()

    def arguments(self, plain):
        n = self.q.shape[0]
        out = {
            "o": torch.full((n, self.heads, self.e), float("nan"), dtype=self.dtype, device="cuda"),
            "lse": torch.full((n, self.heads), float("nan"), device="cuda"),
        }
        for name, x in (("d_q", self.q), ("d_k", self.k), ("d_v", self.v)):
            out[name] = torch.full_like(x, float("nan"))
        a = Arguments(n, n, self.heads, self.kv_heads, self.d, self.e, self.dtype == torch.float32)
        a.causal, a.window, a.plain, a.scale = self.causal, self.window, plain, self.scale
        for name in ("q", "k", "v", "d_o", "d_lse"):
            setattr(a, name, getattr(self, name).data_ptr())
        for name in ("q_position", "k_position"):
            setattr(a, name, self.position.data_ptr())
        for name in ("q_document", "k_document"):
            setattr(a, name, self.document.data_ptr())
        for name in OUTPUTS:
            setattr(a, name, out[name].data_ptr())
        return a, out

    def call(self, plain=False):
        a, out = self.arguments(plain)
        torch.cuda.synchronize()
        if library.attention(ctypes.byref(a)):
            raise SystemExit("refused")
        return out

    def times(self, plain=False, repeat=20):
        a, _ = self.arguments(plain)
        torch.cuda.synchronize()
        both = (ctypes.c_float * 2)()
        if library.attention_times(ctypes.byref(a), repeat, both):
            raise SystemExit("refused")
        return both[0], both[1]

    def definition(self):
        """In float64, from the whole matrix of scores, gradients by autograd."""
        leaves = [x.double().requires_grad_() for x in (self.q, self.k, self.v)]
        group = self.heads // self.kv_heads
        k, v = (x.repeat_interleave(group, 1) for x in leaves[1:])
        distance = self.position[:, None] - self.position[None, :]
        seen = self.document[:, None] == self.document[None, :]
        if self.causal:
            seen &= distance >= 0
        if self.window:
            seen &= distance.abs() < self.window
        s = torch.einsum("ihd,jhd->hij", leaves[0], k) * self.scale
        s = s.masked_fill(~seen, -torch.inf)
        lse = s.logsumexp(-1)
        o = torch.einsum("hij,jhe->ihe", (s - lse[..., None]).exp(), v)
        loss = (o * self.d_o.double()).sum() + (lse.T * self.d_lse.double()).sum()
        return dict(zip(OUTPUTS, (o, lse.T, *torch.autograd.grad(loss, leaves))))


def error(x, ref):
    return ((x.double() - ref.double()).norm() / ref.double().norm().clamp_min(1e-300)).item()


def show(label, out, ref, limit):
    e = {n: error(out[n], ref[n]) for n in OUTPUTS}
    good = all(x <= limit for x in e.values())
    print(f"{label:52s}", " ".join(f"{n} {x:.1e}" for n, x in e.items()), "" if good else "  <-- BAD", flush=True)
    return good


def check():
    good = True
    lengths = [300, 1, 129, 64, 700]
    for d, e in ((64, 64), (128, 128), (32, 96), (128, 64), (8, 24)):
        for causal, window in ((True, 0), (False, 0), (True, 100), (False, 50)):
            for heads, kv_heads in ((4, 2), (2, 2), (6, 1)):
                p = Problem(lengths, heads, kv_heads, d, e, causal, window)
                label = f"bf16 {d}x{e} heads {heads}/{kv_heads} causal {causal} window {window}"
                good &= show(label, p.call(), p.definition(), 6e-3)
    p = Problem(lengths, 4, 2, 128)
    good &= show("plain bf16", p.call(plain=True), p.definition(), 6e-3)
    p = Problem(lengths, 4, 2, 128, dtype=torch.float32)
    good &= show("plain f32", p.call(), p.definition(), 2e-5)
    for d in (64, 128):
        p = Problem(list(range(1, 200)), 1, 1, d)
        good &= show(f"lengths 1..199 D{d}, against plain", p.call(), p.call(plain=True), 6e-3)
        p = Problem([4000, 5000], 4, 1, d)
        good &= show(f"long D{d}, against plain", p.call(), p.call(plain=True), 6e-3)
        first, again = p.call(), p.call()
        same = all(torch.equal(first[n], again[n]) for n in OUTPUTS)
        print(f"same bits twice, D{d}:", same)
        good &= same
    print("check:", "PASS" if good else "FAIL")
    if not good:
        raise SystemExit(1)


def median_ms(run, repeat=20, warm=3):
    times = []
    for i in range(warm + repeat):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        run()
        b.record()
        torch.cuda.synchronize()
        if i >= warm:
            times.append(a.elapsed_time(b))
    return statistics.median(times)


def torch_times(p, backend):
    """Forward and backward of scaled_dot_product_attention on documents of one length."""
    b, t = len(p.lengths), p.lengths[0]
    q, k, v, d_o = (x.view(b, t, *x.shape[1:]).transpose(1, 2) for x in (p.q, p.k, p.v, p.d_o))
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    how = dict(is_causal=p.causal, scale=p.scale, enable_gqa=p.heads != p.kv_heads)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(backend):
        with torch.no_grad():
            forward = median_ms(lambda: sdpa(q, k, v, **how))
        o = sdpa(q, k, v, **how)
        backward = median_ms(lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True))
    return forward, backward


SHAPES = [
    (2, 16384, 16, 16, 128),
    (2, 16384, 32, 32, 64),
    (8, 4096, 16, 16, 128),
    (16, 1024, 16, 16, 128),
    (2, 16384, 16, 4, 128),
    (8, 4096, 32, 32, 64),
]


def timings():
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    for b, t, h, g, d in SHAPES:
        for causal in (True, False):
            p = Problem([t] * b, h, g, d, causal=causal, d_lse=False)
            f, back = p.times()
            unit = 4e-9 * b * h * t * t * d * (0.5 if causal else 1)  # TFLOP/s = unit / ms
            name, shape = "attention, own kernels, ", f"B{b} T{t} H{h} D{d} {'causal' if causal else 'full'}"
            shape += f", {g} key heads" if g != h else ""
            keep(name + "forward", shape, f, tflops=unit / f)
            keep(name + "backward", shape, back, tflops=2.5 * unit / back)
            print(
                f"B{b} T{t} H{h}/{g} D{d} {'causal' if causal else 'full':6s} weft {f:.3f} ms ({unit / f:.0f} TF)"
                f" bwd {back:.3f} ({2.5 * unit / back:.0f} TF) both {f + back:.3f}",
                flush=True,
            )
            for backend, kind in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
                try:
                    x, y = torch_times(p, kind)
                except RuntimeError as e:
                    print(f"    {backend}: {str(e).splitlines()[0]}")
                    continue
                peer = f"cuDNN {torch.backends.cudnn.version()}" if backend == "cudnn" else backend
                keep(name + "forward", shape, x, peer + " through torch " + torch.__version__)
                keep(name + "backward", shape, y, peer + " through torch " + torch.__version__)
                print(
                    f"    {backend} {x:.3f} ms bwd {y:.3f} both {x + y:.3f}; weft's speed is"
                    f" {x / f:.2f} / {y / back:.2f} / {(x + y) / (f + back):.2f} of it",
                    flush=True,
                )
            if causal:
                window = Problem([t] * b, h, g, d, window=1024, d_lse=False)
                f, back = window.times()
                keep(name + "forward", shape + ", window 1024", f)
                keep(name + "backward", shape + ", window 1024", back)
                print(f"    window 1024: weft {f:.3f} ms bwd {back:.3f}", flush=True)


def plain():
    """How slow the kernels for every option are."""
    for dtype in (BF16, torch.float32):
        p = Problem([4096] * 2, 8, 8, 128, dtype=dtype, d_lse=False)
        print(f"plain {dtype} B2 T4096 H8 D128 causal: forward, backward ms", *p.times(plain=True, repeat=5))


if __name__ == "__main__":
    for what in sys.argv[1:] or ["check"]:
        {"check": check, "time": timings, "plain": plain}[what]()
