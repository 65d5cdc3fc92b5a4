"""Errors of fla's kernels and of ours against the recurrence in float64, on the same bf16 inputs.

    LAB_LIBRARY=.../libweft_lab.so python3 tools/lab/accuracy.py [lightning] [simple_gla] [gla] [gated_delta_rule] [--fla "4 2 torch"]

For each kind of gate and shape a line: relative error, |x - reference| / |reference|, of output and of all gradients, fla's and ours,
and ours over theirs; then, for each op, a row of JSON with the worst of each tensor. fla's kernels are not tuned (peers/tuning.py) but run with
each number of warps that --fla names. One of its gradients refuses Hopper with this Triton, and runs all the same; `torch` has PyTorch
in its place (peers/fla_dqkwg.py). Needs torch, a GPU and flash-linear-attention.
"""

import argparse
import collections
import json

import delta_rule
import linear_attention
import torch
from lab import error
from fla_dqkwg import install
from recurrences import definition, fla
from tuning import untuned

DECAYS = {
    "lightning": ("fixed",),
    "simple_gla": ("gated", "gated tens", "gated hundreds"),
    "gla": ("channels", "channels tens", "channels hundreds"),
    "gated_delta_rule": ("days", "hours"),
}
SHAPES = [(1, 4096, 8), (4, 1024, 8)]


def problem(op, decay, b, t, h):
    if op == "gated_delta_rule":
        return delta_rule.Problem([t] * b, h, 128, 128, decay, states=False, equal=True)
    return linear_attention.Problem([t] * b, h, 128, 128, decay, states=False, equal=True)


def by_function(function, op, p, dtype=None):
    """Output and gradients of a function like fla's, in p's types or all in dtype."""
    b, t = len(p.lengths), p.lengths[0]

    def leaf(x):
        return x.reshape(b, t, *x.shape[1:]).clone().to(dtype or x.dtype).requires_grad_()

    inputs = {"q": leaf(p.q), "k": leaf(p.k), "v": leaf(p.v)}
    if op == "gated_delta_rule":
        inputs["beta"] = leaf(p.beta)
    fixed = {}
    if op == "lightning":
        fixed["g_gamma"] = p.g if dtype is None else p.g.to(dtype)
    else:
        inputs["g"] = leaf(p.g)
    o = function(**inputs, **fixed, scale=p.scale)[0]
    d_o = p.d_o.view(o.shape).to(o.dtype)
    grads = torch.autograd.grad(o, list(inputs.values()), d_o)
    return {"o": o.detach(), **{"d" + n: x for n, x in zip(inputs, grads)}}


def show(label, errors):
    words = [f"{n} {a:.2e} {b:.2e} ({b / a:.2f})" for n, (a, b) in errors.items()]
    print(f"{label}: fla, weft (ratio):", ", ".join(words), flush=True)


def run(op, variants):
    worst = {variant: collections.defaultdict(lambda: (0.0, 0.0)) for variant in variants}
    function = fla(op)
    for b, t, h in SHAPES:
        for decay in DECAYS[op]:
            p = problem(op, decay, b, t, h)
            reference, out = by_function(definition, op, p, torch.float64), p.call("automatic")
            for variant in variants:
                install(variant == "torch")
                untuned(4 if variant == "torch" else int(variant))
                try:
                    theirs = by_function(function, op, p)
                except Exception as e:  # a configuration may want more shared memory than there is
                    print(f"{op} {decay}, {variant}: {str(e).splitlines()[0][:120]}", flush=True)
                    continue
                errors = {n: (error(theirs[n], x), error(out[n].view(x.shape), x)) for n, x in reference.items()}
                for n, pair in errors.items():
                    worst[variant][n] = tuple(map(max, worst[variant][n], pair))
                show(f"{op} B{b} T{t} H{h} {decay}, {variant}", errors)
    for variant, tensors in worst.items():
        row = {n: {"fla": float(f"{a:.3g}"), "weft": float(f"{b:.3g}"), "ratio": round(b / a, 3)} for n, (a, b) in tensors.items()}
        print(json.dumps({"op": op, "fla": variant, **row}), flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ops", nargs="*", help="of " + " ".join(DECAYS))
    p.add_argument("--fla", default="4", help="how its kernels run: 2, 4, torch")
    a = p.parse_args()
    for op in a.ops or DECAYS:
        run(op, a.fla.split())


if __name__ == "__main__":
    main()
