"""tools/sanitizer_summary.py on logs as compute-sanitizer writes them."""

import os
import subprocess
import sys
import tempfile
import unittest

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/sanitizer_summary.py")
RACES = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at _Z3foov+0x440
=========     and Read access at _Z3foov+0x4f0 [508 hazards]
=========
========= Error: Race reported between Write access at _Z3foov+0x440
=========     and Read access at _Z3foov+0x4f0 [8 hazards]
=========     and Read access at _Z3foov+0x500 [3 hazards]
=========
========= Warning: Race reported between Read access at _Z3barv+0x10 in a.cu:5
=========     and Write access at _Z3barv+0x20 in a.cu:7
========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)
"""
FAULTS = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at _Z3bazv+0x160
=========     by thread (0,0,0) in block (0,0,0)
=========     Access at 0x7f0 is out of bounds
========= ERROR SUMMARY: 1 error
"""
COPIES = """========= COMPUTE-SANITIZER
""" + "".join(f"""========= Host API memory access error at host access to {base} of size {size} bytes
=========     Uninitialized access to {hex(int(base, 16) + at)} on access by cudaMemcpy source
=========
""" for base, size, at in [("0x7000", "1,024", 0), ("0x7000", "1,024", 32), ("0x7000", "1,024", 128), ("0x7000", "1,024", 0), ("0x7000", "1,024", 32),
                           ("0x7000", "1,024", 128), ("0x9000", "64", 32)])
# What stands in for cuobjdump says of each kernel.
DUMP = """#!/bin/sh
echo '        /*0440*/                   UTMALDG.4D [UR8], [UR4] ;'
echo '        /*04f0*/              @!P0 LDSM.16.M88.4 R4, [R2] ;'
"""


class Summary(unittest.TestCase):
    def summary(self, *logs, dump=None):
        with tempfile.TemporaryDirectory() as home:
            paths = []
            for i, text in enumerate(logs):
                paths.append(os.path.join(home, f"tool-{i}.log"))
                with open(paths[-1], "w", encoding="utf-8") as f:
                    f.write(text)
            path = home
            if dump:
                with open(os.path.join(home, "cuobjdump"), "w", encoding="utf-8") as f:
                    f.write(dump)
                os.chmod(os.path.join(home, "cuobjdump"), 0o755)
            environment = dict(os.environ, PATH=path + ":/usr/bin:/bin")
            command = [sys.executable, TOOL, "--program=any", *paths]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def test_races_of_one_pair_of_places_are_one_line(self):
        out = self.summary(RACES)
        self.assertIn("foo: 519 in 2 places, tool-0", out)
        self.assertIn("Write +0x440 and Read +0x4f0 +0x500: 519", out)
        self.assertIn("Read a.cu:5 +0x10 and Write a.cu:7 +0x20: 1", out)

    def test_what_the_copy_engine_writes_is_told_from_plain_stores(self):
        out = self.summary(RACES, dump=DUMP)
        self.assertIn("race with an asynchronous copy: foo: 519", out)
        self.assertIn("Write UTMALDG.4D +0x440 and Read LDSM.16.M88.4 +0x4f0: 516", out)
        self.assertIn("Write UTMALDG.4D +0x440 and Read +0x500: 3", out)
        self.assertNotIn("asynchronous copy: bar", out)

    def test_faults(self):
        self.assertIn("Invalid __global__ write of size 4 bytes: baz: 1 in 1 places, tool-0", self.summary(FAULTS))

    def test_copies_of_what_nobody_wrote_show_their_bytes(self):
        out = self.summary(COPIES)
        self.assertIn("copies to the host of what nobody wrote: 3, tool-0", out)
        self.assertIn("1024 bytes: 0-64 128-160: 2", out)
        self.assertIn("64 bytes: 32-64: 1", out)
        self.assertNotIn("reported nothing", out)

    def test_nothing(self):
        self.assertIn("reported nothing", self.summary("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"))


if __name__ == "__main__":
    unittest.main()
