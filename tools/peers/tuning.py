"""How long Triton's tuners of flash-linear-attention may look."""

import collections
import gc
import os


def triton_tuners():
    """Of all kernels that were imported."""
    import triton

    # by type(), which asks nothing of a weak reference whose object is gone
    return [x for x in gc.get_objects() if issubclass(type(x), triton.runtime.Autotuner)]


def name_of(tuner):
    return f"{tuner.base_fn.__module__}.{tuner.base_fn.__name__}"


def compiled_so_far(path):
    """Configurations of each kernel that some process has noted in this file."""
    known = collections.defaultdict(set)
    if os.path.exists(path):
        for line in open(path):
            kernel, _, config = line.rstrip("\n").partition("\t")
            known[kernel].add(config)
    return known


def compile_only(tuner, path):
    """One launch each, and a note of what is compiled then."""
    import torch

    def once(f, quantiles):
        f()
        torch.cuda.synchronize()
        return [0.0] * len(quantiles)

    run = type(tuner).run

    def run_and_note(*arguments, **named):
        result = run(tuner, *arguments, **named)
        tuner.run = run.__get__(tuner)  # noted once
        with open(path, "a") as f:
            f.write("".join(f"{name_of(tuner)}\t{config}\n" for config in tuner.configs))
        return result

    tuner.do_bench = once
    if path:
        tuner.run = run_and_note


def limit_tuning():
    """Most of the minutes that Triton's tuners take go into compiling. LAB_SHARE=i/n keeps the i-th of every n
    configurations: n processes side by side fill the cache on disk, and one without LAB_SHARE then tunes in seconds, among
    what they have noted in the file LAB_COMPILED, if there is one. LAB_FEW leaves 2 or 4 warps and 2 or 3 stages to kernels that have
    more than 12. How many of how many are tried."""
    import triton

    share, path = os.environ.get("LAB_SHARE"), os.environ.get("LAB_COMPILED")
    known = compiled_so_far(path) if path and not share else None
    kept = all = 0
    for tuner in triton_tuners():
        tuner.cache_results = False  # of other limits
        tuner.do_bench = lambda f, quantiles: triton.testing.do_bench(f, warmup=2, rep=15, quantiles=quantiles)
        tuner.every = getattr(tuner, "every", tuner.configs)
        chosen = tuner.every
        if os.environ.get("LAB_FEW") and len(chosen) > 12:
            chosen = [c for c in chosen if c.num_warps in (2, 4) and c.num_stages in (2, 3)] or chosen[::4]
        if known is not None:
            if name_of(tuner) not in known:  # nobody came to it: not of these kernels, or no time was left
                chosen = [c for c in chosen if c.num_warps == 4][:1] or chosen[:1]
            else:
                chosen = [c for c in chosen if str(c) in known[name_of(tuner)]]
                kept, all = kept + len(chosen), all + len(tuner.every)
        if share:
            i, n = map(int, share.split("/"))
            chosen = chosen[i::n] or [chosen[i % len(chosen)]]
            compile_only(tuner, path)
        if known is None:
            kept, all = kept + len(chosen), all + len(tuner.every)
        tuner.configs = chosen
    return f"{kept} of {all} configurations"


def untuned(warps=4):
    """Leaves each kernel one configuration: so many warps, and blocks near 64 wide where it has a choice; where results are compared and not
    times."""
    for tuner in triton_tuners():
        tuner.every = getattr(tuner, "every", tuner.configs)
        chosen = [c for c in tuner.every if c.num_warps == warps] or tuner.every
        tuner.configs = [min(chosen, key=lambda c: sum(abs(c.kwargs.get(name, 64) - 64) for name in ("BK", "BV")))]
