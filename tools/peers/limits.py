"""A limit for each of several timings, compiling included, so that those after one that hangs come all the same."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time

from peer import say


def wait_for(processes, deadline):
    """Ends those that are still running then; did all end well?"""
    good = True
    for p in processes:
        try:
            good &= p.wait(max(0.1, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            p.terminate()
            p.wait()
            good = False
    return good


def add_limits(parser, seconds, what):
    parser.add_argument("--seconds", type=float, default=seconds, help=f"for each {what}, tuning and all")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, len(os.sched_getaffinity(0)) // 2)))
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--turn", metavar="FILE", help="scripts with the same FILE compile side by side and time one by one")
    parser.add_argument("--here", action="store_true", help="in this process, without a limit")


@contextlib.contextmanager
def held(path, how):
    """A lock on a file: LOCK_SH while somebody compiles, LOCK_EX of whoever takes times."""
    if path is None:
        yield
        return
    with open(path, "w") as f:
        fcntl.flock(f, how)
        yield


def within_limits(a, name, command, compiled, share):
    """Runs `command`, which times `name`, within a.seconds; before it, for all but that share of them, a.jobs processes side by side that
    only compile: `command` with the words of `compiled` after it; None: nothing is to be compiled. Did it end well?"""
    deadline, environment = time.monotonic() + a.seconds, dict(os.environ, **({"LAB_FEW": "1"} if a.few else {}))
    with tempfile.NamedTemporaryFile("w") as notes:
        if compiled is not None and a.jobs > 1:
            say(f"{name}: {a.jobs} processes compile")
            environment["LAB_COMPILED"] = notes.name
            shares = [dict(environment, LAB_SHARE=f"{i}/{a.jobs}") for i in range(a.jobs)]
            with held(a.turn, fcntl.LOCK_SH):
                wait_for([subprocess.Popen([*command, *compiled], env=e, stdout=sys.stderr) for e in shares],
                         deadline - share * a.seconds)
        with held(a.turn, fcntl.LOCK_EX):
            say(f"{name}: timing")
            good = wait_for([subprocess.Popen(command, env=environment)], deadline)
    if not good:
        say(f"{name}: given up, or failed, after {a.seconds - max(0, deadline - time.monotonic()):.0f} s")
    return good
