#!/usr/bin/env python3
"""What compute-sanitizer's logs say, a line for each kernel and place and not for each thread.

    tools/sanitizer_summary.py [--program PATH ...] LOG...      logs of --tool memcheck, racecheck (analysis), initcheck or synccheck,
                                                                with --demangle no

Places are instructions, looked up in the PROGRAMs by cuobjdump where there is one, or lines of the source where the log has them
(nvcc -lineinfo). A race between an asynchronous copy (UBLKCP: by the copy engine) and a read is told from one between plain
instructions. Either may be ordered by an mbarrier at which one lane arrives for its warp, which racecheck credits to that lane alone
(attention/kernels/races.md); a pair that is not in the table there is for a person to look at.

initcheck does not see what bulk stores write (UTMASTG). So of copies to the host of what nobody wrote the bytes are shown, which have to
be whole tiles of a tensor that is stored so.
"""
import argparse
import collections
import re
import shutil
import subprocess

PLACE = r"(?P<kernel>\S+)\+(?P<offset>0x[0-9a-f]+)(?: in (?P<line>\S+:\d+))?"
RACE = re.compile(r"Race reported between (?P<kind>\w+) access at " + PLACE)
RACE_AND = re.compile(r"and (?P<kind>\w+) access at " + PLACE + r"(?: \[(?P<count>\d+) hazards?\])?")
AT = re.compile(r"^=+\s+at " + PLACE)
COPIED = re.compile(r"host access to (0x[0-9a-f]+) of size ([\d,]+) bytes")
UNWRITTEN = re.compile(r"Uninitialized access to (0x[0-9a-f]+) on access by cudaMemcpy source")
UNIT = 32  # bytes that a report of such a copy stands for
ASYNCHRONOUS = re.compile(r"UBLKCP|UTMALDG|UTMASTG|UTMAREDG|LDGSTS")


def found_in(path):
    """(tool, error, ((what, kernel, offset, line), ...), count) of each report."""
    tool, before, first = "", "", None
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if "COMPUTE-SANITIZER" in line:
                continue
            line = line.rstrip()
            if race := RACE.search(line):
                first = (race["kind"], race["kernel"], race["offset"], race["line"] or "")
            elif first and (other := RACE_AND.search(line)):
                yield "race", (first, (other["kind"], other["kernel"], other["offset"], other["line"] or "")), int(other["count"] or 1)
            elif line.strip("= ") == "":
                first = None
            elif at := AT.match(line):
                yield re.sub(r"^=+\s+", "", before), (("", at["kernel"], at["offset"], at["line"] or ""),), 1
            before = line


def copies_in(path):
    """(size, ((begin, end), ...) in bytes) of each copy to the host that has bytes that nobody wrote."""
    tensor, spans = None, []
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if copied := COPIED.search(line):
                now = int(copied[1], 16), int(copied[2].replace(",", ""))
            elif unwritten := UNWRITTEN.search(line):
                at = int(unwritten[1], 16) - now[0]
                if now != tensor or at < spans[-1][1]:  # another copy, or the same again
                    if spans:
                        yield tensor[1], tuple(map(tuple, spans))
                    tensor, spans = now, []
                if spans and spans[-1][1] == at:
                    spans[-1][1] = at + UNIT
                else:
                    spans.append([at, at + UNIT])
    if spans:
        yield tensor[1], tuple(map(tuple, spans))


class Instructions:
    def __init__(self, programs):
        self.programs, self.known = programs, {}
        self.dump = shutil.which("cuobjdump") or shutil.which("/usr/local/cuda/bin/cuobjdump")

    def at(self, kernel, offset):
        """Such as UBLKCP; nothing where it cannot be told."""
        if kernel not in self.known:
            self.known[kernel] = {}
            for program in self.programs if self.dump else []:
                text = subprocess.run([self.dump, "-sass", "-fun", kernel, program], capture_output=True, text=True).stdout
                for where, what in re.findall(r"/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]+)", text):
                    self.known[kernel][int(where, 16)] = what
                if self.known[kernel]:
                    break
        return self.known[kernel].get(int(offset, 16), "")


def shown(kernel):
    """Demangled, without its arguments."""
    name = kernel
    if shutil.which("c++filt"):
        name = subprocess.run(["c++filt", kernel], capture_output=True, text=True).stdout.strip() or kernel
    name = re.sub(r"weft::|\(anonymous namespace\)::|cuda::|^void ", "", name)
    return re.sub(r"\((?!anonymous).*\)$", "", name)[:90]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", action="append", default=[])
    p.add_argument("logs", nargs="*")
    a = p.parse_args()
    instructions = Instructions(a.program)
    counts, where = collections.Counter(), collections.defaultdict(set)
    for path in a.logs:
        for error, places, count in found_in(path):
            described = tuple((what, kernel, offset, line or instructions.at(kernel, offset)) for what, kernel, offset, line in places)
            if error == "race":
                codes = [instructions.at(kernel, offset) for _, kernel, offset, _ in places]
                error = "race with an asynchronous copy" if any(map(ASYNCHRONOUS.search, codes)) else \
                    "race of plain instructions" if all(codes) else "race"
            counts[error, described] += count
            where[error, described].add(path.rsplit("/", 1)[-1].removesuffix(".log"))
    by_kernel = collections.defaultdict(list)
    for (error, places), count in counts.items():
        by_kernel[error, places[0][1]].append((count, places, where[error, places]))
    for (error, kernel), found in sorted(by_kernel.items(), key=lambda x: (x[0][0], -sum(c for c, _, _ in x[1]))):
        logs = sorted(set().union(*(x[2] for x in found)))
        print(f"{error}: {shown(kernel)}: {sum(c for c, _, _ in found)} in {len(found)} places, {' '.join(logs)[:60]}")
        lines, of_line = collections.Counter(), {}
        for count, places, _ in found:  # those with one first place and alike second ones are a line
            said = [f"{what} {line}".strip() for what, _, _, line in places]
            key = (said[0], places[0][2], *said[1:])
            lines[key] += count
            of_line.setdefault(key, set()).update(offset for _, _, offset, _ in places[1:])
        for key, count in lines.most_common(16):
            others = " ".join(["", *(f"+{x}" for x in sorted(of_line[key], key=lambda x: int(x, 16)))])
            print("    " + f"{key[0]} +{key[1]}".lstrip() + (f" and {key[2]}{others}" if len(key) > 2 else "") + f": {count}")
    copies, of_copies = collections.Counter(), set()
    for path in a.logs:
        for copy in copies_in(path):
            copies[copy] += 1
            of_copies.add(path.rsplit("/", 1)[-1].removesuffix(".log"))
    if copies:
        print(f"copies to the host of what nobody wrote: {copies.total()}, {' '.join(sorted(of_copies))[:60]}")
    for (size, spans), count in copies.most_common(20):
        print(f"    {size} bytes: {' '.join(f'{begin}-{end}' for begin, end in spans[:8])}{' ...' if len(spans) > 8 else ''}: {count}")
    if not counts and not copies:
        print("compute-sanitizer reported nothing")


if __name__ == "__main__":
    main()
