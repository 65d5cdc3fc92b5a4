"""What the lab's scripts share: the library's C types, poisoned outputs, errors, times."""

import ctypes
import math
import os
import statistics
import sys
import time

import torch

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../peers"))
from lab_rows import keep  # noqa: E402
from tuning import limit_tuning  # noqa: E402

library = ctypes.CDLL(
    os.environ.get("LAB_LIBRARY", os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../.lab/liblab.so"))
)
PATHS = {"automatic": 0, "plain": 1, "mma": 2, "wgmma": 3}
BF16 = torch.bfloat16


class Rows(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("pitch", ctypes.c_int64)]


def rows(x):
    return Rows(x.data_ptr(), x.stride(0))


def pointer(x):
    return None if x is None else x.data_ptr()


def poison(*shape, dtype=torch.float32):
    return torch.full(shape, float("nan"), dtype=dtype, device="cuda")


def error(x, ref):
    ref = ref.double()
    return ((x.double() - ref).norm() / ref.norm().clamp_min(1e-300)).item()


def show(label, e, limit):
    worst = max(e.values()) if not any(math.isnan(x) for x in e.values()) else math.nan
    print(
        f"{label:58s}",
        " ".join(f"{n} {x:.1e}" for n, x in e.items()),
        "" if worst <= limit else "  <-- BAD",
        flush=True,
    )
    return worst <= limit


def median_ms(run, repeat=50, warm=5):
    for _ in range(warm):
        run()
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeat)
    ]
    for a, b in marks:
        a.record()
        run()
        b.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in marks)


def print_copy_rate():
    x = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    y = torch.empty_like(x)
    rate = 2 * x.numel() / median_ms(lambda: y.copy_(x), 20) / 1e9
    print(torch.cuda.get_device_name(), f"copy {rate:.2f} TB/s", flush=True)


def beside_fla(name, shape, problem, forward, both):
    """Times fla's `forward`, and `both` passes, beside ours on the same inputs."""
    import triton

    tried = limit_tuning()
    start = time.time()
    with torch.no_grad():
        forward()
    torch.cuda.synchronize()
    error = ""
    try:
        both()
        torch.cuda.synchronize()
    except Exception as e:  # some of its backward passes refuse some versions of Triton
        error = f"  backward: {str(e).splitlines()[0][:90]}"
    tuned = time.time() - start
    if os.environ.get("LAB_SHARE"):
        return
    problem.call("automatic")
    with torch.no_grad():
        f = median_ms(forward)
    fb = math.nan if error else median_ms(both)
    our_f, our_fb = median_ms(lambda: problem.again(backward=False)), median_ms(problem.again)
    from importlib.metadata import version

    fla = "flash-linear-attention " + version("flash-linear-attention")
    for what, ours, theirs in (("forward", our_f, f), ("forward+backward", our_fb, fb)):
        keep(f"{name} {what}, kernel alone", shape, ours)
        keep(f"{name} {what}, kernel alone", shape, theirs, fla, note=tried)
    print(
        f"{name} {shape}: fla {f:.3f} / {fb:.3f} ms ({tried}, {tuned:.0f} s, Triton {triton.__version__})"
        f"  weft {our_f:.3f} / {our_fb:.3f}  ratio {f / our_f:.2f} / {fb / our_fb:.2f}{error}",
        flush=True,
    )
