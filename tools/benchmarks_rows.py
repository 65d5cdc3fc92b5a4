"""Rows of docs/benchmarks/rows.jsonl: how they come in, what they stand on, how old they are."""

import datetime
import functools
import json
import math
import os
import re
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLD, UNKNOWN = " †", " ?"
BESIDE_THE_POINT = ("run=", "steps=100000", "log.every=", "eval.every=", "checkpoint.every=", "data.val=", "data.train=/", "data.train=build/")
CODE = r"^[[:space:]]*([^/[:space:]]|/[^/])"  # a line that is not all comment
LAST_STEPS = 4  # a run's loss is the mean of so many

# What a row stands on, by its name: first match. Folders count whole.
KERNELS = "attention/kernels/"
LINEAR = [KERNELS + x for x in ("sweep*", "chunk.cuh", "tile.cuh", "hopper.cuh", "linear_attention*", "segments*",
                                "gate_gradient*")]
STEP = ["autograd/cuda", "autograd/ops/*.cu", "attention/*.cu", "attention/flash_attention_cudnn.cpp", "layers", "optim",
        "training/trainer*"]
STANDS_ON = [
    (r"^(copy|product)$|dx$|dw$|^\d.* (qkv|out|gate_up|down) forward", ["autograd/cuda/product_plan.cpp", "autograd/ops/matmul_cuda.cu"]),
    (r"rms_norm", ["autograd/ops/rms_norm_cuda.cu", "autograd/cuda/rows*.cuh"]),
    (r"^rotary", ["autograd/ops/rotary_cuda.cu"]),
    (r"^swiglu", ["autograd/ops/swiglu_cuda.cu"]),
    (r"^gradient norm|^adamw", ["optim/*.cu"]),
    (r"^projection", ["autograd/ops/projected_cross_entropy*", "autograd/cuda/product_plan.cpp"]),
    (r"cuDNN", ["attention/flash_attention_cudnn.cpp"]),
    (r"^(lightning|simple_gla|linear) (forward|backward)", LINEAR),
    (r"^gla (forward|backward)", [KERNELS + "channel*"]),
    (r"^gated_delta_rule (forward|backward)", [KERNELS + "delta*"]),
    (r"^ema", [KERNELS + "ema*", "attention/ema_*"]),
    (r"^decode", ["autograd/cuda", "attention/*step*.cu", "autograd/ops/*.cu", "training/decoder.cpp"]),
    (r"^(train|recipe|step|start|floors|linear op|linear block)", STEP),
]
ON_CPU = [
    (r"^gemm", ["autograd/ops/gemm_kernel*"]),
    (r"^attention|^moh", ["attention/flash_attention_cpu.cpp", "attention/softmax_tile*", "attention/moh.cpp",
                          "autograd/ops/gemm_kernel*"]),
    (r"^step", ["autograd/ops/*_cpu.cpp", "attention/*_cpu.cpp", "layers", "optim/*.cpp"]),
    (r"", ["attention/*.cpp", "autograd/ops/*_cpu.cpp"]),
]


def stands_on(row):
    for pattern, files in [(r"^attention", ["attention/flash_attention*.cu*"]), *STANDS_ON] if on_gpu(row) else ON_CPU:
        if re.search(pattern, row["name"]):
            return files
    return ["autograd", "attention", "layers", "optim"]


def on_gpu(row):
    return "NVIDIA" in row["device"]


def key(row):
    return row["name"], row["shape"], row.get("dtype"), row["device"]


def read_lines(path):
    """Objects of the lines that hold one."""
    rows = []
    with sys.stdin if path == "-" else open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows


def newest(rows):
    """The last row of each key, in the order in which the keys came first."""
    last = {}
    for row in rows:
        if key(row) not in last or row["date"] >= last[key(row)]["date"]:
            last[key(row)] = row
    return list(last.values())


def row_of_run(folder):
    """Rate and memory of a training run: the median of its last steps, two at the start left out where there are more."""
    with open(os.path.join(folder, "environment.json"), encoding="utf-8") as f:
        where = json.load(f)
    steps = [x for x in read_lines(os.path.join(folder, "metrics.jsonl")) if x.get("tokens_per_s")]
    with open(os.path.join(folder, "recipe.yaml"), encoding="utf-8") as f:
        recipe = dict(re.findall(r"^(\w+): *([^#\s]+)", f.read(), re.M))
    if not steps:
        raise SystemExit(f"{folder} logged no step")
    steps = steps[2:] or steps[-1:]
    words = where["command_line"]
    name = next((w for w in words if w.endswith(".yaml")), recipe.get("name", folder))
    name = name.removeprefix("recipes/").removesuffix(".yaml")
    layers = next((re.fullmatch(r"model\.layers=\[(\w+)\*(\d+)\]", w) for w in words if w.startswith("model.layers=")), None)
    name = f"{layers[1]}, {layers[2]} layers" if layers else name  # not the recipe's model any more
    name += ", equal bits" if "determinism=run" in words else ""
    name += ", checkpointing" if "model.checkpointing=block" in words else ""
    rate = statistics.median(x["tokens_per_s"] for x in steps)
    batch = int(recipe["batch_tokens"])
    row = {"weft": "bench/1", "name": "train " + name, "shape": f"T{recipe['context']}",
           "dtype": recipe.get("precision", "f32"), "device": where["device"], "ms": 1e3 * batch / rate, "tokens_per_s": rate,
           "peak_gib": max(x.get("peak_bytes") or 0 for x in steps) / 2**30, "commit": where.get("commit", ""),
           "date": where.get("start_time", str(datetime.date.today()))[:10], "command": "weft " + " ".join(w for w in words[1:] if not w.startswith(BESIDE_THE_POINT)),
           "note": f"{batch} tokens a step"}
    logged = [x for x in read_lines(os.path.join(folder, "metrics.jsonl")) if x.get("loss")]
    if logged and str(logged[-1].get("step")) == recipe.get("steps"):  # those cut short are for their rate
        row["name"] = "recipe " + name
        row["loss"] = statistics.mean(x["loss"] for x in logged[-LAST_STEPS:])
        row["note"] += f", {logged[-1]['tokens'] / 1e6:.1f} million in all"
    mfu = [x["mfu"] for x in steps if x.get("mfu")]
    if mfu:
        row["mfu"] = statistics.median(mfu)
    return row


def add_floors(rows):
    """of_floor of training rows, where `weft bench gpu floors` told in the same run what a step takes at least."""
    floors = {(r["name"].removeprefix("floors "), r["shape"]): r for r in rows if r["name"].startswith("floors ")}
    for row in rows:
        floor = floors.get((row["name"].removeprefix("train ").removesuffix(", equal bits"), row["shape"]))
        if row["name"].startswith("train ") and floor:
            row["of_floor"] = row["tokens_per_s"] / floor["tokens_per_s"]
            row["floor_ms"] = row["ms"] * row["of_floor"]


def add_rises(rows):
    """By how much the time a token climbs from the shortest to the longest context, by a line fitted over their logarithms."""
    lines = {}
    for row in rows:
        if row["name"].startswith("train ") and row["name"].endswith(", checkpointing"):
            lines.setdefault(row["name"], {})[int(row["shape"][1:])] = row
    for found in lines.values():
        if len(found) < 3:
            continue
        x = [math.log2(t) for t in sorted(found)]
        y = [1 / found[t]["tokens_per_s"] for t in sorted(found)]
        slope, first = statistics.linear_regression(x, y)
        for row in found.values():
            row["rise"] = slope * (x[-1] - x[0]) / (first + slope * x[0])


def incoming(paths):
    """Rows of weft in these files and folders, beside the fastest peer of the same name and shape."""
    ours, peers = [], {}
    for path in paths:
        command = ""
        for row in [row_of_run(path)] if os.path.isdir(path) else read_lines(path):
            command = row["command"] if "ms" not in row and "command" in row else command  # of the rows that follow
            if row.get("weft") == "bench/1" and row.get("ms"):
                ours.append({"command": command, **{k: v for k, v in row.items() if v not in (None, "")}})
            elif row.get("peer") and row.get("ms"):
                peers[row["name"], row["shape"], row["peer"]] = row  # the last of each says what the others did
    commits = {row["commit"] for row in ours if row.get("commit")}
    for row in ours:
        for (name, shape, _), peer in peers.items():
            ms = peer["ms"]
            if peer.get("tokens_per_s") and row.get("tokens_per_s"):  # steps of another size
                ms = row["ms"] * row["tokens_per_s"] / peer["tokens_per_s"]
            if (name, shape) == (row["name"], row["shape"]) and ms < row.get("peer_ms", float("inf")):
                row["peer"], row["peer_ms"] = peer["peer"], ms
                row.update({"peer_" + k: peer[k] for k in ("peak_gib", "note") if peer.get(k)})
        if len(commits) == 1:
            row.setdefault("commit", *commits)  # a script that knows none ran beside a program that does
        if "peer_ms" in row:
            row["ratio"] = row["peer_ms"] / row["ms"]
        spread = re.match(r"p99/p50 ([\d.]+)", row.get("note", ""))
        if spread:
            row["p99_p50"] = float(spread[1])
        row.pop("exit", None)
        row.setdefault("stands_on", stands_on(row))
    add_floors(ours)
    add_rises(ours)
    return ours


@functools.cache
def git(*words):
    try:
        ran = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    except OSError:
        return None
    return ran.stdout if ran.returncode == 0 else None


def age(row):
    """OLD if code of its files changed after its commit, UNKNOWN if this clone cannot tell."""
    commit = row.get("commit") or "none"
    if git("merge-base", "--is-ancestor", commit, "HEAD") is None:
        return UNKNOWN
    changes = git("log", "--format=%h", "-1", "-G", CODE, commit + "..HEAD", "--", *row["stands_on"], ":!*.md")
    return UNKNOWN if changes is None else OLD if changes else ""
