"""Other people's architectures, saved by other people's code, held against the live model."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
import unittest
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    import transformers
    from architectures import AMBIGUOUS, ARCHITECTURES, Architecture
    from building import build_model, save_model
    from live_experts import LiveMatrix, read_live_experts
except ImportError as missing:
    raise unittest.SkipTest(f"needs the extra 'real': {missing}") from missing

from moe_weights.cli import main
from moe_weights.tables.reader import read_table_file

RELATIVE_TOLERANCE = 1e-9
N_SHOWN = 6

_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the pipeline said about a checkpoint."""

    code: int
    err: str
    rows: list[_Row]
    coverage: dict[str, Any]
    preset: str | None


class ArchitectureTests(unittest.TestCase):
    """Every expert matrix of a checkpoint is the live model's: none missing, none more."""

    maxDiff = None
    results: ClassVar[list[tuple[str, str, str, str]]] = []

    @classmethod
    def setUpClass(cls) -> None:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        logging.getLogger("transformers").setLevel(logging.ERROR)

    @classmethod
    def tearDownClass(cls) -> None:
        out = sys.__stdout__
        assert out is not None
        out.write("\n")
        for name, dtype, what, result in cls.results:
            out.write(f"{name:30} {dtype:9} {what:34} {result}\n")
        passed = sum(result == "ok" for *_rest, result in cls.results)
        out.write(f"{passed} of {len(cls.results)} architectures right\n")

    def hold(self, architecture: Architecture) -> None:
        """Save, run and compare one architecture."""
        result = "FAILED"
        what = ""
        try:
            model = build_model(architecture)
            truth = read_live_experts(model)
            self.assertTrue(truth, "the model has no experts")
            with tempfile.TemporaryDirectory() as folder:
                save_model(model, Path(folder) / "model", architecture)
                run = _run(Path(folder))
            what = f"{len(truth)} matrices, preset {run.preset}"
            faults = [*_faults_of_run(run), *_faults_of_rows(truth, run.rows)]
            if faults:
                result = faults[0].splitlines()[0][:110]
            self.assertEqual(faults, [])
            result = "ok"
        except Exception as error:
            if result == "FAILED":
                result = f"{type(error).__name__}: {error}".splitlines()[0][:110]
            raise
        finally:
            self.results.append((architecture.name, architecture.dtype, what, result))

    def test_ambiguous_sizes_are_refused_with_every_tensor_named(self) -> None:
        for architecture in AMBIGUOUS:
            with self.subTest(architecture.name), tempfile.TemporaryDirectory() as folder:
                model = build_model(architecture)
                save_model(model, Path(folder) / "model", architecture)
                run = _run(Path(folder))
                self.assertEqual(run.coverage["complete"], False)
                refused = {
                    item["tensor"]
                    for item in run.coverage["unaccounted"]
                    if item["reason"] == "ambiguous_layout"
                }
                self.assertTrue(refused)
                self.assertEqual(refused & {row["source_tensor"] for row in run.rows}, set())
                wrong = [
                    fault
                    for fault in _faults_of_rows(read_live_experts(model), run.rows)
                    if "are missing" not in fault
                ]
                self.assertEqual(wrong, [])


def _test_of(architecture: Architecture) -> Callable[[ArchitectureTests], None]:
    def test(self: ArchitectureTests) -> None:
        self.hold(architecture)

    return test


for _architecture in ARCHITECTURES:
    _name = "test_" + _architecture.name.replace("-", "_")
    setattr(ArchitectureTests, _name, _test_of(_architecture))


def _run(folder: Path) -> Run:
    root = folder / "runs"
    run_path = root / "org" / "first"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        arguments = ("--root", root, "--model-id", "org", "--run-name", "first")
        code = main(["init-run", *map(str, arguments), "--model-path", str(folder / "model")])
        config_path = run_path / "analysis_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        # What MLX would make of the matrices is another test's matter, and these widths are odd.
        config["mlx"]["enabled"] = False
        config_path.write_text(json.dumps(config), encoding="utf-8")
        code = code or main(["collect-data", "--run-dir", str(run_path)])
    stats = run_path / "data" / "matrix_stats.parquet"
    coverage = run_path / "logs" / "coverage.json"
    return Run(
        code=code,
        err=err.getvalue(),
        rows=read_table_file(stats).to_dict("records") if stats.is_file() else [],
        coverage=json.loads(coverage.read_text(encoding="utf-8")) if coverage.is_file() else {},
        preset=config["parsing"]["preset"],
    )


def _faults_of_run(run: Run) -> list[str]:
    faults = []
    if run.code:
        faults.append(f"exit code {run.code}: {run.err.strip()}")
    if run.coverage.get("complete") is not True:
        statuses = Counter(
            f"{stack['stack']} {layer['status']}"
            for stack in run.coverage.get("stacks", [])
            for layer in stack["layers"]
        )
        faults.append(
            f"coverage.complete is {run.coverage.get('complete')}: {dict(statuses)}; "
            f"unaccounted {run.coverage.get('unaccounted', [])[:N_SHOWN]}; "
            f"expected {run.coverage.get('expected')}"
        )
    return faults


def _faults_of_rows(truth: list[LiveMatrix], rows: list[_Row]) -> list[str]:
    """Hold the rows against the truth; stacks may have any name, one for each live stack."""
    by_place: dict[tuple[int, int, str], list[LiveMatrix]] = {}
    for matrix in truth:
        by_place.setdefault((matrix.layer, matrix.expert, matrix.proj), []).append(matrix)
    faults = []
    stack_of: dict[str, str] = {}
    for row in rows:
        if row["is_shared_expert"]:
            continue
        place = (row["layer"], row["expert_id"], row["proj"])
        candidates = by_place.get(place, [])
        true = next((matrix for matrix in candidates if not _difference(matrix, row)), None)
        if true is None:
            told = [_difference(matrix, row) for matrix in candidates] or [
                "there is no such expert"
            ]
            faults.append(f"{row['source_tensor']} as {place} [{row['extracted_via']}]: {told[0]}")
            continue
        candidates.remove(true)
        label = row["stack"] or "the only one"
        if stack_of.setdefault(label, true.stack) != true.stack:
            faults.append(f"stack {label} is {stack_of[label]} and {true.stack}")
    if len(set(stack_of.values())) < len(stack_of):
        faults.append(f"several labels for one stack: {stack_of}")
    missing = [matrix for left in by_place.values() for matrix in left]
    if missing:
        first = missing[0]
        faults.append(
            f"{len(missing)} of {len(truth)} matrices are missing, for example "
            f"{first.stack} layer {first.layer} expert {first.expert} {first.proj}"
        )
    return faults if len(faults) <= N_SHOWN else [*faults[:N_SHOWN], f"... {len(faults)} in all"]


def _difference(matrix: LiveMatrix, row: _Row) -> str:
    """Return what differs first; "" when the row is this matrix."""
    if (row["rows"], row["cols"]) != matrix.values.shape:
        return f"shape {(row['rows'], row['cols'])} is not {matrix.values.shape}"
    size = matrix.values.size
    magnitude = np.abs(matrix.values)
    expected = {
        "mean_abs": float(magnitude.mean()),
        "max_abs": float(magnitude.max()),
        # A sum of both signs is judged by the size of what was added up.
        "mean": float(matrix.values.sum()) / size,
    }
    for name, value in expected.items():
        if abs(row[name] - value) > RELATIVE_TOLERANCE * expected["mean_abs"]:
            return f"{name} {row[name]!r} is not {value!r}"
    return ""


if __name__ == "__main__":
    unittest.main()
