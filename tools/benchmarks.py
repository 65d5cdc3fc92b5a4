#!/usr/bin/env python3
"""Keeps the figures of docs/benchmarks.md: rows in docs/benchmarks/rows.jsonl, tables and a picture made from them.

    tools/benchmarks.py add FILE...      JSON lines of `weft bench --json`, of tools/lab and of tools/peers, and run folders
                                         of `weft train`, go to rows.jsonl; rows of peers stand beside weft's of one run
    tools/benchmarks.py show FILE...     the same as a short table, nothing is kept; rows FILE...: as JSON
    tools/benchmarks.py write            docs/benchmarks.md and docs/benchmarks/targets.svg anew
    tools/benchmarks.py check            does docs/benchmarks.md say what the rows say? marks of age apart

A row is one of bench/1 (docs/contract.md) without what is null, and also: command; stands_on, the files whose change makes
it old; approximate, if the commit is a guess; p99_p50, peak_gib, mfu, rise where they were measured. A row whose files
changed behind its commit is marked †, one whose commit is not in this clone ?. What is asked for stands in
docs/benchmarks/targets.jsonl, "must" and "stretch" of one value of the rows whose name and shape match.

In docs/benchmarks.md `<!-- rows {...} -->` begins a table of the newest row of each name, shape, type and device, whose name,
shape, device and dtype match the patterns given; with "pivot": "shape" or "pass" these side by side. `<!-- targets -->` begins the first table.
"""

import argparse
import datetime
import functools
import glob
import json
import os
import re
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE, ROWS, TARGETS, PICTURE = (os.path.join(ROOT, "docs", x) for x in (
    "benchmarks.md", "benchmarks/rows.jsonl", "benchmarks/targets.jsonl", "benchmarks/targets.svg"))
AT_MOST = {"ms", "peak_gib", "p99_p50", "rise", "times"}  # of other values more is better
OLD, UNKNOWN = " †", " ?"

# What a row stands on, by its name: first match. Folders count whole.
KERNELS = "attention/kernels/"
LINEAR = [KERNELS + x for x in ("sweep*", "chunk.cuh", "tile.cuh", "hopper.cuh", "linear_attention*", "segments*",
                                "gate_gradient*")]
STEP = ["autograd/cuda", "autograd/ops/*.cu", "attention/*.cu", "attention/flash_attention_cudnn.cpp", "layers", "optim",
        "training/trainer*"]
STANDS_ON = [
    (r"^(copy|product)$|dx$|dw$|^\d.* (qkv|out|gate_up|down) forward", ["autograd/cuda/product_plan.cpp", "autograd/ops/matmul_cuda.cu"]),
    (r"rms_norm", ["autograd/ops/rms_norm_cuda.cu"]),
    (r"^rotary", ["autograd/ops/rotary_cuda.cu"]),
    (r"^swiglu", ["autograd/ops/swiglu_cuda.cu"]),
    (r"^gradient norm|^adamw", ["optim/*.cu"]),
    (r"^projection", ["autograd/ops/projected_cross_entropy*", "autograd/cuda/product_plan.cpp"]),
    (r"cuDNN", ["attention/flash_attention_cudnn.cpp"]),
    (r"^(lightning|simple_gla|linear) (forward|backward)", LINEAR),
    (r"^gla (forward|backward)", [KERNELS + "channel*"]),
    (r"^gated_delta_rule (forward|backward)", [KERNELS + "delta*"]),
    (r"^ema", [KERNELS + "ema*"]),
    (r"^decode", ["autograd/cuda", "attention/*step*.cu", "autograd/ops/*.cu", "training/decoder.cpp"]),
    (r"^(train|step|start|linear op|linear block)", STEP),
]
ON_CPU = [
    (r"^gemm", ["autograd/ops/gemm_kernel*"]),
    (r"^attention|^moh", ["attention/flash_attention_cpu.cpp", "attention/moh.cpp", "autograd/ops/gemm_kernel*"]),
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


# ---- rows come in


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
    rate = statistics.median(x["tokens_per_s"] for x in steps)
    batch = int(recipe["batch_tokens"])
    row = {"weft": "bench/1", "name": "train " + name, "shape": f"T{recipe['context']}",
           "dtype": recipe.get("precision", "f32"), "device": where["device"], "ms": 1e3 * batch / rate, "tokens_per_s": rate,
           "peak_gib": max(x.get("peak_bytes") or 0 for x in steps) / 2**30, "commit": where.get("commit", ""),
           "date": where.get("start_time", str(datetime.date.today()))[:10], "command": "weft " + " ".join(w for w in words[1:] if not w.startswith("run=")),
           "note": f"{batch} tokens a step" + (", equal bits" if recipe.get("determinism") == "run" else "")}
    mfu = [x["mfu"] for x in steps if x.get("mfu")]
    if mfu:
        row["mfu"] = statistics.median(mfu)
    return row


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
        spread = re.fullmatch(r"p99/p50 ([\d.]+)", row.get("note", ""))
        if spread:
            row["p99_p50"] = float(spread[1])
        row.pop("exit", None)
        row.setdefault("stands_on", stands_on(row))
    return ours


# ---- how old a row is


@functools.cache
def git(*words):
    try:
        ran = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
    except OSError:
        return None
    return ran.stdout if ran.returncode == 0 else None


def age(row):
    """OLD if its files changed behind its commit, UNKNOWN if this clone cannot tell."""
    commit = row.get("commit") or "none"
    if git("merge-base", "--is-ancestor", commit, "HEAD") is None:
        return UNKNOWN
    changes = git("log", "--format=%h", "-1", commit + "..HEAD", "--", *row["stands_on"])
    return UNKNOWN if changes is None else OLD if changes else ""


# ---- what is asked for


def matches(pattern, row):
    return all(re.search(pattern[k], str(row.get(k, ""))) for k in ("name", "shape", "device", "dtype") if k in pattern)


def value_of(target, row, rows):
    """What the target is about; "times" is ms beside another row's, after the work that is in both."""
    if target["of"] != "times":
        return row.get(target["of"])
    for other in rows:
        same = (other["name"], other["device"], other.get("dtype")) == (row["name"], row["device"], row.get("dtype"))
        if same and other["shape"] == target["beside"]:
            return row["ms"] / other["ms"] / target.get("work", 1)
    return None


def share(target, value, asked="must"):
    """1 where just what is asked for is reached, more where it is passed."""
    return target[asked] / max(value, 1e-9) if target["of"] in AT_MOST else value / target[asked]


def judge(target, rows):
    """(the row that decides, its value, verdict); the worst of those that match, on the device asked for if it was run there."""
    found = [(row, value_of(target, row, rows)) for row in rows if matches(target, row)]
    found = [x for x in found if x[1] is not None]
    asked = [x for x in found if target.get("on", "") in x[0]["device"]]
    if not found:
        return None, None, "not run"
    row, value = min(asked or found, key=lambda x: share(target, x[1]))
    verdict = "missed" if share(target, value) < 0.9995 else "met"
    if "stretch" in target and share(target, value, "stretch") >= 0.9995:
        verdict = "stretch"
    return row, value, verdict


UNITS = {"ms": "{:.4g} ms", "ratio": "{:.2f}x", "of_floor": "{:.0%}", "tokens_per_s": "{:,.0f}/s", "peak_gib": "{:.3g} GiB",
         "p99_p50": "{:.3f}", "mfu": "{:.0%}", "rise": "{:+.1%}", "times": "{:.2f}x"}


def said(target, value):
    return UNITS[target["of"]].format(value).replace("%", " %")


def asked(target):
    both = said(target, target["must"]) + (" / " + said(target, target["stretch"]) if "stretch" in target else "")
    return ("≤ " if target["of"] in AT_MOST else "≥ ") + both


def short(device):
    return re.sub(r"NVIDIA |\d+GB HBM3e?|\(R\)|\(TM\)|CPU|@.*|\d+-Core Processor", "", device).strip() or device


def commit_of(row):
    return ("~" if row.get("approximate") else "") + row.get("commit", "")[:7]


# ---- tables


WORDS = {"", "shape", "asked for", "must / stretch", "peer", "beside", "on", "of", "type", "device", "date", "commit"}


def markdown(head, rows):
    """Columns of numbers to the right."""
    dashes = ["---" if i == 0 or h in WORDS else "---:" for i, h in enumerate(head)]
    return "\n".join("| " + " | ".join(x) + " |" for x in [head, dashes, *rows]) + "\n"


def number(x, digits=3):
    return "" if x is None else f"{x:.{digits}g}" if x < 100 else f"{x:,.0f}"


def rate(row):
    if row.get("tflops"):
        return f"{row['tflops']:.0f} TFLOP/s" if row["tflops"] > 10 else f"{1e3 * row['tflops']:.0f} GFLOP/s"
    return f"{row['tbs']:.2f} TB/s" if row.get("tbs") and "of_floor" in row else ""


def percent(x):
    return "" if x is None else f"{100 * x:.0f} %"


def kept_columns(columns, lines):
    """A table of these (head, cell of a line), less those that are empty in every line."""
    cells = [[get(x) for _, get in columns] for x in lines]
    kept = [i for i in range(len(columns)) if any(line[i] for line in cells)]
    return markdown([columns[i][0] for i in kept], [[line[i] for i in kept] for line in cells])


def where_and_when(rows):
    """Columns of what the caption does not say for all."""
    return [(head, get) for head, get in [
        ("peer", lambda r: r.get("peer", "")), ("type", lambda r: r.get("dtype", "")), ("device", lambda r: short(r["device"])),
        ("date", lambda r: r["date"]), ("commit", commit_of)] if len({get(r) for r in rows} - {""}) > 1]


def rows_table(pattern, rows, targets):
    rows = [r for r in rows if matches(pattern, r)]
    if not rows:
        return "No row.\n"
    if pattern.get("pivot") == "shape":
        return caption(rows) + by_shape(rows)
    if pattern.get("pivot") == "pass":
        return caption(rows) + by_pass(rows)
    columns = [
        ("row", lambda r: r["name"] + age(r)), ("shape", lambda r: r["shape"]), ("ms", lambda r: number(r["ms"])),
        ("rate", rate), ("of the floor", lambda r: percent(r.get("of_floor"))),
        ("tokens/s", lambda r: f"{r['tokens_per_s']:,.0f}" if r["name"].startswith(("train", "decode")) else ""),
        ("GiB (peer's)", lambda r: number(r.get("peak_gib")) + (f" ({number(r['peer_peak_gib'])})" if "peer_peak_gib" in r else "")), ("peer ms", lambda r: number(r.get("peer_ms"))),
        ("ratio", lambda r: f"{r['ratio']:.2f}" if "ratio" in r else ""),
        ("asked for", lambda r: "; ".join(asked(t) for t in targets if matches(t, r) and t["of"] in r)),
        ("", lambda r: r.get("note", "")),
    ]
    return caption(rows) + kept_columns(columns + where_and_when(rows), rows)


def caption(rows):
    """What all rows share."""
    parts = []
    for get in (lambda r: short(r["device"]), lambda r: r.get("dtype", ""), lambda r: r["date"],
                lambda r: "commit " + commit_of(r), lambda r: "beside " + r["peer"] if r.get("peer") else ""):
        values = {get(r) for r in rows} - {""}
        if len(values) == 1:
            parts.append(values.pop())
    commands = list(dict.fromkeys(r["command"] for r in rows if r.get("command")))
    said = ([", ".join(parts)] if parts else []) + [f"`{c}`" for c in commands[:2]] + (["..."] if len(commands) > 2 else [])
    return "; ".join(said) + "\n\n"


def cell(row, peers):
    """Milliseconds, in brackets the peer's ratio or, of a table without peers, the share of the floor."""
    if row is None:
        return ""
    beside = f"{row['ratio']:.2f}x" if "ratio" in row else "" if peers else percent(row.get("of_floor"))
    return number(row["ms"]) + (f" ({beside})" if beside else "")


def mark(rows):
    marks = {age(r) for r in rows} - {""}
    return min(marks) if marks else ""


def by_shape(rows):
    """A line a name, a column a shape."""
    heads = list(dict.fromkeys(r["shape"] for r in rows))
    lines = {}
    for r in rows:
        lines.setdefault((r["name"], r["device"]), {})[r["shape"]] = r
    several = len({r["device"] for r in rows}) > 1
    peers = any("ratio" in r for r in rows)
    out = []
    for (label, device), found in lines.items():
        label += (", " + short(device) if several else "") + mark(found.values())
        rise = next(iter(found.values())).get("rise")
        out.append([label] + [cell(found.get(h), peers) for h in heads] + ([] if rise is None else [f"{100 * rise:+.1f} %"]))
    return markdown(["ms"] + heads + (["rise"] if len(out[0]) > len(heads) + 1 else []), out)


def by_pass(rows):
    """A line a name without its pass and a shape, a column a pass."""
    passes, lines = [], {}
    for r in rows:
        name, which, rest = re.fullmatch(r"(.*?),? (forward\+backward|forward|backward|dx|dw)(.*)", r["name"]).groups()
        lines.setdefault((name + rest, r["shape"], r.get("dtype"), r["device"], r["date"], commit_of(r)), {})[which] = r
        if which not in passes:
            passes.append(which)
    peers = any("ratio" in r for r in rows)
    first = {id(found): next(iter(found.values())) for found in lines.values()}
    columns = [("ms", lambda x: x[0][0] + mark(x[1].values())), ("shape", lambda x: x[0][1])]
    columns += [(p, lambda x, p=p: cell(x[1].get(p), peers)) for p in passes]
    columns += [("", lambda x: "; ".join(dict.fromkeys(f"{w}: {r['note']}" for w, r in x[1].items() if "note" in r)))]
    columns += [(head, lambda x, get=get: get(first[id(x[1])])) for head, get in where_and_when(rows) if head != "peer"]
    return kept_columns(columns, list(lines.items()))


def targets_table(rows, targets):
    out, group = [], None
    for t in targets:
        row, value, verdict = judge(t, rows)
        if t["group"] != group:
            group = t["group"]
            out.append([f"**{group}**", "", "", "", "", "", ""])
        word = {"met": "met", "stretch": "**stretch met**", "missed": "**missed**", "not run": "not run"}[verdict]
        if row is None:
            out.append([t["says"], asked(t), "", word, "", "", ""])
            continue
        if t.get("on", "") not in row["device"]:
            word += f", on {short(row['device'])}"
        peer = f"{row['peer']}, {row['ratio']:.2f}x" if "ratio" in row else ""
        out.append([t["says"] + age(row), asked(t), said(t, value), word, peer, short(row["device"]),
                    f"{row['date']}, {commit_of(row)}"])
    return markdown(["", "must / stretch", "reached", "", "beside", "on", "of"], out)


# ---- the picture

INK = {"stretch": "#0b7a75", "met": "#3aa99f", "missed": "#d1603d"}


def picture(rows, targets):
    """A bar a target: what is reached as a share of the must; a tick where the stretch begins."""
    judged = [(t, *judge(t, rows)) for t in targets]
    judged = [x for x in judged if x[3] != "not run"]
    left, unit, line, most = 330, 220, 19, 2.2
    y, group, body = 34, None, []

    def text(x, y, words, more=""):
        words = words.replace("&", "&amp;").replace("<", "&lt;")
        body.append(f'<text x="{x:.1f}" y="{y}" {more}>{words}</text>')

    for t, row, value, verdict in judged:
        if t["group"] != group:
            group = t["group"]
            y += 8
            text(8, y + 13, group, 'font-weight="bold"')
            y += line
        reached = min(share(t, value), most)
        foreign = t.get("on", "") not in row["device"]
        text(left - 8, y + 13, t["says"], 'text-anchor="end"')
        body.append(f'<rect x="{left}" y="{y + 3}" width="{unit * reached:.1f}" height="13" rx="2" fill="{INK[verdict]}"'
                    + (' opacity="0.55"' if foreign else "") + "/>")
        if "stretch" in t:
            at = left + unit * min(share(t, t["stretch"]), most)
            body.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y + 1}" y2="{y + 18}" stroke="#333" stroke-width="2"/>')
        label = said(t, value) + (f" ({short(row['device'])})" if foreign else "")
        end = max(reached, min(share(t, t["stretch"]), most)) if "stretch" in t else reached
        text(left + unit * end + 6, y + 13, ("" if share(t, value) < most else "→ ") + label,
             'stroke="#fff" stroke-width="4" paint-order="stroke"')
        y += line
    width, height = left + unit * most + 130, y + 14
    must = left + unit
    head = "Reached, as a share of what is asked for (dashed); tick: the stretch; pale: asked of an H100, run on another card"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="20" font-size="13">{head}</text>',
        f'<line x1="{must}" x2="{must}" y1="30" y2="{height - 8}" stroke="#222" stroke-dasharray="4 3"/>',
        *body, "</svg>", ""])


# ---- the page


def page(text):
    rows, targets = newest(read_lines(ROWS)), read_lines(TARGETS)

    def block(found):
        kind, pattern = found[1], found[2].strip()
        table = targets_table(rows, targets) if kind == "targets" else rows_table(json.loads(pattern), rows, targets)
        return f"{found[0].split('-->')[0]}-->\n{table}<!-- end -->"

    return re.sub(r"<!-- (rows|targets)(.*?) -->\n.*?<!-- end -->", block, text, flags=re.S), picture(rows, targets)


def ageless(text):
    return text.replace(OLD, "").replace(UNKNOWN, "")


def read(path):
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as f:
        return f.read()


def show(rows):
    print(f"{'row':42s} {'shape':24s} {'ms':>9s} {'rate':>12s} {'floor':>6s} {'tokens/s':>10s} {'peer ms':>9s} {'ratio':>6s}")
    for r in rows:
        floor = percent(r.get("of_floor"))
        print(f"{r['name'][:42]:42s} {r['shape'][:24]:24s} {number(r['ms'], 4):>9s} {rate(r):>12s} {floor:>6s}"
              f" {number(r.get('tokens_per_s')):>10s} {number(r.get('peer_ms'), 4):>9s}"
              f" {number(r.get('ratio')):>6s}  {r.get('note', '')}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["add", "show", "rows", "write", "check"])
    p.add_argument("files", nargs="*")
    p.add_argument("--command", help="of add: what printed the rows that do not say it")
    a = p.parse_args()
    paths = [x for f in a.files for x in sorted(glob.glob(f)) or [f]]
    if a.what == "show":
        show(incoming(paths))
    if a.what == "rows":
        for row in incoming(paths):
            print(json.dumps(row, ensure_ascii=False))
    if a.what == "add":
        rows = incoming(paths)
        for row in rows:
            row["command"] = row["command"] or a.command or ""
            if not row.get("commit"):
                raise SystemExit(f"{row['name']} {row['shape']} names no commit")
        with open(ROWS, "a", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{len(rows)} rows added; tools/benchmarks.py write brings them to docs/benchmarks.md")
    if a.what in ("write", "check"):
        before = read(PAGE)
        after, drawn = page(before)
        if a.what == "write":
            for path, text in ((PAGE, after), (PICTURE, drawn)):
                with open(path, "w", encoding="utf-8") as f:
                    f.write(text)
        elif ageless(before) != ageless(after) or read(PICTURE) != drawn:
            raise SystemExit("benchmarks: docs/benchmarks.md is not what its rows say; tools/benchmarks.py write mends it")
        else:
            print("benchmarks: good")


if __name__ == "__main__":
    main()
