"""tools/benchmarks.py on a small house of its own: rows come in beside their peers, tables are written, age is told."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

TOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools")
ROW = {"weft": "bench/1", "exit": 0, "name": "rotary", "shape": "2 x 8", "dtype": "bf16", "device": "NVIDIA H100 80GB HBM3",
       "ms": 2.0, "tbs": 3.0, "of_floor": 0.8, "peer": None, "peer_ms": None, "note": None, "commit": "", "date": "2026-11-29"}
TARGET = {"group": "Kernels", "says": "rotary positions", "name": "^rotary", "of": "of_floor", "must": 0.75, "stretch": 0.9}
PAGE = "# Page\n\n<!-- targets -->\n<!-- end -->\n\nText.\n\n<!-- rows {} -->\nold\n<!-- end -->\n"


class House(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)
        os.makedirs(self.path("docs/benchmarks"))
        os.makedirs(self.path("tools"))
        for name in ("benchmarks", "benchmarks_rows", "benchmarks_page"):
            shutil.copy(os.path.join(TOOLS, name + ".py"), self.path("tools"))
        self.write("kernel.cu", "one")
        self.write("docs/benchmarks.md", PAGE)
        self.write("docs/benchmarks/targets.jsonl", json.dumps(TARGET))
        self.write("docs/benchmarks/rows.jsonl", "")

    def path(self, name):
        return os.path.join(self.home, name)

    def write(self, name, text):
        with open(self.path(name), "w", encoding="utf-8") as f:
            f.write(text)

    def page(self):
        with open(self.path("docs/benchmarks.md"), encoding="utf-8") as f:
            return f.read()

    def git(self, *words):
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(["git", *who, *words], cwd=self.home, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, message):
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD")

    def tool(self, *words, fails=False):
        ran = subprocess.run([sys.executable, "tools/benchmarks.py", *words], cwd=self.home, capture_output=True, text=True)
        self.assertEqual(ran.returncode != 0, fails, ran.stdout + ran.stderr)
        return ran.stdout

    def rows(self, *rows, **more):
        self.write("rows.jsonl", "\n".join(["not a row", *(json.dumps(r | more) for r in rows)]))
        return "rows.jsonl"

    def test_the_strongest_peer_stands_beside_a_row(self):
        peers = [{"peer": "slow", "name": "rotary", "shape": "2 x 8", "ms": 5.0}, {"peer": "fast", "name": "rotary", "shape": "2 x 8", "ms": 3.0},
                 {"peer": "fast", "name": "rotary", "shape": "2 x 9", "ms": 1.0}]
        out = json.loads(self.tool("rows", self.rows(ROW, *peers)))
        self.assertEqual((out["peer"], out["peer_ms"], out["ratio"]), ("fast", 3.0, 1.5))
        self.assertIn("autograd/ops/rotary_cuda.cu", out["stands_on"])
        self.assertNotIn("note", out)

    def test_steps_of_another_size_are_compared_by_their_rate(self):
        peer = {"peer": "p", "name": "rotary", "shape": "2 x 8", "ms": 9.0, "tokens_per_s": 500}
        self.assertEqual(json.loads(self.tool("rows", self.rows(ROW | {"tokens_per_s": 1000}, peer)))["ratio"], 2)

    def test_a_run_is_a_row_of_its_last_steps(self):
        os.makedirs(self.path("run"))
        words = ["weft", "train", "recipes/124m/softmax.yaml", "run=/somewhere"]
        self.write("run/environment.json", json.dumps({"device": "cpu", "commit": "c0", "command_line": words, "start_time": "2026-11-29T05"}))
        self.write("run/recipe.yaml", "batch_tokens: 4096\ncontext: 256  # c\nprecision: bf16\n")
        steps = [{"step": i, "tokens_per_s": r, "peak_bytes": 2**30} for i, r in enumerate((1, 1, 1000, 2000, 3000))]
        self.write("run/metrics.jsonl", "\n".join(map(json.dumps, [*steps, {"event": "sample"}])))
        row = json.loads(self.tool("rows", "run"))
        self.assertEqual((row["name"], row["shape"], row["tokens_per_s"]), ("train 124m/softmax", "T256", 2000))
        self.assertEqual((row["ms"], row["peak_gib"], row["command"]), (2048, 1, "weft train recipes/124m/softmax.yaml"))

    def run_of(self, folder, words, steps, context=256, total=8):
        os.makedirs(self.path(folder))
        self.write(folder + "/environment.json", json.dumps({"device": "cpu", "commit": "c0", "command_line": ["weft", "train", *words]}))
        self.write(folder + "/recipe.yaml", f"batch_tokens: 4096\ncontext: {context}\nsteps: {total}\n")
        self.write(folder + "/metrics.jsonl", "\n".join(map(json.dumps, steps)))
        return folder

    def test_a_whole_run_says_its_loss(self):
        steps = [{"step": i, "tokens": 1e6 * i, "loss": 9 - i, "tokens_per_s": 5} for i in range(1, 9)]
        row = json.loads(self.tool("rows", self.run_of("run", ["recipes/124m/gla.yaml"], steps)))
        self.assertNotIn("loss", json.loads(self.tool("rows", self.run_of("cut", ["recipes/124m/gla.yaml"], steps, total=100))))
        self.assertEqual((row["name"], row["loss"], row["note"]), ("recipe 124m/gla", 2.5, "4096 tokens a step, 8.0 million in all"))
        self.tool("add", "run")
        self.write("docs/benchmarks.md", PAGE.replace("{}", '{"device": "cpu"}'))
        self.tool("write")
        self.assertIn("| 5 | 2.500 | 55,556 |", self.page())

    def test_a_run_of_other_layers_is_not_its_recipe(self):
        run = self.run_of("run", ["recipes/124m/titans_mac.yaml", "model.layers=[titans_mac*2]"], [{"step": 1, "tokens_per_s": 9}])
        self.assertEqual(json.loads(self.tool("rows", run))["name"], "train titans_mac, 2 layers")

    def test_a_step_beside_the_sum_of_its_floors(self):
        run = self.run_of("run", ["recipes/124m/softmax.yaml"], [{"step": 1, "tokens_per_s": 900}])
        floor = ROW | {"name": "floors 124m/softmax", "shape": "T256", "ms": 8.0, "tokens_per_s": 1000, "of_floor": None}
        step = json.loads(self.tool("rows", self.rows(floor), run).splitlines()[1])
        self.assertEqual((step["name"], step["of_floor"]), ("train 124m/softmax", 0.9))

    def test_the_time_a_token_climbs_from_the_first_context_to_the_last(self):
        words = ["recipes/1b/gla.yaml", "model.checkpointing=block"]
        runs = [self.run_of(f"run-{t}", words, [{"step": 1, "tokens_per_s": r}], t) for t, r in ((1024, 1000), (2048, 800), (4096, 1000 / 1.5))]
        rows = [json.loads(x) for x in self.tool("rows", *runs).splitlines()]
        self.assertEqual([r["name"] for r in rows], ["train 1b/gla, checkpointing"] * 3)
        self.assertAlmostEqual(rows[0]["rise"], 0.5)

    def test_a_row_without_a_commit_is_not_kept(self):
        self.tool("add", self.rows(ROW), fails=True)
        self.assertEqual(os.path.getsize(self.path("docs/benchmarks/rows.jsonl")), 0)

    def test_tables_and_their_age(self):
        self.git("init", "-q")
        first = self.commit("one")
        self.tool("add", self.rows(ROW, commit=first, stands_on=["kernel.cu"]), "--command", "weft bench")
        self.tool("write")
        self.assertIn("| rotary positions | ≥ 75 % / 90 % | 80 % | met |", self.page())
        self.assertIn("H100, bf16, 2026-11-29, commit " + first[:7] + "; `weft bench`", self.page())
        self.assertIn("| rotary | 2 x 8 | 2 | 3.00 TB/s | 80 % |", self.page())
        self.assertNotIn("†", self.page())
        self.assertIn("Text.", self.page())
        self.tool("check")
        self.commit("rows")
        self.write("kernel.cu", "two")
        self.commit("another kernel")
        self.tool("check")  # age is no difference
        self.tool("write")
        self.assertIn("| rotary † | 2 x 8 |", self.page())
        self.tool("add", self.rows(ROW, commit="0" * 40, date="2026-11-30", of_floor=0.7, stands_on=["kernel.cu"]))
        self.tool("check", fails=True)
        self.tool("write")
        self.assertIn("| rotary ? | 2 x 8 |", self.page())  # the newest row, of a commit that is not here
        self.assertIn("**missed**", self.page())
        self.tool("add", self.rows({k: v for k, v in ROW.items() if k != "of_floor"}, commit="0" * 40, date="2026-12-01"))
        self.tool("write")
        self.assertIn("| 70 % | **missed** |", self.page())  # what a later row does not have it takes back from nobody

    def test_pages_behind_the_first(self):
        self.write("docs/benchmarks/more.md", PAGE.replace("<!-- targets -->\n<!-- end -->", ""))
        self.tool("add", self.rows(ROW, commit="0" * 40))
        self.tool("check", fails=True)
        self.tool("write")
        self.tool("check")
        with open(self.path("docs/benchmarks/more.md"), encoding="utf-8") as f:
            self.assertIn("| rotary ? | 2 x 8 | 2 | 3.00 TB/s | 80 % |", f.read())

    def test_without_a_history(self):
        self.tool("add", self.rows(ROW, commit="abc", stands_on=["kernel.cu"]))
        self.tool("write")
        self.assertIn("| rotary ? |", self.page())
        self.tool("check")
        self.write("docs/benchmarks.md", self.page().replace("3.00 TB/s", "4.00 TB/s"))
        self.tool("check", fails=True)

    def test_passes_side_by_side(self):
        self.write("docs/benchmarks.md", PAGE.replace("{}", '{"pivot": "pass"}'))
        both = {"name": "gla forward+backward", "ms": 4.0, "peer": "fla", "peer_ms": 10.0}
        self.tool("add", self.rows(ROW | {"name": "gla forward", "note": "in segments"}, ROW | both, commit="abc"))
        self.tool("write")
        self.assertIn("| ms | shape | forward | forward+backward |  |", self.page())
        self.assertIn("| gla ? | 2 x 8 | 2 | 4 (2.50x) | forward: in segments |", self.page())

    def test_a_note_of_many_lines_is_said_once(self):
        for pattern, line in (({}, "| gla forward ? | B1 | 2 | (1) |"), ({"pivot": "pass"}, "| gla ? | B1 | 2 | 2 | (1) |")):
            self.write("docs/benchmarks/rows.jsonl", "")
            self.write("docs/benchmarks.md", PAGE.replace("{}", json.dumps(pattern)))
            same = ROW | {"tbs": None, "of_floor": None, "note": "in segments"}
            rows = [same | {"name": name, "shape": shape} for shape in ("B1", "B2", "B4") for name in ("gla forward", "gla backward")]
            self.tool("add", self.rows(*rows, same | {"name": "gla forward", "shape": "B8", "note": "whole"}, commit="abc"))
            self.tool("write")
            self.assertIn(line, self.page())
            self.assertIn("\n(1) in segments\n", self.page())
            self.assertIn(" whole |", self.page())

    def test_shapes_side_by_side_and_ratios_of_two(self):
        target = {"group": "G", "says": "few", "name": "^gla forward$", "shape": "^B1$", "of": "times", "beside": "B8", "must": 1.5}
        self.write("docs/benchmarks/targets.jsonl", json.dumps(target))
        self.write("docs/benchmarks.md", PAGE.replace("{}", '{"pivot": "shape"}'))
        rows = [ROW | {"name": "gla forward", "shape": s, "ms": ms, "of_floor": None} for s, ms in (("B8", 2.0), ("B1", 4.0))]
        self.tool("add", self.rows(*rows, commit="abc"))
        self.tool("write")
        self.assertIn("| gla forward ? | 2 | 4 |", self.page())
        self.assertIn("| few ? | ≤ 1.50x | 2.00x | **missed** |", self.page())

    def test_one_row_beside_another_of_its_shape(self):
        target = {"group": "G", "says": "beside softmax", "name": "^gla forward$", "of": "faster", "than": "attention forward", "must": 5}
        self.write("docs/benchmarks/targets.jsonl", json.dumps(target))
        row = ROW | {"of_floor": None}
        rows = [row | {"name": n, "shape": s, "ms": ms} for n, s, ms in (("gla forward", "B1", 2.0), ("attention forward", "B1", 12.0), ("attention forward", "B2", 2.0))]
        self.tool("add", self.rows(*rows, commit="abc"))
        self.tool("write")
        self.assertIn("| beside softmax ? | ≥ 5.0x | 6.0x | met |", self.page())

    def test_commits_are_told_where_rows_differ(self):
        for pattern, line in (({}, "| gla forward ? | B1 | 2 | 2026-11-29 | bbb |"), ({"pivot": "pass"}, "| gla ? | B1 | 2 |  | 2026-11-29 | bbb |"),
                              ({"pivot": "shape"}, "| gla forward ? | 2 | 2 | 2026-11-28, 2026-11-29 | aaa, bbb |")):
            self.write("docs/benchmarks/rows.jsonl", "")
            self.write("docs/benchmarks.md", PAGE.replace("{}", json.dumps(pattern)))
            same = ROW | {"tbs": None, "of_floor": None}
            self.tool("add", self.rows(same | {"name": "gla forward", "shape": "B8", "date": "2026-11-28"},
                                       same | {"name": "gla backward", "shape": "B8", "date": "2026-11-28"}, commit="aaa"))
            self.tool("add", self.rows(same | {"name": "gla forward", "shape": "B1"}, commit="bbb"))
            self.tool("write")
            self.assertIn(line, self.page())
            self.assertNotIn("commit aaa", self.page())

    def test_what_rows_stand_on_is_in_the_tree(self):
        sys.path.insert(0, TOOLS)
        import glob

        import benchmarks_rows

        for _, files in benchmarks_rows.STANDS_ON + benchmarks_rows.ON_CPU:
            for pattern in files:
                self.assertTrue(glob.glob(os.path.join(benchmarks_rows.ROOT, pattern)), pattern)


if __name__ == "__main__":
    unittest.main()
