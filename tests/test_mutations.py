"""What happens to a checkpoint that is damaged: it is reported, and no number changes silently.

1. Nine layouts are written by hand and measured: the undamaged run.
2. Each is damaged in many ways; a damaged run refuses, or says something that the undamaged one
   does not.
3. What is still measured has the numbers of the undamaged run.
"""

from __future__ import annotations

import math
import unittest
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moe_weights.atomic_files import write_json_atomic
from moe_weights.commands import dask_workers, parts
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.reader import read_table_file
from tests.support import damage
from tests.support.command_line import run_command
from tests.support.config_documents import make_config_document
from tests.support.expert_layouts import (
    HIDDEN,
    N_EXPERTS,
    N_LAYERS,
    WIDTH,
    ExpertLayout,
    make_layouts,
)
from tests.support.runs import CREATED_AT, read_json, temporary_folder

# Places of a matrix that say what it is; everything else in its row is what it measures.
KEYS = ("stack", "layer", "proj", "expert_id", "is_shared_expert")
PROVENANCE = ("file", "source_tensor", "derived_tensor", "extracted_via", "layout_evidence")
_Identity = tuple[Any, ...]
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run says.

    Attributes:
        code: Exit code.
        err: Standard error.
        rows: Rows of matrix_stats by identity; several where an identity is measured twice.
        complete: `coverage.complete`.
        unmatched: Tensors of logs/coverage.json that are unaccounted, with their reasons.
        warnings: Texts of logs/warnings.
    """

    code: int
    err: str
    rows: dict[_Identity, list[_Row]]
    complete: bool | None
    unmatched: frozenset[tuple[str, str]]
    warnings: frozenset[str]


class Mutations(unittest.TestCase):
    maxDiff = None
    layouts: tuple[ExpertLayout, ...]
    undamaged: dict[str, Report]

    @classmethod
    def setUpClass(cls) -> None:
        # Hundreds of runs: none has to survive a power cut, and the code stays the same.
        import_module("moe_weights.commands.dask_workers")  # keeps the real digest
        cls.enterClassContext(patch("os.fsync"))
        for module in (parts, dask_workers):
            cls.enterClassContext(patch.object(module, "code_digest", return_value="same"))
        cls.layouts = make_layouts()
        cls.undamaged = {}

    def run_files(self, files: damage.Files) -> Report:
        """Write, run with the untouched template without MLX, and read the report."""
        folder = temporary_folder(self)
        files.write(folder / "model")
        run = RunDirectory(folder / "runs" / "org" / "first")
        write_json_atomic(
            run.manifest_path,
            {"model_id": "org", "run_name": "first", "created_at": CREATED_AT, "version": 2},
        )
        document = make_config_document({"model_path": str(folder / "model"), "mlx.enabled": False})
        write_json_atomic(run.config_path, document)
        outcome = run_command("collect-data", "--run-dir", run.path)
        coverage_path = run.log_path("coverage.json")
        coverage = read_json(coverage_path) if coverage_path.is_file() else {}
        rows: dict[_Identity, list[_Row]] = {}
        for row in _table(run.path / "data" / "matrix_stats.parquet"):
            rows.setdefault(tuple(row[key] for key in KEYS), []).append(row)
        return Report(
            code=outcome.code,
            err=outcome.err,
            rows=rows,
            complete=coverage.get("complete"),
            unmatched=frozenset(
                (item["tensor"], item["reason"]) for item in coverage.get("unaccounted", [])
            ),
            warnings=frozenset(
                row["warning"] for row in _table(run.path / "logs" / "warnings.parquet")
            ),
        )

    def run_undamaged(self, layout: ExpertLayout) -> Report:
        if layout.name not in self.undamaged:
            self.undamaged[layout.name] = self.run_files(damage.Files.of(layout))
        return self.undamaged[layout.name]

    def hold(self, damaged_by: damage.Damage, *, at_least: int) -> None:
        """Damage every layout that can be damaged so, and check each report."""
        n_damaged = 0
        for layout in self.layouts:
            sound = self.run_undamaged(layout)
            for what, files in damaged_by(damage.Files.of(layout), layout):
                n_damaged += 1
                with self.subTest(layout=layout.name, damage=what):
                    report = self.run_files(files)
                    self.assert_reported(report, sound)
                    self.assert_same_numbers(report, sound)
        self.assertGreaterEqual(n_damaged, at_least)

    def assert_reported(self, report: Report, sound: Report) -> None:
        if report.code:
            self.assertIn(report.code, (3, 4, 5), report.err)
            self.assertTrue(report.err.startswith("error: "), report.err)
            return
        new = report.warnings - sound.warnings
        self.assertTrue(new or report.unmatched, "nothing in the report tells of the damage")

    def assert_same_numbers(self, report: Report, sound: Report) -> None:
        for identity, rows in report.rows.items():
            expected = sound.rows.get(identity)
            if expected is None:
                continue  # an identity that is not in the sound checkpoint cannot be mistaken
            differences = [_difference(row, expected[0]) for row in rows]
            if len(rows) > 1:
                # Two tensors of one name where no index chooses: both stay, and this is told.
                self.assertIs(report.complete, False)
                self.assertIn("", differences)
            elif rows[0]["layout_evidence"] != "convention":
                self.assertEqual(differences, [""], identity)

    def test_undamaged_every_layout_is_complete(self) -> None:
        expected = {
            ("gate_proj", WIDTH, HIDDEN),
            ("up_proj", WIDTH, HIDDEN),
            ("down_proj", HIDDEN, WIDTH),
        }
        for layout in self.layouts:
            with self.subTest(layout=layout.name):
                report = self.run_undamaged(layout)
                self.assertEqual((report.code, report.err, report.complete), (0, "", True))
                self.assertEqual(report.unmatched, frozenset())
                self.assertEqual(len(report.rows), N_LAYERS * N_EXPERTS * 3)
                found = {
                    (row["proj"], row["rows"], row["cols"])
                    for rows in report.rows.values()
                    for row in rows
                }
                self.assertEqual(found, expected)

    def test_a_renamed_tensor(self) -> None:
        self.hold(damage.renamed, at_least=16)

    def test_a_tensor_renamed_behind_the_index(self) -> None:
        self.hold(damage.renamed_in_the_shard_only, at_least=16)

    def test_a_tensor_renamed_to_another_layer(self) -> None:
        self.hold(damage.renamed_to_another_layer, at_least=16)

    def test_a_dropped_tensor(self) -> None:
        self.hold(damage.dropped, at_least=32)

    def test_a_dropped_layer(self) -> None:
        self.hold(damage.layer_dropped, at_least=16)

    def test_a_tensor_in_two_shards(self) -> None:
        self.hold(damage.duplicated, at_least=44)

    def test_transposed_values(self) -> None:
        self.hold(damage.transposed_values, at_least=16)

    def test_exchanged_axes_in_a_header(self) -> None:
        self.hold(damage.shapes_exchanged, at_least=16)

    def test_two_tensors_exchanged_whose_shapes_differ(self) -> None:
        self.hold(damage.up_and_down_exchanged, at_least=12)

    def test_an_added_expert(self) -> None:
        self.hold(damage.expert_added, at_least=3)

    def test_a_padded_bank(self) -> None:
        self.hold(damage.bank_padded, at_least=10)

    def test_a_removed_scale(self) -> None:
        self.hold(damage.companion_removed, at_least=6)

    def test_a_scale_that_lost_its_weights(self) -> None:
        n_damaged = 0
        for layout in self.layouts:
            for what, files in damage.weights_removed(damage.Files.of(layout), layout):
                n_damaged += 1
                with self.subTest(layout=layout.name, damage=what):
                    report = self.run_files(files)
                    self.assertIs(report.complete, False)
                    reasons = {reason for tensor, reason in report.unmatched if tensor != what}
                    self.assertEqual(reasons, {"side_tensor"})
                    self.assert_same_numbers(report, self.run_undamaged(layout))
        self.assertGreaterEqual(n_damaged, 8)

    def test_a_scale_of_the_wrong_shape(self) -> None:
        self.hold(damage.companion_of_wrong_shape, at_least=24)

    def test_a_cut_shard(self) -> None:
        self.hold(damage.shard_cut, at_least=32)

    def test_a_missing_shard(self) -> None:
        self.hold(damage.shard_missing, at_least=16)

    def test_a_shuffled_index(self) -> None:
        self.hold(damage.index_shuffled, at_least=16)

    def test_a_config_that_contradicts(self) -> None:
        self.hold(damage.config_changed, at_least=16)

    def test_a_config_that_says_nothing(self) -> None:
        n_whole = 0
        for layout in self.layouts:
            sound = self.run_undamaged(layout)
            for what, files in damage.config_unknown(damage.Files.of(layout), layout):
                with self.subTest(layout=layout.name, damage=what):
                    report = self.run_files(files)
                    self.assert_same_numbers(report, sound)
                    if sound.rows.keys() <= report.rows.keys():
                        n_whole += 1
                    else:
                        self.assert_reported(report, sound)
        # An expert per tensor under a known name needs no config.
        self.assertGreaterEqual(n_whole, 7)


def _table(path: Path) -> list[_Row]:
    return read_table_file(path).to_dict("records") if path.is_file() else []


def _difference(row: _Row, expected: _Row) -> str:
    """Return the first column that differs, "" for none; where a row is from does not count."""
    for column, value in expected.items():
        if column not in PROVENANCE and not _is_same(row[column], value):
            return (
                f"{column}: {row[column]!r}, undamaged {value!r} "
                f"({row['source_tensor']} by {row['extracted_via']})"
            )
    return ""


def _is_same(value: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(value, float):
        return value == expected or (math.isnan(value) and math.isnan(expected))
    return bool(value == expected)
