from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np

from moe_weights.cli import main
from moe_weights.run_directory import RunDirectory
from tests.support.checkpoints import make_checkpoint
from tests.support.documents import REPOSITORY, load_script
from tests.support.runs import (
    make_run,
    quant_row,
    stats_row,
    temporary_folder,
    write_csv,
    write_manifest_json,
    write_sources,
)

five_numbers = load_script("examples/five_numbers.py")


def report_of(path: Path) -> tuple[int, list[str]]:
    """Return the exit code and the five lines, or whatever else was printed."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = five_numbers.main([str(path)])
    lines = output.getvalue().splitlines()
    return code, lines[2:7] if code == 0 else errors.getvalue().splitlines()


def quant(**cells: object) -> dict[str, object]:
    return {"bits": 4, **quant_row(**cells)}


class FiveNumbers(unittest.TestCase):
    def setUp(self) -> None:
        self.run_directory = make_run(self)

    def write(
        self,
        stats: list[dict[str, object]],
        simulated: list[dict[str, object]],
        inventory: list[dict[str, object]],
    ) -> RunDirectory:
        run = self.run_directory
        write_sources(run, stats, simulated)
        write_csv(run.path / "data" / "tensor_inventory.csv", inventory)
        names = ("matrix_stats", "quant_sim", "tensor_inventory")
        write_manifest_json(run, {name: f"data/{name}.csv" for name in names})
        return run

    def test_are_taken_from_the_tables(self) -> None:
        key = {"source_tensor": "t", "is_routed_expert": True}
        shared = {"expert_id": -1, "is_shared_expert": True, "is_routed_expert": False}
        run = self.write(
            [
                stats_row(**key, rms=1.0, g32_p95_outlier=2.0),
                stats_row(**key, expert_id=1, rms=1.5, g32_p95_outlier=7.5),
                stats_row(**key, layer=1, rms=9.0),
                stats_row(**{**key, **shared}, rms=99.0, g32_p95_outlier=None),
            ],
            [
                quant(scheme="q4", w_rel_fro=0.10),
                quant(scheme="mx", w_rel_fro=0.30),
                quant(scheme="q8", w_rel_fro=0.9, bits=8),
                quant(scheme="q4", w_rel_fro=0.20, proj="up_proj", derived_tensor="u"),
                quant(scheme="mx", w_rel_fro=None, error="ValueError: no", proj="up_proj"),
            ],
            [
                {"file": "a.safetensors", "tensor_name": "t", "nbytes": 30},
                {"file": "b.safetensors", "tensor_name": "t", "nbytes": 70},
            ],
        )
        self.assertEqual(
            report_of(run.path),
            (
                0,
                [
                    "  1. 128 weights measured in 4 matrices, 30.0 % of the checkpoint's bytes",
                    (
                        "  2. 0.9000 mean w_rel_fro of q8, most on gate_proj (0.9000); mx 0.3000, "
                        "q4 0.1500"
                    ),
                    (
                        "  3. 0.3000 w_rel_fro of mx on layer 0 gate_proj expert 0, the worst at "
                        "4 bits; there q4 0.1000"
                    ),
                    (
                        "  4. 7.50 g32_p95_outlier in layer 0 gate_proj expert 1, the heaviest "
                        "tail; median 2.00"
                    ),
                    (
                        "  5. 1.500 max/min rms between the experts of layer 0 gate_proj, the "
                        "widest spread"
                    ),
                ],
            ),
        )

    def test_tell_layers_of_different_stacks_apart(self) -> None:
        def pair(stack: str, sizes: tuple[float, float]) -> list[dict[str, object]]:
            key = {"source_tensor": stack, "is_routed_expert": True, "stack": stack}
            return [stats_row(**key, expert_id=n, rms=rms) for n, rms in enumerate(sizes)]

        run = self.write(
            [*pair("encoder", (1.0, 1.5)), *pair("decoder", (8.0, 10.0))],
            [quant(w_rel_fro=0.5, stack="decoder")],
            [{"file": "a.safetensors", "tensor_name": "encoder", "nbytes": 8}],
        )
        lines = report_of(run.path)[1]
        self.assertEqual(
            lines[2],
            "  3. 0.5000 w_rel_fro of q4 on decoder layer 0 gate_proj expert 0, the worst at 4 "
            "bits",
        )
        self.assertEqual(
            lines[4],
            "  5. 1.500 max/min rms between the experts of encoder layer 0 gate_proj, the widest "
            "spread",
        )

    def test_say_so_where_there_is_nothing_to_compare(self) -> None:
        key = {"source_tensor": "t", "is_routed_expert": True}
        run = self.write(
            [stats_row(**key, g32_p95_outlier=None, expert_id=-1)],
            [quant(w_rel_fro=None, error="ValueError: no")],
            [{"file": "a.safetensors", "tensor_name": "t", "nbytes": 8}],
        )
        self.assertEqual(
            report_of(run.path)[1][1:],
            [
                "  2. no simulated error: see the column error of data/quant_sim",
                "  3. no simulated error: see the column error of data/quant_sim",
                "  4. no group outlier ratio: no matrix falls into whole groups",
                "  5. no layer with two routed experts to compare",
            ],
        )

    def test_end_with_the_errors_exit_code_before_anything_was_collected(self) -> None:
        code, lines = report_of(self.run_directory.path)
        self.assertEqual(code, 5)
        self.assertTrue(lines[0].startswith("error: CheckpointError: no matrix_stats in this run"))
        missing = self.run_directory.path / "missing"
        self.assertEqual(report_of(missing)[0], 2)


class AfterARealRun(unittest.TestCase):
    def collected(self, tensors: dict[str, np.ndarray]) -> Path:
        folder = temporary_folder(self)
        make_checkpoint(folder / "model", tensors)
        names = ("--root", str(folder), "--model-id", "m", "--run-name", "r", "--quiet")
        self.assertEqual(main(["init-run", *names, "--model-path", str(folder / "model")]), 0)
        run = folder / "m" / "r"
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(main(["collect-data", "--run-dir", str(run), "--quiet"]), 0)
        return run

    def test_with_zero_rows(self) -> None:
        run = self.collected({"model.norm.weight": np.ones(4, dtype=np.float32)})
        self.assertEqual(
            report_of(run),
            (
                0,
                [
                    "  1. 0 weights measured: see logs/warnings and data/unmatched_tensors",
                    "  2. no simulated error: no matrix was measured",
                    "  3. no simulated error: no matrix was measured",
                    "  4. no group outlier ratio: no matrix falls into whole groups",
                    "  5. no layer with two routed experts to compare",
                ],
            ),
        )

    def test_as_a_script(self) -> None:
        run = self.collected(
            {
                f"model.layers.0.mlp.experts.{expert}.up_proj.weight": np.full(
                    (2, 64), expert + 1.0, dtype=np.float32
                )
                for expert in range(2)
            }
        )
        done = subprocess.run(
            [sys.executable, "examples/five_numbers.py", str(run)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = done.stdout.splitlines()
        self.assertEqual(lines[1], f"Five numbers of {run}")
        self.assertEqual(
            lines[6],
            "  5. 2.000 max/min rms between the experts of layer 0 up_proj, the widest spread",
        )
        self.assertEqual(
            lines[7:],
            [
                "Where to look",
                "  logs/run_health.json   what was read and measured; 2 warnings in logs/warnings",
                "  data/                  one row per tensor, matrix, and matrix and scheme",
                "  tables/                after build_tables",
                f"  in a notebook          moe_weights.open_run('{run}')",
            ],
        )


if __name__ == "__main__":
    unittest.main()
