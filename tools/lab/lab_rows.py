"""Rows of the lab's scripts for tools/benchmarks.py."""

import datetime
import json
import math
import subprocess
import sys

import torch

# With --json rows of bench/1 go to stdout, all else to stderr.
rows_to = None
if "--json" in sys.argv:
    sys.argv.remove("--json")
    rows_to, sys.stdout = sys.stdout, sys.stderr


def keep(name, shape, ms, peer=None, **more):
    """A row of weft's, or of a peer's, which tools/benchmarks.py lays beside it."""
    if rows_to is None or math.isnan(ms):
        return
    row = {"name": name, "shape": shape, "dtype": "bf16", "device": torch.cuda.get_device_name(), "ms": ms, **more}
    if peer:
        row["peer"] = peer
    else:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        row = {"weft": "bench/1", "exit": 0, **row, "commit": commit, "date": str(datetime.date.today())}
    print(json.dumps(row), file=rows_to, flush=True)
