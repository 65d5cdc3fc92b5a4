"""How long Triton's tuners of flash-linear-attention may look."""

import gc
import os


def triton_tuners():
    """Of all kernels that were imported."""
    import triton

    return [x for x in gc.get_objects() if isinstance(x, triton.runtime.Autotuner)]


def limit_tuning():
    """Most of the minutes that Triton's tuners take go into compiling. LAB_SHARE=i/n keeps the i-th of every n
    configurations: n processes side by side fill the cache on disk, and one without LAB_SHARE then tunes in seconds.
    LAB_FEW leaves 2 or 4 warps and 2 or 3 stages to kernels that have more than 12. How many of how many are tried."""
    import triton

    kept = all = 0
    for tuner in triton_tuners():
        tuner.do_bench = lambda f, quantiles: triton.testing.do_bench(f, warmup=2, rep=15, quantiles=quantiles)
        tuner.every = getattr(tuner, "every", tuner.configs)
        chosen = tuner.every
        if os.environ.get("LAB_FEW") and len(chosen) > 12:
            chosen = [c for c in chosen if c.num_warps in (2, 4) and c.num_stages in (2, 3)] or chosen[::4]
        if os.environ.get("LAB_SHARE"):
            i, n = map(int, os.environ["LAB_SHARE"].split("/"))
            chosen = chosen[i::n] or chosen[:1]
        tuner.configs = chosen
        kept, all = kept + len(chosen), all + len(tuner.every)
    return f"{kept} of {all} configurations"
