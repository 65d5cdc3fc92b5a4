#!/usr/bin/env python3
"""Trains in PyTorch what a run of weft trained: same initial weights, same batches, same rates; compares the curves.

    weft train recipe.yaml run=START steps=1 optim.lr=1e-30 optim.weight_decay=0 data.shuffle=false data.val=0
    weft train recipe.yaml run=RUN init=START data.shuffle=false data.val=0
    torch_parity.py RUN START TOKENS.bin [--other RUN2] [--plot docs/parity.svg]

TOKENS.bin is the one shard that data.train names (weft tokenize). The recipe is a softmax model with tied
weights, AdamW, one micro-batch a step. Prints a JSON line for each pair of curves: the largest relative
difference of smoothed loss (mean of 20 steps), of the loss over the last 100 steps, and of smoothed gradient norm.
"""

import argparse
import json
import os

import h5py
import numpy as np
import torch
import yaml
from torch_train import Model


def initial_weights(run):
    """name -> f32 array, of the run's last checkpoint, written by one rank"""
    with open(os.path.join(run, "latest")) as f:
        step = f.read().split()[0]
    with h5py.File(os.path.join(run, step, "rank-0000.h5")) as f:
        return {k.removeprefix("master."): torch.tensor(v[()]) for k, v in f.items() if k.startswith("master.")}


def torch_name(name):
    for ours, theirs in [
        ("attention.in.", "qkv."),
        ("attention.out.", "out."),
        ("attention_norm.", "norm1."),
        ("ffn_norm.", "norm2."),
        ("ffn.gate_up.", "up."),
        ("ffn.down.", "down."),
    ]:
        name = name.replace(ours, theirs)
    return "head." + name if name.startswith("norm.") else name


def metrics(run):
    with open(os.path.join(run, "metrics.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    rows = [r for r in rows if "loss" in r]
    return {k: np.array([r[k] for r in rows]) for k in ("loss", "grad_norm", "lr")}


def train(recipe, weights, tokens, rates, device):
    sizes, optim, context = recipe["model"], recipe["optim"], recipe["context"]
    layers = sum(int(part.split("*")[1]) if "*" in part else 1 for part in sizes["layers"])
    model = Model(layers, sizes["width"], sizes["heads"], sizes["ffn"], weights["embedding.weight"].shape[0], context)
    missing, unexpected = model.load_state_dict({torch_name(k): v for k, v in weights.items()}, strict=False)
    assert not unexpected and set(missing) <= {"cos", "sin"}, (missing, unexpected)
    model = model.to(device)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": optim["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        betas=(optim["beta1"], optim["beta2"]),
        eps=optim["eps"],
    )
    batch = recipe["batch_tokens"] // context
    samples = (len(tokens) - 1) // context
    bf16 = recipe["precision"] == "bf16"
    losses, norms = [], []
    for step, rate in enumerate(rates):
        at = [(step * batch + i) % samples * context for i in range(batch)]
        rows = torch.from_numpy(np.stack([tokens[a : a + context + 1] for a in at]).astype(np.int64)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optim["clip"]).detach())
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": torch.stack(losses).double().cpu().numpy(), "grad_norm": torch.stack(norms).double().cpu().numpy()}


def smoothed(x, window=20):
    window = min(window, len(x))
    return np.convolve(x, np.ones(window) / window, "valid")


def compare(name, a, b):
    def worst(key):
        x, y = smoothed(a[key]), smoothed(b[key])
        return float(np.max(np.abs(x - y) / np.abs(y)))

    last = [float(np.mean(c["loss"][-100:])) for c in (a, b)]
    print(
        json.dumps(
            {
                "name": name,
                "steps": len(a["loss"]),
                "loss": round(last[0], 5),
                "other_loss": round(last[1], 5),
                "worst_loss": round(worst("loss"), 6),
                "last_100": round(abs(last[0] - last[1]) / last[1], 6),
                "worst_grad_norm": round(worst("grad_norm"), 5),
            }
        ),
        flush=True,
    )


def plot(path, curves):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    first = next(iter(curves.values()))["loss"]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1])
    for name, c in curves.items():
        y = smoothed(c["loss"])
        top.plot(y, label=name, linewidth=1)
        bottom.plot(100 * (y / smoothed(first) - 1), label=name, linewidth=1)
    top.set_ylabel("loss, mean of 20 steps")
    bottom.set_ylabel("difference to the first, %")
    bottom.set_xlabel("step")
    top.legend()
    figure.savefig(path)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("run")
    p.add_argument("start")
    p.add_argument("tokens")
    p.add_argument("--other", help="a run of weft with the same weights and batches, f32 for example")
    p.add_argument("--plot")
    a = p.parse_args()
    with open(os.path.join(a.run, "recipe.yaml")) as f:
        recipe = yaml.safe_load(f)
    stored = np.memmap(a.tokens, np.uint16, "r", offset=1024)
    end = stored[0]  # each document stands behind an end token; here is one document
    assert not (stored[1:] == end).any(), "the shard holds more than one document"
    ours = metrics(a.run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = train(recipe, initial_weights(a.start), stored[1:], ours["lr"], device)
    curves = {"weft " + recipe["precision"]: ours, "PyTorch " + recipe["precision"]: theirs}
    compare("weft / PyTorch", ours, theirs)
    if a.other:
        other = metrics(a.other)
        curves["weft, the other run"] = other
        compare("weft / the other run", ours, other)
    if a.plot:
        plot(a.plot, curves)


if __name__ == "__main__":
    main()
