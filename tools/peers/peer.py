"""What the peers' scripts share: device, sizes, clocks, and rows of JSON that tools/benchmarks.py lays beside weft's."""

import json
import sys
import time

import torch

BF16 = torch.bfloat16
REPEATS, FEWEST, PATIENCE = 50, 10, 2.0
LONG, OF_LONG = 0.1, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = "--small" in sys.argv
VERSION = "torch " + torch.__version__.split("+")[0]


def say(*words):
    """For people: on stderr, at once."""
    print(*words, file=sys.stderr, flush=True)


def words():
    """The arguments without --small. On a CPU nothing but small sizes makes sense."""
    if DEVICE == "cpu" and not SMALL:
        raise SystemExit("torch sees no GPU; --small runs everything once, at a size for a CPU")
    return [w for w in sys.argv[1:] if w != "--small"]


def sized(n, unit=8):
    """n, or what `weft bench gpu --ms 0` makes of it."""
    return max(unit, n // 64 // unit * unit) if SMALL else n


def wait():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def compiled(function):
    """Of small sizes only what Dynamo does with it: generating code for a CPU says nothing."""
    return torch.compile(function, backend="eager" if SMALL else "inductor")


def noise(*shape, dtype=BF16):
    return torch.randn(*shape, device=DEVICE, dtype=dtype)


def row(name, shape, ms, peer=VERSION, **more):
    print(json.dumps({"peer": peer, "name": name, "shape": shape, "ms": ms, "dtype": "bf16"}
                     | {k: v for k, v in more.items() if v is not None}), flush=True)


def median_ms(once):
    """Of repetitions on the device's own clock, the host some calls ahead; of few where a call takes long."""
    if not SMALL:
        once()
    wait()
    start = time.perf_counter()
    once()
    wait()
    seconds = time.perf_counter() - start
    if SMALL:
        return 1e3 * seconds
    if seconds > LONG:
        repeats = OF_LONG
    else:
        repeats = max(FEWEST, min(REPEATS, int(PATIENCE / seconds)))
        for _ in range(2):
            once()
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(repeats)]
    torch.cuda._sleep(8_000_000)
    for begin, end in events:
        begin.record()
        once()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in events)[repeats // 2]


def measure(name, shape, once, note=None, peer=VERSION):
    start = time.perf_counter()
    ms = median_ms(once)
    say(f"  {name} {shape}: {ms:.3g} ms, {time.perf_counter() - start:.1f} s with what was compiled")
    row(name, shape, ms, peer, note=note)
