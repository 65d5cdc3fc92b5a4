"""The tables and the picture of docs/benchmarks.md and the pages behind it, made from rows and targets."""

import json
import re

from benchmarks_rows import OLD, UNKNOWN, age, newest

BESIDE_ANOTHER = {"times", "faster"}  # rows
AT_MOST = {"ms", "peak_gib", "p99_p50", "rise", "times"}  # of other values more is better


def matches(pattern, row):
    """Of GPUs, unless it says another device."""
    pattern = {"device": "NVIDIA", **pattern}
    return all(re.search(pattern[k], str(row.get(k, ""))) for k in ("name", "shape", "device", "dtype") if k in pattern)


def value_of(target, row, rows):
    """What the target is about. "times": ms beside those of the row of the shape "beside", after the work that is in both; "faster":
    how many times the ms of this row the one named "than" of the same shape takes."""
    if target["of"] not in BESIDE_ANOTHER:
        return row.get(target["of"])
    name, shape = target.get("than", row["name"]), target.get("beside", row["shape"])
    for other in rows:
        if [other[k] for k in ("name", "shape", "device")] == [name, shape, row["device"]] and other.get("dtype") == row.get("dtype"):
            return other["ms"] / row["ms"] if target["of"] == "faster" else row["ms"] / other["ms"] / target.get("work", 1)
    return None


def share(target, value, asked="must"):
    """1 where just what is asked for is reached, more where it is passed."""
    return target[asked] / max(value, 1e-9) if target["of"] in AT_MOST else value / target[asked]


def judge(target, rows):
    """(the row that decides, its value, verdict); the worst of those that match, of each name and shape the newest on any device that
    matches. A later row that lacks the value, as one without a peer lacks a ratio, takes nothing back."""
    rows = newest([r for r in rows if target["of"] in BESIDE_ANOTHER or r.get(target["of"]) is not None])
    found = [(row, value_of(target, row, rows)) for row in rows if matches(target, row)]
    last = {}
    for row, value in found:
        which = (row["name"], row["shape"], row.get("dtype"))
        if value is not None and (which not in last or row["date"] >= last[which][0]["date"]):
            last[which] = (row, value)
    if not last:
        return None, None, "not run"
    row, value = min(last.values(), key=lambda x: share(target, x[1]))
    verdict = "missed" if share(target, value) < 0.9995 else "met"
    if "stretch" in target and share(target, value, "stretch") >= 0.9995:
        verdict = "stretch"
    return row, value, verdict


UNITS = {"ms": "{:.4g} ms", "ratio": "{:.2f}x", "of_floor": "{:.0%}", "tokens_per_s": "{:,.0f}/s", "peak_gib": "{:.3g} GiB",
         "p99_p50": "{:.3f}", "mfu": "{:.0%}", "rise": "{:+.1%}", "times": "{:.2f}x", "faster": "{:.1f}x"}


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


def note_of(found):
    """The note of a line of passes: once where all passes have it."""
    said = {}
    for which, row in found.items():
        if "note" in row:
            said.setdefault(row["note"], []).append(which)
    return "; ".join(note if len(passes) == len(found) else f"{', '.join(passes)}: {note}" for note, passes in said.items())


def numbered(notes):
    """(what stands in each line for its note, lines below the table): a note of three lines or more is said once, below."""
    often = [note for note in dict.fromkeys(notes) if note and notes.count(note) > 2]
    below = "".join(f"\n({i}) {note}\n" for i, note in enumerate(often, 1))
    return [f"({often.index(note) + 1})" if note in often else note for note in notes], below


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
        ("tokens/s", lambda r: f"{r['tokens_per_s']:,.0f}" if r["name"].startswith(("train", "recipe", "decode")) else ""),
        ("loss", lambda r: f"{r['loss']:.3f}" if "loss" in r else ""),
        ("GPU-hours a billion tokens", lambda r: number(1e9 / r["tokens_per_s"] / 3600) if "loss" in r else ""),
        ("of the peak", lambda r: percent(r.get("mfu"))),
        ("GiB (peer's)", lambda r: number(r.get("peak_gib")) + (f" ({number(r['peer_peak_gib'])})" if "peer_peak_gib" in r else "")), ("peer ms", lambda r: number(r.get("peer_ms"))),
        ("ratio", lambda r: f"{r['ratio']:.2f}" if "ratio" in r else ""),
        ("asked for", lambda r: "; ".join(asked(t) for t in targets if matches(t, r) and t["of"] in r)),
    ]
    notes, below = numbered([r.get("note", "") for r in rows])
    said = {id(r): note for r, note in zip(rows, notes)}
    columns.append(("", lambda r: said[id(r)]))
    return caption(rows) + kept_columns(columns + where_and_when(rows), rows) + below


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
    peers = any("ratio" in r for r in rows)
    columns = [("ms", lambda x: x[0] + mark(x[1]))]
    columns += [(h, lambda x, h=h: cell(next((r for r in x[1] if r["shape"] == h), None), peers)) for h in heads]
    columns += [("rise", lambda x: f"{100 * x[1][0]['rise']:+.1f} %" if "rise" in x[1][0] else "")]
    # Cells of a line may be of several runs.
    columns += [(head, lambda x, get=get: ", ".join(dict.fromkeys(map(get, x[1])))) for head, get in where_and_when(rows)
                if head != "peer"]
    return kept_columns(columns, [(name, list(found.values())) for (name, _), found in lines.items()])


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
    notes, below = numbered([note_of(found) for found in lines.values()])
    said = {id(found): note for found, note in zip(lines.values(), notes)}
    columns += [("", lambda x: said[id(x[1])])]
    columns += [(head, lambda x, get=get: get(first[id(x[1])])) for head, get in where_and_when(rows) if head != "peer"]
    return kept_columns(columns, list(lines.items())) + below


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


def page(text, rows, targets):
    """This text with its tables anew."""
    latest = newest(rows)

    def block(found):
        kind, pattern = found[1], found[2].strip()
        table = targets_table(rows, targets) if kind == "targets" else rows_table(json.loads(pattern), latest, targets)
        return f"{found[0].split('-->')[0]}-->\n{table}<!-- end -->"

    return re.sub(r"<!-- (rows|targets)(.*?) -->\n.*?<!-- end -->", block, text, flags=re.S)


def ageless(text):
    return text.replace(OLD, "").replace(UNKNOWN, "")
