#!/usr/bin/env python3
"""Trains in PyTorch what a run of weft trained: same initial weights, same batches, same rates; compares the curves.

    weft train recipe.yaml run=START steps=1 optim.lr=1e-30 optim.weight_decay=0 data.shuffle=false data.val=0
    weft train recipe.yaml run=RUN init=START data.shuffle=false data.val=0 log.every=1
    torch_parity.py RUN START TOKENS.bin [--fla] [--compile] [--again] [--other RUN2] [--curves CURVES.npz]

TOKENS.bin is the one shard that data.train names (weft tokenize), one document: parity_text.py makes such a text. The recipe is a
model of softmax, gla or gated_delta_rule layers, tied weights, AdamW, one micro-batch a step. --fla: recurrences by
flash-linear-attention, else token by token by their definition (tiny sizes, where agreement is to six digits in f32). --again: PyTorch
a second time, with the sequences of each batch in the opposite order, which is the same function summed in another order: how far
rounding alone leads. Prints a JSON line for each pair of curves: the largest relative difference of smoothed loss (mean of 20 steps), of the
loss of single steps, of the loss over the last 100 steps, and of the gradient norm's mean and median of 20 steps. parity_plot.py draws the curves.
"""

import argparse
import json
import os

import h5py
import numpy as np
import torch
import yaml
from recurrent_blocks import block_of
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
        ("attention.gate.", "gates."),
        ("attention.out_norm.", "out_norm."),
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


def layers_of(recipe):
    """[gla*12] -> (gla, 12)"""
    names = [part.split("*") for part in recipe["model"]["layers"]]
    kinds = {n[0] for n in names}
    assert len(kinds) == 1, "layers of one kind only"
    return kinds.pop(), sum(int(n[1]) if len(n) > 1 else 1 for n in names)


def made_model(recipe, weights, fla, fast, device):
    mechanism, layers = layers_of(recipe)
    sizes = recipe["model"]
    vocab = weights["embedding.weight"].shape[0]
    model = Model(layers, sizes["width"], sizes["heads"], sizes["ffn"], vocab, recipe["context"], block_of(mechanism, fla))
    missing, unexpected = model.load_state_dict({torch_name(k): v for k, v in weights.items()}, strict=False)
    assert not unexpected and set(missing) <= {"cos", "sin"}, (missing, unexpected)
    for part in model.modules():
        if isinstance(part, torch.nn.RMSNorm):
            part.eps = sizes["norm_eps"]
    model = model.to(device)
    return model.compile_by_layer("inductor") if fast else model


def train(recipe, model, tokens, rates, device, backwards=False):
    optim, context = recipe["optim"], recipe["context"]
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
        rows = np.stack([tokens[a : a + context + 1] for a in (reversed(at) if backwards else at)])
        rows = torch.from_numpy(rows.astype(np.int64)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optim["clip"]).detach())
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {"loss": torch.stack(losses).double().cpu().numpy(), "grad_norm": torch.stack(norms).double().cpu().numpy()}


def smoothed(x, window=20, of=np.mean):
    return of(np.lib.stride_tricks.sliding_window_view(x, min(window, len(x))), axis=-1)


def compare(name, a, b):
    """Of the steps that both have."""
    steps = min(len(a["loss"]), len(b["loss"]))
    a, b = ({key: c[key][:steps] for key in ("loss", "grad_norm")} for c in (a, b))

    def worst(key, window, of=np.mean):
        x, y = smoothed(a[key], window, of), smoothed(b[key], window, of)
        return round(float(np.max(np.abs(x - y) / np.abs(y))), 6)

    last = [float(np.mean(c["loss"][-100:])) for c in (a, b)]
    row = {
        "name": name,
        "steps": steps,
        "loss": round(last[0], 5),
        "other_loss": round(last[1], 5),
        "worst_loss": worst("loss", 20),
        "worst_step": worst("loss", 1),
        "last_100": round(abs(last[0] - last[1]) / last[1], 6),
        "worst_grad_norm": worst("grad_norm", 20),
        "median_grad_norm": worst("grad_norm", 20, np.median),
        "largest_grad_norm": [round(float(c["grad_norm"].max()), 3) for c in (a, b)],
    }
    print(json.dumps(row), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run")
    p.add_argument("start")
    p.add_argument("tokens")
    p.add_argument("--fla", action="store_true")
    p.add_argument("--compile", action="store_true", help="a layer at a time")
    p.add_argument("--again", type=int, nargs="?", const=10**9, metavar="STEPS", help="all steps, or the first so many")
    p.add_argument("--other", help="a run of weft with the same weights and batches, f32 for example")
    p.add_argument("--steps", type=int, help="only the first so many")
    p.add_argument("--curves", help="a file for loss and gradient norm of all")
    a = p.parse_args()
    with open(os.path.join(a.run, "recipe.yaml")) as f:
        recipe = yaml.safe_load(f)
    stored = np.memmap(a.tokens, np.uint16, "r", offset=1024)
    end = stored[0]  # each document stands after an end token; here is one document
    assert not (stored[1:] == end).any(), "the shard holds more than one document"
    ours = {k: v[: a.steps] for k, v in metrics(a.run).items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = initial_weights(a.start)

    def theirs(steps=None, **how):
        model = made_model(recipe, weights, a.fla, a.compile, device)
        return train(recipe, model, stored[1:], ours["lr"][:steps], device, **how)

    def keep(curves):
        if a.curves:
            kept = {f"{name}:{key}": c[key].astype(np.float32) for name, c in curves.items() for key in ("loss", "grad_norm")}
            np.savez_compressed(a.curves, mechanism=layers_of(recipe)[0], **kept)

    peer = "fla" if a.fla else "PyTorch"
    curves = {"weft": ours}
    if a.other:
        other = curves["weft, the other run"] = {k: v[: a.steps] for k, v in metrics(a.other).items()}
        compare("weft / the other run", ours, other)
    curves[peer] = theirs()
    keep(curves)
    compare(f"weft / {peer}", ours, curves[peer])
    if a.again:
        again = curves[peer + " again"] = theirs(a.again, backwards=True)
        keep(curves)
        compare(f"{peer} again / {peer}", again, curves[peer])
        compare(f"weft / {peer} again", ours, again)


if __name__ == "__main__":
    main()
