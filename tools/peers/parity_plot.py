#!/usr/bin/env python3
"""Draws what torch_parity.py --curves kept: loss, and its difference to the peer's, of one or more models.

    parity_plot.py OUT.svg CURVES.npz...
"""

import sys

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from torch_parity import smoothed  # noqa: E402

EVERY = 8  # of the steps' means, for a small file


def main():
    out, files = sys.argv[1], sys.argv[2:]
    plt.rcParams.update({"svg.hashsalt": "parity", "svg.fonttype": "none"})  # equal curves, equal file; letters as letters
    figure, panels = plt.subplots(2, len(files), figsize=(3.2 * len(files), 4), sharex=True, squeeze=False)
    for (top, bottom), path in zip(panels.T, files):
        curves = np.load(path)
        losses = {k.split(":")[0]: smoothed(curves[k])[::EVERY] for k in curves.files if k.endswith(":loss")}
        steps = EVERY * np.arange(max(map(len, losses.values())))
        peer = next(name for name in losses if not name.startswith("weft"))
        for name, loss in losses.items():
            if name in ("weft", peer):
                top.plot(steps[: len(loss)], loss, label=name, linewidth=0.8)
            if name != peer:
                bottom.plot(steps[: len(loss)], 100 * (loss / losses[peer][: len(loss)] - 1), label=f"{name} to {peer}", linewidth=0.8)
        top.set_title(str(curves["mechanism"]), fontsize=9)
        for panel in (top, bottom):
            panel.legend(fontsize=7)
            panel.tick_params(labelsize=7)
        bottom.set_ylim(-1, 1)
        bottom.set_xlabel("step", fontsize=8)
    panels[0][0].set_ylabel("loss, mean of 20", fontsize=8)
    panels[1][0].set_ylabel("difference, %", fontsize=8)
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
