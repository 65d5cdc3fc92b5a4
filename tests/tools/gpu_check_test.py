"""tools/gpu_check.sh with stand-ins for weft, its tests and PyTorch: what it runs, says, keeps and returns. Seconds, no GPU."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")

# Stands for weft: what it was asked goes to calls.txt; `bench WHAT` does what the file bench-WHAT says, else prints a row of that name.
WEFT = r"""#!/usr/bin/env bash
echo "weft $*" >>"$HOUSE/calls.txt"
row() { echo "{\"weft\":\"bench/1\",\"exit\":0,\"name\":\"$1\",\"shape\":\"s\",\"dtype\":\"f32\",\"device\":\"cpu\",\"ms\":2.0,\"commit\":\"c0\",\"date\":\"2026-11-29\"}"; }
case $1 in
  corpus) while [ $# -gt 0 ]; do if [ "$1" = --out ]; then echo text >"$2"; fi; shift; done ;;
  train)
    for word; do case $word in run=*) run=${word#run=} ;; esac; done
    mkdir -p "$run"
    echo "{\"device\": \"cpu\", \"commit\": \"c0\", \"command_line\": [\"weft\", \"train\", \"$2\"], \"start_time\": \"2026-11-29T05\"}" >"$run/environment.json"
    printf 'batch_tokens: 100\ncontext: 64\n' >"$run/recipe.yaml"
    for step in {1..9}; do echo "{\"step\": $step, \"tokens_per_s\": 1000}" >>"$run/metrics.jsonl"; done
    exec sleep 60 ;; # nobody waits for its end
  bench) if [ "$2" = gpu ]; then what=$3; else what=$2; fi
    if [ -e "$HOUSE/bench-$what" ]; then source "$HOUSE/bench-$what"; else row "$what"; fi ;;
esac
"""
# Stands for a python with torch: it says that torch is there, and peers print a row of the name that weft's has.
PYTHON = r"""#!/usr/bin/env bash
echo "python $*" >>"$HOUSE/calls.txt"
case $1 in
  -c) exit 0 ;;
  tools/peers/*) echo '{"peer": "torch 2", "name": "recurrence", "shape": "s", "ms": 6.0}' ;;
  *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
TEST = """#!/usr/bin/env bash
echo '[       OK ] A.One (1 ms)'
echo '[       OK ] A.Two (1 ms)'
"""
# Stands for compute-sanitizer: what it was asked with goes to calls.txt, and it says what the file TOOL has to say.
SANITIZER = r"""#!/usr/bin/env bash
echo "sanitizer FEW=${FEW:-} APART=${APART:-} POISON=${POISON:-} WEFT_KERNELS=${WEFT_KERNELS:-} $*" >>"$HOUSE/calls.txt"
echo '[       OK ] A.One (1 ms)'
if [ -e "$HOUSE/$2" ]; then cat "$HOUSE/$2"; else echo '========= ERROR SUMMARY: 0 errors'; fi
"""
FAILING = """#!/usr/bin/env bash
echo '[       OK ] A.One (1 ms)'
echo '[  FAILED  ] A.Two (1 ms)'
echo '[  FAILED  ] A.Two'
exit 1
"""


def checked():
    """Lines of what `sanitize` runs."""
    with open(os.path.join(ROOT, "tools/gpu_check_more.sh"), encoding="utf-8") as f:
        return re.search(r'^checked="(.*?)"', f.read(), re.MULTILINE | re.DOTALL)[1].splitlines()


def read_all(pattern):
    text = ""
    for path in glob.glob(os.path.join(ROOT, pattern), recursive=True):
        with open(path, encoding="utf-8") as f:
            text += f.read()
    return text


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.house = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.house)
        os.makedirs(self.path("tools"))
        for name in glob.glob(os.path.join(ROOT, "tools/gpu_check*.sh")) + glob.glob(os.path.join(ROOT, "tools/*.py")):
            shutil.copy(name, self.path("tools"))
        self.program("build/tools/weft", WEFT)

    def path(self, name):
        return os.path.join(self.house, name)

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)

    def program(self, name, text):
        self.write(name, text)
        os.chmod(self.path(name), 0o755)

    def read(self, name):
        with open(self.path(name), encoding="utf-8") as f:
            return f.read()

    def check(self, *parts, code=0, **environment):
        """What it printed."""
        env = {"PATH": os.environ["PATH"], "HOME": self.house, "HOUSE": self.house, "REAL_PYTHON": sys.executable, "WEFT_DEVICE": "cpu",
               "PEERS": "off", "BUILD": "build", "LOGS": "logs", **environment}
        ran = subprocess.run(["bash", self.path("tools/gpu_check.sh"), *parts], env=env, capture_output=True, text=True, timeout=60)
        self.assertEqual(ran.returncode, code, ran.stdout + ran.stderr)
        return ran.stdout + ran.stderr

    def rows(self):
        return [json.loads(line) for line in self.read("logs/rows.jsonl").splitlines()]

    def test_rows_come_out_with_what_printed_them(self):
        out = self.check("recurrences", "kernels", "attention", "decode")
        rows = {row["name"]: row for row in self.rows()}
        self.assertEqual(set(rows), {"recurrence", "memory", "attention", "decode"})
        self.assertTrue(rows["recurrence"]["command"].startswith("weft bench gpu recurrence"), rows["recurrence"])
        self.assertEqual(rows["decode"]["commit"], "c0")
        self.assertIn("1 rows, good", out)
        self.assertNotIn("FAILED", out)

    def test_only_the_parts_that_are_named_run(self):
        self.check("decode")
        self.assertEqual([row["name"] for row in self.rows()], ["decode"])
        self.assertIn("weft bench decode", self.read("calls.txt"))
        self.assertNotIn("recurrence", self.read("calls.txt"))

    def test_an_unknown_part_is_refused_before_anything_runs(self):
        self.assertIn("no part is called kernel;", self.check("decode", "kernel", code=64))
        self.assertFalse(os.path.exists(self.path("calls.txt")))

    def test_a_bench_that_fails_is_a_failure_and_the_others_run(self):
        self.write("bench-recurrence", "row recurrence; echo 'weft: it broke' >&2; exit 70\n")
        out = self.check("recurrences", "attention", code=1)
        self.assertIn("FAILED with exit code 70: weft: it broke", out)
        self.assertEqual([row["name"] for row in self.rows()], ["recurrence", "attention"])

    def test_a_bench_without_a_row_is_a_failure(self):
        self.write("bench-attention", "echo nothing to see\n")
        self.assertIn("FAILED: it printed no row", self.check("attention", code=1))

    def test_when_the_time_is_over_its_rows_stay_and_the_rest_is_said(self):
        self.write("bench-recurrence", "row recurrence; exec sleep 60\n")
        out = self.check("recurrences", "attention", SECONDS_IN_ALL="4")
        self.assertIn("1 rows, stopped at its limit", out)
        self.assertIn("NOT RUN: no time left", out)
        self.assertEqual([row["name"] for row in self.rows()], ["recurrence"])

    def test_who_is_killed_before_its_limit_has_failed(self):
        self.write("bench-recurrence", "row recurrence; kill -KILL $$\n")
        self.assertIn("FAILED with exit code 137", self.check("recurrences", code=1))
        self.write("bench-attention", "row attention; exit 124\n")
        self.assertIn("FAILED with exit code 124", self.check("attention", code=1))

    def test_the_strongest_peer_stands_beside(self):
        self.program("stub/python", PYTHON)
        self.check("recurrences", PEERS="on", PYTHON=self.path("stub/python"))
        self.assertEqual((self.rows()[0]["peer"], self.rows()[0]["ratio"]), ("torch 2", 3.0))
        self.assertIn("python tools/peers/", self.read("calls.txt"))

    def test_a_peer_beside_another_that_fails_is_said(self):
        for broken in ("recurrences", "fla_train"):
            self.program("stub/python", PYTHON.replace("  tools/peers/*)", f"  tools/peers/{broken}.py) exit 70 ;;\n  tools/peers/*)"))
            out = self.check("peers", PEERS="on", PYTHON=self.path("stub/python"))
            self.assertRegex(out, r"fla +\d+ s  1 rows, FAILED with exit code 70", broken)

    def test_runs_choose_benches(self):
        out = self.check("kernels attention", RUNS="attention.*")
        self.assertNotIn("kernels", out)
        self.assertRegex(out, r"attention +\d+ s  1 rows, good")

    def test_training_ends_when_its_steps_are_logged(self):
        self.check("train")
        rows = self.rows()
        self.assertGreater(len(rows), 1)
        for row in rows:
            self.assertTrue(row["name"].startswith("train 124m/"), row)
            self.assertEqual(row["tokens_per_s"], 1000)
        self.assertFalse(os.path.exists(self.path("logs/corpus.txt")))

    def test_a_training_without_time_left_ends_nothing_else(self):
        out = self.check("losses", SECONDS_IN_ALL="2", RECIPES="124m")
        self.assertIn("NOT RUN: no time left", out)
        self.assertIn("rows are in", out)

    def test_a_start_is_a_row_of_what_the_run_says_of_it(self):
        said = 'echo "info: first step 0.86 s after the start: driver 0.21, data 0.08"\n'
        self.program("stub/weft", WEFT.replace("    exec sleep 60 ;;", "    " + said + "    exit ;;"))
        env = {"PATH": os.environ["PATH"], "HOUSE": self.house, "weft": self.path("stub/weft"), "corpus": "corpus.txt",
               "python": sys.executable}
        script = f'source {self.path("tools/gpu_check_more.sh")}; start_row "$@"'
        ran = subprocess.run(["bash", "-c", script, "_", "start", self.path("run")], env=env, capture_output=True, text=True, timeout=60)
        row = json.loads(ran.stdout)
        self.assertEqual((row["name"], row["ms"], row["commit"], row["device"]), ("start", 860, "c0", "cpu"), row)
        self.assertEqual(row["note"], "seconds: driver 0.21, data 0.08")

    def test_tests_are_counted(self):
        self.program("build/tests/autograd/test_autograd", TEST)
        self.program("build/tests/optim/test_optim", TEST)
        out = self.check("tests")
        self.assertIn("tests: 4 passed, 0 failed", out)
        self.assertIn("NOT RUN: it was not built", out)
        self.program("build/tests/optim/test_optim", FAILING)
        out = self.check("tests", code=1)
        self.assertIn("tests: 3 passed, 1 failed", out)
        self.assertIn("FAILED with exit code 1", out)

    def sanitize(self, **environment):
        self.program("stub/compute-sanitizer", SANITIZER)
        out = self.check("sanitize", PATH=self.path("stub") + ":" + os.environ["PATH"], **environment)
        return out, [line for line in self.read("calls.txt").splitlines() if "--tool" in line]

    def test_every_tool_sees_every_group(self):
        out, calls = self.sanitize()
        groups = [line.split() for line in checked()]
        self.assertEqual(len(calls), 4 * len(groups) - 1)
        for tool in ("racecheck", "memcheck", "initcheck", "synccheck"):
            for group, _, _, tests in groups:
                if (tool, group) == ("racecheck", "runs"):  # whose blocks wait for each other for so long only
                    self.assertRegex(out, r"racecheck-runs +0 s  NOT RUN")
                    continue
                self.assertEqual(sum(f"--tool {tool} " in c and c.endswith("--gtest_filter=" + tests) for c in calls),
                                 sum(tests == other for _, _, _, other in groups), (tool, group))
                self.assertRegex(out, rf"{tool}-{group} +\d+ s  1 passed, 0 failed, ERROR SUMMARY: 0 errors")
        # What is asked of a tool, and what it needs of memory and tests.
        self.assertTrue(all("FEW=0 APART=0 POISON=0 " in c and "--kernel-name kns=" in c for c in calls if "racecheck" in c))
        self.assertTrue(all("FEW=1 APART=1 POISON=1 " in c and "--kernel-name" not in c for c in calls if "memcheck" in c))
        self.assertTrue(all("FEW=1 APART=1 POISON=0 " in c and "--kernel-name" not in c for c in calls if "initcheck" in c))
        self.assertEqual(sum("WEFT_KERNELS=mma" in c for c in calls), 4)

    def test_a_fault_that_a_sanitizer_found_is_a_failure_and_a_race_is_not(self):
        self.write("racecheck", "========= RACECHECK SUMMARY: 7 hazards displayed (7 errors, 0 warnings)\n")
        self.assertIn("7 hazards displayed", self.sanitize()[0])
        self.write("synccheck", "========= ERROR SUMMARY: 3 errors\n")
        self.assertIn("3 errors", self.sanitize(code=1)[0])

    def test_tests_that_fail_or_break_off_under_a_sanitizer_are_a_failure(self):
        self.program("stub/compute-sanitizer", SANITIZER)
        for end in ("echo '[  FAILED  ] A.Two (1 ms)'; exit 1", "kill -SEGV $$"):
            self.program("stub/compute-sanitizer", SANITIZER + f'if [ "$2" = initcheck ]; then {end}; fi\n')
            out = self.check("sanitize", PATH=self.path("stub") + ":" + os.environ["PATH"], code=1)
            self.assertRegex(out, r"initcheck-norms .*FAILED with exit code (1|139)")
            self.assertNotRegex(out, r"memcheck-norms .*FAILED with")

    def test_what_is_sanitized_is_there(self):
        sources = {name: read_all(pattern) for name, pattern in
                   (("test_attention", "tests/attention/*.cpp"), ("step_run_test", "tests/attention/step_run_test.cpp"), ("test_autograd", "tests/autograd/**/*.cpp"), ("test_optim", "tests/optim/*.cpp"),
                    ("distributed_rank_crossing_test", "tests/distributed/*.cpp"))}
        kernels = [os.path.basename(path) for path in glob.glob(os.path.join(ROOT, "**/*.cu"), recursive=True) if "/build/" not in path]
        for group, program, words, tests in map(str.split, checked()):
            for word in words.split(","):
                self.assertTrue(word == "weft" or any(word in name for name in kernels), (group, word))
            for test in tests.split(":"):
                suite, name = re.fullmatch(r"(?:\*|\w+/)?(\w+)\.([\w*]+)(?:/[\d*])?\*?", test).groups()
                self.assertRegex(sources[program], rf"TEST(_P)?\({suite}, {name.replace('*', '.*')}", (group, test))

    def test_only_its_own_logs_are_cleared(self):
        self.write("logs/mine.txt", "keep")
        self.write("logs/rows/99-old.jsonl", '{"weft": "bench/1", "name": "old", "shape": "s", "device": "cpu", "ms": 1, "commit": "c", "date": "d"}\n')
        self.check("decode")
        self.assertEqual(self.read("logs/mine.txt"), "keep")
        self.assertEqual([row["name"] for row in self.rows()], ["decode"])

    @unittest.skipUnless(shutil.which("strip") and shutil.which("ldd"), "no binutils")
    def test_a_pack_holds_the_programs_that_were_built(self):
        for name in ("tools/weft", "tests/optim/test_optim"):
            os.makedirs(os.path.dirname(self.path("built/" + name)), exist_ok=True)
            shutil.copy(os.path.realpath(shutil.which("true")), self.path("built/" + name))
        self.check("pack", "built")
        (archive,) = os.listdir(self.path(".carry"))
        listed = subprocess.run(["tar", "-tf", self.path(".carry/" + archive)], check=True, capture_output=True, text=True).stdout.split()
        self.assertLessEqual({"./weft", "./test_optim"}, set(listed))
        self.assertNotIn("./test_autograd", listed)


if __name__ == "__main__":
    unittest.main()
