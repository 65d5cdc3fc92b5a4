#!/usr/bin/env python3
"""Keeps the figures of docs/benchmarks.md and docs/benchmarks/*.md: rows in docs/benchmarks/rows.jsonl, tables and a picture made from them.

    tools/benchmarks.py add FILE...      JSON lines of `weft bench --json`, of tools/lab and of tools/peers, and run folders
                                         of `weft train`, go to rows.jsonl; rows of peers stand beside weft's of one run
    tools/benchmarks.py show FILE...     the same as a short table, nothing is kept; rows FILE...: as JSON
    tools/benchmarks.py write            these pages and docs/benchmarks/targets.svg anew
    tools/benchmarks.py check            do the pages say what the rows say? marks of age apart

A row is one of bench/1 (docs/contract.md) without what is null, and also: command; stands_on, the files whose change makes
it old; approximate, if the commit is a guess; p99_p50, peak_gib, mfu, rise where they were measured. A row whose files
changed after its commit is marked †, one whose commit is not in this clone ?. What is asked for stands in
docs/benchmarks/targets.jsonl, "must" and "stretch" of one value of the rows whose name and shape match.

In a page `<!-- rows {...} -->` begins a table of the newest row of each name, shape, type and device, whose name,
shape, device (a GPU, unless given) and dtype match the patterns given; with "pivot": "shape" or "pass" these side by side. `<!-- targets -->` begins the first table.
"""
import argparse
import glob
import json
import os

from benchmarks_page import ageless, number, page, percent, picture, rate
from benchmarks_rows import ROOT, incoming, read_lines

ROWS, TARGETS, PICTURE = (os.path.join(ROOT, "docs/benchmarks", x) for x in ("rows.jsonl", "targets.jsonl", "targets.svg"))
PAGES = sorted(glob.glob(os.path.join(ROOT, "docs/benchmarks.md")) + glob.glob(os.path.join(ROOT, "docs/benchmarks/*.md")))


def read(path):
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as f:
        return f.read()


def show(rows):
    print(f"{'row':42s} {'shape':24s} {'ms':>9s} {'rate':>12s} {'floor':>6s} {'tokens/s':>10s} {'peer ms':>9s} {'ratio':>6s}")
    for r in rows:
        floor = percent(r.get("of_floor"))
        loss = f"loss {r['loss']:.4f}  " if "loss" in r else ""
        print(f"{r['name'][:42]:42s} {r['shape'][:24]:24s} {number(r['ms'], 4):>9s} {rate(r):>12s} {floor:>6s}"
              f" {number(r.get('tokens_per_s')):>10s} {number(r.get('peer_ms'), 4):>9s}"
              f" {number(r.get('ratio')):>6s}  {loss}{r.get('note', '')}")


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
        print(f"{len(rows)} rows added; tools/benchmarks.py write brings them to the pages")
    if a.what in ("write", "check"):
        rows, targets = read_lines(ROWS), read_lines(TARGETS)
        made = {path: page(read(path), rows, targets) for path in PAGES} | {PICTURE: picture(rows, targets)}
        for path, text in made.items():
            if a.what == "write":
                with open(path, "w", encoding="utf-8") as f:
                    f.write(text)
            elif ageless(read(path)) != ageless(text):
                raise SystemExit(f"benchmarks: {os.path.relpath(path, ROOT)} is not what its rows say; tools/benchmarks.py write mends it")
        if a.what == "check":
            print("benchmarks: good")


if __name__ == "__main__":
    main()
