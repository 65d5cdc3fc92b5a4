"""Times both passes whole and in segments of many lengths: what choose_cut (attention/kernels/segments.h) costs beside the best.

    python3 tools/lab/segments.py [fit | fresh] [--seconds 45] >lengths.jsonl
    python3 tools/lab/segments.py bits [--seconds 45]     nothing is timed: have equal calls equal bits, at every length?

Needs torch and a GPU. A line for each shape; regret, the time of the length chosen over the least of all, goes to
stderr, as does a comparison of all results with those of whole documents. Fitted were the shapes of `fit`.
"""

import ctypes
import json
import math
import random
import statistics
import sys
import time

import torch
from linear_attention import Arguments, Problem, error, library

library.cut_length.restype = ctypes.c_int64
GATES = ("none", "fixed", "gated", "gated hundreds", "channels", "channels hundreds")


def fit_shapes():
    for gate in GATES:
        for d in (64, 128) if gate.startswith("channels") else (64, 128, 256):
            for i, heads in enumerate((1, 4, 8, 16, 32, 64, 128)):
                for j, tokens in enumerate((2048, 4096, 8192, 16384, 32768, 65536, 131072)):
                    # Half of the grid; a gate with another memory has the other half.
                    if tokens * heads * d > 2**27 or (i + j) % 2 != (GATES.index(gate) % 2):
                        continue
                    documents = {16: 2, 32: 2, 64: 4, 128: 8}.get(heads, 1) if (i + j) % 4 < 2 else 1
                    yield gate, [tokens] * documents, heads // documents, d, d
    for gate in ("fixed", "gated hundreds", "channels hundreds"):
        for heads, tokens in ((4, 16384), (4, 65536), (8, 32768), (16, 8192)):
            yield gate, [tokens * 5 // 8, tokens // 4, tokens // 8], heads, 128, 128
        yield gate, [16384], 8, 64, 128
        yield gate, [16384], 8, 128, 64
    yield "fixed", [16384], 16, 256, 128


def fresh_shapes():
    for gate in ("fixed", "gated hundreds", "channels hundreds"):
        for d in (64, 128) if gate.startswith("channels") else (64, 128, 256):
            for documents, heads, tokens in (
                (1, 2, 5000), (1, 6, 131072), (1, 12, 32768), (1, 12, 10000), (1, 20, 24576), (3, 8, 12000),
                (6, 4, 6144), (2, 24, 8192), (3, 16, 3000), (5, 16, 4096), (1, 40, 16384), (4, 24, 4096),
                (1, 2, 700), (1, 8, 1000), (1, 32, 1536), (1, 1, 24000), (1, 3, 49152), (7, 16, 12288), (10, 16, 5000),
            ):  # fmt: skip
                if documents * heads * tokens * d <= 2**27:
                    yield gate, [tokens] * documents, heads, d, d
        yield gate, [30001, 9000, 700], 6, 128, 128
        yield gate, [50000, 3000, 3000, 3000], 8, 128, 128
        yield gate, [40000, 40000], 10, 64, 128


def lengths_of(tokens, units):
    """Of segments: whole, powers of two of them and those between, and as many as fill 132 multiprocessors."""
    pieces = {round(2 ** (i / 2)) for i in range(2, 17)}
    pieces |= {132 * waves * places // (units * blocks) for waves in (1, 2) for places in (1, 2) for blocks in (1, 2, 3)}
    lengths = {64 * math.ceil(tokens / (64 * n)) for n in pieces if n > 1}
    # Blocks at most two orders beyond what runs at once.
    return sorted(x for x in lengths if x >= 128 and tokens / x * units < 1600)


def time_shape(gate, documents, heads, d_k, d_v, repeat=5):
    """The length chosen, and for each length the milliseconds of forward and of both passes."""
    equal = len(set(documents)) == 1
    p = Problem(documents, heads, d_k, d_v, gate, states=False, equal=equal)
    chosen = library.cut_length(ctypes.byref(p.arguments("automatic")))
    lengths = [0, *lengths_of(max(documents), len(documents) * heads)]
    if chosen not in lengths:
        lengths.append(chosen)
    p.segment = min((x for x in lengths if x), default=0)
    p.call("automatic")  # with room for all others
    calls, results, flaws = [], [], []
    for length in lengths:
        a = Arguments.from_buffer_copy(p.prepared)
        a.segment, a.final_state, a.d_initial_state = length, None, None  # as in training
        calls.append(a)
    flush = torch.empty(1 << 27, dtype=torch.int8, device="cuda")
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    marks = [[[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in calls] for _ in range(repeat)]
    compared = p.tokens * heads * max(d_k, d_v) <= 2**23
    outputs = [p.outputs[n] for n in ("o", "dq", "dk", "dv", "dg") if n in p.outputs]
    for turn in range(-1, repeat):
        torch.cuda._sleep(300_000 * len(calls))  # the host gets ahead
        for i, a in enumerate(calls):
            flush.zero_()
            events = marks[turn][i]
            events[0].record()
            if library.forward(ctypes.byref(a), stream):
                raise SystemExit("forward refused")
            events[1].record()
            if library.backward(ctypes.byref(a), stream):
                raise SystemExit("backward refused")
            events[2].record()
            if turn < 0 and compared:
                if i == 0:
                    results = [x.clone() for x in outputs]
                else:
                    flaws.append(max(error(x, y) for x, y in zip(outputs, results)))
                for x in outputs:
                    x.fill_(math.nan)
    torch.cuda.synchronize()
    times = [
        [length, *(statistics.median(marks[t][i][0].elapsed_time(marks[t][i][e]) for t in range(repeat)) for e in (1, 2))]
        for i, length in enumerate(lengths)
    ]
    return chosen, times, max(flaws, default=0)


def compare_bits(gate, tokens, heads, d, deadline, turns=12):
    """Every length again and again, with final states and without: outputs that change, and those far from f32."""
    p = Problem([tokens], heads, d, d, gate, states=False, equal=True)
    reference = {n: x.clone() for n, x in p.f32().call("plain").items()}
    lengths = [0, *lengths_of(tokens, heads)]
    p.segment = min(x for x in lengths if x)
    p.call("automatic")  # with room for all others
    outputs = {n: p.outputs[n] for n in ("o", "dq", "dk", "dv", "dg") if n in p.outputs}
    stream, first, bad = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream), {}, 0
    for turn in range(turns):
        for length in lengths:
            for ends in (True, False):
                if time.time() > deadline:
                    print(f"{gate} {tokens} H{heads} D{d}: no time after {turn} turns", file=sys.stderr)
                    return bad
                a = Arguments.from_buffer_copy(p.prepared)
                a.segment = length
                if not ends:
                    a.final_state, a.d_initial_state = None, None
                for x in outputs.values():
                    x.fill_(math.nan)
                if library.forward(ctypes.byref(a), stream) or library.backward(ctypes.byref(a), stream):
                    raise SystemExit("refused")
                for n, x in outputs.items():
                    where = f"{gate} {tokens} H{heads} D{d} in {length}, {'with' if ends else 'without'} final states: {n}"
                    if turn == 0:
                        first[length, ends, n], off = x.clone(), error(x, reference[n])
                        if not off <= 5e-3:
                            rows = (x.double() - reference[n].double()).abs().flatten(1).amax(1).topk(6).indices
                            print(f"OFF {where} {off:.1e}, most at tokens {rows.tolist()}", file=sys.stderr)
                            bad += 1
                    elif not torch.equal(x, first[length, ends, n]):
                        rows = (x != first[length, ends, n]).flatten(1).any(1).nonzero().flatten().tolist()
                        print(f"MOVED {where}, turn {turn}: {len(rows)} tokens from {rows[0]} to {rows[-1]}", file=sys.stderr)
                        bad += 1
    print(f"{gate} {tokens} H{heads} D{d}: {len(lengths)} lengths, {turns} turns, {bad} outputs moved or off", file=sys.stderr)
    return bad


def bits(deadline):
    wide = (("gated", 32768, 1, 256), ("gated", 16384, 1, 256), ("gated hundreds", 16384, 2, 256), ("fixed", 32768, 1, 256))
    raise SystemExit(sum([compare_bits(*x, deadline) for x in (*wide, ("gated", 16384, 2, 128))]) > 0)


def main():
    begin, seconds = time.time(), float(sys.argv[sys.argv.index("--seconds") + 1]) if "--seconds" in sys.argv else 45
    if "bits" in sys.argv:
        bits(begin + seconds)
    shapes = list(fresh_shapes() if "fresh" in sys.argv else fit_shapes())
    random.Random(1).shuffle(shapes)  # what there is no time for is of all kinds
    regrets, worst_flaw = {}, 0
    for n, (gate, documents, heads, d_k, d_v) in enumerate(shapes):
        if time.time() - begin > seconds:
            print(f"no time for {len(shapes) - n} of {len(shapes)} shapes", file=sys.stderr)
            break
        chosen, times, flaw = time_shape(gate, documents, heads, d_k, d_v)
        worst_flaw = max(worst_flaw, flaw)
        least = min(times, key=lambda t: t[2])
        own = next(t for t in times if t[0] == chosen)
        regret = own[2] / least[2] - 1
        row = dict(gate=gate, documents=documents, heads=heads, d_k=d_k, d_v=d_v, chosen=chosen, regret=regret)
        print(json.dumps(dict(row, times=[[x[0], round(x[1], 5), round(x[2], 5)] for x in times])), flush=True)
        regrets.setdefault((gate, d_k), []).append((regret, documents, heads, chosen, least[0]))
        if math.isnan(flaw) or flaw > 1e-2:
            print(f"BAD: {gate} {documents} H{heads} D{d_k}x{d_v}, cut beside whole: {flaw:.1e}", file=sys.stderr)
    for (gate, d), rows in sorted(regrets.items()):
        worst = max(rows)
        print(
            f"{gate:17s} D{d:<4d}{len(rows):3d} shapes, regret mean {statistics.mean(r[0] for r in rows):6.1%} worst {worst[0]:6.1%}:"
            f" {len(worst[1])} of {max(worst[1])}, H{worst[2]}, in {worst[3]} instead of {worst[4]}",
            file=sys.stderr,
        )
    every = [r[0] for rows in regrets.values() for r in rows]
    print(f"all: {len(every)} shapes, mean {statistics.mean(every):.1%} worst {max(every):.1%}", file=sys.stderr)
    print(f"cut beside whole: at most {worst_flaw:.1e}; {time.time() - begin:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
